"""Hidden and junk paths in folders: they hold no data and take no label, unless they are asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dlas_store.converters.importing import import_store
from dlas_store.datasets import create_dataset
from dlas_store.errors import NotASourceError
from dlas_store.maintenance.verify import verify
from dlas_store.opening import open_source
from dlas_store.sources.base import Source
from dlas_store.sources.folder import FolderSource
from dlas_store.sources.published import open_published
from dlas_store.sources.walk import EXTRA_FILE, HIDDEN, SkippedPath
from tests.support.file_trees import write
from tests.support.sample_data import noise, png

JUNK_FOLDERS = (
    ".ipynb_checkpoints", "__MACOSX", "@eaDir", ".thumbnails", ".git", "lost+found", ".Trash-1000", "$RECYCLE.BIN",
    "System Volume Information", "#recycle", "@Recycle", ".AppleDouble",
)  # fmt: skip
PICTURE = png(noise(40, 40))


def make_tree(root: Path, *files: str) -> Path:
    return write(root, dict.fromkeys(files, PICTURE))


def names(source: Source) -> list[str]:
    return [source.image_name(number) for number in range(source.image_count)]


def labels(source: Source) -> dict[str, int]:
    images = (source.image(number) for number in range(source.image_count))
    return {image.extra["label_name"]: image.extra["label"] for image in images}


@pytest.mark.parametrize("junk", JUNK_FOLDERS)
def test_junk_folders_are_no_images_of_a_chunked_folder(tmp_path: Path, junk: str) -> None:
    root = make_tree(tmp_path / "f", "a/1.png", "a/ref.jpg", f"{junk}/1.png", f"{junk}/ref.jpg", "a/._1.png")
    (root / "a" / junk).mkdir()
    with open_source(root) as source:
        assert isinstance(source, FolderSource)
        assert (names(source), len(source)) == (["a"], 1)
        assert {skipped for skipped in source.skipped if skipped.reason == HIDDEN} == {
            SkippedPath(junk, HIDDEN),
            SkippedPath("a/._1.png", HIDDEN),
            SkippedPath(f"a/{junk}", HIDDEN),
        }
    with open_source(root, include_hidden=True) as source:
        assert (names(source), len(source)) == (sorted(["a", junk]), 3)


@pytest.mark.parametrize("junk", JUNK_FOLDERS)
def test_junk_folders_do_not_make_a_folder_of_pictures_chunked(tmp_path: Path, junk: str) -> None:
    root = make_tree(tmp_path / "f", "a/1.png", f"{junk}/1.png", f"{junk}/ref.jpg", f"a/{junk}/2.png", "._a.jpg")
    with open_source(root) as source:
        assert (source.layout, names(source)) == ("pictures", ["a/1.png"])
    with open_source(root, "pictures", include_hidden=True) as source:
        assert names(source) == sorted(["._a.jpg", "a/1.png", f"a/{junk}/2.png", f"{junk}/1.png"])


@pytest.mark.parametrize("junk", ["empty", *JUNK_FOLDERS])
@pytest.mark.parametrize("has_picture", [True, False])
def test_only_folders_with_pictures_take_a_label(tmp_path: Path, junk: str, has_picture: bool) -> None:
    root = make_tree(tmp_path / "f", "cat/1.png", "dog/deep/1.png", "zebra/1.png")
    (root / junk).mkdir()
    if has_picture and junk != "empty":
        make_tree(root / junk, "1.png")
    expected = {"cat": 0, "dog": 1, "zebra": 2}
    source = open_published("imagefolder", root)
    assert labels(source) == expected
    assert labels(source.subset(["zebra/1.png"])) == {"zebra": 2}
    summary = import_store([open_published("imagefolder", root)], tmp_path / "s.lmdb", workers=0)
    assert [skipped.path for skipped in summary.skipped] == [junk]
    assert labels(open_source(tmp_path / "s.lmdb")) == expected
    options: dict[str, Any] = {
        "mode": "torch_dataset", "dataset": "imagefolder", "kwargs": {"root": str(root)}, "image_size": 8,
        "phase": "train",
    }  # fmt: skip
    dataset = create_dataset(options)
    assert [dataset[number]["labels"] for number in range(len(dataset))] == [0, 1, 2]


def test_hidden_class_folders_can_be_included(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "f", ".cat/1.png", "dog/1.png")
    source = open_published("imagefolder", root, include_hidden=True)
    import_store([source], tmp_path / "s.lmdb", workers=2)
    assert labels(open_source(tmp_path / "s.lmdb")) == {".cat": 0, "dog": 1}


@pytest.mark.parametrize("line", [{"file_name": "1.png", "text": "a"}, {"input_file_name": "1.png"}])
def test_metadata_of_hugging_face_is_left_out(tmp_path: Path, line: dict[str, str]) -> None:
    root = make_tree(tmp_path / "f", "1.png", "a/2.png")
    (root / EXTRA_FILE).write_text(json.dumps(line) + "\n")
    (root / "a" / EXTRA_FILE).write_text(json.dumps(line) + "\n")
    with open_source(root) as source:
        assert isinstance(source, FolderSource)
        assert names(source) == ["1.png", "a/2.png"]
        assert source.image(0).extra == {}
        assert sorted(skipped.path for skipped in source.skipped) == [f"a/{EXTRA_FILE}", EXTRA_FILE]


def test_a_folder_of_hidden_pictures_only_says_so(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "f", ".cache/1.png")
    with pytest.raises(NotASourceError, match=r"left out: \.cache: hidden .*--include-hidden"):
        open_source(root)


def test_a_hidden_root_is_read(tmp_path: Path) -> None:
    assert names(open_source(make_tree(tmp_path / ".cache", "1.png"))) == ["1.png"]


def test_a_store_with_hidden_images_is_compared_with_them(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "f", "1.png", ".x/2.png")
    import_store([root], tmp_path / "s.lmdb", include_hidden=True, workers=0)
    assert verify(tmp_path / "s.lmdb", root, workers=0, include_hidden=True).ok
    assert [finding.kind for finding in verify(tmp_path / "s.lmdb", root, workers=0).findings] == ["not in source"]
