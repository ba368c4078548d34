"""Samplers: the order of items, their repetitions, the division among ranks, and epochs that resume."""

from __future__ import annotations

import json
import math
import pickle
import time
import tracemalloc
from collections import Counter
from itertools import islice, zip_longest
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlas_store.datasets import DistIterSampler, create_dataloader
from dlas_store.errors import ConfigError
from dlas_store.loading.loader import plain_indices
from dlas_store.sampling.rng import SampleKey
from dlas_store.sampling.samplers import EpochSampler


def indices(keys: list[SampleKey]) -> list[int]:
    return [key.index for key in keys]


def test_every_item_comes_once_an_epoch() -> None:
    for shuffle in (True, False):
        sampler = EpochSampler(50, seed=1, shuffle=shuffle)
        assert len(sampler) == 50
        epochs = [list(sampler) for _ in range(3)]
        for number, epoch in enumerate(epochs):
            assert sorted(epoch) == [SampleKey(index, number) for index in range(50)]
            assert all(type(key.index) is int for key in epoch)
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
    plain, sampler = (EpochSampler(20, seed=3, shuffle=True) for _ in range(2))

    def ints() -> list[int]:
        return [index for batch in plain_indices(plain.batches()) for index in batch]

    assert len(plain) == 20
    assert [ints(), ints()] == [indices(list(sampler)), indices(list(sampler))]
    plain.set_epoch(0)
    sampler.set_epoch(0)
    assert ints() == indices(list(sampler))


@pytest.mark.parametrize(("length", "replicas", "ratio"), [(10, 1, 100), (10, 3, 100), (7, 4, 5), (3, 8, 1), (1, 1, 1)])
def test_the_ranks_share_an_enlarged_epoch(length: int, replicas: int, ratio: int) -> None:
    samplers = [DistIterSampler(length, replicas=replicas, rank=rank, ratio=ratio, seed=1) for rank in range(replicas)]
    count = math.ceil(length * ratio / replicas)
    epochs = []
    for _ in range(3):
        keys_of_ranks = [list(sampler) for sampler in samplers]
        assert list(map(len, keys_of_ranks)) == [count] * replicas == [len(sampler) for sampler in samplers]
        keys = [key for rank_keys in keys_of_ranks for key in rank_keys]
        counts = Counter(indices(keys))
        assert set(counts) == set(range(length))
        assert max(counts.values()) - min(counts.values()) <= 1
        epochs.append(keys)
    all_keys = [key for keys in epochs for key in keys]
    assert len(set(all_keys)) == len(all_keys)  # an item that comes again always has new random numbers


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
    first, second = (list(DistIterSampler(40, replicas=2, rank=rank, ratio=1)) for rank in range(2))
    assert sorted(indices(first) + indices(second)) == list(range(40))
    assert first != second


def test_it_feeds_our_loader_whatever_the_dataset_and_is_told_the_epoch() -> None:
    sampler = DistIterSampler(8, replicas=1, rank=0, ratio=2)
    expected = [indices(list(sampler)) for _ in range(2)]
    sampler.set_epoch(0)
    loader = create_dataloader(range(8), {"batch_size": 4, "phase": "val"}, sampler=sampler)  # type: ignore[arg-type]
    epochs = [[int(number) for batch in loader for number in batch] for _ in range(2)]
    assert epochs == expected
    assert len(loader) == 4
    loader.set_epoch(1)
    assert [int(number) for batch in loader for number in batch] == expected[1]


def test_a_sampler_is_pickled_with_its_epoch() -> None:
    sampler = EpochSampler(20, seed=3, shuffle=True)
    list(sampler)
    again: EpochSampler = pickle.loads(pickle.dumps(sampler))
    assert list(again) == list(sampler)


def test_a_window_is_read_whole_before_the_next() -> None:
    order = indices(list(EpochSampler(1000, seed=1, shuffle=True, window=50)))
    assert sorted(order) == list(range(1000))
    windows = [order[start : start + 50] for start in range(0, 1000, 50)]
    assert all(max(window) - min(window) == 49 for window in windows)
    assert all(window != sorted(window) for window in windows)
    assert windows != sorted(windows)


