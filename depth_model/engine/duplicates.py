"""Near-duplicates: the same picture encoded again, resized, cropped a little, or brightened.

Three steps, each on what the one before leaves. A perceptual hash (the signs of the low frequencies of the cosine
transform, as in Zauner 2010) is looked up in an index for short Hamming distances (multi-index hashing, Norouzi et al.
2012); the whole hash is compared; and the two pictures are registered onto each other (Lucas and Kanade 1981), since
only a copy also agrees in its details. Frames of a video a moment apart often pass the first two and fail the last.
"""

import numpy as np
from PIL import Image

FINE = 128
"""Side of the square grey pictures that are registered, pixels."""

_GRID, _CELLS, _LOW, _ORDER = 64, 32, 8, 16
# An image cropped by up to 3 % a side is closest to itself seen a little larger or smaller.
_MARGINS = (0.0, -0.03, -0.015, 0.015, 0.03)
_CHUNKS, _CHUNK_BITS = 4, 16
_NEAR_CHUNK = np.array([0, *(1 << bit for bit in range(_CHUNK_BITS))], dtype=np.uint64)
_TAIL = 8192


def _transform(margin: float) -> np.ndarray:
    """Rows of the cosine transform of a line seen from -margin to 1 + margin, its ends continued; [_ORDER, _GRID]."""
    taps = 8
    at = -margin + (np.arange(_CELLS * taps) + 0.5) / (_CELLS * taps) * (1 + 2 * margin)
    at = np.clip(at * _GRID - 0.5, 0, _GRID - 1)
    low = np.minimum(at.astype(int), _GRID - 2)
    sampled = np.zeros((_CELLS, _GRID))
    cell = np.repeat(np.arange(_CELLS), taps)
    np.add.at(sampled, (cell, low), (1 - at + low) / taps)
    np.add.at(sampled, (cell, low + 1), (at - low) / taps)
    cosines = np.cos(np.pi * (2 * np.arange(_CELLS) + 1) * np.arange(_ORDER)[:, None] / (2 * _CELLS))
    return (cosines @ sampled).astype(np.float32)


_TRANSFORMS = np.stack([_transform(margin) for margin in _MARGINS])
_IS_LOW = np.zeros((_ORDER, _ORDER), bool)
_IS_LOW[:_LOW, :_LOW] = True


def square(picture: Image.Image, side: int) -> np.ndarray:
    """A grey picture squeezed to float32 [side, side]."""
    return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR), dtype=np.float32)


def hash_codes(picture: Image.Image) -> np.ndarray:
    """256-bit hashes of a grey picture, uint64 [5, 4]: as it is, and seen a little larger and smaller.

    The first of the four words has the 8 x 8 lowest frequencies.
    """
    grid = square(picture, _GRID)
    bits = _TRANSFORMS @ grid @ _TRANSFORMS.transpose(0, 2, 1) > 0
    # The mean brightness says nothing.
    bits[:, 0, 0] = False
    ordered = np.concatenate([bits[:, _IS_LOW], bits[:, ~_IS_LOW]], axis=1)
    return np.ascontiguousarray(np.packbits(ordered, axis=1)).view(np.uint64)


