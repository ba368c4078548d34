"""Import: the content of the store, its division into shards, refusals, full disks, and memory."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch

from dlas_store import open_source
from dlas_store.converters.importing import import_store
from dlas_store.errors import ConfigError, ImportFailedError, StoreError
from tests.support.command_line import done, error_line, findings, info, is_sound_copy, refused, run
from tests.support.file_trees import (
    centers_file,
    files_and_centers,
    numbered_images,
    numbered_pictures,
    patches,
    picture,
    ppm,
    read,
    shard_contents,
    states,
    write,
)
from tests.support.hostile_centers import CANARY, HOSTILE, saved
from tests.support.sample_data import DATA

JPEG = picture("JPEG")
PNG = picture("PNG")


def lines_with(summary: str, reason: str) -> str:
    """Return the lines of a summary that contain a reason."""
    return "\n".join(line for line in summary.splitlines() if reason in line)


# Imported content


@pytest.mark.parametrize("name", ["chunked", "chunked_video", "chunked_stereo"])
def test_a_store_of_real_data_is_whole(tmp_path: Path, name: str) -> None:
    done("import", DATA / name, tmp_path / "s.lmdb")
    assert is_sound_copy(tmp_path / "s.lmdb", DATA / name)
    assert list(tmp_path.iterdir()) == [tmp_path / "s.lmdb"]


@pytest.mark.parametrize("layout", ["chunked", "pictures"])
def test_shards_are_the_same_for_any_number_of_workers(tmp_path: Path, layout: str) -> None:
    contents = []
    for workers in ("1", "2", "4"):
        store = tmp_path / f"{workers}.lmdb"
        done("import", "--layout", layout, "--shard-size", "100KiB", "--workers", workers, DATA / "chunked", store)
        contents.append(shard_contents(store))
    assert len(contents[0]) > 3
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize("shard_bytes", [1, 4 << 10, 40 << 10, 400 << 10])
def test_a_shard_holds_whole_images_up_to_its_size(tmp_path: Path, shard_bytes: int) -> None:
    source = DATA / "chunked_video"
    store = tmp_path / "s.lmdb"
    done("import", "--shard-size", str(shard_bytes), source, store)
    sizes = [
        sum(file.stat().st_size for file in folder.glob("*.jpg"))
        for folder in sorted(source.iterdir())
        if folder.is_dir()
    ]
    shards = [sorted({int.from_bytes(key[:8], "big") for key in values}) for values in shard_contents(store).values()]
    assert sorted(image for shard in shards for image in shard) == list(range(len(sizes)))
    for shard in shards:
        assert len(shard) == 1 or sum(sizes[image] for image in shard) <= shard_bytes
    assert info(store)["shards"] == len(shards)


def test_key_order_is_reading_order(tmp_path: Path) -> None:
    store = tmp_path / "s.lmdb"
    done("import", DATA / "chunked", store)
    (values,) = shard_contents(store).values()
    read_in_order = [key for key in values if key[8] == 2]
    assert len(read_in_order) == info(store)["patches"]
    for key, content in zip(read_in_order, patches(store).values(), strict=True):
        assert values[key].endswith(content)


def test_one_tree_is_read_in_both_layouts(tmp_path: Path) -> None:
    for layout in ("chunked", "pictures"):
        done("import", "--layout", layout, DATA / "chunked", tmp_path / f"{layout}.lmdb")
        assert findings(tmp_path / f"{layout}.lmdb") == []
    chunked, pictures = info(tmp_path / "chunked.lmdb"), info(tmp_path / "pictures.lmdb")
    assert (chunked["images"], pictures["images"]) == (4, chunked["patches"])
    assert pictures["patches"] == chunked["patches"] == sum(1 for path in DATA.glob("chunked/*/0*.jpg"))
    assert list(patches(tmp_path / "chunked.lmdb").values()) == list(patches(tmp_path / "pictures.lmdb").values())


def test_pictures_lie_at_any_depth(tmp_path: Path) -> None:
    names = ["0.ppm", "a/0.ppm", "a/b c/0.PNG", "a/b c/d/e/f/g/ü.jpeg", "z/0.WebP", "z.bmp"]
    source = write(tmp_path / "photos", {name: ppm(shade) for shade, name in enumerate(names)})
    done("import", source, tmp_path / "s.lmdb")
    assert info(tmp_path / "s.lmdb")["images"] == len(names)
    assert is_sound_copy(tmp_path / "s.lmdb", source)


NAMES = [
    "two words",
    " lead and trail ",
    "ünïcödé",
    "e\u0301 and é",
    "日本語",
    "new\nline",
    "tab\there",
    "'q\"",
    "-dash",
    "*?[x]",
    "💾",
]


def test_names_of_any_characters_are_kept(tmp_path: Path) -> None:
    source = write(tmp_path / "odd", {f"{name}/{name}.jpg": JPEG for name in NAMES})
    done("import", "--layout", "chunked", source, tmp_path / "s.lmdb")
    assert sorted(patches(tmp_path / "s.lmdb")) == sorted((name, f"{name}.jpg") for name in NAMES)
    assert is_sound_copy(tmp_path / "s.lmdb", source)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PPM", "BMP", "WEBP"])
def test_every_kind_of_picture_is_taken_whatever_its_ending(tmp_path: Path, kind: str) -> None:
    source = write(tmp_path / "photos", {"a.jpg": picture(kind), "b.PnG": picture(kind, shade=9)})
    done("import", "--decode", source, tmp_path / "s.lmdb")
    assert is_sound_copy(tmp_path / "s.lmdb", source)
    assert info(tmp_path / "s.lmdb")["sizes"] == {"16x16": 2}


def test_a_picture_with_bytes_after_its_end_is_kept_with_them(tmp_path: Path) -> None:
    source = write(tmp_path / "photos", {"a.jpg": JPEG + b"appended", "b.png": PNG + b"appended"})
    done("import", source, tmp_path / "s.lmdb")
    assert is_sound_copy(tmp_path / "s.lmdb", source)


def test_the_summary_counts_what_came_in_and_what_was_left_out(tmp_path: Path) -> None:
    source = write(
        tmp_path / "data",
        {
            "cat_0/1.jpg": JPEG,
            "cat_0/2.jpg": JPEG,
            "cat_0/ref.jpg": JPEG,
            "cat_0/notes.txt": b"n",
            "dog_1/1.jpg": JPEG,
            "only_ref/ref.jpg": JPEG,
            "cache.pth": b"c",
            "readme.md": b"r",
        },
    )
    (source / "hollow").mkdir()
    summary = done("import", source, tmp_path / "s.lmdb")
    assert "2 images" in summary
    assert "3 patches" in summary
    assert "MB" in summary
    for name in ("cache.pth", "readme.md", "cat_0/notes.txt", "hollow", "only_ref"):
        assert name in lines_with(summary, "left out"), summary
    assert info(tmp_path / "s.lmdb")["bytes"] == 4 * len(JPEG)


def test_links_are_followed_but_circles_are_not(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", {"1.jpg": JPEG})
    source = write(tmp_path / "data", {"cat_0/1.jpg": JPEG, "cat_0/ref.jpg": JPEG})
    (source / "dog_1").symlink_to(outside)
    (source / "cat_0" / "2.jpg").symlink_to(outside / "1.jpg")
    (source / "loop").symlink_to(source)
    (source / "cat_0" / "up").symlink_to("..")
    for layout in ("chunked", "pictures"):
        summary = done("import", "--layout", layout, source, tmp_path / f"{layout}.lmdb")
        assert "loop" in lines_with(summary, "left out")
        assert info(tmp_path / f"{layout}.lmdb")["patches"] == 3
        assert is_sound_copy(tmp_path / f"{layout}.lmdb", source)


# Stores as sources


def test_a_store_is_resharded_with_equal_patches(tmp_path: Path) -> None:
    done("import", DATA / "chunked", tmp_path / "one.lmdb")
    done("import", "--shard-size", "1", tmp_path / "one.lmdb", tmp_path / "many.lmdb")
    done("import", tmp_path / "many.lmdb", tmp_path / "again.lmdb")
    assert [info(tmp_path / f"{name}.lmdb")["shards"] for name in ("one", "many", "again")] == [1, 4, 1]
    assert patches(tmp_path / "one.lmdb") == patches(tmp_path / "many.lmdb") == patches(DATA / "chunked")
    assert is_sound_copy(tmp_path / "many.lmdb", DATA / "chunked")
    assert shard_contents(tmp_path / "again.lmdb") == shard_contents(tmp_path / "one.lmdb")


def test_an_index_file_and_a_single_shard_are_sources(tmp_path: Path) -> None:
    done("import", "--shard-size", "1", DATA / "chunked", tmp_path / "s.lmdb")
    done("import", tmp_path / "s.lmdb" / "index.lmdb", tmp_path / "of_index.lmdb")
    done("import", tmp_path / "s.lmdb" / "shard-00001.lmdb", tmp_path / "of_shard.lmdb")
    assert is_sound_copy(tmp_path / "of_index.lmdb", DATA / "chunked")
    (name,) = {image for image, _ in patches(tmp_path / "of_shard.lmdb")}
    assert name == sorted(path.name for path in (DATA / "chunked").iterdir())[1]


def test_sources_are_merged_in_the_order_given(tmp_path: Path) -> None:
    done("import", DATA / "chunked", tmp_path / "a.lmdb")
    done("import", DATA / "chunked_stereo", tmp_path / "a.lmdb", DATA / "chunked_video", tmp_path / "merged.lmdb")
    expected = [
        *patches(DATA / "chunked_stereo").items(),
        *patches(tmp_path / "a.lmdb").items(),
        *patches(DATA / "chunked_video").items(),
    ]
    assert list(patches(tmp_path / "merged.lmdb").items()) == expected
    assert findings(tmp_path / "merged.lmdb") == []


@pytest.mark.parametrize("is_store", [False, True])
def test_images_picks_by_pattern(tmp_path: Path, is_store: bool) -> None:
    source = DATA / "chunked_video"
    if is_store:
        done("import", source, tmp_path / "all.lmdb")
        source = tmp_path / "all.lmdb"
    done("import", "--images", "pan_*[24]", source, tmp_path / "s.lmdb")
    assert {image for image, _ in patches(tmp_path / "s.lmdb")} == {"pan_000000000002", "pan_000000000004"}
    assert "nothing*" in refused("import", "--images", "nothing*", source, tmp_path / "none.lmdb")


def test_one_name_in_two_sources_is_an_error_that_lists_them(tmp_path: Path) -> None:
    shutil.copytree(DATA / "chunked" / "ihc_left_2", tmp_path / "more" / "ihc_left_2")
    message = refused("import", DATA / "chunked", tmp_path / "more", tmp_path / "s.lmdb")
    assert "ihc_left_2" in message
    assert "astronaut" not in message
    assert not (tmp_path / "s.lmdb").exists()


def test_sources_of_two_layouts_are_not_mixed(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", {"a.jpg": JPEG})
    message = refused("import", DATA / "chunked", photos, tmp_path / "s.lmdb")
    assert "photos" in message
    assert "chunked" in message


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("is_store", [False, True])
def test_an_open_source_is_imported_with_the_limit_of_pixels_that_it_has(
    tmp_path: Path, is_store: bool, workers: int
) -> None:
    source = write(tmp_path / "data", {"a/1.jpg": JPEG, "a/ref.jpg": ppm(7), "b/1.ppm": ppm(1)})
    if is_store:
        import_store([source], tmp_path / "data.lmdb")
    with open_source(tmp_path / "data.lmdb" if is_store else source, max_pixels=10) as opened:
        with pytest.raises(ImportFailedError, match=r"a/1\.jpg: 16 x 16 pixels are more than the limit of 10"):
            import_store([opened], tmp_path / "s.lmdb", workers=workers)
        assert not (tmp_path / "s.lmdb").exists()
        summary = import_store([opened], tmp_path / "s.lmdb", skip_bad=True, workers=workers)
        assert len(summary.findings) == 1
        assert len(opened) == 2  # the source stays open
    assert patches(tmp_path / "s.lmdb") == {("b", "1.ppm"): ppm(1)}


def test_shards_of_an_interrupted_import_are_not_taken_over_with_another_limit_of_pixels(tmp_path: Path) -> None:
    source = write(tmp_path / "data", {"a/1.jpg": JPEG, "a/ref.jpg": ppm(7), "b/1.jpg": b"broken"})
    with pytest.raises(ImportFailedError, match=r"1 bad file so far: .*b/1\.jpg"):
        import_store([source], tmp_path / "s.lmdb", shard_size=1, workers=1)
    assert states(tmp_path / "s.lmdb.partial")
    with (
        open_source(source, max_pixels=10) as opened,
        pytest.raises(StoreError, match="interrupted run with other files or options"),
    ):
        import_store([opened], tmp_path / "s.lmdb", shard_size=1, workers=1)


@pytest.mark.parametrize("is_store", [False, True])
def test_an_open_source_is_imported_with_the_decoder_that_it_has(
    tmp_path: Path, is_store: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(data: bytes, colorspace: str) -> None:
        raise ConfigError(f"{len(data)} bytes for pyturbojpeg")

    monkeypatch.setattr("dlas_store.images.decode._decode_by_turbojpeg", refuse)
    source = write(tmp_path / "data", {"a/1.jpg": JPEG, "a/ref.jpg": ppm(7)})
    if is_store:
        import_store([source], tmp_path / "data.lmdb", decode_all=True)
    with (
        open_source(tmp_path / "data.lmdb" if is_store else source, decoder="pyturbojpeg") as opened,
        pytest.raises(ConfigError, match=f"{len(JPEG)} bytes for pyturbojpeg"),
    ):
        import_store([opened], tmp_path / "s.lmdb", decode_all=True)


def test_a_damaged_value_of_a_store_is_not_copied(tmp_path: Path) -> None:
    done("import", DATA / "chunked", tmp_path / "s.lmdb")
    shard = tmp_path / "s.lmdb" / "shard-00000.lmdb"
    content = bytearray(shard.read_bytes())
    position = content.index(next(iter(patches(DATA / "chunked").values()))) + 1000
    content[position] ^= 1
    shard.write_bytes(content)
    message = refused("import", tmp_path / "s.lmdb", tmp_path / "copy.lmdb")
    assert "astronaut_left_0" in message
    assert not (tmp_path / "copy.lmdb").exists()


# Refusals


def _basicsr(path: Path) -> None:
    path.mkdir()
    with lmdb.open(str(path), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"baboon", PNG)
    (path / "meta_info.txt").write_text("baboon.png (16,16,3) 1\nlenna.png (16,16,3) 1\n")  # which has no key


def _foreign_lmdb(path: Path) -> None:
    with (
        lmdb.open(str(path), map_size=1 << 20, subdir=False, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(b"key", b"value")


def _neither_layout(path: Path) -> None:
    write(path, {"notes.txt": b"n", "more/table.csv": b"1,2"})


BAD_SOURCES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing": (lambda path: None, ("No such file",)),
    "file": (lambda path: path.write_bytes(JPEG), ("folder",)),
    "empty_file": (lambda path: path.write_bytes(b""), ("folder",)),
    "empty": (lambda path: path.mkdir(), ("empty",)),
    "only_empty_folders": (lambda path: (path / "cat_0").mkdir(parents=True), ("picture",)),
    "neither": (_neither_layout, ("picture",)),
    "basicsr.lmdb": (_basicsr, ("LMDB",)),
    "foreign.lmdb": (_foreign_lmdb, ("LMDB",)),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_what_is_no_source_is_an_error_that_names_it_and_says_why(tmp_path: Path, name: str) -> None:
    make, words = BAD_SOURCES[name]
    make(tmp_path / name)
    old_files = read(tmp_path)
    message = refused("import", tmp_path / name, tmp_path / "s.lmdb")
    assert name in message
    for word in words:
        assert word.lower() in message.lower()
    assert read(tmp_path) == old_files
    assert not (tmp_path / "s.lmdb").exists()


def test_names_that_are_not_utf8_are_an_error_that_lists_them(tmp_path: Path) -> None:
    source = write(tmp_path / "data", {"cat_0/1.jpg": JPEG, "cat_0/ref.jpg": JPEG})
    for name in (b"caf\xe9_1", b"\xff_2"):
        folder = os.fsencode(source) + b"/" + name
        os.mkdir(folder)  # noqa: PTH102 - a Path is text
        (Path(os.fsdecode(folder)) / "1.jpg").write_bytes(JPEG)
    message = refused("import", source, tmp_path / "s.lmdb")
    assert r"caf\xe9_1" in message
    assert r"\xff_2" in message
    assert "UTF-8" in message
    assert not (tmp_path / "s.lmdb").exists()


def test_a_store_that_exists_is_not_touched(tmp_path: Path) -> None:
    store = tmp_path / "s.lmdb"
    done("import", "--images", "a*", DATA / "chunked", store)
    old_files = read(store)
    assert "--append" in refused("import", DATA / "chunked", store)
    assert read(store) == old_files


@pytest.mark.parametrize("kind", ["file", "folder", "empty_folder", "dangling_link"])
def test_whatever_has_the_name_of_the_store_is_not_touched(tmp_path: Path, kind: str) -> None:
    store = tmp_path / "s.lmdb"
    match kind:
        case "file":
            store.write_bytes(b"mine")
        case "folder":
            write(store, {"mine": b"mine"})
        case "empty_folder":
            store.mkdir()
        case _:
            store.symlink_to("nowhere")
    assert "s.lmdb" in refused("import", DATA / "chunked", store)
    assert [path.name for path in tmp_path.iterdir()] == ["s.lmdb"]
    assert (
        store.is_symlink()
        if kind == "dangling_link"
        else read(tmp_path).keys()
        == {
            "file": {"s.lmdb"},
            "folder": {"s.lmdb/mine"},
            "empty_folder": set(),
        }[kind]
    )


@pytest.mark.parametrize("name", ["s", "s.lmdb.bak", "s.LMDB", "lmdb"])
def test_a_store_must_end_in_lmdb(tmp_path: Path, name: str) -> None:
    message = error_line(run("import", DATA / "chunked", tmp_path / name), 2)
    assert ".lmdb" in message
    assert not list(tmp_path.iterdir())


def test_a_store_inside_its_own_source_is_not_taken_for_a_picture(tmp_path: Path) -> None:
    source = numbered_pictures(tmp_path / "photos", 5)
    result = run("import", source, source / "s.lmdb")
    if result.status == 0:
        assert info(source / "s.lmdb")["images"] == 5
    else:
        assert "s.lmdb" in error_line(result)
        assert not (source / "s.lmdb").exists()


def test_a_format_version_from_the_future_is_an_error_that_says_so(tmp_path: Path) -> None:
    newer_program = (
        "import sys\n"
        "import dlas_store.storage.sealed_file as sealed_file\n"
        "sealed_file.FORMAT_VERSION += 1\n"
        "from dlas_store.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    store = tmp_path / "s.lmdb"
    subprocess.run(
        [sys.executable, "-c", newer_program, "import", DATA / "chunked", store], check=True, capture_output=True
    )
    for command in (("info", store), ("import", store, tmp_path / "t.lmdb"), ("export", store, tmp_path / "folder")):
        message = refused(*command)
        assert "version 2" in message
        assert "s.lmdb" in message
    old_files = read(store)
    assert "version 2" in refused("import", "--append", DATA / "chunked_video", store)
    assert read(store) == old_files


# Bad pictures

BAD_PICTURES: dict[str, bytes] = {
    "empty.jpg": b"",
    "text.jpg": b"this is no picture\n",
    "cut.jpg": JPEG[: len(JPEG) // 2],
    "head.jpg": JPEG[:20],
    "cut.png": PNG[: len(PNG) // 2],
    "head.png": PNG[:12],
    "cut.bmp": picture("BMP")[:-40],
    "cut.webp": picture("WEBP")[:-10],
    "cut.ppm": ppm(1)[:-1],
    "zeros.png": bytes(1000),
    "gif.png": picture("GIF"),
}


def _with_bad_pictures(root: Path) -> Path:
    """Write a chunked folder of three images: one is sound, one has good and bad patches, one has only bad patches."""
    bad = {f"some_1/{name}": content for name, content in BAD_PICTURES.items()}
    good = {"good_0/1.jpg": JPEG, "good_0/ref.jpg": JPEG, "some_1/1.jpg": JPEG}
    return write(root, {**good, **bad, "none_2/1.jpg": b""})


def test_bad_patches_stop_the_import_with_all_that_were_found(tmp_path: Path) -> None:
    source = _with_bad_pictures(tmp_path / "data")
    shutil.rmtree(source / "none_2")
    message = refused("import", source, tmp_path / "s.lmdb")
    for name in BAD_PICTURES:
        assert f"some_1/{name}: " in message, message
    assert "some_1/1.jpg" not in message
    assert "--on-error skip" in message
    assert not (tmp_path / "s.lmdb").exists()


@pytest.mark.parametrize("workers", ["1", "3"])
def test_bad_patches_are_left_out_and_reported_with_skip(tmp_path: Path, workers: str) -> None:
    source = _with_bad_pictures(tmp_path / "data")
    store = tmp_path / "s.lmdb"
    result = run("import", "--on-error", "skip", "--workers", workers, "--shard-size", "1", source, store)
    assert result.status == 1
    for name in BAD_PICTURES:
        assert f"some_1/{name}" in result.out + result.err, result
    assert "none_2/1.jpg" in result.out + result.err
    assert patches(store) == {("good_0", "1.jpg"): JPEG, ("some_1", "1.jpg"): JPEG}
    assert findings(store) == []
    assert "Traceback" not in result.err


@pytest.mark.parametrize("remedy", ["mend", "remove", "skip"])
def test_after_bad_patches_each_remedy_of_the_message_works(tmp_path: Path, remedy: str) -> None:
    source = numbered_images(tmp_path / "data", 5, 5)
    bad_file = source / "image_00003" / "00000002.ppm"
    sound_content = bad_file.read_bytes()
    bad_file.write_bytes(b"broken")
    command = ("import", "--shard-size", "64", source, tmp_path / "s.lmdb")
    refused(*command)
    match remedy:
        case "mend":
            bad_file.write_bytes(sound_content)
            done(*command)
        case "remove":
            bad_file.unlink()
            done(*command)
        case _:
            result = run(*command, "--on-error", "skip")
            assert (result.status, "image_00003/00000002.ppm" in result.out + result.err) == (1, True), result
            bad_file.unlink()
    assert is_sound_copy(tmp_path / "s.lmdb", source)


def test_when_every_patch_is_bad_there_is_no_store(tmp_path: Path) -> None:
    source = write(tmp_path / "photos", {"a.jpg": b"", "b.jpg": b"text"})
    result = run("import", "--on-error", "skip", source, tmp_path / "s.lmdb")
    assert result.status == 1
    assert "a.jpg" in result.out + result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "s.lmdb").exists()


@pytest.mark.parametrize("name", ["cat_0/2.jpg", "cat_0/ref.jpg", "cat_0/centers.pt"])
def test_a_file_that_may_not_be_read_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    files = {"cat_0/1.jpg": JPEG, "cat_0/2.jpg": JPEG, "cat_0/ref.jpg": JPEG, "cat_0/centers.pt": centers_file({})}
    source = write(tmp_path / "data", files)
    (source / name).chmod(0)
    # Root reads everything; a process that runs without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH does not.
    drop_capabilities = "import ctypes\nfor capability in (1, 2): ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)"
    message = error_line(run("import", source, tmp_path / "s.lmdb", before=drop_capabilities))
    assert name in message
    assert "Permission denied" in message
    assert not (tmp_path / "s.lmdb").exists()


@pytest.mark.parametrize("kind", ["fifo", "socket", "folder", "dangling_link"])
def test_what_is_no_file_is_not_waited_for_but_named(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "data", {"cat_0/1.jpg": JPEG, "cat_0/ref.jpg": JPEG})
    path = source / "cat_0" / "2.jpg"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "socket":
            monkeypatch.chdir(path.parent)  # a socket's path must be short
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name)
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to("nowhere")
    result = run("import", source, tmp_path / "s.lmdb")
    assert "cat_0/2.jpg" in result.out + result.err, result
    assert "Traceback" not in result.err
    if result.status == 0:
        assert patches(tmp_path / "s.lmdb") == {("cat_0", "1.jpg"): JPEG}


def test_only_decode_finds_a_picture_whose_inside_is_broken(tmp_path: Path) -> None:
    damaged = bytearray(PNG)
    damaged[damaged.index(b"IDAT") + 12] ^= 0xFF
    source = write(tmp_path / "photos", {"a.png": PNG, "b.png": bytes(damaged)})
    done("import", source, tmp_path / "s.lmdb")
    assert is_sound_copy(tmp_path / "s.lmdb", source)
    message = refused("import", "--decode", source, tmp_path / "decoded.lmdb")
    assert "b.png" in message
    assert "a.png" not in message


# centers.pt

ACCEPTED: dict[str, object] = {
    "ints": {1: ((2, 3), 4)},
    "tensors": {1: (torch.tensor([2, 3]), torch.tensor(4))},
    "pairs_of_tensors": {1: ((torch.tensor(2), torch.tensor(3)), torch.tensor(4))},
    "numpy": {np.int64(1): ((np.int64(2), np.int32(3)), np.int64(4))},
}


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("name", ACCEPTED)
def test_centers_of_every_kind_of_number_are_taken(tmp_path: Path, name: str, is_zip: bool) -> None:
    content = saved(ACCEPTED[name], is_zip=is_zip)
    source = write(tmp_path / "data", {"cat_0/1.jpg": JPEG, "cat_0/centers.pt": content})
    done("import", source, tmp_path / "s.lmdb")
    assert findings(tmp_path / "s.lmdb", "--against", source) == []
    done("export", tmp_path / "s.lmdb", tmp_path / "back")
    _, centers = files_and_centers(tmp_path / "back")
    assert repr(centers) == "{'cat_0/centers.pt': {1: ((2, 3), 4)}}"


# Every 20th hostile file; test_centers.py reads them all.
@pytest.mark.parametrize("name", sorted(HOSTILE)[::20])
@pytest.mark.parametrize("option", ["stop", "skip"])
def test_hostile_centers_are_refused_never_executed(tmp_path: Path, name: str, option: str) -> None:
    source = write(
        tmp_path / "data",
        {"bad_0/1.jpg": JPEG, "bad_0/centers.pt": HOSTILE[name], "good_1/1.jpg": JPEG},
    )
    result = run("import", "--on-error", option, source, tmp_path / "s.lmdb", cwd=tmp_path)
    assert result.status == 1
    assert "bad_0/centers.pt" in result.out + result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / CANARY).exists()
    if option == "stop":
        assert not (tmp_path / "s.lmdb").exists()
    else:
        assert ("good_1", "1.jpg") in patches(tmp_path / "s.lmdb")


@pytest.mark.parametrize("content", [b"", b"text", centers_file({1: ((2, 3), 4)})[:-30]], ids=["empty", "text", "cut"])
def test_damaged_centers_are_named(tmp_path: Path, content: bytes) -> None:
    source = write(tmp_path / "data", {"cat_0/1.jpg": JPEG, "cat_0/centers.pt": content, "dog_1/1.jpg": JPEG})
    message = refused("import", source, tmp_path / "s.lmdb")
    assert "cat_0/centers.pt" in message
    assert "--on-error skip" in message


def test_centers_that_do_not_match_the_patches_are_kept_and_reported(tmp_path: Path) -> None:
    centers = {1: ((2, 3), 4), 99: ((5, 6), 7)}
    source = write(
        tmp_path / "data", {"cat_0/1.jpg": JPEG, "cat_0/2.jpg": JPEG, "cat_0/centers.pt": centers_file(centers)}
    )
    assert "cat_0" in done("import", source, tmp_path / "s.lmdb")
    assert is_sound_copy(tmp_path / "s.lmdb", source)
    done("export", tmp_path / "s.lmdb", tmp_path / "back")
    assert files_and_centers(tmp_path / "back")[1] == {"cat_0/centers.pt": centers}


# Full disks


def _noise_pictures(root: Path, count: int, size: int) -> Path:
    """Write pictures of ``size`` bytes each, with random pixels."""
    side = size // 3
    head = b"P6 %d 1 255\n" % side
    return write(root, {f"{number:04d}.ppm": head + os.urandom(3 * side) for number in range(count)})


def test_free_space_is_checked_before_anything_is_written(tmp_path: Path, disk: Callable[[str], Path]) -> None:
    source = _noise_pictures(tmp_path / "photos", 40, 100_000)
    small = disk("size=2m")
    message = refused("import", source, small / "s.lmdb")
    assert "s.lmdb" in message
    assert re.search(r"free|space|room", message)
    assert not [file for file in read(small) if "shard-" in file]
    disk("size=20m")
    done("import", source, small / "s.lmdb")
    assert is_sound_copy(small / "s.lmdb", source)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_disk_that_fills_up_meanwhile_is_an_error_and_a_rerun_goes_on(
    tmp_path: Path, disk: Callable[[str], Path], workers: str
) -> None:
    source = numbered_pictures(tmp_path / "photos", 600)
    small = disk("size=40m,nr_inodes=20")  # runs out of inodes, which no check of free bytes foresees
    command = ("import", "--shard-size", "128", "--workers", workers, source, small / "s.lmdb")
    message = refused(*command)
    assert "No space left" in message
    assert "s.lmdb" in message
    assert not (small / "s.lmdb").exists()
    sealed = states(small / "s.lmdb.partial")
    assert sealed
    disk("size=40m,nr_inodes=5000")
    done(*command)
    assert sealed.items() <= states(small / "s.lmdb").items()
    assert is_sound_copy(small / "s.lmdb", source)


def test_a_write_that_the_system_refuses_is_an_error_and_a_rerun_goes_on(tmp_path: Path) -> None:
    source = _noise_pictures(tmp_path / "photos", 40, 100_000)
    command = ("import", source, tmp_path / "s.lmdb")
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"
    message = error_line(run(*command, before=limit))
    assert "s.lmdb" in message
    assert not (tmp_path / "s.lmdb").exists()
    done(*command)
    assert is_sound_copy(tmp_path / "s.lmdb", source)


def test_an_append_without_room_leaves_the_store_as_it_was(tmp_path: Path, disk: Callable[[str], Path]) -> None:
    first = _noise_pictures(tmp_path / "photos", 4, 100_000)
    small = disk("size=2m")
    done("import", first, small / "s.lmdb")
    old_states = states(small / "s.lmdb")
    more = write(
        tmp_path / "photos",
        {f"new/{name}": content for name, content in read(_noise_pictures(tmp_path / "n", 40, 100_000)).items()},
    )
    refused("import", "--append", more, small / "s.lmdb")
    assert info(small / "s.lmdb")["images"] == 4
    assert findings(small / "s.lmdb") == []
    assert old_states.items() <= states(small / "s.lmdb").items()
    disk("size=30m")
    done("import", "--append", more, small / "s.lmdb")
    assert is_sound_copy(small / "s.lmdb", more)


# Memory

_PEAK = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "dlas_store", *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def _peak_bytes(*arguments: str | Path) -> int:
    """Return the peak memory of a command's largest process, in bytes."""
    ended = subprocess.run([sys.executable, "-c", _PEAK, *arguments], capture_output=True, text=True, check=True)
    return int(ended.stdout) * 1024


