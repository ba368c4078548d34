"""Jobs in the calling process (workers=0): their results equal those of worker processes, byte for byte."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import pytest

from dlas_store.cli.main import main
from dlas_store.converters import import_worker
from dlas_store.converters.exporting import export_store
from dlas_store.converters.extraction.extracting import estimate, extract
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.importing import import_store
from dlas_store.converters.salvaging import salvage
from dlas_store.errors import ConfigError, DamagedError, ImportFailedError
from dlas_store.images.decode import Size, check_picture
from dlas_store.maintenance.reindex import reindex
from dlas_store.maintenance.verify import compare, verify
from tests.support.command_line import done, error_line, run
from tests.support.file_trees import read, write
from tests.support.photo_files import encoded, scene
from tests.support.sample_data import DATA
from tests.support.small_stores import flip_in, make_store, shards_of, small_folder


@pytest.fixture(autouse=True)
def opencv_without_threads() -> Iterator[None]:
    """Start no thread of OpenCV in this process, because workers are forked from it."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)


@contextmanager
def numbered_ids() -> Iterator[None]:
    """Give stores, shards and indexes the ids 0, 1, 2, ..., so that two runs can write the same bytes."""
    numbers = count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, "token_hex", lambda size: next(numbers).to_bytes(size).hex())
        patch.setattr(secrets, "token_bytes", lambda size: next(numbers).to_bytes(size))
        yield


def files_without_workers(make: Callable[[Path, int], object], folder: Path, suffix: str = "") -> dict[str, bytes]:
    """Return the files that a run without workers writes, after a check that two workers write the same files."""
    trees = []
    for workers in (0, 2):
        with numbered_ids(), pytest.MonkeyPatch.context() as patch:
            if workers == 0:
                patch.setattr("dlas_store.processes.ProcessPoolExecutor", None)
            make(folder / f"by-{workers}{suffix}", workers)
        trees.append(read(folder / f"by-{workers}{suffix}"))
    assert trees[0] == trees[1]
    assert trees[0]
    return trees[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_folder(tmp_path / "source", *(f"image {number}" for number in range(6)))


@pytest.fixture
def store(folder: Path, tmp_path: Path) -> Path:
    return make_store(folder, tmp_path / "store.lmdb")


@pytest.fixture
def damaged(folder: Path, store: Path) -> Path:
    flip_in(store / "shard-00001.lmdb", (folder / "image 1" / "00000001.png").read_bytes())
    return store


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    files = {f"{number}.jpg": encoded(scene(70, 90, seed=number), "jpg") for number in range(6)}
    return write(tmp_path / "photos", files | {"bad.jpg": b""})


def test_an_import(folder: Path, tmp_path: Path) -> None:
    files = files_without_workers(
        lambda new, workers: import_store([folder, DATA / "chunked"], new, shard_size=1000, workers=workers),
        tmp_path,
        ".lmdb",
    )
    assert len(files) > 7


def test_an_import_of_bad_files_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "image 3" / "00000000.png").write_bytes(b"bad")
    with pytest.raises(ImportFailedError, match=r"1 bad file so far: .*image 3/00000000\.png"):
        import_store([folder], tmp_path / "new.lmdb", workers=0)


def test_an_export(store: Path, folder: Path, tmp_path: Path) -> None:
    files = files_without_workers(lambda new, workers: export_store(store, new, workers=workers), tmp_path)
    assert files == read(folder)


def test_an_export_of_a_damaged_store_is_refused(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"00000001\.png of image 'image 1'"):
        export_store(damaged, tmp_path / "back", workers=0)


@pytest.mark.parametrize("to", ["", ".lmdb"], ids=["folder", "store"])
def test_an_extraction(photos: Path, tmp_path: Path, to: str) -> None:
    options = ExtractOptions.read({"crop_sz": [32], "step": [32], "thres_sz": 8})

    def make(new: Path, workers: int) -> None:
        summary = extract(photos, new, options, workers=workers, group_size=1000)
        assert [skipped.photo for skipped in summary.skipped] == ["bad.jpg"]

    files_without_workers(make, tmp_path, to)
    assert estimate(photos, tmp_path / "new.lmdb", options, workers=0).images == 6


@pytest.mark.parametrize("quick", [False, True])
def test_verifying(damaged: Path, quick: bool) -> None:
    report = verify(damaged, workers=0, quick=quick)
    assert report == verify(damaged, workers=2, quick=quick)
    assert len(report.findings) == (0 if quick else 1)


def test_comparing(damaged: Path, folder: Path) -> None:
    report = compare(damaged, folder, workers=0)
    assert report == compare(damaged, folder, workers=2)
    assert [finding.image for finding in report.findings] == ["image 1"]


def test_reindexing(damaged: Path) -> None:
    index = damaged / "index.lmdb"
    indexes = []
    for workers in (0, 2):
        index.unlink()
        with numbered_ids():
            reindex(damaged, workers=workers)
        indexes.append(index.read_bytes())
    assert indexes[0] == indexes[1]


def test_salvaging(damaged: Path, tmp_path: Path) -> None:
    def make(new: Path, workers: int) -> None:
        assert [lost.image for lost in salvage(damaged, new, workers=workers).lost] == ["image 1"]

    files_without_workers(make, tmp_path, ".lmdb")


def test_the_command_line_takes_it(folder: Path, photos: Path, tmp_path: Path) -> None:
    store, here = tmp_path / "new.lmdb", ("--workers", "0")
    assert "6 images" in done("import", *here, folder, store)
    assert "no finding" in done("verify", *here, store, "--against", folder)
    assert "6 images" in done("reindex", *here, store)
    assert "6 images" in done("export", *here, store, tmp_path / "back")
    assert "6 images" in done("salvage", *here, store, tmp_path / "salvaged.lmdb")
    sizes = ("--crop-size", "32", "--step", "32", "--threshold", "8")
    assert "6 images" in run("extract", *here, *sizes, photos, tmp_path / "tiles").out
    assert read(tmp_path / "back") == read(folder)


def test_an_error_in_a_job_is_one_line_of_the_command(damaged: Path, tmp_path: Path) -> None:
    line = error_line(run("export", "--workers", "0", damaged, tmp_path / "back"))
    assert "00000001.png of image 'image 1'" in line


def test_ctrl_c_ends_the_command_and_the_same_command_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store, checked = tmp_path / "new.lmdb", count()
    command = ["import", "--workers", "0", "--shard-size", "1", str(folder), str(store)]

    def check(data: bytes, **options: Any) -> Size:
        if next(checked) == 12:
            signal.raise_signal(signal.SIGINT)
        return check_picture(data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(import_worker, "check_picture", check)
        assert main(command) == 130
    advice = "ending what is under way; Ctrl-C again ends at once; run the same command again to go on from here"
    assert capfd.readouterr().err == f"dlas-store: interrupted, {advice}\n"
    assert not store.exists()
    assert len(shards_of(tmp_path / "new.lmdb.partial")) == 2
    assert main(command) == 0
    assert compare(store, folder, workers=0).ok


def test_fewer_workers_than_none_are_refused(folder: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="workers must be at least 0, got -1"):
        import_store([folder], tmp_path / "new.lmdb", workers=-1)
    with pytest.raises(ConfigError, match="workers must be at least 0, got -1"):
        extract(photos, tmp_path / "new.lmdb", ExtractOptions.read({}), workers=-1)