def distances(codes: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Hamming distance [n] from each code [n, 4] to the closest of the query's [m, 4]."""
    return np.bitwise_count(codes[:, None] ^ query[None]).sum(-1, dtype=np.int64).min(1)


class HashIndex:
    """Codes by number, found by a distance of up to 7 in their first word, and then `radius` in all.

    A look-up takes a quarter of a millisecond among thousands; among many more it looks into about 340 of the 65,536
    lists of each 16-bit part. 32 bytes a code, and 16 for the lists.
    """

    def __init__(self, radius: int = 64):
        self.radius, self.count, self._listed = radius, 0, 0
        self._codes = np.empty((1024, 4), np.uint64)
        self._lists: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, code: np.ndarray) -> None:
        """Adds a code [4], which gets the next number."""
        if self.count == len(self._codes):
            self._codes = np.concatenate([self._codes, np.empty_like(self._codes)])
        self._codes[self.count] = code
        self.count += 1
        if self.count - self._listed > max(_TAIL, self._listed // 8):
            self._sort()

    def _sort(self) -> None:
        self._lists = []
        for chunk in range(_CHUNKS):
            parts = self._part(self._codes[: self.count, 0], chunk).astype(np.uint16)
            order = np.argsort(parts, kind="stable").astype(np.uint32)
            ends = np.cumsum(np.bincount(parts, minlength=1 << _CHUNK_BITS))
            self._lists.append((order, np.concatenate([[0], ends])))
        self._listed = self.count

    @staticmethod
    def _part(words: np.ndarray, chunk: int) -> np.ndarray:
        return words >> np.uint64(chunk * _CHUNK_BITS) & np.uint64((1 << _CHUNK_BITS) - 1)

    def find(self, query: np.ndarray) -> np.ndarray:
        """Numbers of the codes close to any of the query's [m, 4], the closest first."""
        words = self._codes[self._listed : self.count, 0]
        near = (np.bitwise_count(words[:, None] ^ query[None, :, 0]) <= 7).any(1)
        found = [np.flatnonzero(near) + self._listed]
        for chunk, (order, ends) in enumerate(self._lists):
            # Of 7 wrong bits, at most one is in one of the four parts.
            for part in np.unique(self._part(query[:, 0], chunk)[:, None] ^ _NEAR_CHUNK):
                found.append(order[ends[int(part)] : ends[int(part) + 1]])
        numbers = np.unique(np.concatenate(found).astype(np.int64))
        apart = distances(self._codes[numbers], query)
        close = apart <= self.radius
        return numbers[close][np.argsort(apart[close], kind="stable")]


def dissimilarity(one: np.ndarray, other: np.ndarray) -> float:
    """Share of a picture's variance that the other, registered onto it, does not explain: 0 for a copy, 1 at most.

    Both are float32 [FINE, FINE]. Registration shifts and scales along both axes, by up to 8 %, and adjusts contrast
    and brightness; it starts from pictures a quarter as large. The smaller of both directions counts.
    """
    return min(_unexplained(one, other), _unexplained(other, one))


def _unexplained(moving: np.ndarray, fixed: np.ndarray) -> float:
    side = len(fixed) // 4
    shrunk = [p.reshape(side, 4, side, 4).mean((1, 3)) for p in (moving, fixed)]
    _, warp = _register(*(_smooth(p) for p in shrunk), np.zeros(4), 6)
    return _register(_smooth(moving), _smooth(fixed), warp, 3)[0]


def _smooth(picture: np.ndarray) -> np.ndarray:
    padded = np.pad(picture, 1, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16


def _register(moving: np.ndarray, fixed: np.ndarray, warp: np.ndarray, steps: int) -> tuple[float, np.ndarray]:
    """The least unexplained variance on the way, and its warp (scale and shift along x, along y), by Gauss-Newton."""
    side, edge = len(fixed), max(2, len(fixed) // 25)
    inner, at = np.s_[edge:-edge, edge:-edge], ((np.arange(side) + 0.5) / side - 0.5).astype(np.float32)
    target = fixed[inner].ravel() - fixed[inner].mean()
    variance = float(target @ target) + 1e-6 * target.size
    down, right = np.gradient(moving)
    best = 1.0, warp
    for step in range(steps + 1):
        x, y = _sampling(at, *warp[:2]), _sampling(at, *warp[2:])
        seen, by_x, by_y = (y @ picture @ x.T for picture in (moving, right * side, down * side))
        centred = seen[inner].ravel() - seen[inner].mean()
        gain = max(float(centred @ target) / (float(centred @ centred) + 1e-6), 1e-3)
        rest = target - gain * centred
        best = min(best, (float(rest @ rest) / variance, warp), key=lambda found: found[0])
        if step == steps:
            break
        columns = [seen, np.ones_like(seen), by_x * at, by_x, by_y * at[:, None], by_y]
        matrix = np.stack([column[inner].ravel() for column in columns])
        solved = np.linalg.lstsq(matrix @ matrix.T, matrix @ fixed[inner].ravel(), rcond=None)[0]
        if abs(solved[0]) < 1e-3:
            break
        warp = np.clip(warp + solved[2:] / solved[0], -0.08, 0.08)
    return best


def _sampling(at: np.ndarray, scale: float, shift: float) -> np.ndarray:
    """Matrix [side, side] of linear interpolation at the scaled and shifted positions."""
    side = len(at)
    position = np.clip((at * (1 + scale) + shift + 0.5) * side - 0.5, 0, side - 1.001)
    left = position.astype(int)
    matrix = np.zeros((side, side), np.float32)
    rows = np.arange(side)
    matrix[rows, left], matrix[rows, left + 1] = 1 - position + left, position - left
    return matrix
