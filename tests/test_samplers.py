"""Samplers: which items come, in which order, and how often each came before."""

from __future__ import annotations

import math
import pickle
from collections import Counter

import pytest

from dlas_store.datasets import DistIterSampler, create_dataloader
from dlas_store.datasets.draws import Draw
from dlas_store.datasets.samplers import EpochSampler, PlainIndices


def indices(draws: list[Draw]) -> list[int]:
    return [draw.index for draw in draws]


def test_every_item_comes_once_an_epoch() -> None:
    for shuffle in (True, False):
        sampler = EpochSampler(50, seed=1, shuffle=shuffle)
        assert len(sampler) == 50
        epochs = [list(sampler) for _ in range(3)]
        for number, epoch in enumerate(epochs):
            assert sorted(epoch) == [Draw(index, number) for index in range(50)]
            assert all(type(draw.index) is int for draw in epoch)
        assert (indices(epochs[0]) == list(range(50))) is not shuffle
        assert (indices(epochs[0]) == indices(epochs[1])) is not shuffle


def test_an_order_follows_from_seed_and_epoch() -> None:
    orders = {}
    for seed in range(3):
        sampler = EpochSampler(20, seed=seed, shuffle=True)
        for epoch in range(3):
            orders[seed, epoch] = tuple(indices(list(sampler)))
    assert len(set(orders.values())) == 9  # epoch 1 of seed 0 is not epoch 0 of seed 1
    sampler = EpochSampler(20, seed=2, shuffle=True)
    sampler.set_epoch(2)
    assert tuple(indices(list(sampler))) == orders[2, 2]


def test_plain_indices_are_those_of_the_draws() -> None:
    plain, draws = (EpochSampler(20, seed=3, shuffle=True) for _ in range(2))
    ints = PlainIndices(plain)
    assert len(ints) == 20
    assert [list(ints), list(ints)] == [indices(list(draws)), indices(list(draws))]
    ints.set_epoch(0)
    draws.set_epoch(0)
    assert list(ints) == indices(list(draws))


@pytest.mark.parametrize(("length", "replicas", "ratio"), [(10, 1, 100), (10, 3, 100), (7, 4, 5), (3, 8, 1), (1, 1, 1)])
def test_the_ranks_share_an_enlarged_epoch(length: int, replicas: int, ratio: int) -> None:
    samplers = [DistIterSampler(length, replicas=replicas, rank=rank, ratio=ratio, seed=1) for rank in range(replicas)]
    share = math.ceil(length * ratio / replicas)
    epochs = []
    for _ in range(3):
        shares = [list(sampler) for sampler in samplers]
        assert [len(one) for one in shares] == [share] * replicas == [len(sampler) for sampler in samplers]
        draws = [draw for one in shares for draw in one]
        counts = Counter(indices(draws))
        assert set(counts) == set(range(length))
        assert max(counts.values()) - min(counts.values()) <= 1
        epochs.append(draws)
    everything = [draw for draws in epochs for draw in draws]
    assert len(set(everything)) == len(everything)  # no item ever comes again with the same random numbers


def test_an_enlarged_epoch_is_shuffled_as_a_whole_by_seed_and_epoch() -> None:
    def epochs(seed: int) -> list[list[int]]:
        sampler = DistIterSampler(10, replicas=2, rank=0, seed=seed)
        return [indices(list(sampler)) for _ in range(2)]

    first, second = epochs(0)
    assert len(first) == 500
    assert first != second
    assert epochs(0) == [first, second]
    assert first not in epochs(1)
    assert second not in epochs(1)
    assert len({tuple(sorted(first[start : start + 10])) for start in range(0, 500, 10)}) > 10
    sampler = DistIterSampler(10, replicas=2, rank=0)
    sampler.set_epoch(1)
    assert indices(list(sampler)) == second


def test_ranks_get_different_parts_of_one_permutation() -> None:
    parts = [list(DistIterSampler(40, replicas=2, rank=rank, ratio=1)) for rank in range(2)]
    assert sorted(indices(parts[0]) + indices(parts[1])) == list(range(40))
    assert parts[0] != parts[1]


def test_it_feeds_our_loader_whatever_the_dataset_and_is_told_the_epoch() -> None:
    sampler = DistIterSampler(8, replicas=1, rank=0, ratio=2)
    expected = [indices(list(sampler)) for _ in range(2)]
    sampler.set_epoch(0)
    loader = create_dataloader(range(8), {"batch_size": 4, "phase": "val"}, sampler=sampler)  # type: ignore[arg-type]
    passes = [[int(number) for batch in loader for number in batch] for _ in range(2)]
    assert passes == expected
    assert len(loader) == 4
    loader.set_epoch(1)
    assert [int(number) for batch in loader for number in batch] == expected[1]


def test_a_sampler_is_pickled_with_its_epoch() -> None:
    sampler = EpochSampler(20, seed=3, shuffle=True)
    list(sampler)
    again: EpochSampler = pickle.loads(pickle.dumps(sampler))
    assert list(again) == list(sampler)
