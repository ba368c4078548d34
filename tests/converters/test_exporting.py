"""Export: the exported folder equals the imported one, file by file, and verify confirms it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.command_line import done, findings, refused, run
from tests.support.file_trees import (
    centers_file,
    files_and_centers,
    numbered_images,
    patches,
    picture,
    ppm,
    read,
    write,
)
from tests.support.sample_data import DATA

JPEG = picture("JPEG")

# Identity


@pytest.mark.parametrize("name", ["chunked", "chunked_video", "chunked_stereo"])
@pytest.mark.parametrize("workers", ["1", "3"])
def test_real_data_comes_back(tmp_path: Path, name: str, workers: str) -> None:
    done("import", "--shard-size", "100KiB", DATA / name, tmp_path / "s.lmdb")
    done("export", "--workers", workers, tmp_path / "s.lmdb", tmp_path / "back")
    assert files_and_centers(tmp_path / "back") == files_and_centers(DATA / name)
    assert findings(tmp_path / "s.lmdb", "--against", tmp_path / "back") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "s.lmdb"]


# Files beside the patches


def test_centers_are_written_as_torch_saves_plain_numbers(tmp_path: Path) -> None:
    done("import", DATA / "chunked", tmp_path / "s.lmdb")
    done("export", tmp_path / "s.lmdb", tmp_path / "back")
    _, centers = files_and_centers(tmp_path / "back")
    assert len(centers) == 4
    for value in centers.values():
        assert type(value) is dict
        for number, ((row, col), width) in value.items():
            assert {type(each) for each in (number, row, col, width)} == {int}


@pytest.mark.parametrize("layout", ["chunked", "pictures"])
def test_metadata_jsonl_is_kept_through_store_and_folder(tmp_path: Path, layout: str) -> None:
    fields = {"label": 3, "tags": ["ü", "two\nlines"], "size": {"h": 1.5, "none": None}, "sure": True}
    names = ("cat_0", "dog_1") if layout == "chunked" else ("cat_0/1.jpg", "dog_1/1.jpg")
    source = write(tmp_path / "data", {"cat_0/1.jpg": JPEG, "dog_1/1.jpg": JPEG})
    (source / "metadata.jsonl").write_text(json.dumps({"image": names[0], **fields}) + "\n")
    done("import", "--layout", layout, source, tmp_path / "s.lmdb")
    done("export", tmp_path / "s.lmdb", tmp_path / "back")
    lines = [json.loads(line) for line in (tmp_path / "back" / "metadata.jsonl").read_text().splitlines()]
    assert lines == [{"image": names[0], **fields}]
    done("import", "--layout", layout, tmp_path / "back", tmp_path / "again.lmdb")
    assert findings(tmp_path / "again.lmdb", "--against", tmp_path / "s.lmdb") == []
    assert findings(tmp_path / "s.lmdb", "--against", source) == []
    (source / "metadata.jsonl").write_text(json.dumps({"image": names[0], **fields, "label": 4}) + "\n")
    assert findings(tmp_path / "s.lmdb", "--against", source) != []


def test_images_picks_by_pattern(tmp_path: Path) -> None:
    done("import", DATA / "chunked_video", tmp_path / "s.lmdb")
    done("export", "--images", "rise_*1", tmp_path / "s.lmdb", tmp_path / "back")
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["rise_000000000001"]
    assert files_and_centers(tmp_path / "back" / "rise_000000000001") == files_and_centers(
        DATA / "chunked_video" / "rise_000000000001"
    )
    assert "nothing*" in refused("export", "--images", "nothing*", tmp_path / "s.lmdb", tmp_path / "none")
    assert not (tmp_path / "none").exists()


# Refusals


@pytest.mark.parametrize("kind", ["file", "folder", "empty_folder", "dangling_link"])
def test_what_is_there_already_is_not_touched(tmp_path: Path, kind: str) -> None:
    done("import", DATA / "chunked_stereo", tmp_path / "s.lmdb")
    target = tmp_path / "back"
    match kind:
        case "file":
            target.write_bytes(b"mine")
        case "folder":
            write(target, {"mine": b"mine"})
        case "empty_folder":
            target.mkdir()
        case _:
            target.symlink_to("nowhere")
    old_files, old_paths = read(tmp_path), sorted(tmp_path.iterdir())
    assert "back" in refused("export", tmp_path / "s.lmdb", target)
    assert read(tmp_path) == old_files
    assert sorted(tmp_path.iterdir()) == old_paths
    assert target.is_symlink() == (kind == "dangling_link")


def _flip(path: Path, content: bytes) -> None:
    """Flip a bit in a file, in the middle of a part of its content."""
    data = bytearray(path.read_bytes())
    data[data.index(content) + len(content) // 2] ^= 4
    path.write_bytes(data)


def test_a_damaged_value_is_named_and_no_folder_appears(tmp_path: Path) -> None:
    done("import", DATA / "chunked", tmp_path / "s.lmdb")
    (image, file), content = list(patches(DATA / "chunked").items())[30]
    _flip(tmp_path / "s.lmdb" / "shard-00000.lmdb", content)
    message = refused("export", tmp_path / "s.lmdb", tmp_path / "back")
    assert image in message
    assert file in message
    assert not (tmp_path / "back").exists()
    (finding,) = findings(tmp_path / "s.lmdb")
    assert (finding["shard"], finding["image"], finding["patch"]) == ("shard-00000.lmdb", image, file)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    done("import", "--shard-size", "1", DATA / "chunked", tmp_path / "s.lmdb")
    (tmp_path / "s.lmdb" / "shard-00002.lmdb").unlink()
    assert "shard-00002.lmdb" in refused("export", tmp_path / "s.lmdb", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for few files; a remount can give it more."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a small disk")
    point = tmp_path / "disk"
    point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40m,nr_inodes=60", "tmpfs", str(point)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no mounting here")
    yield point
    subprocess.run(["umount", point], check=True)


def test_a_full_disk_is_an_error_and_a_rerun_goes_on(tmp_path: Path, small_disk: Path) -> None:
    source = numbered_images(tmp_path / "data", 20, 5)
    done("import", source, tmp_path / "s.lmdb")
    message = refused("export", tmp_path / "s.lmdb", small_disk / "back")
    assert "No space left" in message
    assert "back" in message
    assert not (small_disk / "back").exists()
    subprocess.run(["mount", "-o", "remount,size=40m,nr_inodes=6000", small_disk], check=True)
    done("export", tmp_path / "s.lmdb", small_disk / "back")
    assert files_and_centers(small_disk / "back") == files_and_centers(source)


# Differences that verify --against finds


def _change_centers(image: Path) -> None:
    (image / "centers.pt").write_bytes(centers_file(dict.fromkeys(range(5), ((1, 2), 3))))


DIFFERENCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "patch_changed": (lambda image: (image / "00000002.ppm").write_bytes(ppm(0xABCDEF)), "00000002.ppm"),
    "patch_missing": (lambda image: (image / "00000002.ppm").unlink(), "00000002.ppm"),
    "patch_more": (lambda image: (image / "9.ppm").write_bytes(ppm(9)), "9.ppm"),
    "patch_renamed": (lambda image: (image / "00000002.ppm").rename(image / "2.ppm"), "00000002.ppm"),
    "patch_empty": (lambda image: (image / "00000002.ppm").write_bytes(b""), "00000002.ppm"),
    "reference_changed": (lambda image: (image / "ref.jpg").write_bytes(ppm(0xABCDEF)), "ref.jpg"),
    "reference_missing": (lambda image: (image / "ref.jpg").unlink(), "ref.jpg"),
    "centers_changed": (_change_centers, "centers.pt"),
    "centers_missing": (lambda image: (image / "centers.pt").unlink(), "centers.pt"),
    "centers_damaged": (lambda image: (image / "centers.pt").write_bytes(b"text"), "centers.pt"),
    "image_missing": (shutil.rmtree, ""),
    "image_more": (lambda image: write(image.parent, {"image_00001/1.ppm": ppm(9)}), ""),
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder, and its store."""
    root = tmp_path_factory.mktemp("imported")
    source = numbered_images(root / "data", 4, 5)
    shutil.rmtree(source / "image_00001")
    for image in source.iterdir():
        (image / "centers.pt").write_bytes(centers_file({number: ((number, 2), 3) for number in range(5)}))
    done("import", source, root / "s.lmdb")
    assert findings(root / "s.lmdb", "--against", source) == []
    return source, root / "s.lmdb"


@pytest.mark.parametrize("name", DIFFERENCES)
def test_verify_against_finds_each_difference(tmp_path: Path, imported: tuple[Path, Path], name: str) -> None:
    source, store = shutil.copytree(imported[0], tmp_path / "data"), imported[1]
    change, word = DIFFERENCES[name]
    change(source / "image_00002")
    differences = findings(store, "--against", source)
    assert differences
    changed_image = "image_00001" if name == "image_more" else "image_00002"
    for finding in differences:
        assert changed_image in finding["image"] + finding["message"]
        assert finding.keys() == {"shard", "image", "patch", "kind", "message"}
    assert any(word in finding["patch"] + finding["message"] for finding in differences)


def test_verify_says_in_text_what_differs(tmp_path: Path, imported: tuple[Path, Path]) -> None:
    source = shutil.copytree(imported[0], tmp_path / "data")
    (source / "image_00002" / "00000002.ppm").unlink()
    result = run("verify", imported[1], "--against", source)
    assert (result.status, result.err) == (1, "")
    assert "image_00002" in result.out
    assert "00000002.ppm" in result.out
