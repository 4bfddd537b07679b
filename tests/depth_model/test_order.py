"""Sample order: permutations, batches and draws as pure functions."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depth_model.data.order import batches, generator, permute, sample_at

SEEDS = st.integers(0, 2**63)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 300), SEEDS, st.integers(0, 10**6))
def test_an_epoch_is_a_permutation(size, seed, epoch):
    order = [permute(i, size, seed, epoch) for i in range(size)]
    assert sorted(order) == list(range(size))
    assert order == [permute(i, size, seed, epoch) for i in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 1023, 1024, 1025])
def test_sizes_around_powers_of_two(size):
    assert sorted(permute(i, size, 0, 0) for i in range(size)) == list(range(size))


def test_epochs_and_seeds_have_their_own_order():
    for keys in ([(seed, 0) for seed in range(9)], [(0, epoch) for epoch in range(9)]):
        assert len({tuple(permute(i, 50, *key) for i in range(50)) for key in keys}) == 9


def test_the_order_looks_random():
    order = np.array([permute(i, 4096, 7, 3) for i in range(4096)])
    assert abs(np.corrcoef(order, np.arange(4096))[0, 1]) < 0.08
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.08


def test_62_million_samples_cost_no_more_than_a_few():
    start = time.perf_counter()
    drawn = [permute(i, 62_000_000, 0, 1) for i in (0, 1, 31_000_000, 61_999_998, 61_999_999)]
    assert len(set(drawn)) == 5 and all(0 <= i < 62_000_000 for i in drawn)
    assert time.perf_counter() - start < 0.1, "microseconds each; a shuffled list would take seconds"


@pytest.mark.parametrize("position", [-1, 10])
def test_a_position_outside_the_epoch_is_an_error(position):
    with pytest.raises(ValueError, match="outside an epoch of 10"):
        permute(position, 10, 0, 0)


def test_positions_run_on_into_the_next_epoch():
    keys = [sample_at(position, 10, 3) for position in range(30)]
    assert [epoch for epoch, _ in keys] == [0] * 10 + [1] * 10 + [2] * 10
    assert all(sorted(index for epoch, index in keys if epoch == e) == list(range(10)) for e in range(3))


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 90), SEEDS, st.integers(0, 20))
def test_batches_do_not_depend_on_processes_or_on_where_a_run_goes_on(size, seed, first):
    whole = list(batches(size, 12, seed, 0, first + 3))
    for world in (1, 2, 3, 12):
        parts = [list(batches(size, 12, seed, first, first + 3, rank, world)) for rank in range(world)]
        assert [sum(shares, []) for shares in zip(*parts, strict=True)] == whole[first:]


def test_batches_cover_an_epoch_once():
    keys = [key for batch in batches(24, 6, 1, 0, 8) for key in batch]
    assert [step for step, _, _ in keys] == [i // 6 for i in range(48)]
    for epoch in (0, 1):
        assert sorted(index for _, e, index in keys if e == epoch) == list(range(24))


def test_a_batch_that_processes_cannot_share_is_an_error():
    with pytest.raises(ValueError, match="a global batch of 10 does not divide by 4 processes"):
        next(batches(100, 10, 0, 0, 1, 0, 4))


def test_draws_belong_to_their_position():
    assert generator(1, 2, 3).random() == generator(1, 2, 3).random()
    assert len({generator(*key).random() for key in [(1, 2, 3), (1, 3, 2), (2, 2, 3), (1, 2), (1, 2, 4)]}) == 5


def test_seed_and_epoch_are_not_interchangeable():
    orders = {tuple(permute(i, 50, seed, epoch) for i in range(50)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
