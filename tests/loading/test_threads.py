"""ThreadsLoader: its batches, how far it runs ahead, and that an epoch leaves no thread behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from dlas_store.datasets import SingleImageDataset, create_dataloader, zero_pad
from dlas_store.errors import ConfigError, ImageError
from dlas_store.loading.threads import PREFETCH_BATCHES, ThreadsLoader
from dlas_store.sampling.rng import SampleKey, SampleRng
from dlas_store.sampling.samplers import DistIterSampler, EpochSampler
from tests.support.equality import assert_same
from tests.support.sample_data import ROOT
from tests.support.small_stores import in_child, make_store, small_folder
from tests.support.toy_datasets import ITEMS, Rolls, Squares, indices_and_rolls


def loader_of(
    dataset: Dataset[Any] | None = None, *, threads: int = 2, batch_size: int = 4, **options: Any
) -> ThreadsLoader:
    dataset = Rolls() if dataset is None else dataset
    defaults = {"sampler": range(len(dataset)), "drop_last": False, "collate_fn": indices_and_rolls}  # type: ignore[arg-type]
    return ThreadsLoader(dataset, batch_size=batch_size, threads=threads, **{**defaults, **options})


def running() -> list[threading.Thread]:
    """Return the running threads of loaders."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("dlas_store")]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    assert not running()
    yield
    gc.collect()
    assert not running()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three images and 12 patches, of two sizes."""
    root = tmp_path_factory.mktemp("threads")
    return make_store(small_folder(root / "chunked", "a", "b", "c"), root / "store.lmdb")


# Batches


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize("batch_size", [1, 3, 40, 64])
def test_any_number_of_threads_gives_the_same_batches(threads: int, batch_size: int) -> None:
    loader = loader_of(threads=threads, batch_size=batch_size)
    assert len(loader) == -(-ITEMS // batch_size)
    for epoch in range(3):
        items = [(index, Rolls()[SampleKey(index, epoch)]["roll"]) for index in range(ITEMS)]
        expected = [items[start : start + batch_size] for start in range(0, ITEMS, batch_size)]
        assert list(loader) == expected


@pytest.mark.parametrize(("batch_size", "lengths"), [(4, [4] * 10), (7, [7] * 5), (40, [40]), (41, [])])
def test_an_incomplete_batch_is_dropped_when_told_to(batch_size: int, lengths: list[int]) -> None:
    for loader in (
        loader_of(batch_size=batch_size, drop_last=True),
        loader_of(
            batch_size=batch_size,
            drop_last=True,
            sampler=EpochSampler(ITEMS, seed=1, shuffle=True, batch_size=batch_size, drop_last=True),
        ),
    ):
        assert len(loader) == len(lengths)
        assert [[len(batch) for batch in loader] for _ in range(2)] == [lengths] * 2


def test_a_dataset_without_items_gives_no_batches() -> None:
    for options in ({"sampler": range(0)}, {"sampler": EpochSampler(0, seed=1, shuffle=False, batch_size=4)}):
        loader = loader_of(Rolls(length=0), **options)
        assert len(loader) == 0
        assert list(loader) == list(loader) == []


def test_a_shuffle_follows_from_seed_and_epoch_alone() -> None:
    def epochs_of(threads: int, seed: int) -> list[Any]:
        sampler = EpochSampler(ITEMS, seed=seed, shuffle=True, batch_size=4)
        loader = loader_of(threads=threads, sampler=sampler)
        epochs = [list(loader) for _ in range(3)]
        loader.set_epoch(1)
        assert list(loader) == epochs[1]
        assert list(loader) == epochs[2]
        return epochs

    first = epochs_of(1, seed=3)
    assert epochs_of(3, seed=3) == first
    assert len({tuple(tuple(batch) for batch in epoch) for epoch in first}) == 3
    assert epochs_of(2, seed=4) != first


def test_an_iteration_sampler_gives_its_own_order() -> None:
    def sampler() -> DistIterSampler:
        return DistIterSampler(ITEMS, replicas=2, rank=1, ratio=3, seed=1)

    loader = loader_of(sampler=sampler(), batch_size=7)
    keys = list(sampler())
    assert [item for batch in loader for item in batch] == [(key.index, Rolls()[key]["roll"]) for key in keys]
    assert len(loader) == -(-len(keys) // 7)


def test_a_foreign_dataset_gets_plain_indices_of_our_samplers() -> None:
    for sampler in (
        range(10),
        EpochSampler(10, seed=1, shuffle=False, batch_size=4),
        DistIterSampler(10, replicas=1, rank=0, ratio=1),
    ):
        batches = list(loader_of(Squares(), sampler=sampler, collate_fn=None))
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert sorted(torch.cat(batches).tolist()) == [number**2 for number in range(10)]


def test_collate_functions_get_items_in_order() -> None:
    batches = list(loader_of(collate_fn=list))
    assert [[item["index"] for item in batch] for batch in batches] == [
        list(range(start, start + 4)) for start in range(0, ITEMS, 4)
    ]
    padded = next(iter(loader_of(collate_fn=zero_pad)))
    assert padded["side"].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0]]


def test_what_has_no_default_collate_is_an_error_of_the_reader() -> None:
    with pytest.raises(RuntimeError, match="equal size"):
        list(loader_of(collate_fn=None))


@pytest.mark.filterwarnings("ignore:.*fewer than the 100 of a batch")
@pytest.mark.parametrize("phase", ["train", "val"])
@pytest.mark.parametrize("batch_size", [5, 100])
def test_a_config_reads_a_store(phase: str, batch_size: int, store: Path) -> None:
    options = {
        "paths": store,
        "target_size": 32,
        "scale": 2,
        "need_ref": True,
        "phase": phase,
        "batch_size": batch_size,
        "seed": 2,
        "n_workers": 2,
        "loader": "threads",
    }
    dataset = SingleImageDataset(options)
    loader = create_dataloader(dataset, options)
    assert isinstance(loader, ThreadsLoader)
    assert (loader.num_workers, loader.batch_size, loader.drop_last) == (0, batch_size, phase == "train")
    batches = list(loader)
    assert len(batches) == len(loader) == (12 // batch_size if phase == "train" else -(-12 // batch_size))
    if phase == "val":
        expected = [dataset[SampleKey(index, 0)] for index in range(12)]
        chunks = [expected[start : start + batch_size] for start in range(0, 12, batch_size)]
        assert_same(batches, [default_collate(items) for items in chunks])


# Batches made ahead of the reader


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_at_most_so_many_batches_are_under_way(threads: int) -> None:
    dataset = Rolls(length=100)
    loader = loader_of(dataset, threads=threads, collate_fn=None, sampler=[number // 3 * 3 for number in range(100)])
    for delivered, _ in enumerate(loader, 1):
        assert len(dataset.begun) - delivered <= PREFETCH_BATCHES
    assert len(dataset.begun) == 25


def test_batches_are_made_while_one_is_read() -> None:
    dataset = Rolls(length=100)
    batches = iter(loader_of(dataset, collate_fn=None, sampler=[0] * 100))
    next(batches)
    patience = threading.Event()
    for _ in range(1000):
        if len(dataset.begun) > 1:
            break
        patience.wait(0.01)
    assert len(dataset.begun) > 1
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("batches", [1, 2, 3, 10])
def test_all_threads_make_the_last_batch(batches: int) -> None:
    class Meeting(Rolls):
        def make_item(self, index: int, random: SampleRng) -> dict[str, Any]:
            if index >= self.length - 2:
                both.wait(60)
            return super().make_item(index, random)

    both = threading.Barrier(2)
    assert len(list(loader_of(Meeting(length=2 * batches), batch_size=2))) == batches


def test_an_order_without_end_is_read_as_far_as_asked() -> None:
    class Endless:
        count = 0

        def __iter__(self) -> Iterator[int]:
            while True:
                self.count += 1
                yield self.count % ITEMS

    sampler = Endless()
    batches = iter(loader_of(sampler=sampler))
    assert len(list(islice(batches, 20))) == 20
    assert sampler.count < 4 * (20 + PREFETCH_BATCHES + 10)
    batches.close()  # type: ignore[attr-defined]


# Epochs that end early


def by_break(loader: ThreadsLoader) -> None:
    for _ in loader:
        break


def by_exception(loader: ThreadsLoader) -> None:
    with pytest.raises(KeyError):  # noqa: PT012
        for _ in loader:
            raise KeyError


def by_closing(loader: ThreadsLoader) -> None:
    batches = iter(loader)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert list(batches) == []


def by_forgetting(loader: ThreadsLoader) -> None:
    batches = iter(loader)
    next(batches)


def by_not_beginning(loader: ThreadsLoader) -> None:
    iter(loader)


def by_raising_into_it(loader: ThreadsLoader) -> None:
    batches: Any = iter(loader)
    next(batches)
    with pytest.raises(KeyboardInterrupt):
        batches.throw(KeyboardInterrupt)


ENDS: list[Callable[[ThreadsLoader], None]] = [
    by_break, by_exception, by_closing, by_forgetting, by_not_beginning, by_raising_into_it
]  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_a_pass_that_is_broken_off_leaves_no_thread_and_the_next_works(end: Callable[[ThreadsLoader], None]) -> None:
    loader = loader_of()
    end(loader)
    assert not running()
    loader.set_epoch(0)
    assert [index for batch in loader for index, _ in batch] == list(range(ITEMS))


def test_threads_end_with_the_pass() -> None:
    batches = iter(loader_of(threads=3))
    assert not running()
    next(batches)
    assert 1 <= len(running()) <= 3
    list(batches)
    assert not running()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("collate", [indices_and_rolls, None])
def test_an_error_reaches_the_reader_after_the_batches_before_it(threads: int, collate: Any) -> None:
    dataset = Rolls(bad=[21])
    loader = loader_of(dataset, threads=threads, collate_fn=collate, sampler=[n - n % 3 for n in range(ITEMS)])
    batches = iter(loader)
    assert len(list(islice(batches, 5))) == 5
    with pytest.raises(ImageError, match="item 21 is damaged"):
        next(batches)
    assert not running()
    assert list(batches) == []
    dataset.bad.clear()
    assert len(list(loader)) == 10


def test_errors_of_foreign_code_reach_the_reader_as_they_are() -> None:
    with pytest.raises(ValueError, match="13 is unlucky"):
        list(loader_of(Squares(20), collate_fn=None))

    def fails(items: Sequence[Any]) -> Any:
        raise ZeroDivisionError("of the collate function")

    with pytest.raises(ZeroDivisionError, match="of the collate function"):
        list(loader_of(collate_fn=fails))

    def order() -> Iterator[int]:
        yield from range(6)
        raise LookupError("of the sampler")

    class Order:
        def __iter__(self) -> Iterator[int]:
            return order()

    with pytest.raises(LookupError, match="of the sampler"):
        list(loader_of(sampler=Order()))
    with pytest.raises(IndexError, match="no item 40"):
        list(loader_of(sampler=[0, 1, 40]))


def test_two_passes_at_a_time_do_not_disturb_each_other() -> None:
    sampler = EpochSampler(ITEMS, seed=3, shuffle=True, batch_size=4)
    expected = [list(loader) for loader in [loader_of(sampler=sampler)] for _ in range(2)]
    loader = loader_of(sampler=EpochSampler(ITEMS, seed=3, shuffle=True, batch_size=4))
    pairs = list(zip(iter(loader), iter(loader), strict=True))
    assert [list(batches) for batches in zip(*pairs, strict=True)] == expected


def test_two_loaders_read_one_dataset_at_a_time(store: Path) -> None:
    dataset = SingleImageDataset({"paths": store, "target_size": 32, "scale": 2, "need_ref": True, "seed": 1})
    loaders = [loader_of(dataset, collate_fn=None, batch_size=3) for _ in range(2)]
    expected = [
        default_collate([dataset[SampleKey(n, 0)] for n in range(start, start + 3)]) for start in range(0, 12, 3)
    ]
    for batches in zip(*loaders, expected, strict=True):
        assert_same(batches[0], batches[2])
        assert_same(batches[1], batches[2])


def test_loops_in_loops_read_all() -> None:
    loader = loader_of(Squares(), collate_fn=None)
    pairs = [(int(outer.sum()), int(inner.sum())) for outer in loader for inner in loader]
    assert len(pairs) == 9


INTERRUPTED = """
import sys, threading
sys.path[:0] = [{root!r}]
from tests.support.toy_datasets import Rolls
from tests.loading.test_threads import loader_of