@st.composite
def rank_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of EpochSampler that divide an epoch among ranks."""
    ranks = draw(st.integers(1, 6))
    return {
        "ranks": ranks,
        "batch_size": ranks * draw(st.integers(1, 5)),
        "drop_last": draw(st.booleans()),
        "uneven": draw(st.booleans()),
    }


def batches_of_ranks(
    length: int, settings: dict[str, Any], state: dict[str, int] | None = None
) -> list[list[list[SampleKey]]]:
    """Return, for each rank, its batches of an epoch, or of an epoch that resumes from a state."""
    batches = []
    for rank in range(settings["ranks"]):
        sampler = EpochSampler(length, seed=3, shuffle=True, rank=rank, **settings)
        if state is not None:
            sampler.load_state_dict(state)
        batches.append(list(sampler.batches()))
    return batches


def expected_batches(
    order: list[SampleKey], settings: dict[str, Any], position: int = 0
) -> list[list[list[SampleKey]]]:
    """Return what batches_of_ranks should, from the definition: split the order into global batches, deal each out."""
    size, ranks = settings["batch_size"], settings["ranks"]
    batches = [order[start : start + size] for start in range(position, len(order), size)]
    if settings["drop_last"]:
        batches = [batch for batch in batches if len(batch) == size]
    if not settings["uneven"] and batches:
        missing = -len(batches[-1]) % ranks
        batches[-1] = batches[-1] + (order * ranks)[:missing]
    return [[batch[rank::ranks] for batch in batches if batch[rank::ranks]] for rank in range(ranks)]


@given(length=st.integers(0, 80), settings=rank_settings())
def test_ranks_share_each_global_batch(length: int, settings: dict[str, Any]) -> None:
    order = list(EpochSampler(length, seed=3, shuffle=True))
    rank_batches = batches_of_ranks(length, settings)
    assert rank_batches == expected_batches(order, settings)
    for number, local_batches in enumerate(zip_longest(*rank_batches, fillvalue=[])):
        batch = order[number * settings["batch_size"] : (number + 1) * settings["batch_size"]]
        dealt = [key for keys in zip_longest(*local_batches) for key in keys if key is not None]
        assert dealt[: len(batch)] == batch
        assert len(dealt) - len(batch) < settings["ranks"]
        assert len(dealt) == len(batch) or not settings["uneven"]
    for rank, batches in enumerate(rank_batches):
        flat = EpochSampler(length, seed=3, shuffle=True, rank=rank, **settings)
        assert len(flat) == sum(map(len, batches))
        assert list(flat) == [key for batch in batches for key in batch]
    if not settings["uneven"]:
        assert len({sum(map(len, batches)) for batches in rank_batches}) == 1


@given(length=st.integers(0, 60), before=rank_settings(), after=rank_settings(), data=st.data())
def test_any_ranks_and_batch_size_go_on_with_exactly_the_rest(
    length: int, before: dict[str, Any], after: dict[str, Any], data: st.DataObject
) -> None:
    order = list(EpochSampler(length, seed=3, shuffle=True))
    rank = data.draw(st.integers(0, before["ranks"] - 1))
    first = EpochSampler(length, seed=3, shuffle=True, rank=rank, **before)
    all_batches = list(first.batches())
    for count in range(len(all_batches) + 1):
        first.set_epoch(0)
        first_batches = list(islice(first.batches(), count))
        assert first_batches == all_batches[:count]
        assert first.position == min(count * before["batch_size"], len(order))
        state = json.loads(json.dumps(first.state_dict()))
        assert batches_of_ranks(length, after, state) == expected_batches(order, after, state["position"])


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_pass_resumes_at_every_item(shuffle: bool) -> None:
    order = list(EpochSampler(25, seed=3, shuffle=shuffle))
    for yielded in range(26):
        sampler = EpochSampler(25, seed=3, shuffle=shuffle)
        list(islice(sampler, yielded))
        again = EpochSampler(25, seed=99, shuffle=shuffle)
        again.load_state_dict(sampler.state_dict())
        assert again.state_dict() == {"seed": 3, "epoch": 0, "position": yielded, "length": 25}
        assert list(again) == order[yielded:]
        assert again.state_dict() == {"seed": 3, "epoch": 1, "position": 0, "length": 25}
        assert {key.repetition for key in again} == {1}


def test_inside_a_batch_the_position_is_as_if_all_ranks_were_as_far() -> None:
    sampler = EpochSampler(13, seed=0, shuffle=False, batch_size=6, rank=1, ranks=2, uneven=True)
    assert [sampler.position for _ in sampler] == [2, 4, 6, 8, 10, 12]
    assert sampler.state_dict()["epoch"] == 1


def test_state_at_tells_what_was_delivered_however_far_the_sampler_is_ahead() -> None:
    sampler = EpochSampler(50, seed=3, shuffle=True, batch_size=8, rank=1, ranks=2)
    assert sampler.state_at(1)["position"] == 8
    sampler.load_state_dict({"seed": 3, "epoch": 4, "position": 10, "length": 50})
    assert sampler.state_at(0) == sampler.state_dict()
    batches = sampler.batches()
    for yielded in range(6):
        states = [sampler.state_at(batches) for batches in range(8)]
        assert [state["position"] for state in states] == [10, 18, 26, 34, 42, 50, 50, 50]
        assert {state["epoch"] for state in states} == {4}
        assert (next(batches, None) is None) is (yielded == 5)
    assert sampler.state_dict() == {"seed": 3, "epoch": 5, "position": 0, "length": 50}
    sampler.set_epoch(9)
    assert sampler.state_at(2)["epoch"] == 4  # the epoch that began last
    iter(sampler)
    assert sampler.state_at(2) == {"seed": 3, "epoch": 9, "position": 16, "length": 50}


def test_a_pass_that_is_broken_off_leaves_its_state_and_the_next_epoch_follows() -> None:
    sampler = EpochSampler(20, seed=3, shuffle=True)
    list(islice(sampler, 7))
    assert sampler.state_dict() == {"seed": 3, "epoch": 0, "position": 7, "length": 20}
    assert [key.repetition for key in sampler] == [1] * 20
    list(islice(sampler, 7))
    sampler.set_epoch(2)
    # An interrupted epoch can be repeated from its start.
    assert [key.repetition for key in sampler] == [2] * 20


def test_set_epoch_keeps_a_loaded_position_of_that_epoch_only() -> None:
    state = {"seed": 3, "epoch": 5, "position": 12, "length": 20}
    for epoch, count in ((5, 8), (6, 20), (4, 20)):
        sampler = EpochSampler(20, seed=3, shuffle=True)
        sampler.load_state_dict(state)
        sampler.set_epoch(epoch)
        assert [key.repetition for key in sampler] == [epoch] * count


def test_a_state_after_the_last_item_leaves_an_empty_pass() -> None:
    sampler = EpochSampler(4, seed=3, shuffle=True)
    state = [sampler.state_dict() for _ in sampler][-1]
    assert state == {"seed": 3, "epoch": 0, "position": 4, "length": 4}
    sampler.load_state_dict(state)
    assert [len(list(sampler)), len(list(sampler))] == [0, 4]


def test_of_two_passes_at_a_time_the_later_has_the_state() -> None:
    sampler = EpochSampler(4, seed=3, shuffle=False)
    earlier, later = iter(sampler), iter(sampler)
    assert [next(later), next(earlier), next(earlier)] == [SampleKey(0, 1), SampleKey(0, 0), SampleKey(1, 0)]
    assert sampler.state_dict() == {"seed": 3, "epoch": 1, "position": 1, "length": 4}
    assert list(earlier) == [SampleKey(2, 0), SampleKey(3, 0)]
    assert sampler.state_dict()["position"] == 1


def test_an_epoch_that_was_begun_keeps_its_place_whatever_comes_after_it() -> None:
    sampler = EpochSampler(20, seed=3, shuffle=True, batch_size=4)
    sampler.load_state_dict({"seed": 3, "epoch": 2, "position": 6, "length": 20})
    epoch, keys = sampler.epoch, iter(sampler)
    assert sampler.epoch is epoch
    assert (epoch.number, epoch.start, epoch.stop, epoch.count, epoch.yielded) == (2, 6, 20, 14, 0)
    assert len(list(keys)) == epoch.yielded == 14
    assert sampler.epoch.number == 3
    next(iter(sampler))
    assert (sampler.epoch.number, sampler.epoch.yielded, epoch.yielded) == (3, 1, 14)
    assert sampler.state_after(epoch, 5) == {"seed": 3, "epoch": 2, "position": 11, "length": 20}
    assert sampler.state_after(epoch, 99)["position"] == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": None}, "state: seed must be an integer of at least 0, got None"),
        ({"seed": -1}, "state: seed must be an integer of at least 0, got -1"),
        ({"epoch": "1"}, "state: epoch must be an integer of at least 0, got '1'"),
        ({"epoch": True}, "state: epoch must be an integer of at least 0, got True"),
        ({"position": 21}, "state: position must be an integer from 0 to 20, got 21"),
        ({"position": 1.0}, r"state: position must be an integer from 0 to 20, got 1\.0"),
        ({"length": 18}, r"the data has grown from 18 to 20 items since.*set_epoch\(3\)"),
        ({"length": 30, "position": 25}, "the data has shrunk from 30 to 20 items since"),
    ],
)
def test_a_wrong_state_is_refused_and_changes_nothing(change: dict[str, Any], message: str) -> None:
    state = {"seed": 3, "epoch": 2, "position": 5, "length": 20}
    sampler = EpochSampler(20, seed=1, shuffle=True)
    with pytest.raises(ConfigError, match=message):
        sampler.load_state_dict({**state, **change})
    for key in change:
        with pytest.raises(ConfigError, match=f"state: {key} is missing; it must be an integer"):
            sampler.load_state_dict({other: state[other] for other in state if other != key})
    assert sampler.state_dict() == {"seed": 1, "epoch": 0, "position": 0, "length": 20}


def test_a_state_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match="state: length is missing"):
        EpochSampler(20, seed=1, shuffle=True).load_state_dict([1, 2, 3, 4])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch_size": 8, "ranks": 3},
            "batch_size must be a positive multiple of ranks, got batch_size 8 and ranks 3",
        ),
        ({"batch_size": 0}, "got batch_size 0 and ranks 1"),
        ({"ranks": 0}, "got batch_size 1 and ranks 0"),
        ({"batch_size": 4, "ranks": 2, "rank": 2}, "rank must be from 0 to 1, got 2"),
        ({"window": 0}, "window must be a positive integer, got 0"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EpochSampler(20, seed=1, shuffle=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("window", [None, 4096])
def test_the_start_of_a_huge_epoch_takes_no_memory_and_its_middle_no_time(window: int | None) -> None:
    length = 10**9
    list(islice(EpochSampler(100, seed=0, shuffle=True, window=window), 10))  # the first use sets up state of NumPy
    tracemalloc.start()
    sampler = EpochSampler(length, seed=0, shuffle=True, window=window)
    keys = list(islice(sampler, 1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(keys)) == 1000
    assert peak < 4_000_000
    seconds = []
    for _ in range(3):  # a busy machine, or a garbage collection, may slow one round down
        sampler.load_state_dict({"seed": 0, "epoch": 3, "position": 10_000_000, "length": length})
        begin = time.process_time()
        assert next(iter(sampler)).repetition == 3
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 0.1
    assert sampler.position == 10_000_001


@given(
    length=st.integers(1, 12),
    ratio=st.integers(1, 4),
    replicas=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    data=st.data(),
)
def test_an_enlarged_epoch_resumes_with_other_replicas(
    length: int, ratio: int, replicas: tuple[int, int], data: st.DataObject
) -> None:
    order = list(DistIterSampler(length, replicas=1, rank=0, ratio=ratio, seed=2))
    # Keys do not depend on the number of replicas, up to as many replicas as items.
    before, after = (min(number, length) for number in replicas)
    first = DistIterSampler(length, replicas=before, rank=before - 1, ratio=ratio, seed=2)
    yielded = data.draw(st.integers(0, len(first)))
    assert list(islice(first, yielded)) == (order[before - 1 :: before])[:yielded] or yielded == len(first)
    state = json.loads(json.dumps(first.state_dict()))
    assert state == {"seed": 2, "epoch": 0, "position": min(yielded * before, len(order)), "length": length}
    assert first.state_at(yielded) == state
    keys_of_ranks = []
    for rank in range(after):
        again = DistIterSampler(length, replicas=after, rank=rank, ratio=ratio, seed=0)
        again.load_state_dict(state)
        keys_of_ranks.append(list(again))
    dealt = [key for keys in zip(*keys_of_ranks, strict=True) for key in keys]
    remaining = order[state["position"] :]
    assert dealt[: len(remaining)] == remaining
    assert len(dealt) - len(remaining) < after
    assert not {*dealt[len(remaining) :]} & {*order}  # padding repeats no key of the epoch
    assert {key.repetition // (ratio + 1) for key in dealt} <= {0}


def test_a_state_of_an_enlarged_epoch_is_checked_too() -> None:
    sampler = DistIterSampler(10, replicas=2, rank=0, ratio=3)
    state = {"seed": 0, "epoch": 1, "position": 30, "length": 10}
    sampler.load_state_dict(state)
    assert [len(list(sampler)), len(list(sampler))] == [0, 15]
    with pytest.raises(ConfigError, match="position must be an integer from 0 to 30, got 31"):
        sampler.load_state_dict({**state, "position": 31})
    with pytest.raises(ConfigError, match="the data has shrunk from 11 to 10 items"):
        sampler.load_state_dict({**state, "length": 11})


def test_plain_indices_pass_the_state_on() -> None:
    plain, sampler = (EpochSampler(20, seed=3, shuffle=True, batch_size=4) for _ in range(2))
    ints = plain_indices(plain.batches())
    assert list(islice(ints, 2)) == [indices(batch) for batch in islice(sampler.batches(), 2)]
    state = plain.state_dict()
    assert state == sampler.state_dict() == plain.state_at(2)
    again = EpochSampler(20, seed=0, shuffle=True)
    again.load_state_dict(state)
    remaining = [index for batch in plain_indices(again.batches()) for index in batch]
    assert remaining == indices(list(EpochSampler(20, seed=3, shuffle=True)))[8:]
