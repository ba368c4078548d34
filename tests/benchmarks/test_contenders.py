"""Contenders: each gives every patch once, and a failing contender ends the run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.contender_store import prepare_items, prepare_loader, prepare_raw
from benchmarks.contenders import WITHOUT_LOADER, list_contenders, make
from benchmarks.data import write_mode_data
from benchmarks.modes import MODES
from benchmarks.process import BatchWorkload, ContenderProcess
from benchmarks.reading import Reading
from dlas_store import StoreError
from dlas_store.converters.importing import import_store
from tests.support.sample_data import DATA

ITEM_MODES = [
    "single_image", "multi_frame", "paired_frame", "imagefolder", "stylegan2", "multiscale", "fullimage",
    "torch_dataset", "combined",
]  # fmt: skip


@pytest.fixture(scope="module")
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the user's own, made of a chunked folder."""
    store = tmp_path_factory.mktemp("own") / "own.lmdb"
    import_store([DATA / "chunked"], store)
    return store


def test_every_contender_of_read_gives_every_patch_once(tmp_path: Path) -> None:
    folder, store = tmp_path / "folder", tmp_path / "folder.lmdb"
    write_mode_data("pixels", folder, store, patches=20, images=4, size=64, quality=90)
    reading = Reading.plan("pixels", store=store, folder=folder, patches=20, batch=8)
    contenders = [contender for contender in list_contenders(reading, tmp_path) if contender.own_data is None]
    assert [contender.name for contender in contenders] == [
        "decoding alone, in memory, all cores",
        "store, threads loader",
        "store, workers loader",
        "store, items, DataLoader",
        *WITHOUT_LOADER,
        "folder, threads loader",
        "folder, DataLoader, TurboJPEG",
        "folder, DataLoader, OpenCV",
        "folder, DataLoader, Pillow",
    ]
    for contender in contenders:
        workload = make(json.loads(json.dumps(contender.as_spec(reading))))()
        items = {workload.check(), workload.run()}
        assert items == {reading.items * reading.epochs} or contender.name in WITHOUT_LOADER


@pytest.mark.parametrize("mode", ITEM_MODES)
def test_every_mode_can_be_read_by_every_loader(tmp_path: Path, mode: str) -> None:
    folder, store = tmp_path / "folder", tmp_path / "folder.lmdb"
    write_mode_data(mode, folder, store, patches=16, images=4, size=64, quality=90)
    chunked = folder if MODES[mode].chunked else None
    reading = Reading.plan(mode, store=store, folder=chunked, patches=16, batch=8)
    assert reading == Reading(**json.loads(json.dumps(reading.as_spec())))
    openers = [
        prepare_loader(reading, reading.data, loader="threads"),
        prepare_items(reading, reading.data),
    ]
    if MODES[mode].raw:
        openers.append(prepare_raw(reading, reading.data))
    for opener in openers:
        workload = opener()
        assert workload.check() == workload.run() == 16


def test_a_store_can_be_read_without_its_folder(tmp_path: Path, own_store: Path) -> None:
    reading = Reading.plan("pixels", store=own_store, folder=None, patches=50, batch=None)
    names = [contender.name for contender in list_contenders(reading, tmp_path)]
    assert "store, threads loader" in names
    assert not any(name.startswith("folder") for name in names)


def test_a_folder_that_is_not_the_stores_is_refused(own_store: Path) -> None:
    with pytest.raises(StoreError, match="hold different patches"):
        Reading.plan("pixels", store=own_store, folder=DATA / "chunked_video", patches=50, batch=None)


def test_a_contender_that_loses_a_patch_is_an_error() -> None:
    def epoch(*batches: list[int]) -> BatchWorkload:
        return BatchWorkload(
            lambda: batches,
            epochs=2,
            count=len,
            identify=lambda batch: batch,
            expected=lambda _: Counter([1, 2, 3]),
        )

    assert epoch([2, 1], [3]).run() == epoch([2, 1], [3]).check() == 6
    for wrong in (epoch([1, 2], [2]), epoch([1, 2]), epoch([1, 2], [3, 3])):
        with pytest.raises(AssertionError, match="every patch once"):
            wrong.check()


def test_a_contender_that_fails_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    spec = {"options": {"mode": "pixels", "paths": str(tmp_path / "none")}, "in_memory": False, "width": 1, "blocks": 1}
    spec |= {"steps": 1, "device": "cpu", "torch_threads": None}
    with (
        ContenderProcess("mine", module="contender_training", spec=spec) as process,
        pytest.raises(StoreError, match=r"^mine: .*none', which does not exist"),
    ):
        process.run()
