"""A walk over a folder: it skips paths with a reason, follows links, and reads the extra fields in metadata.jsonl."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from dlas_store.errors import DamagedError, NotASourceError
from dlas_store.sources.folder import FolderSource
from dlas_store.sources.layouts import ChunkedFolder, PictureFolder
from dlas_store.sources.walk import EXTRA_FILE, HIDDEN, LOOP, NEITHER, SkippedPath, extra_line
from tests.support.file_trees import write
from tests.support.sample_data import noise, png

KINDS = pytest.mark.parametrize("kind", [ChunkedFolder, PictureFolder])
PICTURE = png(noise(6, 8))


def make_tree(root: Path, *files: str) -> Path:
    return write(root, dict.fromkeys(files, PICTURE))


@pytest.fixture
def chunked(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "data", "a/1.png", "a/2.png", "a/ref.jpg", "b/7.png")


def test_what_is_no_patch_is_left_out_with_a_reason(tmp_path: Path) -> None:
    root = make_tree(tmp_path, "a/1.png", "a/ref.jpg", "a/centers.pt", "a/deep/1.png", "loose.png", "empty/ref.jpg")
    for file in ("cache.pth", "notes.txt", "a/notes.txt", "a/1.png.partial", "a/.DS_Store"):
        (root / file).touch()
    (root / "a/gone.png").symlink_to("nowhere.png")
    (root / "a/self.png").symlink_to("self.png")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "a/pipe.png")
    expected = {
        "cache.pth": "the scan that DL-Art-School keeps, made anew from the folder",
        "notes.txt": "not an image folder",
        "loose.png": "not an image folder",
        "empty": "folder without patches",
        "loop": "link to a folder that it lies in",
        "a/notes.txt": "unknown file",
        "a/1.png.partial": "unknown file",
        "a/.DS_Store": HIDDEN,
        "a/deep": "folder in an image folder",
        "a/gone.png": "broken link",
        "a/self.png": "link that cannot be followed (Too many levels of symbolic links)",
        "a/pipe.png": "neither a file nor a folder",
    }
    source = ChunkedFolder(root)
    for _ in range(2):
        assert [listing.name for listing in source.listings()] == ["a"]
        assert sorted(source.skipped) == sorted(SkippedPath(*item) for item in expected.items())
    assert len(source) == 1
    assert sorted(source.skipped) == sorted(SkippedPath(*item) for item in expected.items())


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "root", "a/1.png")
    make_tree(tmp_path / "other", "x/2.png")
    (root / "link").symlink_to(tmp_path / "other")
    (root / "link.png").symlink_to(root / "a/1.png")
    (tmp_path / "other/x/up").symlink_to(root)
    (root / "a/parent").symlink_to(tmp_path)
    source = PictureFolder(root)
    assert [source.image_name(number) for number in range(source.image_count)] == [
        "a/1.png",
        "link.png",
        "link/x/2.png",
    ]
    assert [skipped.path for skipped in source.skipped] == ["a/parent", "link/x/up"]
    assert ChunkedFolder(make_tree(tmp_path / "chunked", "z/1.png")).image_count == 1


def test_a_tree_deeper_than_the_recursion_limit_is_read(tmp_path: Path) -> None:
    folders = [tmp_path]
    for _ in range(sys.getrecursionlimit() + 100):
        folders.append(folders[-1] / "d")
        folders[-1].mkdir()
    file = folders[-1] / "1.png"
    file.touch()
    try:
        assert len(PictureFolder(tmp_path)) == 1
    finally:  # pytest removes folders by recursion
        file.unlink()
        for folder in folders[:0:-1]:
            folder.rmdir()


@KINDS
def test_names_that_are_not_utf8_are_all_named(chunked: Path, kind: type[FolderSource]) -> None:
    for number in range(25):
        Path(os.fsdecode(os.fsencode(chunked / "b") + b"/\xff%02d.png" % number)).write_bytes(PICTURE)
    with pytest.raises(NotASourceError, match="25 names are not UTF-8") as caught:
        list(kind(chunked).listings())
    assert str(caught.value).count(r"b/\xff") == 20
    with pytest.raises(NotASourceError, match="25 names"):
        len(kind(chunked))


@KINDS
def test_extra_fields_come_from_metadata_jsonl(chunked: Path, kind: type[FolderSource]) -> None:
    first, second = (kind(chunked).image(number).name for number in (0, 1))
    fields = {"label": 3, "photo": "ä.jpg", "size": [4000, 3000]}
    (chunked / EXTRA_FILE).write_text(extra_line("gone", {}) + extra_line(second, fields), encoding="utf-8")
    source = kind(chunked)
    assert source.image(1).extra == fields
    assert source.image(0).extra == {}
    assert SkippedPath(f"{EXTRA_FILE}: gone", "fields of an image that is not there") in source.skipped
    restricted = kind(chunked, images=[first])
    assert restricted.image(0).extra == {}
    assert restricted.skipped == []


@pytest.mark.parametrize(
    "line",
    [
        *("", "{", "[]", "3", '{"label": 1}', '{"image": 1}', '{"image": "a"}', "\udcff", "[" * 100_000),
        f'{{"image": "b", "n": {10**30}}}',
        '{"image": "\\ud800"}',
    ],
)
def test_a_damaged_line_is_an_error_naming_file_and_line(chunked: Path, line: str) -> None:
    text = json.dumps({"image": "a"}) + "\n" + line + "\n"
    (chunked / EXTRA_FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DamagedError, match=f"{chunked}/{EXTRA_FILE}: line 2: "):
        len(ChunkedFolder(chunked))
    with pytest.raises(DamagedError, match="line 2"):
        list(ChunkedFolder(chunked).listings())


def test_extra_fields_that_change_under_an_open_source_are_an_error(chunked: Path) -> None:
    (chunked / EXTRA_FILE).write_text(extra_line("a", {}) + extra_line("b", {}))
    source = ChunkedFolder(chunked)
    assert len(source) == 3
    (chunked / EXTRA_FILE).write_text(extra_line("b", {}) + extra_line("a", {}))
    with pytest.raises(DamagedError, match="changed"):
        source.image(0)


def test_links_to_folders_above_the_root_are_left_out(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "top/data", "a.png", "sub/b.png").resolve()
    make_tree(tmp_path, "top/other.png", "away/deep/c.png")
    (root / "sub/up").symlink_to("../../..")
    (root / "system").symlink_to("/")
    (root / "away").symlink_to(tmp_path / "away/deep")
    (tmp_path / "away/deep/up").symlink_to("..")
    (tmp_path / "link").symlink_to(root)
    for path in (root, tmp_path / "link"):
        source = PictureFolder(path)
        assert [listing.name for listing in source.listings()] == ["a.png", "away/c.png", "sub/b.png"]
        assert sorted(source.skipped) == [SkippedPath(name, LOOP) for name in ("away/up", "sub/up", "system")]


def test_a_chunked_folder_leaves_out_links_above_itself(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "top/data", "a/1.png", "a/ref.jpg")
    make_tree(tmp_path, "top/other.png")
    (root / "up").symlink_to("..")
    source = ChunkedFolder(root)
    assert [listing.name for listing in source.listings()] == ["a"]
    assert source.skipped == [SkippedPath("up", LOOP)]


@KINDS
def test_a_name_that_is_not_utf8_of_no_picture_is_left_out(chunked: Path, kind: type[FolderSource]) -> None:
    Path(os.fsdecode(os.fsencode(chunked / "a") + b"/bad\xff.txt")).touch()
    source = kind(chunked)
    assert len(list(source.listings())) > 0
    assert SkippedPath(r"a/bad\xff.txt", "unknown file") in source.skipped


def test_one_name_that_is_not_utf8_is_counted_as_one(chunked: Path) -> None:
    Path(os.fsdecode(os.fsencode(chunked / "b") + b"/\xff.png")).touch()
    with pytest.raises(NotASourceError, match="1 name is not UTF-8, rename it"):
        len(PictureFolder(chunked))


@KINDS
def test_links_to_devices_are_not_broken(chunked: Path, kind: type[FolderSource]) -> None:
    (chunked / "a/zero.png").symlink_to("/dev/zero")
    source = kind(chunked)
    assert len(list(source.listings())) > 0
    assert SkippedPath("a/zero.png", NEITHER) in source.skipped