loader = loader_of(Rolls(length=10**7), batch_size=32)
try:
    for number, batch in enumerate(loader):
        if number == 20:
            print("reading", flush=True)
except KeyboardInterrupt:
    names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    print("threads:", names, flush=True)
    first = next(iter(loader))
    print(len(first), flush=True)
    raise
"""


def test_ctrl_c_ends_the_pass_and_the_process() -> None:
    code = INTERRUPTED.format(root=str(ROOT))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert out == "threads: []\n32\n"
    assert process.returncode == -signal.SIGINT
    assert error.rstrip().endswith("KeyboardInterrupt")


# Forks


def test_a_fork_in_the_middle_of_a_pass_works_in_parent_and_child(store: Path) -> None:
    dataset = SingleImageDataset({"paths": store, "target_size": 32, "scale": 2, "need_ref": True, "seed": 1})
    sampler = [SampleKey(number % 12, 3) for number in range(240)]
    loader = loader_of(dataset, collate_fn=None, sampler=sampler, batch_size=6)
    expected = [dataset[key]["hq"] for key in sampler[:12]]

    def read() -> None:
        child_items = [hq for batch in loader for hq in batch["hq"]]
        assert all(torch.equal(hq, expected[number % 12]) for number, hq in enumerate(child_items))
        assert len(child_items) == 240

    items = []
    for number, batch in enumerate(loader):
        items.extend(batch["hq"])
        if number % 8 == 2:
            assert in_child(read, patience=60) == 0
    assert len(items) == 240
    assert all(torch.equal(hq, expected[number % 12]) for number, hq in enumerate(items))


def test_a_child_may_close_and_forget_what_it_inherited() -> None:
    batches = iter(loader_of(Rolls(length=4000)))
    try:
        for _ in range(10):
            next(batches)
            child = os.fork()
            if not child:
                code = 1
                try:
                    signal.signal(signal.SIGALRM, signal.default_int_handler)
                    signal.alarm(10)  # ends a child that hangs
                    batches.close()  # type: ignore[attr-defined]
                    del batches
                    gc.collect()
                    code = 0
                except KeyboardInterrupt:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(list(batches)) == 990
    finally:
        batches.close()  # type: ignore[attr-defined]


def test_forked_workers_of_pytorch_read_beside_a_pass(store: Path) -> None:
    dataset = SingleImageDataset({"paths": store, "target_size": 32, "scale": 2, "need_ref": True, "seed": 1})
    dataset.set_epoch(0)
    expected = [
        default_collate([dataset[SampleKey(n, 0)] for n in range(start, start + 3)]) for start in range(0, 12, 3)
    ]
    loader = loader_of(dataset, collate_fn=None, batch_size=3)
    for number, batch in enumerate(loader):
        assert_same(batch, expected[number])
        workers = DataLoader(dataset, batch_size=3, num_workers=2, multiprocessing_context="fork", timeout=60)
        assert_same(list(workers), expected)


def test_the_order_of_a_foreign_sampler_is_kept_by_numpy_integers() -> None:
    order = np.random.default_rng(1).permutation(ITEMS)
    assert [index for batch in loader_of(sampler=order) for index, _ in batch] == order.tolist()


def test_start_method_and_device_of_others_are_refused(store: Path) -> None:
    dataset = Rolls()
    with pytest.raises(ConfigError, match="start_method is of worker processes"):
        create_dataloader(dataset, {"phase": "train", "batch_size": 2, "start_method": "fork"})
