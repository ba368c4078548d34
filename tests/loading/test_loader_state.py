"""The state of a loader, as JSON, and epochs that resume from it, in other processes and with other loaders."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from dlas_store.datasets import DistIterSampler, Loader, create_dataloader, create_dataset
from dlas_store.errors import ConfigError
from dlas_store.loading.threads import ThreadsLoader
from dlas_store.loading.workers import WorkersLoader
from dlas_store.sampling.rng import SampleKey
from dlas_store.sampling.samplers import EpochSampler
from tests.support.equality import assert_same
from tests.support.small_stores import append, make_store, small_folder
from tests.support.toy_datasets import Rolls, Squares

ITEMS = 22

THREADS = {"loader": "threads", "n_threads": 2}
HERE = {"loader": "workers", "n_workers": 0}
WORKERS = {"loader": "workers", "n_workers": 2, "start_method": "fork"}
KINDS = {"threads": THREADS, "here": HERE, "workers": WORKERS}

Roll = tuple[int, int]


def loader_of(sampler: Any = None, *, length: int = ITEMS, seed: int = 6, **options: Any) -> Loader:
    defaults = {"phase": "train", "batch_size": 4, "seed": seed}
    opt = {**defaults, **THREADS, **options}
    return create_dataloader(Rolls(length=length, seed=seed), opt, sampler=sampler, collate_fn=rolls_of)


def rolls_of(items: list[Mapping[str, Any]]) -> list[Roll]:
    return [(item["index"], item["roll"]) for item in items]


def flat(batches: Any) -> list[Roll]:
    return [item for batch in batches for item in batch]


def through_json(state: Mapping[str, int]) -> dict[str, int]:
    copy: dict[str, int] = json.loads(json.dumps(state))
    assert copy == state
    return copy


@pytest.fixture(scope="module")
def epochs() -> list[list[list[Roll]]]:
    """The batches of three epochs."""
    loader = loader_of()
    return [list(loader) for _ in range(3)]


# The state during an epoch


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_counts_what_was_delivered_however_far_ahead_batches_are_made(kind: str) -> None:
    loader = loader_of(**KINDS[kind])
    assert loader.state_dict() == {"seed": 6, "epoch": 0, "position": 0, "length": ITEMS}
    for epoch in range(2):
        for number, _ in enumerate(loader, 1):
            if number < len(loader):
                assert loader.state_dict() == {"seed": 6, "epoch": epoch, "position": 4 * number, "length": ITEMS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("phase", ["train", "val"])
def test_the_state_after_the_last_batch_is_the_start_of_the_next_epoch(kind: str, phase: str) -> None:
    loader = loader_of(phase=phase, **KINDS[kind])
    start = {"seed": 6, "epoch": 1, "position": 0, "length": ITEMS}
    batches = iter(loader)
    for _ in range(len(loader)):
        next(batches)
    assert loader.state_dict() == start  # the reader does not know yet that the batch was the last one
    assert next(batches, None) is None
    assert loader.state_dict() == start


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_that_was_broken_off_stays_in_the_state_until_the_next_begins(kind: str) -> None:
    loader = loader_of(**KINDS[kind])
    batches = iter(loader)
    first = [next(batches), next(batches)]
    batches.close()  # type: ignore[attr-defined]
    state = through_json(loader.state_dict())
    assert (state["epoch"], state["position"]) == (0, 8)
    next(iter(loader))
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (1, 4)
    loader.load_state_dict(state)
    assert first + list(loader) == list(loader_of())


# Epochs that resume


@pytest.mark.parametrize("other", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_goes_on_after_every_batch(kind: str, other: str, epochs: list[list[list[Roll]]]) -> None:
    steps = range(6) if "workers" not in (kind, other) else (0, 3, 5)
    for done in steps:
        loader = loader_of(**KINDS[kind])
        loader.set_epoch(1)
        batches = iter(loader)
        assert list(islice(batches, done)) == epochs[1][:done]
        state = through_json(loader.state_dict())
        assert list(batches) == epochs[1][done:]  # state_dict() changed nothing
        resumed = loader_of(seed=99, **KINDS[other])
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        if done < 5:
            assert list(resumed) == epochs[1][done:]
        assert list(resumed) == epochs[2]


@pytest.mark.filterwarnings("ignore:.*fewer than the 50 of a batch")
@pytest.mark.parametrize("phase", ["train", "val"])
@pytest.mark.parametrize(("before", "after"), [(4, 3), (3, 7), (2, 22), (5, 1), (4, 50)])
def test_a_pass_goes_on_with_another_batch_size(before: int, after: int, phase: str) -> None:
    items = flat(loader_of(phase="val", batch_size=1, n_workers=1))  # in order, epoch 0
    if phase == "train":
        items = flat(loader_of(batch_size=1))
    for done in range(ITEMS // before):
        loader = loader_of(phase=phase, batch_size=before)
        batches = iter(loader)
        assert flat(islice(batches, done)) == items[: done * before]
        resumed = loader_of(phase=phase, batch_size=after, n_threads=1)
        resumed.load_state_dict(through_json(loader.state_dict()))
        batches.close()  # type: ignore[attr-defined]
        remaining = items[done * before :]
        expected = [remaining[start : start + after] for start in range(0, len(remaining), after)]
        if phase == "train" and expected and len(expected[-1]) < after:
            expected.pop()
        assert list(resumed) == expected


def ranked(rank: int, ranks: int, *, batch: int = 8, kind: str = "threads", **options: Any) -> Loader:
    """Return the loader of one rank."""
    sampler = EpochSampler(ITEMS, seed=6, shuffle=True, batch_size=batch, rank=rank, ranks=ranks, **options)
    return loader_of(sampler, phase="val", batch_size=batch // ranks, **KINDS[kind])


def test_ranks_share_global_batches() -> None:
    (order,) = [flat(loader) for loader in [ranked(0, 1)]]
    for ranks in (2, 4):
        batches_of = [list(ranked(rank, ranks)) for rank in range(ranks)]
        for number in range(3):
            batch = order[8 * number : 8 * number + 8]
            padded = batch + order[: -len(batch) % ranks]  # the first items pad short ranks
            assert [batches[number] for batches in batches_of] == [padded[rank::ranks] for rank in range(ranks)]
        uneven = [flat(ranked(rank, ranks, uneven=True)) for rank in range(ranks)]
        assert sorted(flat(uneven)) == sorted(order)
        dropped = [flat(ranked(rank, ranks, drop_last=True)) for rank in range(ranks)]
        assert sorted(flat(dropped)) == sorted(order[:16])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 2)])
def test_a_pass_goes_on_with_other_ranks(before: int, after: int, kind: str) -> None:
    order = flat(ranked(0, 1))
    for done in range(3):
        states = []
        for rank in range(before):
            loader = ranked(rank, before)
            batches = iter(loader)
            list(islice(batches, done))
            states.append(through_json(loader.state_dict()))
            batches.close()  # type: ignore[attr-defined]
        assert states == [states[0]] * before
        items = []
        for rank in range(after):
            loader = ranked(rank, after, kind=kind, uneven=True)
            loader.load_state_dict(states[-1])
            items.extend(flat(loader))
        assert sorted(items) == sorted(order[8 * done :])


@pytest.mark.parametrize("kind", KINDS)
def test_an_iteration_sampler_goes_on(kind: str) -> None:
    def loader() -> Loader:
        return loader_of(DistIterSampler(ITEMS, replicas=2, rank=1, ratio=4, seed=3), **KINDS[kind])

    reference = loader()
    epochs = [list(reference), list(reference)]
    assert len(epochs[0]) == 11
    for done in (0, 1, 7, 10):
        stopped = loader()
        stopped.set_epoch(1)
        batches = iter(stopped)
        assert list(islice(batches, done)) == epochs[1][:done]
        state = through_json(stopped.state_dict())
        assert (state["epoch"], state["position"]) == (1, 2 * 4 * done)
        batches.close()  # type: ignore[attr-defined]
        resumed = loader()
        resumed.load_state_dict(state)
        assert list(resumed) == epochs[1][done:]


def test_a_foreign_dataset_goes_on() -> None:
    def loader(kind: str) -> Loader:
        return create_dataloader(Squares(), {"phase": "train", "batch_size": 2, "seed": 1, **KINDS[kind]})

    expected = [batch.tolist() for batch in loader("threads")]
    for kind in KINDS:
        stopped = loader(kind)
        batches = iter(stopped)
        next(batches)
        resumed = loader("here")
        resumed.load_state_dict(through_json(stopped.state_dict()))
        assert [batch.tolist() for batch in resumed] == expected[1:]
        batches.close()  # type: ignore[attr-defined]


def test_set_epoch_before_a_pass_is_in_the_state() -> None:
    loader = loader_of()
    loader.set_epoch(3)
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (3, 0)
    list(loader)
    loader.set_epoch(7)
    state = loader.state_dict()
    assert (state["epoch"], state["position"]) == (7, 0)
    resumed = loader_of()
    resumed.load_state_dict(state)
    assert list(resumed) == list(loader)


def test_set_epoch_of_the_epoch_that_a_loaded_state_is_in_keeps_its_position(epochs: list[list[list[Roll]]]) -> None:
    state = {"seed": 6, "epoch": 1, "position": 8, "length": ITEMS}
    same, another = loader_of(), loader_of()
    for loader in (same, another):
        loader.load_state_dict(state)
    same.set_epoch(1)  # as a training loop does before each epoch
    another.set_epoch(2)
    assert list(same) == epochs[1][2:]
    assert list(another) == epochs[2]


def test_two_passes_at_a_time_leave_the_state_of_the_later() -> None:
    loader = loader_of()
    first, second = iter(loader), iter(loader)
    next(first)
    next(second)
    next(first)
    next(first)
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (1, 4)
    next(second)
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (1, 8)
    for batches in (first, second):
        batches.close()  # type: ignore[attr-defined]


def test_the_state_is_that_of_the_loaders_own_epoch_whoever_else_reads_the_sampler() -> None:
    sampler = EpochSampler(ITEMS, seed=6, shuffle=True, batch_size=4)
    first, second = loader_of(sampler), loader_of(sampler)
    readers = [iter(first), iter(second)]
    for batches in (readers[0], readers[1], readers[0]):
        next(batches)
    assert (first.state_dict()["epoch"], first.state_dict()["position"]) == (0, 8)
    assert (second.state_dict()["epoch"], second.state_dict()["position"]) == (1, 4)
    for batches in readers:
        batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sampler_that_makes_something_of_our_order_is_asked_for_its_own(kind: str) -> None:
    class Mirrored(DistIterSampler):
        def __iter__(self) -> Iterator[SampleKey]:
            for key in super().__iter__():
                yield key._replace(index=ITEMS - 1 - key.index)

    loader = loader_of(Mirrored(ITEMS, replicas=1, rank=0, ratio=1, seed=3), **KINDS[kind])
    plain = DistIterSampler(ITEMS, replicas=1, rank=0, ratio=1, seed=3)
    for epoch in range(2):
        expected = [ITEMS - 1 - key.index for key in plain]
        batches = iter(loader)
        first = flat([next(batches)])
        assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (epoch, 4)
        assert [index for index, _ in first + flat(batches)] == expected[: len(loader) * 4]


def test_the_length_is_that_of_a_whole_epoch() -> None:
    loader = loader_of()
    loader.load_state_dict({"seed": 6, "epoch": 0, "position": 12, "length": ITEMS})
    assert len(loader) == 5
    assert len(list(loader)) == 2


# The seed of the items


@pytest.mark.parametrize("other", KINDS)
def test_items_go_on_where_no_config_gives_a_seed(other: str) -> None:
    def loader(kind: str) -> Loader:
        opt = {"phase": "train", "batch_size": 4, **KINDS[kind]}
        return create_dataloader(Rolls(length=ITEMS, seed=None), opt, collate_fn=rolls_of)

    torch.manual_seed(1)
    stopped = loader("threads")
    batches = iter(stopped)
    first = [next(batches), next(batches)]
    state = through_json(stopped.state_dict())
    assert state.keys() == {"seed", "epoch", "position", "length"}
    remaining = list(batches)
    torch.manual_seed(2)
    resumed = loader(other)
    assert resumed.state_dict()["seed"] != state["seed"]
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert list(resumed) == remaining
    resumed.set_epoch(0)
    assert list(resumed) == first + remaining


def test_a_seed_of_the_items_alone_is_in_the_state() -> None:
    def loader(seed: int) -> Loader:
        sampler = EpochSampler(ITEMS, seed=3, shuffle=True, batch_size=4)
        return create_dataloader(
            Rolls(length=ITEMS, seed=seed), {"phase": "train", "batch_size": 4}, sampler=sampler, collate_fn=rolls_of
        )

    stopped, resumed = loader(8), loader(9)
    state = through_json(stopped.state_dict())
    assert state == {"seed": 3, "epoch": 0, "position": 0, "length": ITEMS, "item_seed": 8}
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert list(resumed) == list(stopped)
    before = resumed.state_dict()
    for wrong in (-1, "8", None, True):
        with pytest.raises(ConfigError, match="state: item_seed must be an integer of at least 0"):
            resumed.load_state_dict({**state, "item_seed": wrong})
    assert resumed.state_dict() == before


def test_members_of_a_combined_dataset_go_on_too(store: Path) -> None:
    member = options_of(store)
    member.pop("seed")
    opt = {
        "mode": "combined",
        "one": member,
        "two": {**member, "seed": 7},
        "phase": "train",
        "batch_size": 3,
        **THREADS,
    }

    def loader() -> Loader:
        return create_dataloader(create_dataset(opt), opt)

    stopped, resumed = loader(), loader()
    expected = list(stopped)
    assert not torch.equal(expected[0]["one_lq"], expected[0]["two_lq"])
    stopped.set_epoch(0)
    resumed.load_state_dict(through_json(stopped.state_dict()))
    assert_same(list(resumed), expected)


# Stores


def options_of(store: Path, **options: Any) -> dict[str, Any]:
    defaults = {"mode": "single_image_extensible", "paths": str(store), "target_size": 16, "scale": 2, "need_ref": True}
    corruptions = {"random_corruptions": ["noise", "motion_blur"], "num_corrupts_per_image": 1}
    return {**defaults, **corruptions, "phase": "train", "batch_size": 3, "seed": 5, **THREADS, **options}


def reader_of(store: Path, **options: Any) -> Loader:
    opt = options_of(store, **options)
    return create_dataloader(create_dataset(opt), opt)


def without_paths(batches: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in batch.items() if "path" not in key} for batch in batches]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of 16 patches."""
    return make_store(small_folder(tmp_path / "chunked", *"abcd"), tmp_path / "store.lmdb")


