"""Targets of commands: a report replaces nothing but a report, and no target lies in what is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlas_store.converters.importing import import_store
from dlas_store.errors import StoreError
from tests.support.command_line import error_line, run
from tests.support.file_trees import read, write
from tests.support.sample_data import noise, png

PICTURE = png(noise(24, 32))
COMMANDS = pytest.mark.parametrize("command", ["import", "extract", "salvage"])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write(tmp_path / "photos", {"a.png": PICTURE, "b.png": PICTURE})


@COMMANDS
def test_a_report_does_not_overwrite_a_photo(photos: Path, command: str) -> None:
    old_files = read(photos.parent)
    result = run(command, photos, photos.parent / "s.lmdb", "--report", photos / "a.png")
    assert "must be a file name that ends in .json" in result.err
    assert result.status == 2
    assert read(photos.parent) == old_files


@COMMANDS
def test_a_report_replaces_no_folder_and_no_link(photos: Path, command: str) -> None:
    if command == "salvage":
        photos = photos.rename(photos.with_suffix(".lmdb"))
    (photos.parent / "folder.json").mkdir()
    (photos.parent / "null.json").symlink_to("/dev/null")
    for name in ("folder.json", "null.json"):
        message = error_line(run(command, photos, photos.parent / "s.lmdb", "--report", photos.parent / name))
        assert "no regular file" in message
        assert "room" not in message
    assert {path.name for path in photos.parent.iterdir()} == {photos.name, "folder.json", "null.json"}


def test_a_report_of_a_call_is_checked_before_the_import(photos: Path) -> None:
    with pytest.raises(StoreError, match=r"ends in \.json"):
        import_store([photos], photos.parent / "s.lmdb", report=photos / "a.png")
    assert read(photos) == {"a.png": PICTURE, "b.png": PICTURE}
    assert not (photos.parent / "s.lmdb").exists()


def test_a_second_run_replaces_its_report(photos: Path) -> None:
    report = photos.parent / "r.json"
    for name in ("s.lmdb", "t.lmdb"):
        report.touch()
        assert run("import", photos, photos.parent / name, "--report", report).status == 0
        assert report.read_text().startswith("{")


def test_no_target_lies_in_what_is_read(photos: Path) -> None:
    store = photos.parent / "s.lmdb"
    (photos.parent / "link").symlink_to(photos)
    assert run("import", photos, store).status == 0
    old_files = read(photos.parent)
    for command, source, target in [
        ("export", store, store / "x"),
        ("export", store / "index.lmdb", store / "x"),
        ("salvage", store, store / "n.lmdb"),
        ("import", photos, photos / "in.lmdb"),
        ("import", photos, photos.parent / "link/in.lmdb"),
        ("extract", photos, photos / "in.lmdb"),
        ("extract", photos, photos / "in"),
    ]:
        assert "is inside" in error_line(run(command, source, target))
    assert read(photos.parent) == old_files


@pytest.mark.parametrize("command", ["import", "export"])
def test_an_empty_pattern_is_named(photos: Path, command: str) -> None:
    store = photos.parent / "s.lmdb"
    assert run("import", photos, store).status == 0
    source = photos if command == "import" else store
    assert "matches ''" in error_line(run(command, source, photos.parent / "new.lmdb", "--images", ""))


def test_verify_names_the_other_layout(photos: Path) -> None:
    chunked = write(photos.parent / "ch", {"0/1.png": PICTURE, "0/ref.jpg": PICTURE})
    nested = write(photos.parent / "nested", {"cats/1.png": PICTURE})
    store, pictures = photos.parent / "ch.lmdb", photos.parent / "pic.lmdb"
    assert run("import", chunked, store).status == run("import", photos, pictures).status == 0
    for name, against in [(store, photos), (store, nested), (store, pictures), (pictures, chunked)]:
        assert "layout" in error_line(run("verify", name, "--against", against)), (name, against)
    assert run("verify", store, "--against", chunked).status == 0
