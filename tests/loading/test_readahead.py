"""Readahead: it prefetches only while page faults show uncached data, and never changes the items."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dlas_store import open_source
from dlas_store.datasets import create_dataloader, create_dataset
from dlas_store.errors import PatchIndexError
from dlas_store.loading import threads
from dlas_store.loading.batch import Allocate, BatchBuilder
from dlas_store.loading.threads import Readahead
from dlas_store.sampling.rng import SampleKey, SampleRng
from dlas_store.storage.store import Store
from tests.support.equality import assert_same
from tests.support.small_stores import make_store, shards_of, small_folder
from tests.support.toy_datasets import Rolls


class RecordingRolls(Rolls):
    """A dataset that records the indices it is asked to prefetch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.prefetched: list[int] = []

    def prefetch(self, keys: Sequence[SampleKey]) -> None:
        self.prefetched.extend(key.index for key in keys)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of page faults, of which the last is the current count of this process."""
    numbers = [1000]
    monkeypatch.setattr(threads, "_disk_reads", lambda: numbers[-1])
    return numbers


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 16 patches in four shards."""
    root = tmp_path_factory.mktemp("readahead")
    return make_store(small_folder(root / "chunked", *"abcd"), root / "store.lmdb")


def prefetch_batches(ahead: Readahead, dataset: RecordingRolls, batches: int) -> list[bool]:
    """Return, for each of some batches, whether it was prefetched."""
    was_prefetched = []
    for _ in range(batches):
        before = len(dataset.prefetched)
        ahead.prefetch([SampleKey(1, 0), SampleKey(2, 0)])
        was_prefetched.append(len(dataset.prefetched) > before)
    return was_prefetched


def test_without_page_faults_only_the_first_batches_are_announced(reads: list[int]) -> None:
    dataset = RecordingRolls()
    first = threads._FIRST_READAHEAD_BATCHES
    assert prefetch_batches(Readahead(dataset), dataset, 100) == [True] * first + [False] * (100 - first)


def test_after_a_page_fault_the_next_batches_are_announced(reads: list[int]) -> None:
    dataset = RecordingRolls()
    ahead = Readahead(dataset)
    prefetch_batches(ahead, dataset, 20)
    count_after_fault = threads._READAHEAD_BATCHES
    for count in (1, 500):
        reads.append(reads[-1] + count)
        assert prefetch_batches(ahead, dataset, count_after_fault + 10) == [True] * count_after_fault + [False] * 10


def test_a_later_epoch_announces_only_after_page_faults(reads: list[int]) -> None:
    dataset = RecordingRolls(length=400)
    loader = create_dataloader(dataset, {"phase": "train", "batch_size": 4, "seed": 3, "n_threads": 1}, collate_fn=list)
    list(loader)
    assert len(dataset.prefetched) == threads._FIRST_READAHEAD_BATCHES * 4
    list(loader)
    assert len(dataset.prefetched) == threads._FIRST_READAHEAD_BATCHES * 4
    reads.append(reads[-1] + 1)
    list(loader)
    assert len(dataset.prefetched) == (threads._FIRST_READAHEAD_BATCHES + threads._READAHEAD_BATCHES) * 4


def test_page_faults_all_the_time_keep_announcements_going(reads: list[int]) -> None:
    dataset = RecordingRolls()
    ahead = Readahead(dataset)
    for _ in range(200):
        reads.append(reads[-1] + 1)
        assert prefetch_batches(ahead, dataset, 1) == [True]


def test_what_is_announced_is_the_order_and_comes_before_it_is_read(reads: list[int]) -> None:
    dataset = RecordingRolls(length=400)
    options = {"phase": "train", "batch_size": 4, "seed": 3, "n_threads": 1}
    indices: list[int] = []
    distances = []
    for batch in create_dataloader(dataset, options, collate_fn=list):
        reads.append(reads[-1] + 1)
        indices += [item["index"] for item in batch]
        assert dataset.prefetched[: len(indices)] == indices
        distances.append(len(dataset.prefetched) - len(indices))
    assert dataset.prefetched == indices
    assert min(distances[:80]) >= 4  # at least one batch ahead
    assert max(distances) <= 4 * 16