def test_a_pass_goes_on_where_the_store_has_moved_in_another_process(store: Path, tmp_path: Path) -> None:
    loader = reader_of(store)
    batches = iter(loader)
    for _ in range(2):
        next(batches)
    state = loader.state_dict()
    remaining = list(batches)
    elsewhere = tmp_path / "elsewhere" / "renamed.lmdb"
    elsewhere.parent.mkdir()
    shutil.move(store, elsewhere)
    code = f"""
import json, sys, torch
from dlas_store.datasets import create_dataloader, create_dataset
opt = json.loads({json.dumps(json.dumps(options_of(elsewhere, **WORKERS)))})
loader = create_dataloader(create_dataset(opt), opt)
loader.load_state_dict(json.loads({json.dumps(json.dumps(state))}))
torch.save(list(loader), {str(tmp_path / "batches.pt")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    resumed = torch.load(tmp_path / "batches.pt", weights_only=True)
    assert len(resumed) == 3
    assert_same(without_paths(resumed), without_paths(remaining))
    assert [[Path(path).parts[-2:] for path in batch["GT_path"]] for batch in resumed] == [
        [Path(path).parts[-2:] for path in batch["GT_path"]] for batch in remaining
    ]


@pytest.mark.parametrize("kind", ["threads", "here"])
def test_a_store_that_has_grown_is_an_error_that_says_so(kind: str, store: Path, tmp_path: Path) -> None:
    loader = reader_of(store, **KINDS[kind])
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    batches.close()  # type: ignore[attr-defined]
    append(small_folder(tmp_path / "more", "e"), store)
    grown = reader_of(store, **KINDS[kind])
    before = grown.state_dict()
    with pytest.raises(ConfigError, match="the data has grown from 16 to 20 items"):
        grown.load_state_dict(state)
    assert grown.state_dict() == before
    with pytest.raises(ConfigError, match="the data has shrunk from 20 to 16 items"):
        loader.load_state_dict(before)
    assert len(list(grown)) == 6


# Invalid states


@pytest.mark.parametrize(
    "change",
    [
        {"position": -1}, {"position": ITEMS + 1}, {"position": 1.0}, {"position": None}, {"epoch": -1},
        {"epoch": "1"}, {"seed": True}, {"length": None},
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["threads", "here"])
def test_what_is_no_state_is_refused_and_changes_nothing(kind: str, change: dict[str, Any]) -> None:
    loader = loader_of(**KINDS[kind])
    with pytest.raises(ConfigError, match=f"state: {next(iter(change))}"):
        loader.load_state_dict({"seed": 6, "epoch": 1, "position": 8, "length": ITEMS, **change})
    for state in ({}, {"seed": 1}, [], None):
        with pytest.raises(ConfigError, match="state"):
            loader.load_state_dict(state)  # type: ignore[arg-type]
    assert loader.state_dict()["epoch"] == 0
    assert list(loader) == list(loader_of())


@pytest.mark.parametrize("kind", ["threads", "here"])
def test_a_foreign_sampler_says_that_it_keeps_no_state(kind: str) -> None:
    for sampler, name in ((range(ITEMS), "range"), (list(range(ITEMS)), "list")):
        loader = loader_of(sampler, **KINDS[kind])
        next(iter(loader))
        with pytest.raises(ConfigError, match=f"the sampler {name} keeps no state"):
            loader.state_dict()
        with pytest.raises(ConfigError, match=f"the sampler {name} keeps no state"):
            loader.load_state_dict({"seed": 6, "epoch": 1, "position": 8, "length": ITEMS})


def test_kinds_of_loaders_are_those_asked_for() -> None:
    assert isinstance(loader_of(**THREADS), ThreadsLoader)
    assert isinstance(loader_of(**WORKERS), WorkersLoader)
    assert not isinstance(loader_of(**HERE), DataLoader)


# Processes of torch.distributed


def test_two_processes_share_global_batches_and_resume_alone(store: Path, tmp_path: Path) -> None:
    code = f"""
