"""Folders with links in circles, folders that may not be listed, and names that stores and LMDBs have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dlas_store.converters.exporting import export_store
from dlas_store.converters.importing import import_store
from dlas_store.errors import NotASourceError
from dlas_store.opening import open_source
from dlas_store.sources.base import Layout
from dlas_store.sources.folder import FolderSource
from tests.support.command_line import refused, run
from tests.support.file_trees import write
from tests.support.sample_data import noise, png

PICTURE = png(noise(40, 40))
LAYOUTS = pytest.mark.parametrize("layout", [None, "pictures"])

WITHOUT_ROOTS_RIGHTS = "import ctypes; [ctypes.CDLL(None).prctl(24, right, 0, 0, 0) for right in (1, 2)]"
"""Statement that gives up root's rights to pass over permissions (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)."""


def make_tree(root: Path, *files: str) -> Path:
    return write(root, dict.fromkeys(files, PICTURE))


@LAYOUTS
def test_links_in_circles_and_to_nothing_are_left_out(tmp_path: Path, layout: Layout | None) -> None:
    root = make_tree(tmp_path / "f", "a.png", "deep/b.png")
    links = {"self": "self", "x": "y", "y": "x", "gone": "nowhere", "here": ".", "deep/up": "..", "deep/self": "self"}
    for link, target in links.items():
        (root / link).symlink_to(target)
    with open_source(root, layout) as source:
        assert isinstance(source, FolderSource)
        assert [source.image_name(number) for number in range(source.image_count)] == ["a.png", "deep/b.png"]
        assert sorted(skipped.path for skipped in source.skipped) == sorted(links)


def test_a_link_to_itself_in_a_chunked_folder_is_left_out(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "f", "a/1.png", "a/ref.jpg")
    (root / "data").symlink_to("data")
    (root / "a" / "self").symlink_to("self")
    with open_source(root) as source:
        assert isinstance(source, FolderSource)
        assert (source.layout, source.image_count) == ("chunked", 1)
        assert sorted(skipped.path for skipped in source.skipped) == ["a/self", "data"]


@pytest.fixture(scope="module")
def rights_can_be_given_up(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("rights")
    folder.chmod(0)
    program = f"import os; {WITHOUT_ROOTS_RIGHTS}; os.execv('/bin/ls', ['ls', {str(folder)!r}])"
    if subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0:
        pytest.skip("this user reads every folder")


@pytest.mark.usefixtures("rights_can_be_given_up")
@pytest.mark.parametrize("mode", [0o000, 0o100, 0o400], ids=["nothing", "search", "list"])
@pytest.mark.parametrize("place", ["", "secret", "a/secret", "a/b/c/secret"])
@pytest.mark.parametrize("words", [("import",), ("import", "--layout", "pictures"), ("extract",)], ids=" ".join)
def test_a_folder_that_may_not_be_listed_is_named(
    tmp_path: Path, words: tuple[str, ...], place: str, mode: int
) -> None:
    root = make_tree(tmp_path / "f", "a/1.png", f"{place}/1.png".lstrip("/"))
    (root / place).chmod(mode)
    try:
        result = run(*words, root, tmp_path / "s.lmdb", before=WITHOUT_ROOTS_RIGHTS)
    finally:
        (root / place).chmod(0o755)
    assert result.status == 1, result
    assert "Traceback" not in result.err
    assert str(root / place).rstrip("/") in result.err or place in result.out
    assert "Permission denied" in result.err + result.out
    assert not (tmp_path / "s.lmdb.partial").exists()


@pytest.mark.parametrize("folder", ["index.lmdb", "0.lmdb", "shard-00000.lmdb", "data.mdb", "x.partial", "lock"])
@pytest.mark.parametrize("layout", [None, "chunked", "pictures"])
def test_an_image_folder_may_have_the_name_of_a_stores_file(tmp_path: Path, folder: str, layout: Layout | None) -> None:
    files = ("a/1.png", "a/ref.jpg", f"{folder}/1.png", f"{folder}/ref.jpg")
    root = make_tree(tmp_path / "f", *files)
    import_store([root], tmp_path / "s.lmdb", layout=layout, workers=0)
    export_store(tmp_path / "s.lmdb", tmp_path / "again", workers=0)
    expected = {path for path in files if layout != "pictures" or path.endswith(".png")}
    exported = {str(path.relative_to(tmp_path / "again")) for path in (tmp_path / "again").rglob("*.*g")}
    assert exported == expected
    inner: Layout = "pictures"
    with open_source(root / folder, inner) as source:
        assert [source.image_name(number) for number in range(source.image_count)] == ["1.png"]


@pytest.mark.parametrize("name", ["index.lmdb", "0.lmdb", "data.txt", "x.partial"])
def test_a_picture_with_the_name_of_a_stores_file_is_left_out(tmp_path: Path, name: str) -> None:
    root = make_tree(tmp_path / "f", "a.png", name)
    with open_source(root) as source:
        assert isinstance(source, FolderSource)
        assert source.image_count == 1
        assert [skipped.path for skipped in source.skipped] == [name]


def test_a_folder_of_pictures_may_be_called_lmdb(tmp_path: Path) -> None:
    assert len(open_source(make_tree(tmp_path / "pictures.lmdb", "a.png"))) == 1
    (tmp_path / "empty.lmdb").mkdir()
    with pytest.raises(NotASourceError, match="is not a store"):
        open_source(tmp_path / "empty.lmdb")


@pytest.mark.usefixtures("rights_can_be_given_up")
def test_a_store_that_may_not_be_read_is_not_to_be_reindexed(tmp_path: Path) -> None:
    store = tmp_path / "s.lmdb"
    import_store([make_tree(tmp_path / "f", "a.png")], store, workers=0)
    for path in (store / "index.lmdb", store / "shard-00000.lmdb", store):
        mode = path.stat().st_mode
        path.chmod(0o400 if path == store else 0)
        try:
            for words in (("info", store), ("verify", store), ("export", store, tmp_path / "out")):
                result = run(*words, before=WITHOUT_ROOTS_RIGHTS)
                assert "Traceback" not in result.err
                if words[0] != "info" or path.name != "shard-00000.lmdb":
                    assert "Permission denied" in result.out + result.err, result
                assert "reindex" not in result.out + result.err
        finally:
            path.chmod(mode)


def test_a_lost_shard_is_no_reason_to_reindex(tmp_path: Path) -> None:
    store = tmp_path / "s.lmdb"
    import_store([make_tree(tmp_path / "f", "a.png", "b.png")], store, workers=0, shard_size=1)
    (store / "shard-00001.lmdb").rename(tmp_path / "aside")
    for words in (("info", store), ("verify", store), ("export", store, tmp_path / "out")):
        result = run(*words)
        assert result.status == 1
        assert "dlas-store salvage" in result.out + result.err
        assert "reindex" not in result.out + result.err


def test_damage_found_by_export_points_to_salvage(tmp_path: Path) -> None:
    store = tmp_path / "s.lmdb"
    import_store([make_tree(tmp_path / "f", "a.png", "b.png")], store, workers=0)
    shard = store / "shard-00000.lmdb"
    data = shard.read_bytes()
    position = data.index(PICTURE[:64])
    shard.write_bytes(data[: position + 40] + bytes([data[position + 40] ^ 1]) + data[position + 41 :])
    assert "dlas-store salvage" in refused("export", store, tmp_path / "out")
    assert "dlas-store salvage" in run("verify", store).out
