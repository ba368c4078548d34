"""Stores, single shards and folders as sources: one contract for all of them, and the promises of stores alone."""

from __future__ import annotations

import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from dlas_store.converters.importing import import_store
from dlas_store.errors import ClosedError, DamagedError, ImageError, NotASourceError
from dlas_store.sources.base import Source
from dlas_store.sources.layouts import ChunkedFolder, PictureFolder
from dlas_store.storage.index import INDEX_FILE
from dlas_store.storage.store import Store
from tests.support.sample_data import DATA, noise, png
from tests.support.small_stores import append, content_of, in_child, make_store, shards_of, small_folder
from tests.support.source_contract import RawPatch, SourceContract, raw_patches


class TestChunkedFolder(SourceContract):
    @classmethod
    def make(cls, folder: Path, scratch: Path) -> Path:
        return folder

    def open(self, path: Path) -> Source:
        return ChunkedFolder(path)


class TestPictureFolder(SourceContract):
    layout = "pictures"

    @classmethod
    def make(cls, folder: Path, scratch: Path) -> Path:
        return folder

    def open(self, path: Path) -> Source:
        return PictureFolder(path)


class TestStoreFolder(SourceContract):
    @classmethod
    def make(cls, folder: Path, scratch: Path) -> Path:
        path = make_store(folder, scratch / "contract.lmdb")
        assert len(shards_of(path)) == 3
        return path

    def open(self, path: Path) -> Source:
        return Store(path)


class TestIndexFile(SourceContract):
    @classmethod
    def make(cls, folder: Path, scratch: Path) -> Path:
        return make_store(folder, scratch / "contract.lmdb") / INDEX_FILE

    def open(self, path: Path) -> Source:
        return Store(path)


class TestSingleShard(SourceContract):
    @classmethod
    def make(cls, folder: Path, scratch: Path) -> Path:
        (path,) = shards_of(make_store(folder, scratch / "contract.lmdb", shard_size=1 << 30))
        return path

    def open(self, path: Path) -> Source:
        return Store(path)


class TestAppendedStore(SourceContract):
    @classmethod
    def make(cls, folder: Path, scratch: Path) -> Path:
        path = make_store(folder, scratch / "contract.lmdb", images="b*")
        append(folder, path)
        return path

    def open(self, path: Path) -> Source:
        return Store(path)

    @classmethod
    def expected(cls, folder: Path) -> list[RawPatch]:
        return sorted(raw_patches(folder, cls.layout), key=lambda patch: not patch.image.startswith("b"))


class TestStoreOfPictures(SourceContract):
    layout = "pictures"

    @classmethod
    def make(cls, folder: Path, scratch: Path) -> Path:
        import_store([folder], scratch / "contract.lmdb", layout="pictures", shard_size=5000, workers=1)
        return scratch / "contract.lmdb"

    def open(self, path: Path) -> Source:
        return Store(path)


