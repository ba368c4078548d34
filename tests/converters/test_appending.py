"""Append: new images go into new shards, and the files of the store stay untouched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dlas_store import open_source
from tests.support.command_line import done, error_line, findings, info, is_sound_copy, refused, run
from tests.support.file_trees import (
    centers_file,
    numbered_images,
    numbered_pictures,
    patches,
    picture,
    ppm,
    read,
    states,
    write,
)
from tests.support.sample_data import DATA

JPEG = picture("JPEG")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of four images."""
    return numbered_images(tmp_path / "data", 4, 5)


@pytest.fixture
def store(tmp_path: Path, source: Path) -> Path:
    """A store of the folder, in two shards."""
    store = tmp_path / "s.lmdb"
    done("import", "--shard-size", "170", source, store)
    assert info(store)["shards"] == 2
    return store


@pytest.mark.parametrize("workers", ["1", "2"])
def test_new_images_come_in_new_shards(source: Path, store: Path, workers: str) -> None:
    old_states, old_info = states(store), info(store)
    numbered_images(source, 3, 5, first=10)
    assert "3 images" in done("import", "--append", "--shard-size", "170", "--workers", workers, source, store)
    assert info(store)["shards"] == 4
    assert info(store)["store_id"] == old_info["store_id"]
    assert old_states.items() <= states(store).items()
    assert is_sound_copy(store, source)


def test_appended_images_come_after_those_that_were_there(source: Path, store: Path) -> None:
    old_patches = list(patches(store).items())
    write(source, {"aaa/1.ppm": ppm(1)})
    done("import", "--append", source, store)
    assert list(patches(store).items()) == [*old_patches, (("aaa", "1.ppm"), ppm(1))]


def test_many_appends_add_up(tmp_path: Path, source: Path, store: Path) -> None:
    for number in range(6):
        numbered_images(source, 1, 3, first=20 + number)
        done("import", "--append", source, store)
    assert info(store)["images"] == 10
    assert is_sound_copy(store, source)


def test_an_append_of_nothing_new_changes_nothing(source: Path, store: Path) -> None:
    old_files = read(store)
    assert "0 images" in done("import", "--append", source, store)
    assert read(store) == old_files


def test_an_open_reader_keeps_its_snapshot(source: Path, store: Path) -> None:
    expected = list(patches(store).values())
    with open_source(store) as reader:
        numbered_images(source, 2, 5, first=10)
        done("import", "--append", source, store)
        assert len(reader) == len(expected)
        assert [reader.read(index) for index in range(len(reader))] == expected
    assert len(patches(store)) == len(expected) + 10


@pytest.mark.parametrize("options", [(), ("--checksum",)])
def test_vanished_images_are_reported_and_kept(source: Path, store: Path, options: tuple[str, ...]) -> None:
    old_files = read(store)
    shutil.rmtree(source / "image_00001")
    result = run("import", "--append", *options, source, store)
    assert result.status == 1
    assert "image_00001" in result.out + result.err
    assert "image_00002" not in result.out + result.err
    assert read(store) == old_files


