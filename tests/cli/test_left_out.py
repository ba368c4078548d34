"""Import and extract list every file that they leave out, with its reason, on the terminal and in a JSON report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlas_store.converters.importing import import_store
from dlas_store.opening import open_source
from tests.support.command_line import done, refused, run
from tests.support.file_trees import write
from tests.support.sample_data import noise, png

PHOTO = png(noise(320, 320))
ENDINGS = (".jfif", ".avif", ".tif", ".heic", ".gif", ".CR2", ".jpe")


@pytest.mark.parametrize("layout", ["chunked", "pictures"])
def test_import_names_the_endings_that_it_does_not_read(tmp_path: Path, layout: str) -> None:
    files = {f"a/{number}{ending}": PHOTO for number, ending in enumerate(ENDINGS)}
    write(tmp_path / "f", {"a/1.png": PHOTO, "a/ref.jpg": PHOTO, "a/notes.txt": b"", **files})
    report = tmp_path / "r.json"
    out = done("import", tmp_path / "f", tmp_path / "s.lmdb", "--layout", layout, "--report", report, "--workers", "0")
    reasons = {item["path"]: item["reason"] for item in json.loads(report.read_text())["skipped"]}
    expected = {*files, "a/notes.txt", *(["a/ref.jpg"] if layout == "pictures" else [])}
    assert reasons.keys() == expected
    for path in files:
        ending = Path(path).suffix.lower()
        assert reasons[path].startswith(f"pictures {ending} are not read")
        assert f"pictures {ending} are not read" in out
    assert reasons["a/0.jfif"].endswith("rename them to .jpg")


def test_extract_lists_all_files_that_are_no_photos(tmp_path: Path) -> None:
    others = {f"{number}{ending}": PHOTO for number, ending in enumerate(ENDINGS) if ending != ".tif"}
    write(tmp_path / "photos", {"a.png": PHOTO, "deep/notes.txt": b"", ".thumbnails/a.jpg": PHOTO, **others})
    report = tmp_path / "r.json"
    words = ("extract", tmp_path / "photos", tmp_path / "s.lmdb", "--crop-size", "256", "--workers", "0")
    out = done(*words, "--report", report)
    skipped = {item["photo"]: item for item in json.loads(report.read_text())["skipped"]}
    assert skipped.keys() == {*others, "deep/notes.txt", ".thumbnails"}
    assert not any(item["bad"] for item in skipped.values())
    for name in others:
        assert Path(name).suffix.lower() in skipped[name]["reason"]
        assert name in out
    hidden = (*words[:2], tmp_path / "hidden.lmdb", *words[3:], "--include-hidden")
    done(*hidden)
    with open_source(tmp_path / "hidden.lmdb") as store:
        assert [store.image_name(number) for number in range(store.image_count)] == [".thumbnails__a", "a"]


def test_extract_of_other_files_only_names_them(tmp_path: Path) -> None:
    write(tmp_path / "photos", {"a.avif": PHOTO})
    message = refused("extract", tmp_path / "photos", tmp_path / "s.lmdb")
    assert "holds no photo" in message
    assert "a.avif: pictures .avif are not read" in message


def test_the_report_of_several_sources_names_each(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, {f"{name}.png": PHOTO, "notes.txt": b""}) for name in ("a", "b")]
    summary = import_store(folders, tmp_path / "s.lmdb", workers=0)
    assert [skipped.path for skipped in summary.skipped] == [f"{folder}/notes.txt" for folder in folders]


def test_a_report_is_written_where_bad_files_stop_the_import(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {"1.png": PHOTO, "2.jpg": b"no picture", "x.avif": PHOTO})
    assert "2.jpg" in refused("import", folder, tmp_path / "s.lmdb", "--report", tmp_path / "r.json")
    report = json.loads((tmp_path / "r.json").read_text())
    assert [finding["path"] for finding in report["findings"]] == [f"{folder}/2.jpg"]
    assert [skipped["path"] for skipped in report["skipped"]] == ["x.avif"]
    assert "no folder" in refused("import", folder, tmp_path / "s.lmdb", "--report", tmp_path / "none/r.json")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_import_of_bad_files_only_says_so_and_leaves_nothing_behind(tmp_path: Path, workers: str) -> None:
    bad = write(tmp_path / "bad", {f"{number}.jpg": b"no picture" for number in range(3)})
    store = tmp_path / "s.lmdb"
    words = ("--on-error", "skip", "--workers", workers, "--report", tmp_path / "r.json")
    message = refused("import", bad, store, *words)
    assert "nothing is left to import" in message
    assert "--on-error skip" not in message
    assert len(json.loads((tmp_path / "r.json").read_text())["findings"]) == 3
    assert not list(tmp_path.glob("s.lmdb*"))
    done("import", write(tmp_path / "good", {"a.png": PHOTO}), store, "--workers", "0")
    before = sorted(store.iterdir())
    assert "nothing is left to import" in refused("import", "--append", bad, store, *words)
    assert sorted(store.iterdir()) == before
    assert not list(tmp_path.glob("s.lmdb.*"))


def test_an_import_of_bad_patches_only_leaves_nothing_behind(tmp_path: Path) -> None:
    files = {"a/1.png": b"no picture", "a/ref.jpg": PHOTO, "b/1.png": PHOTO[:50], "b/ref.jpg": b""}
    message = refused("import", write(tmp_path / "f", files), tmp_path / "s.lmdb", "--on-error", "skip")
    assert "nothing is left to import" in message
    assert not list(tmp_path.glob("s.lmdb*"))


def test_an_extraction_of_bad_photos_only_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", {"1.jpg": b"no picture", "2.png": PHOTO[:300]})
    for target in ("s.lmdb", "patches"):
        result = run("extract", folder, tmp_path / target, "--workers", "0")
        assert result.status == 1
        assert "no photo gave a patch" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
