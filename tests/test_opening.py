"""open_source recognises the kind of data at a path, and its errors say why a path cannot be opened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from dlas_store import StoreError, open_source
from dlas_store.errors import ConfigError, ImageError, NotASourceError
from dlas_store.sources.base import Layout
from dlas_store.sources.layouts import ChunkedFolder, PictureFolder
from tests.support.file_trees import write
from tests.support.sample_data import DATA, noise, png


def make_tree(root: Path, *files: str) -> Path:
    return write(root, dict.fromkeys(files, png(noise(4, 4))))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two stores, chunked.lmdb and pictures.lmdb."""
    from dlas_store.converters.importing import import_store

    root = tmp_path_factory.mktemp("stores")
    import_store([DATA / "chunked"], root / "chunked.lmdb")
    import_store([DATA / "chunked"], root / "pictures.lmdb", layout="pictures")
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a/1.png", "a/ref.jpg"], ChunkedFolder),
        (["a/1.png", "b/2.png", "b/centers.pt"], ChunkedFolder),
        (["1.png", "ref.jpg"], PictureFolder),
        (["a/1.png"], PictureFolder),
        (["a/b/1.png", "a/b/ref.jpg"], PictureFolder),
        (["1.png"], PictureFolder),
    ],
)
def test_a_folder_is_chunked_when_a_direct_sub_folder_has_a_reference_or_centres(
    tmp_path: Path, files: list[str], expected: type
) -> None:
    assert type(open_source(make_tree(tmp_path, *files))) is expected


@pytest.mark.parametrize(("layout", "expected"), [("chunked", ChunkedFolder), ("pictures", PictureFolder)])
@pytest.mark.parametrize("files", [["a/1.png"], ["a/1.png", "a/ref.jpg"]])
def test_a_given_layout_decides(tmp_path: Path, layout: Layout, expected: type, files: list[str]) -> None:
    assert type(open_source(make_tree(tmp_path, *files), layout)) is expected


@pytest.mark.parametrize("path", ["chunked.lmdb", "chunked.lmdb/index.lmdb", "chunked.lmdb/shard-00000.lmdb"])
def test_a_store_opens_by_its_folder_index_or_shard(stores: Path, path: str) -> None:
    with open_source(stores / path) as source, open_source(DATA / "chunked") as folder:
        assert source.layout == "chunked"
        assert len(source) == len(folder)
        assert [source.read(index) for index in range(9)] == [folder.read(index) for index in range(9)]


def test_a_store_need_not_be_named_lmdb(stores: Path, tmp_path: Path) -> None:
    (tmp_path / "renamed").symlink_to(stores / "chunked.lmdb")
    with open_source(tmp_path / "renamed") as source:
        assert len(source) == 262


def test_a_chunked_store_opens_as_pictures_but_not_the_other_way(stores: Path) -> None:
    with open_source(stores / "chunked.lmdb", "pictures") as source:
        assert source.layout == "chunked"
    with pytest.raises(NotASourceError, match=r"pictures\.lmdb: is a store of whole pictures"):
        open_source(stores / "pictures.lmdb", "chunked")


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_tree(tmp_path / "data", "1.png")
    assert open_source("~/data").path == tmp_path / "data"


def test_options_reach_the_source(tmp_path: Path) -> None:
    source = open_source(make_tree(tmp_path, "1.png"), max_pixels=15)
    with pytest.raises(ImageError, match="limit of 15"):
        source.read_pixels([0])
    pixels = open_source(tmp_path).read_pixels([0])
    np.testing.assert_array_equal(np.asarray(pixels)[0], noise(4, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "Chunked"}, "layout must be 'chunked' or 'pictures', got 'Chunked'"),
        ({"layout": ""}, "layout must be"),
        ({"decoder": "cv2"}, "decoder must be 'simplejpeg' or 'pyturbojpeg', got 'cv2'"),
    ],
)
def test_an_unknown_option_is_an_error_that_names_rule_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_source(DATA, **options)


def make_other_lmdb(path: Path) -> Path:
    with lmdb.open(str(path), lib_version=0) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"0001", b"text")
    return path


def make_file(path: Path) -> Path:
    path.write_text("text")
    return path


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


def make_text_folder(path: Path) -> Path:
    make_file(make_folder(path) / "notes.txt")
    return path


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (lambda path: path, "gone", "cannot be opened .No such file or directory"),
        (lambda path: path / "below", "gone", "cannot be opened .No such file or directory"),
        (lambda path: make_file(path) / "below", "file", "cannot be opened .Not a directory"),
        (make_file, "notes.txt", "is no store; give a store's folder, its index.lmdb, a shard, or a folder"),
        (make_folder, "empty", "the folder is empty"),
        (make_text_folder, "texts", "neither a store nor a chunked folder, and no pictures below it .*[.]jpg"),
        (lambda path: make_tree(path, "a/ref.jpg"), "references", "no sub folder holds patches"),
        (make_folder, "empty.lmdb", "is not a store: it has no index.lmdb"),
        (make_other_lmdb, "other.lmdb", "is an LMDB whose values are no pictures"),
        (make_other_lmdb, "other", "is an LMDB whose values are no pictures"),
        (lambda path: make_other_lmdb(path) / "data.mdb", "other", "is an LMDB whose values are no pictures"),
    ],
)
def test_what_cannot_be_opened_is_an_error_that_names_it_and_says_why(
    tmp_path: Path, make: Any, name: str, message: str
) -> None:
    path = make(tmp_path / name)
    with pytest.raises(NotASourceError, match=message) as caught:
        open_source(path)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["a\0b", "~nobody-of-that-name/data", "x" * 5000])
def test_a_path_that_cannot_be_is_our_error(path: str) -> None:
    with pytest.raises(NotASourceError, match="cannot be opened"):
        open_source(path)


def test_a_layout_that_finds_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotASourceError, match="opens with layout 'pictures'"):
        open_source(make_tree(tmp_path, "1.png"), "chunked")


def test_any_lmdb_file_that_is_none_of_ours_is_our_error(tmp_path: Path) -> None:
    for name in ("index.lmdb", "shard-00000.lmdb", "other.lmdb"):
        path = make_file(tmp_path / name)
        with pytest.raises(StoreError, match=str(path)):
            open_source(path)


def test_importing_and_reading_folders_loads_neither_torch_nor_opencv() -> None:
    program = (
        "import sys, dlas_store\n"
        f"source = dlas_store.open_source({str(DATA / 'chunked')!r})\n"
        "source.read_pixels([0]), source.image(0).centers\n"
        "print(*{'torch', 'cv2'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == ""
