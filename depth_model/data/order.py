"""Which sample comes when, and with which random draws: pure functions of (seed, epoch, position).

Nothing here keeps state, so a resumed run, another number of processes or of loader workers sees the same samples. The
permutation of an epoch is computed for one position at a time (a Feistel network with cycle walking), so position 62
million costs as much as position 0.
"""

from collections.abc import Iterator

import numpy as np

_ROUNDS = 4


def _mix(value: int, key: int) -> int:
    """A 64-bit hash of (value, key): the splitmix64 finaliser."""
    z = (value + key + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return z ^ (z >> 31)


def permute(position: int, size: int, seed: int, epoch: int) -> int:
    """Where `position` goes in the permutation of range(`size`) that belongs to (seed, epoch).

    Raises:
        ValueError: `position` outside range(size).
    """
    if not 0 <= position < size:
        raise ValueError(f"position {position} is outside an epoch of {size} samples")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    # Each number is mixed in on its own: seed + epoch alike must not give the order alike.
    key = _mix(_mix(seed & 0xFFFFFFFFFFFFFFFF, 0), epoch)
    keys = [_mix(key, r) for r in range(_ROUNDS)]
    value = position
    while True:
        left, right = value >> half, value & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right, round_key) & mask)
        value = left << half | right
        if value < size:
            return value


def sample_at(position: int, size: int, seed: int) -> tuple[int, int]:
    """The (epoch, index) of the sample at global `position`, counted over all epochs, in a set of `size` samples."""
    epoch, within = divmod(position, size)
    return epoch, permute(within, size, seed, epoch)


def generator(seed: int, *position: int) -> np.random.Generator:
    """The source of every random draw made for one sample (seed, epoch, index) or one step (seed, step)."""
    return np.random.default_rng([seed, *position])


def batches(
    size: int, batch: int, seed: int, first_step: int, last_step: int, rank: int = 0, world: int = 1
) -> Iterator[list[tuple[int, int, int]]]:
    """For each step in [first_step, last_step) this process's share of the global batch as (step, epoch, index) keys.

    `batch` is the global batch over all processes; process `rank` takes its `rank`-th contiguous part.

    Raises:
        ValueError: `batch` does not divide by `world`.
    """
    if batch % world:
        raise ValueError(f"a global batch of {batch} does not divide by {world} processes")
    share = batch // world
    for step in range(first_step, last_step):
        start = step * batch + rank * share
        yield [(step, *sample_at(start + i, size, seed)) for i in range(share)]