@pytest.fixture(scope="module")
def sample_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the sample images in at least four shards."""
    store = make_store(DATA / "chunked", tmp_path_factory.mktemp("sample") / "sample.lmdb", shard_size=300_000)
    assert len(shards_of(store)) >= 4
    return store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_folder(tmp_path / "source", "a", "b", "c")


@pytest.fixture
def store(folder: Path, tmp_path: Path) -> Path:
    return make_store(folder, tmp_path / "small.lmdb")


def test_the_samples_are_stored_byte_for_byte(sample_store: Path) -> None:
    raw = raw_patches(DATA / "chunked", "chunked")
    with Store(sample_store) as store:
        assert len(store) == len(raw) == 262
        assert [store.read(index) for index in range(len(store))] == [patch.data for patch in raw]


def test_each_shard_opens_alone_and_has_its_part(sample_store: Path) -> None:
    with Store(sample_store) as store:
        content = content_of(store)
    shards = [Store(path) for path in shards_of(sample_store)]
    assert sum(map(len, shards)) == 262
    names: list[object] = []
    for shard in shards:
        shard_content = content_of(shard)
        names += shard_content.pop("order")  # type: ignore[arg-type]
        assert shard_content.items() <= content.items()
    assert names == content["order"]


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.uint64])
def test_indices_of_narrow_types_reach_as_far_as_the_type(
    sample_store: Path, kind: type[np.integer[np.typing.NBitBase]]
) -> None:
    with Store(sample_store) as store:
        for index in range(min(len(store), int(np.iinfo(kind).max) + 1)):
            assert store.read(kind(index)) == store.read(index)  # type: ignore[arg-type]
            assert store.locate(kind(index)) == store.locate(index)  # type: ignore[arg-type]


def test_a_store_may_be_moved_and_copied(store: Path, tmp_path: Path) -> None:
    with Store(store) as opened:
        expected = content_of(opened)
        moved = store.rename(tmp_path / "elsewhere.lmdb")
        assert content_of(opened) == expected  # an open store survives the move, too
    shutil.copytree(moved, tmp_path / "copy.lmdb")
    for path in (moved, tmp_path / "copy.lmdb"):
        with Store(path) as again:
            assert content_of(again) == expected


def test_a_relative_path_works(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store)
    for path in (INDEX_FILE, ".", shards_of(store)[0].name):
        with Store(Path(path)) as opened:
            assert opened.read(0)


def test_an_open_store_keeps_its_snapshot_while_images_are_appended(folder: Path, tmp_path: Path) -> None:
    store = make_store(folder, tmp_path / "grows.lmdb", images="[ac]")
    with Store(store) as early:
        assert early.read(0)  # one shard is mapped, the other is not
        append(folder, store)
        assert len(early) == 8
        assert content_of(early)["order"] == ["a", "c"]
        with Store(store) as late:
            assert content_of(late)["order"] == ["a", "c", "b"]
            assert [late.read(index) for index in range(8)] == [early.read(index) for index in range(8)]
            assert late.index.generation == early.index.generation + 1


def test_an_open_store_survives_the_removal_of_its_files(store: Path) -> None:
    with Store(store) as opened:
        expected = content_of(opened)
        shutil.rmtree(store)
        assert content_of(opened) == expected


def test_a_pickled_store_keeps_its_options(store: Path) -> None:
    with Store(store, max_pixels=10) as opened, pickle.loads(pickle.dumps(opened)) as again:
        with pytest.raises(ImageError, match="limit of 10"):
            again.read_pixels([0])
        assert again.read(0) == opened.read(0)


def test_a_pickled_store_opens_after_an_append_and_not_after_a_replacement(folder: Path, tmp_path: Path) -> None:
    store = make_store(folder, tmp_path / "store.lmdb", images="[ab]")
    with Store(store) as opened:
        pickled = pickle.dumps(opened)
    append(folder, store)
    with pickle.loads(pickled) as again:
        assert again.read(7)
    shutil.rmtree(store)
    make_store(folder, store)
    with pytest.raises(DamagedError, match=r"store\.lmdb: was replaced by another store"):
        pickle.loads(pickled)


def test_a_closed_store_does_not_pickle(store: Path) -> None:
    opened = Store(store)
    opened.close()
    with pytest.raises(ClosedError):
        pickle.dumps(opened)


def test_a_bad_picture_is_an_error_that_names_image_and_file(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "source", "a")
    data = png(noise(8, 8))
    # The damage is not at the end of the file, and an import that does not decode looks at the end only.
    (folder / "a" / "00000009.png").write_bytes(data[:60] + bytes(20) + data[80:])
    store = make_store(folder, tmp_path / "store.lmdb")
    with Store(store) as opened:
        with pytest.raises(ImageError, match=r"store\.lmdb: patch 4, 00000009\.png of image 'a'"):
            opened.read_pixels([0, 4])
        assert opened.read(4) == data[:60] + bytes(20) + data[80:]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, ""),
        (lambda path: path.mkdir(), "has no index"),
        (lambda path: path.write_text("text"), "is not a file of a dlas_store store"),
        (lambda path: path.touch(), "is empty"),
    ],
    ids=["missing", "empty folder", "text", "empty file"],
)
def test_what_is_no_store_is_an_error_that_names_it(make: object, message: str, tmp_path: Path) -> None:
    make(tmp_path / "none.lmdb")  # type: ignore[operator]
    with pytest.raises((NotASourceError, DamagedError), match=rf"none\.lmdb:? .*{message}"):
        Store(tmp_path / "none.lmdb")


def test_more_shards_than_are_kept_open_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlas_store.storage.store._OPEN_SHARDS", 2)
    monkeypatch.setattr("dlas_store.storage.store._CACHED_IMAGES", 2)
    folder = small_folder(tmp_path / "source", *"abcdef", patches=2)
    with Store(make_store(folder, tmp_path / "store.lmdb")) as store, ChunkedFolder(folder) as raw:
        for _ in range(2):
            assert content_of(store) == content_of(raw)


def test_forks_beside_reading_threads_can_read(sample_store: Path) -> None:
    with Store(sample_store) as store:
        stop = threading.Event()
        expected = store.read(0)

        def read() -> None:
            while not stop.is_set():
                for index in range(0, len(store), 7):
                    store.read(index)

        def read_once() -> None:
            assert store.read(0) == expected

        threads = [threading.Thread(target=read, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(20):
                assert in_child(read_once, patience=10) == 0
        finally:
            stop.set()
            for thread in threads:
                thread.join()