CHANGES: dict[str, Callable[[Path], object]] = {
    "patch_size": lambda image: (image / "00000001.ppm").write_bytes(ppm(1) + b"more"),
    "patch_added": lambda image: (image / "00000099.ppm").write_bytes(ppm(1)),
    "patch_removed": lambda image: (image / "00000001.ppm").unlink(),
    "patch_renamed": lambda image: (image / "00000001.ppm").rename(image / "00000077.ppm"),
    "reference_size": lambda image: (image / "ref.jpg").write_bytes(ppm(1) + b"more"),
    "reference_removed": lambda image: (image / "ref.jpg").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_images_are_reported_and_new_ones_come_in(source: Path, store: Path, change: str) -> None:
    old_states, old_patches = states(store), patches(store)
    CHANGES[change](source / "image_00001")
    write(source, {"zzz/1.ppm": ppm(1)})
    result = run("import", "--append", source, store)
    assert result.status == 1
    assert "image_00001" in result.out + result.err
    assert "image_00002" not in result.out + result.err
    assert old_states.items() <= states(store).items()
    assert patches(store) == {**old_patches, ("zzz", "1.ppm"): ppm(1)}


CONTENTS: dict[str, Callable[[Path], object]] = {
    "patch": lambda image: (image / "00000001.ppm").write_bytes(ppm(0xABCDEF)),
    "reference": lambda image: (image / "ref.jpg").write_bytes(ppm(0xABCDEF)),
    "centers": lambda image: (image / "centers.pt").write_bytes(centers_file({1: ((7, 7), 7)})),
}


@pytest.mark.parametrize("change", CONTENTS)
def test_checksum_finds_changes_that_keep_names_and_sizes(
    source: Path, store: Path, change: str, tmp_path: Path
) -> None:
    (source / "image_00001" / "centers.pt").write_bytes(centers_file({1: ((2, 3), 4)}))
    store = tmp_path / "t.lmdb"
    done("import", source, store)
    CONTENTS[change](source / "image_00001")
    old_files = read(store)
    result = run("import", "--append", "--checksum", source, store)
    assert result.status == 1
    assert "image_00001" in result.out + result.err
    assert "image_00002" not in result.out + result.err
    assert read(store) == old_files


def test_without_checksum_names_and_sizes_decide(source: Path, store: Path) -> None:
    (source / "image_00001" / "00000001.ppm").write_bytes(ppm(0xABCDEF))
    os.utime(source / "image_00001" / "00000001.ppm", ns=(1, 1))
    assert "0 images" in done("import", "--append", source, store)


def test_checksum_of_equal_contents_finds_nothing(tmp_path: Path) -> None:
    done("import", DATA / "chunked", tmp_path / "s.lmdb")
    assert "0 images" in done("import", "--append", "--checksum", DATA / "chunked", tmp_path / "s.lmdb")


def test_a_pattern_limits_what_is_added_and_what_is_missed(source: Path, store: Path) -> None:
    numbered_images(source, 2, 5, first=10)
    shutil.rmtree(source / "image_00001")
    assert "1 image, " in done("import", "--append", "--images", "*10", source, store)
    assert {image for image, _ in patches(store)} == {*(f"image_0000{number}" for number in range(4)), "image_00010"}


def test_a_store_is_appended_to_another(tmp_path: Path) -> None:
    done("import", DATA / "chunked", tmp_path / "a.lmdb")
    done("import", DATA / "chunked_stereo", tmp_path / "b.lmdb")
    result = run("import", "--append", tmp_path / "b.lmdb", tmp_path / "a.lmdb")
    assert "2 images" in result.out
    assert patches(tmp_path / "a.lmdb") == patches(DATA / "chunked") | patches(DATA / "chunked_stereo")
    assert findings(tmp_path / "a.lmdb") == []


def test_pictures_are_appended(tmp_path: Path) -> None:
    photos = numbered_pictures(tmp_path / "photos", 5)
    done("import", photos, tmp_path / "s.lmdb")
    write(photos, {"deep/er/new.ppm": ppm(9)})
    assert "1 image, " in done("import", "--append", photos, tmp_path / "s.lmdb")
    assert is_sound_copy(tmp_path / "s.lmdb", photos)


def test_a_source_of_another_layout_is_refused(tmp_path: Path, store: Path) -> None:
    photos = numbered_pictures(tmp_path / "photos", 5)
    old_files = read(store)
    message = refused("import", "--append", photos, store)
    assert "chunked" in message
    assert "pictures" in message
    assert read(store) == old_files


def test_a_store_is_not_appended_to_itself(store: Path) -> None:
    old_files = read(store)
    result = run("import", "--append", store, store)
    if result.status:
        error_line(result)
    assert read(store) == old_files


def test_a_bad_patch_leaves_the_store_as_it_was(source: Path, store: Path) -> None:
    old_patches = patches(store)
    write(source, {"new_0/1.jpg": JPEG, "new_0/2.jpg": JPEG[:50]})
    assert "new_0/2.jpg" in refused("import", "--append", source, store)
    assert patches(store) == old_patches
    assert findings(store) == []


@pytest.mark.parametrize("remedy", ["mend", "remove", "skip"])
def test_after_a_bad_patch_each_remedy_of_the_message_works(source: Path, store: Path, remedy: str) -> None:
    old_states = states(store)
    write(source, {"new_0/1.jpg": JPEG, "new_0/2.jpg": JPEG[:50]})
    bad = source / "new_0" / "2.jpg"
    refused("import", "--append", source, store)
    match remedy:
        case "mend":
            bad.write_bytes(JPEG)
            done("import", "--append", source, store)
        case "remove":
            bad.unlink()
            done("import", "--append", source, store)
        case _:
            assert run("import", "--append", "--on-error", "skip", source, store).status == 1
            bad.unlink()
    assert is_sound_copy(store, source)
    assert old_states.items() <= states(store).items()


def test_there_must_be_a_store_to_append_to(tmp_path: Path, source: Path) -> None:
    assert "nothing.lmdb" in refused("import", "--append", source, tmp_path / "nothing.lmdb")
    assert not list(tmp_path.glob("nothing*"))


def test_a_missing_shard_is_named_before_anything_is_appended(source: Path, store: Path) -> None:
    (store / "shard-00001.lmdb").unlink()
    numbered_images(source, 1, 5, first=10)
    result = run("import", "--append", source, store)
    if result.status == 0:
        assert not (store / "shard-00001.lmdb").exists(), "the lost shard's name went to other images"
    else:
        assert "shard-00001.lmdb" in error_line(result)


def test_reindex_gives_what_was_appended_too(source: Path, store: Path) -> None:
    numbered_images(source, 3, 5, first=10)
    done("import", "--append", "--shard-size", "170", source, store)
    expected, old_info = list(patches(store).items()), info(store)
    (store / "index.lmdb").unlink()
    done("reindex", store)
    assert list(patches(store).items()) == expected
    assert info(store)["store_id"] == old_info["store_id"]
    assert is_sound_copy(store, source)
    write(source, {"zzz/1.ppm": ppm(1)})
    done("import", "--append", source, store)
    assert is_sound_copy(store, source)


@pytest.mark.parametrize("writer", ["append", "reindex", "import"])
def test_a_lock_left_in_a_store_by_a_kill_is_removed_by_the_next_writer(source: Path, store: Path, writer: str) -> None:
    (store / "lock").touch()
    match writer:
        case "append":
            done("import", "--append", source, store)
        case "reindex":
            done("reindex", store)
        case _:
            assert "exists" in refused("import", source, store)
    assert not (store / "lock").exists()
    assert is_sound_copy(store, source)


def test_a_file_called_lock_in_a_folder_that_is_no_store_stays(tmp_path: Path, source: Path) -> None:
    (tmp_path / "other.lmdb").mkdir()
    (tmp_path / "other.lmdb" / "lock").touch()
    refused("import", source, tmp_path / "other.lmdb")
    assert (tmp_path / "other.lmdb" / "lock").exists()


def test_what_is_left_of_a_removal_that_was_killed_is_removed_by_the_next_append(source: Path, store: Path) -> None:
    write(store.with_name("s.lmdb.partial"), {"lock": b"", "shard-00002.lmdb.json": b"{}"})
    done("import", "--append", source, store)
    assert not store.with_name("s.lmdb.partial").exists()
    assert is_sound_copy(store, source)