import json, sys
from itertools import islice
from torch import distributed
from dlas_store.datasets import create_dataloader, create_dataset
rank = int(sys.argv[1])
distributed.init_process_group("gloo", "file://{tmp_path}/rendezvous", rank=rank, world_size=2)
opt = json.loads({json.dumps(json.dumps(options_of(store, batch_size=6)))})

def names(batch):
    return ["/".join(path.split("/")[-2:]) for path in batch["GT_path"]]

out = {{}}
for kind, more in json.loads({json.dumps(json.dumps(KINDS))}).items():
    opt |= more
    if kind == "threads":
        opt.pop("seed")
    loader = create_dataloader(create_dataset(opt), opt, {{"dist": True}})
    epochs = [[names(batch) for batch in loader] for _ in range(2)]
    batches = iter(loader)
    next(batches)
    out[kind] = [epochs, loader.batch_size, len(loader), loader.state_dict()]
    batches.close()
    opt["seed"] = 5
distributed.barrier()
distributed.destroy_process_group()
print(json.dumps(out))
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, rank], stdout=subprocess.PIPE, text=True) for rank in "01"
    ]
    outputs = [json.loads(process.communicate(timeout=200)[0]) for process in processes]
    for kind in KINDS:
        seed = 0 if kind == "threads" else 5  # without the option, the seed of all processes is 0
        reference = reader_of(store, batch_size=6, seed=seed)
        for epoch in range(2):
            expected = [["/".join(Path(path).parts[-2:]) for path in batch["GT_path"]] for batch in reference]
            assert len(expected) == 2
            for rank, output in enumerate(outputs):
                epochs, batch_size, length, state = output[kind]
                assert (batch_size, length) == (3, 2)
                assert epochs[epoch] == [batch[rank::2] for batch in expected]
                assert state == {"seed": seed, "epoch": 2, "position": 6, "length": 16}
