"""Permutation: every item once, in an order that looks random, for any length and window, without memory."""

from __future__ import annotations

import math
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlas_store.sampling.rng import Indices, Permutation


def order(length: int, seed: int = 0, epoch: int = 0, window: int | None = None) -> Indices:
    return Permutation(length, seed=seed, epoch=epoch, window=window).at(np.arange(length))


def excess(observed: Indices, kinds: int) -> float:
    """Return by how many standard deviations the chi-square of frequencies, equal if random, exceeds its mean."""
    counts = np.bincount(observed, minlength=kinds)
    assert len(counts) == kinds
    expected = len(observed) / kinds
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    return (chi_square - (kinds - 1)) / math.sqrt(2 * (kinds - 1))


@pytest.mark.parametrize("window", [None, 1, 7, 32])
def test_every_item_comes_once_for_every_short_length(window: int | None) -> None:
    for length in range(301):
        assert sorted(order(length, seed=length, window=window).tolist()) == list(range(length))


@given(
    length=st.integers(1, 30_000),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 10**6),
    window=st.none() | st.integers(1, 40_000),
)
def test_every_item_comes_once_for_any_length_and_window(
    length: int, seed: int, epoch: int, window: int | None
) -> None:
    assert np.array_equal(np.sort(order(length, seed, epoch, window)), np.arange(length))


@pytest.mark.parametrize("window", [None, 10])
@pytest.mark.parametrize("length", [2, 5, 17, 95, 1000])
def test_a_position_gives_the_same_item_alone_and_among_others(length: int, window: int | None) -> None:
    permutation = Permutation(length, seed=4, epoch=2, window=window)
    positions = np.random.default_rng(0).integers(0, length, 300)
    together = permutation.at(positions)
    assert together.dtype == np.int64
    assert np.array_equal(together, np.concatenate([permutation.at(positions[i : i + 1]) for i in range(300)]))
    assert np.array_equal(together, order(length, 4, 2, window)[positions])


@pytest.mark.parametrize("window", [None, 1000])
def test_it_takes_neither_memory_nor_time_for_items_that_nobody_asks_for(window: int | None) -> None:
    length = 2**40
    positions = np.concatenate([np.arange(5000), np.arange(length - 5000, length)])
    order(100, window=window)  # the first use sets up state of NumPy
    tracemalloc.start()
    items = Permutation(length, seed=0, epoch=0, window=window).at(positions)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(items)) == len(positions)
    assert items.min() >= 0
    assert length * 0.9 < items.max() < length
    assert peak < 2_000_000


def test_a_position_outside_is_refused() -> None:
    permutation = Permutation(5, seed=0, epoch=0)
    assert len(permutation) == 5
    for position in (-1, 5):
        with pytest.raises(IndexError, match="positions must be from 0 to 4"):
            permutation.at(np.array([0, position]))
    assert Permutation(0, seed=0, epoch=0).at(np.arange(0)).tolist() == []
    with pytest.raises(IndexError):
        Permutation(0, seed=0, epoch=0).at(np.array([0]))


@pytest.mark.parametrize("window", [None, 6])
def test_each_seed_and_epoch_has_an_order_of_its_own(window: int | None) -> None:
    orders = [order(20, seed, epoch, window) for seed in range(30) for epoch in range(30)]
    assert len({tuple(items.tolist()) for items in orders}) == 900
    assert np.array_equal(order(20, 3, 4, window), order(20, 3, 4, window))


@pytest.mark.parametrize("length", [1000, 2**16, 2**16 + 1, 100_000])
def test_an_order_keeps_nothing_of_the_positions(length: int) -> None:
    items = order(length, seed=5)
    chance = 1 / math.sqrt(length)
    for other in (np.arange(length), np.roll(items, 1), np.arange(length) % 2, order(length, 5, 1), order(length, 6)):
        assert abs(np.corrcoef(items, other)[0, 1]) < 4 * chance
    neighbours = np.count_nonzero(np.abs(np.diff(items)) == 1)
    assert neighbours <= 10  # 2 are expected
    assert excess(np.diff(items) % 64, 64) < 5
    assert np.count_nonzero(items == np.arange(length)) <= 8  # 1 is expected


@pytest.mark.parametrize("by_epoch", [False, True])
@pytest.mark.parametrize("length", [2, 3, 5, 7, 10, 64])
def test_each_item_is_first_and_last_about_equally_often(length: int, by_epoch: bool) -> None:
    ends = np.array([0, length - 1])
    seeds = [(7, number) if by_epoch else (number, 0) for number in range(10_000)]
    items = np.array([Permutation(length, seed=seed, epoch=epoch).at(ends) for seed, epoch in seeds])
    assert excess(items[:, 0], length) < 5
    assert excess(items[:, 1], length) < 5


@pytest.mark.parametrize(("length", "orders"), [(3, 6), (4, 24), (5, 120)])
def test_all_orders_of_a_few_items_turn_up_about_equally(length: int, orders: int) -> None:
    samples = np.array([order(length, seed) for seed in range(12_000)])
    kinds, numbers = np.unique(samples, axis=0, return_inverse=True)
    assert len(kinds) == orders
    assert excess(numbers.reshape(-1), orders) < 5


def windows_of(items: Indices, length: int, window: int) -> list[list[int]]:
    """Split an order where its windows end, and check that each piece holds one window's items."""
    pieces, at = [], 0
    while at < length:
        number = int(items[at]) // window
        piece = items[at : at + min(window, length - number * window)].tolist()
        assert sorted(piece) == list(range(number * window, min(length, (number + 1) * window)))
        pieces.append(piece)
        at += len(piece)
    return pieces


@given(length=st.integers(1, 3000), window=st.integers(1, 3100), seed=st.integers(0, 2**62))
def test_one_window_comes_whole_before_the_next(length: int, window: int, seed: int) -> None:
    assert len(windows_of(order(length, seed, window=window), length, window)) == math.ceil(length / window)


def test_windows_and_the_items_in_each_are_shuffled() -> None:
    pieces = windows_of(order(10_050, seed=1, window=100), 10_050, 100)
    numbers = [piece[0] // 100 for piece in pieces]
    assert sum(abs(after - before) == 1 for before, after in pairwise(numbers)) <= 8
    inside = {tuple(item % 100 for item in piece) for piece in pieces}
    assert len(inside) == len(pieces)
    firsts = np.array([piece[0] % 100 // 10 for piece in pieces if len(piece) == 100])
    assert excess(firsts, 10) < 5


def test_any_window_may_stand_anywhere_the_short_one_too() -> None:
    orders = np.array([[piece[0] // 10 for piece in windows_of(order(33, s, window=10), 33, 10)] for s in range(4000)])
    for number in range(4):
        assert excess(np.nonzero(orders == number)[1], 4) < 5
    kinds, numbers = np.unique(orders, axis=0, return_inverse=True)
    assert len(kinds) == 24
    assert excess(numbers.reshape(-1), 24) < 5
