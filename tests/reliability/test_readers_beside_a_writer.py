"""Readers during appends: no wrong byte, no missing image, and an open store keeps its snapshot."""

from __future__ import annotations

import multiprocessing
import pickle
import random
import time
import traceback
from collections.abc import Callable
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dlas_store.storage.store import Store
from tests.conftest import Runs
from tests.reliability.support.commands import Commands
from tests.reliability.support.tasks import STORE, image_files, make_source


class SharedState(NamedTuple):
    """State that the readers and the test share.

    Attributes:
        images: number of published images; the test sets the number before the next append.
        reads: number of compared values.
        stop: event that ends the readers.
        failures: queue of the readers' tracebacks.
    """

    images: Synchronized[int]
    reads: Synchronized[int]
    stop: Event
    failures: Any


def _check_image(store: Store, number: int) -> int:
    """Compare all values of an image with the image's files, and return the number of values."""
    files = image_files(number)
    image = store.image(number)
    assert image.name == f"image_{number:05d}"
    assert store.read_reference(number) == files.pop("ref.jpg")
    assert image.centers is not None
    assert set(image.centers) == set(range(len(files) - 1))
    del files["centers.pt"]
    first = store.first_patch(number)
    patches = {file: store.read(first + position) for position, file in enumerate(image.files)}
    assert patches == files, image.name
    return len(patches) + 1


def _read(path: Path, inherited: Store | None, shared: SharedState, seed: int) -> None:
    """Read until ``shared.stop`` is set.

    A reader with an ``inherited`` store keeps this store. Without one, the reader opens the store again and again,
    reads for a while, and sometimes goes on with a pickled copy.
    """
    rng = random.Random(seed)
    try:
        while not shared.stop.is_set():
            published = shared.images.value
            store = Store(path) if inherited is None else inherited
            images, patches = store.image_count, len(store)
            assert images >= published or inherited is not None
            for _ in range(rng.choice((1, 20, 200))):
                count = _check_image(store, rng.randrange(images))
                with shared.reads.get_lock():
                    shared.reads.value += count
                assert (store.image_count, len(store)) == (images, patches)
                with pytest.raises(IndexError):
                    store.image(images)
                if shared.stop.is_set():
                    break
                if inherited is None and rng.random() < 0.1:
                    store = pickle.loads(pickle.dumps(store))
                    images, patches = store.image_count, len(store)
                    assert images >= published
            if inherited is None:
                store.close()
    except BaseException:
        shared.failures.put(f"{multiprocessing.current_process().name}: {traceback.format_exc()}")
        raise


def _start(context: BaseContext, path: Path, shared: SharedState, count: int) -> list[BaseProcess]:
    """Start readers. Every second reader keeps a store that this process opened before the first append."""
    processes = []
    for seed in range(count):
        inherited = Store(path) if seed % 2 else None
        process: BaseProcess = context.Process(target=_read, args=(path, inherited, shared, seed))  # type: ignore[attr-defined]
        process.start()
        processes.append(process)
    return processes


def test_readers_find_all_that_was_published_and_keep_their_snapshot(
    *,
    tmp_path: Path,
    runs: Runs,
    request: pytest.FixtureRequest,
    commands: Commands,
    record_property: Callable[[str, object], None],
) -> None:
    """In soak a run appends to a new store for a minute, so 30 runs take half an hour."""
    is_soak = request.config.getoption("soak")
    seconds, readers = (60, 8) if is_soak else (3, 2)
    appends = reads = 0
    for number in runs(small=1, full=30):
        source, path = tmp_path / f"source_{number}", tmp_path / f"{number}" / STORE
        count = 4
        make_source(source, range(count))
        path.parent.mkdir()
        append = ("import", "--append", "--workers", "1", "--shard-size", "20KiB", source, path)
        commands.done(append[0], *append[2:])
        fork, spawn = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")
        shared = SharedState(spawn.Value("Q", count), spawn.Value("Q", 0), spawn.Event(), spawn.SimpleQueue())
        processes = _start(fork, path, shared, readers) + _start(spawn, path, shared, readers)
        end = time.monotonic() + seconds
        while time.monotonic() < end and shared.failures.empty():
            new_images = random.Random(count).randrange(1, 4)
            make_source(source, range(count, count + new_images))
            commands.done(*append)
            count += new_images
            shared.images.value = count
            appends += 1
            if appends % 7 == 0:
                commands.done("reindex", "--workers", "1", path)
        shared.stop.set()
        for process in processes:
            process.join(60)
        assert shared.failures.empty(), shared.failures.get()
        assert [process.exitcode for process in processes] == [0] * len(processes)
        assert shared.reads.value > len(processes)
        reads += shared.reads.value
    record_property("commits", appends)
    record_property("values compared", reads)