def test_the_first_batch_is_begun_before_others_are_announced() -> None:
    class RecordingStart(RecordingRolls):
        def batch_builder(self, keys: Sequence[SampleKey], allocate: Allocate) -> BatchBuilder:
            counts.append(len(self.prefetched))
            return super().batch_builder(keys, allocate)

        def make_item(self, index: int, random: SampleRng) -> dict[str, Any]:
            return {"index": index}

    counts: list[int] = []
    dataset = RecordingStart(length=400)
    next(iter(create_dataloader(dataset, {"phase": "train", "batch_size": 4, "seed": 3, "n_threads": 1})))
    assert counts[0] == 4  # at the start of the first batch
    assert len(dataset.prefetched) > 4


def test_others_are_announced_while_a_slow_first_batch_is_made() -> None:
    class Slow(RecordingRolls):
        def prefetch(self, keys: Sequence[SampleKey]) -> None:
            super().prefetch(keys)
            if len(self.prefetched) > 4:
                prefetched_next.set()

        def make_item(self, index: int, random: SampleRng) -> dict[str, Any]:
            assert prefetched_next.wait(60), "no other batch was prefetched while the first batch was made"
            return {"index": index}

    prefetched_next = threading.Event()
    next(iter(create_dataloader(Slow(length=400), {"phase": "train", "batch_size": 4, "seed": 3, "n_threads": 1})))
    assert prefetched_next.is_set()


@pytest.mark.parametrize("faults", [0, 1])
@pytest.mark.parametrize("mode", ["single_image_extensible", "pixels", "imagefolder"])
def test_announcing_never_changes_what_is_read(
    mode: str, faults: int, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"mode": mode, "paths": store, "seed": 2, "phase": "train", "batch_size": 1}
    if mode != "pixels":
        options |= {"target_size": 8, "scale": 2}
    if mode == "single_image_extensible":
        options["need_ref"] = True
    expected = list(create_dataloader(create_dataset(options), {**options, "loader": "workers"}))
    prefetched: list[int] = []
    prefetch = Store.prefetch

    def record_prefetch(self: Store, indices: Sequence[int], /) -> None:
        prefetched.extend(indices)
        prefetch(self, indices)

    monkeypatch.setattr(Store, "prefetch", record_prefetch)
    counter = iter(range(10**6))
    monkeypatch.setattr(threads, "_disk_reads", lambda: next(counter) * faults)
    assert_same(list(create_dataloader(create_dataset(options), {**options, "loader": "threads"})), expected)
    assert len(prefetched) == (16 if faults else min(16, threads._FIRST_READAHEAD_BATCHES))


def test_the_system_counts_pages_that_were_waited_for() -> None:
    first = threads._disk_reads()
    assert isinstance(first, int)
    assert 0 <= first <= threads._disk_reads()


def test_any_bytes_of_a_shard_can_be_announced(store: Path) -> None:
    with Store(store) as source:
        shard = source.shard(0)
        size = len(shard.data)
        before = bytes(shard.data)
        for offset in (0, 1, 4095, 4096, 4097, size - 4097, size - 4096, size - 4095, size - 1):
            for length in (0, 1, 4096, 5000):
                shard.prefetch(offset, min(length, size - offset))
        shard.prefetch(0, size)
        assert bytes(shard.data) == before


def test_the_first_and_the_last_patch_of_every_shard_can_be_announced(store: Path) -> None:
    assert len(shards_of(store)) == 4
    with open_source(store) as source:
        expected = [source.read(index) for index in range(16)]
        for index in range(16):
            source.prefetch([index])
        source.prefetch([0, 3, 4, 7, 8, 11, 12, 15, 15, 0])
        assert [source.read(index) for index in range(16)] == expected
    for shard in shards_of(store):
        with open_source(shard) as source:
            source.prefetch([0, len(source) - 1])


@pytest.mark.parametrize("index", [-1, 16])
def test_an_index_outside_of_a_store_is_an_error(store: Path, index: int) -> None:
    with open_source(store) as source, pytest.raises(PatchIndexError, match=str(index)):
        source.prefetch([0, index])