_ALLOCATOR_SLACK = 2 << 20


@pytest.mark.parametrize(
    ("shard_size", "few_pictures", "many_pictures"),
    # A worker's memory for its shard is part of the constant; both imports therefore fill a shard, of 8192 at most.
    [("16KiB", 2_000, 20_000), ("1GiB", 9_000, 69_000)],
)
def test_memory_grows_by_at_most_200_bytes_an_image(
    tmp_path: Path, shard_size: str, few_pictures: int, many_pictures: int
) -> None:
    few = numbered_pictures(tmp_path / "few", few_pictures)
    many = numbered_pictures(tmp_path / "many", many_pictures)
    options = ("--workers", "1", "--shard-size", shard_size)
    few_peak = _peak_bytes("import", *options, few, tmp_path / "few.lmdb")
    many_peak = _peak_bytes("import", *options, many, tmp_path / "many.lmdb")
    assert (many_peak - few_peak - _ALLOCATOR_SLACK) / (many_pictures - few_pictures) <= 200


def test_a_shard_holds_at_most_8192_images_however_small(tmp_path: Path) -> None:
    done("import", "--shard-size", "1GiB", numbered_pictures(tmp_path / "tiny", 8_193), tmp_path / "s.lmdb")
    assert info(tmp_path / "s.lmdb")["shards"] == 2


def test_memory_does_not_grow_with_patches(tmp_path: Path) -> None:
    few = numbered_images(tmp_path / "few", 100, 10)
    many = numbered_images(tmp_path / "many", 100, 200)
    options = ("--workers", "1", "--shard-size", "16KiB")
    few_peak = _peak_bytes("import", *options, few, tmp_path / "few.lmdb")
    many_peak = _peak_bytes("import", *options, many, tmp_path / "many.lmdb")
    assert many_peak - few_peak <= _ALLOCATOR_SLACK
