"""Extraction with bad photos and bad options: clear reasons, images of the good photos, no partial output."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dlas_store import open_source
from dlas_store.cli.main import main
from tests.support.command_line import Result, error_line, run
from tests.support.file_trees import patches, read, states, write
from tests.support.photo_files import BAD_PHOTOS, encoded, flat, scene

PHOTO = encoded(scene(64, 64), "png")
SMALL = ("--crop-size", "32", "--step", "32")

pytestmark = pytest.mark.usefixtures("opencv_without_threads")


def call(*arguments: str | Path) -> Result:
    """Run the command in this process."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            status = main([*map(str, arguments)])
        except SystemExit as usage:
            status = int(str(usage.code))
    return Result(status, out.getvalue(), err.getvalue())


def refusal(*arguments: str | Path) -> str:
    """Run a command that must fail, and return its one line of error."""
    return error_line(call(*arguments))


def photos_with(tmp_path: Path, files: Mapping[str, bytes]) -> Path:
    """Write photos, and a good photo beside them."""
    return write(tmp_path / "photos", {"good.png": PHOTO, **files})


def skipped(report: Path) -> dict[str, tuple[str, bool]]:
    """Return, for each photo that a report lists as skipped, the reason and whether the photo is bad."""
    entries = json.loads(report.read_text())["skipped"]
    assert all(set(entry) == {"photo", "reason", "bad"} for entry in entries)
    reasons = {entry["photo"]: (entry["reason"], entry["bad"]) for entry in entries}
    assert len(reasons) == len(entries)
    return reasons


def image_names(path: Path) -> list[str]:
    with open_source(path) as source:
        return [source.image_name(number) for number in range(source.image_count)]


# Bad photos


@pytest.mark.parametrize("to", ["s.lmdb", "folder"])
@pytest.mark.parametrize("workers", ["1", "3"])
def test_bad_photos_are_left_out_with_their_reasons_and_the_rest_comes_out(
    tmp_path: Path, to: str, workers: str
) -> None:
    photos = photos_with(tmp_path, {f"sub/{name}": content for name, (content, _) in BAD_PHOTOS.items()})
    report = tmp_path / "r.json"
    # Photos whose names differ only in their ending would give the same image name.
    for path in sorted((photos / "sub").iterdir()):
        path.rename(path.with_name(f"{path.stem}_{path.suffix[1:]}{path.suffix}"))
    result = run("extract", *SMALL, "--workers", workers, "--report", report, photos, tmp_path / to)
    assert result.status == 1
    assert "Traceback" not in result.err
    assert "Warning" not in result.err
    reasons = skipped(report)
    for name, (_, reason) in BAD_PHOTOS.items():
        stem, _, ending = name.partition(".")
        photo = f"sub/{stem}_{ending}.{ending}"
        assert photo in reasons, reasons
        actual_reason, is_bad = reasons[photo]
        assert is_bad, (photo, actual_reason)
        assert re.search(reason, actual_reason, re.IGNORECASE), (photo, actual_reason)
        assert "\n" not in actual_reason
        assert actual_reason in result.out
    assert len(reasons) == len(BAD_PHOTOS)
    assert image_names(tmp_path / to) == ["good"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["photos", "r.json", to])


def test_every_bad_photo_is_in_the_summary_and_not_just_the_first(tmp_path: Path) -> None:
    photos = photos_with(tmp_path, {f"empty_{number}.jpg": b"" for number in range(8)})
    result = call("extract", *SMALL, photos, tmp_path / "s.lmdb")
    for number in range(8):
        assert f"empty_{number}.jpg" in result.out


@pytest.mark.parametrize("name", ["cut.jpg", "cmyk.jpg", "deep.png", "huge.jpg", "animated.webp"])
@pytest.mark.parametrize(
    "options",
    [("--fast-decode", "--resize", "0.25"), ("--ignore-exif", "--vertical-split"), ("--greyscale", "convert")],
)
def test_bad_photos_are_bad_with_any_option(tmp_path: Path, name: str, options: tuple[str, ...]) -> None:
    content, reason = BAD_PHOTOS[name]
    photos = photos_with(tmp_path, {name: content})
    result = call("extract", *SMALL, *options, "--report", tmp_path / "r.json", photos, tmp_path / "s.lmdb")
    assert result.status == 1
    actual_reason, is_bad = skipped(tmp_path / "r.json")[name]
    assert is_bad
    assert re.search(reason, actual_reason, re.IGNORECASE)
    assert image_names(tmp_path / "s.lmdb")


def test_deep_greyscale_is_bad_and_not_just_grey(tmp_path: Path) -> None:
    content, _ = BAD_PHOTOS["deep_grey.png"]
    photos = photos_with(tmp_path, {"deep.png": content})
    options = ("--greyscale", "convert", "--report", tmp_path / "r.json")
    assert call("extract", *SMALL, *options, photos, tmp_path / "s.lmdb").status == 1
    assert skipped(tmp_path / "r.json")["deep.png"][1]


def test_a_photo_of_one_frame_of_an_animated_kind_is_taken(tmp_path: Path) -> None:
    photos = write(
        tmp_path / "photos", {"a.webp": encoded(scene(64, 64), "webp"), "b.tiff": encoded(scene(64, 64), "tiff")}
    )
    assert call("extract", *SMALL, photos, tmp_path / "s.lmdb").status == 0
    assert image_names(tmp_path / "s.lmdb") == ["a", "b"]


@pytest.mark.parametrize("to", ["s.lmdb", "folder"])
@pytest.mark.parametrize(
    "files",
    [
        {"a.jpg": b"", "b/c.png": b"text"},
        {"a.png": encoded(flat(20, 20), "png")},
        {"a.png": encoded(flat(64, 64)[..., 0], "png")},
    ],
    ids=["bad", "small", "grey"],
)
def test_when_nothing_comes_out_there_is_no_store_but_a_report(
    tmp_path: Path, files: dict[str, bytes], to: str
) -> None:
    photos = write(tmp_path / "photos", files)
    result = call("extract", *SMALL, "--report", tmp_path / "r.json", photos, tmp_path / to)
    assert result.status == 1
    assert "Traceback" not in result.err
    assert skipped(tmp_path / "r.json").keys() == files.keys()
    for name in files:
        assert name in result.out + result.err
    assert read(tmp_path).keys() == {"r.json", *(f"photos/{name}" for name in files)}
    assert not (tmp_path / to).exists()
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["images"], report["patches"], report["bytes"]) == (0, 0, 0)


def test_after_nothing_came_out_the_mended_photos_do(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", {"a.jpg": b""})
    assert call("extract", *SMALL, photos, tmp_path / "s.lmdb").status == 1
    write(photos, {"a.jpg": encoded(scene(64, 64), "jpg")})
    assert call("extract", *SMALL, photos, tmp_path / "s.lmdb").status == 0


def test_a_photo_smaller_than_every_crop_is_left_out_as_an_option_says(tmp_path: Path) -> None:
    photos = photos_with(tmp_path, {"small.png": encoded(scene(20, 500), "png")})
    for number, options in enumerate([(), ("--min-size", "1")]):
        result = call("extract", *SMALL, *options, "--report", tmp_path / "r.json", photos, tmp_path / f"{number}.lmdb")
        assert (result.status, result.err) == (0, ""), result
        reason, is_bad = skipped(tmp_path / "r.json")["small.png"]
        assert not is_bad
        assert re.search("shorter side|smaller|tile", reason)
        assert "small.png" in result.out


def test_a_photo_that_may_not_be_read_is_left_out(tmp_path: Path) -> None:
    photos = photos_with(tmp_path, {"secret.png": PHOTO})
    (photos / "secret.png").chmod(0)
    # Root reads everything; a process that runs without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH does not.
    drop_capabilities = "import ctypes\nfor capability in (1, 2): ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)"
    result = run(
        "extract", *SMALL, "--report", tmp_path / "r.json", photos, tmp_path / "s.lmdb", before=drop_capabilities
    )
    assert result.status == 1
    reason, is_bad = skipped(tmp_path / "r.json")["secret.png"]
    assert is_bad
    assert "ermission" in reason


@pytest.mark.parametrize("kind", ["fifo", "folder", "dangling_link"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    photos = photos_with(tmp_path, {})
    path = photos / "odd.jpg"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to("nowhere")
    result = call("extract", *SMALL, photos, tmp_path / "s.lmdb")
    assert "Traceback" not in result.err
    assert image_names(tmp_path / "s.lmdb") == ["good"]
    assert kind == "folder" or "odd.jpg" in result.out


# Masks


def _mask(height: int = 256, width: int = 256) -> bytes:
    return encoded(np.full((height, width), 255, np.uint8), "png")


BAD_MASKS: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "mask"),
    "small": (_mask(128, 128), "256"),
    "wide": (_mask(256, 300), "256"),
    "empty": (b"", "mask"),
    "text": (b"no mask", "mask"),
    "cut": (_mask()[:-30], "mask"),
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_a_photo_without_its_mask_is_bad(tmp_path: Path, name: str) -> None:
    content, reason = BAD_MASKS[name]
    photos = photos_with(tmp_path, {"a.png": PHOTO})
    masks = write(tmp_path / "masks", {"good.png.png": _mask(), **({} if content is None else {"a.png.png": content})})
    options = ("--masks", masks, "--report", tmp_path / "r.json")
    result = call("extract", *SMALL, *options, photos, tmp_path / "s.lmdb")
    assert result.status == 1
    actual_reason, is_bad = skipped(tmp_path / "r.json")["a.png"]
    assert is_bad
    assert reason in actual_reason
    assert image_names(tmp_path / "s.lmdb") == ["good"]


def test_a_photo_that_is_masked_out_is_left_out_as_an_option_says(tmp_path: Path) -> None:
    photos = photos_with(tmp_path, {"a.png": PHOTO})
    black = encoded(np.zeros((256, 256), np.uint8), "png")
    masks = write(tmp_path / "masks", {"good.png.png": _mask(), "a.png.png": black})
    result = call("extract", *SMALL, "--masks", masks, "--report", tmp_path / "r.json", photos, tmp_path / "s.lmdb")
    assert (result.status, result.err) == (0, "")
    reason, is_bad = skipped(tmp_path / "r.json")["a.png"]
    assert "mask" in reason
    assert not is_bad


def test_a_folder_of_masks_that_is_missing_is_an_error(tmp_path: Path) -> None:
    result = call("extract", *SMALL, "--masks", tmp_path / "nomasks", photos_with(tmp_path, {}), tmp_path / "s.lmdb")
    assert result.status in (1, 2)
    assert "nomasks" in result.out + result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "s.lmdb").exists()


# Names


@pytest.mark.parametrize(
    ("first", "second"), [("a/b.png", "a__b.png"), ("x.png", "x.jpg"), ("x.png", "x.PNG"), ("a/b__c.png", "a__b/c.bmp")]
)
@pytest.mark.parametrize("to", ["s.lmdb", "folder"])
def test_two_photos_of_one_name_are_an_error_that_lists_both(tmp_path: Path, first: str, second: str, to: str) -> None:
    photos = photos_with(tmp_path, {first: PHOTO, second: PHOTO})
    old_files = read(tmp_path)
    message = refusal("extract", *SMALL, photos, tmp_path / to)
    assert first in message
    assert second in message
    assert "good" not in message
    assert read(tmp_path) == old_files
    assert not (tmp_path / to).exists()


def test_two_halves_of_one_name_are_an_error_too(tmp_path: Path) -> None:
    photos = photos_with(tmp_path, {"a/b.png": PHOTO, "a__b.png": PHOTO})
    message = refusal("extract", "--vertical-split", "--min-size", "1", *SMALL, photos, tmp_path / "s.lmdb")
    assert "a/b.png" in message
    assert "a__b.png" in message


def test_a_name_that_is_not_utf8_is_named_and_nothing_breaks(tmp_path: Path) -> None:
    photos = photos_with(tmp_path, {})
    (photos / os.fsdecode(b"caf\xe9.png")).write_bytes(PHOTO)
    result = call("extract", *SMALL, photos, tmp_path / "s.lmdb")
    assert result.status == 1
    assert r"caf\xe9" in result.out + result.err
    assert "Traceback" not in result.err


# Paths of the photos and of the target


def _create_nothing(path: Path) -> None:
    """Create nothing at a path."""


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (_create_nothing, "No such|missing|not exist|folder"),
    "file": (lambda path: path.write_bytes(PHOTO), "folder"),
    "empty": (lambda path: path.mkdir(), "photo|empty"),
    "no_photo": (lambda path: write(path, {"a.txt": b"t", "b/c.md": b"m"}), "photo"),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
@pytest.mark.parametrize("to", ["s.lmdb", "out"])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["", "dry"])
def test_what_is_no_folder_of_photos_is_an_error_that_says_so(
    tmp_path: Path, name: str, to: str, dry: tuple[str, ...]
) -> None:
    make, words = BAD_FOLDERS[name]
    make(tmp_path / name)
    old_files = read(tmp_path)
    message = refusal("extract", *dry, tmp_path / name, tmp_path / to)
    assert name in message
    assert re.search(words, message, re.IGNORECASE)
    assert read(tmp_path) == old_files
    assert not (tmp_path / to).exists()


@pytest.mark.parametrize("kind", ["file", "folder", "empty_folder", "dangling_link"])
@pytest.mark.parametrize("to", ["s.lmdb", "out"])
def test_whatever_has_the_name_of_the_target_is_not_touched(tmp_path: Path, kind: str, to: str) -> None:
    photos, target = photos_with(tmp_path, {}), tmp_path / to
    match kind:
        case "file":
            target.write_bytes(b"mine")
        case "folder":
            write(target, {"mine": b"mine"})
        case "empty_folder":
            target.mkdir()
        case _:
            target.symlink_to("nowhere")
    old_files = read(tmp_path)
    assert to in refusal("extract", *SMALL, photos, target)
    assert read(tmp_path) == old_files
    assert target.is_symlink() == (kind == "dangling_link")


def test_a_store_that_exists_is_not_touched_and_append_is_named(tmp_path: Path) -> None:
    photos, store = photos_with(tmp_path, {}), tmp_path / "s.lmdb"
    assert call("extract", *SMALL, photos, store).status == 0
    old_files = read(store)
    assert "--append" in refusal("extract", *SMALL, photos, store)
    assert read(store) == old_files


def test_appending_needs_a_store(tmp_path: Path) -> None:
    photos = photos_with(tmp_path, {})
    assert "s.lmdb" in refusal("extract", "--append", *SMALL, photos, tmp_path / "s.lmdb")
    assert call("extract", *SMALL, photos, tmp_path / "folder").status == 0
    old_files = read(tmp_path)
    message = error_line(call("extract", "--append", *SMALL, photos, tmp_path / "folder"), 2)
    assert re.search("store|lmdb", message)
    assert read(tmp_path) == old_files
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".lmdb"] == []


def test_a_bad_photo_does_not_hurt_the_store_that_is_appended_to(tmp_path: Path) -> None:
    photos, store = photos_with(tmp_path, {}), tmp_path / "s.lmdb"
    assert call("extract", *SMALL, photos, store).status == 0
    old_states, old_patches = states(store), patches(store)
    write(photos, {"bad.jpg": PHOTO[:100], "new.png": encoded(scene(40, 40), "png")})
    result = call("extract", "--append", *SMALL, "--report", tmp_path / "r.json", photos, store)
    assert result.status == 1
    assert skipped(tmp_path / "r.json").keys() == {"bad.jpg"}
    assert old_states.items() <= states(store).items()
    assert {key: content for key, content in patches(store).items() if key in old_patches} == old_patches
    assert image_names(store) == ["good", "new"]


def test_a_target_in_a_folder_that_is_missing_is_an_error_or_made(tmp_path: Path) -> None:
    result = call("extract", *SMALL, photos_with(tmp_path, {}), tmp_path / "no" / "where" / "s.lmdb")
    assert "Traceback" not in result.err
    if result.status:
        assert "where" in error_line(result)
    else:
        assert image_names(tmp_path / "no" / "where" / "s.lmdb") == ["good"]


def test_a_target_inside_the_photos_is_not_taken_for_one(tmp_path: Path) -> None:
    photos = photos_with(tmp_path, {})
    for to in ("s.lmdb", "out"):
        result = call("extract", *SMALL, photos, photos / to)
        if result.status == 0:
            assert image_names(photos / to) == ["good"]
            break
        assert to in error_line(result)
        assert not (photos / to).exists()


# Options


BAD_OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any], str]] = {
    "step_of_another_length": (("--crop-size", "32,64", "--step", "16"), {"crop_sz": [32, 64], "step": [16]}, "step"),
    "resize_of_another_length": (
        ("--crop-size", "32,64", "--resize", "1"),
        {"crop_sz": [32, 64], "resize_final_img": [1.0]},
        "resize",
    ),
    "longer_step": (("--crop-size", "32", "--step", "16,8"), {"crop_sz": 32, "step": [16, 8]}, "step"),
    "step_zero": (("--crop-size", "32", "--step", "0"), {"crop_sz": [32], "step": [0]}, "step"),
    "step_negative": (("--crop-size", "32", "--step=-4"), {"crop_sz": [32], "step": [-4]}, "step"),
    "threshold_zero": (("--threshold", "0"), {"thres_sz": 0}, "thres"),
    "threshold_negative": (("--threshold=-1",), {"thres_sz": -1}, "thres"),
    "crop_zero": (("--crop-size", "0"), {"crop_sz": [0]}, "crop"),
    "crop_negative": (("--crop-size=-32",), {"crop_sz": -32}, "crop"),
    "crop_empty": (("--crop-size", ""), {"crop_sz": []}, "crop"),
    "crop_text": (("--crop-size", "big"), {"crop_sz": "big"}, "crop"),
    "resize_zero": (("--crop-size", "32", "--resize", "0"), {"crop_sz": 32, "resize_final_img": [0]}, "resize"),
    "resize_negative": (("--crop-size", "32", "--resize=-1"), {"crop_sz": 32, "resize_final_img": [-1]}, "resize"),
    "resize_to_nothing": (
        ("--crop-size", "32", "--resize", "0.01"),
        {"crop_sz": 32, "resize_final_img": [0.01]},
        "resize",
    ),
    "resize_nan": (
        ("--crop-size", "32", "--resize", "nan"),
        {"crop_sz": 32, "resize_final_img": [float("nan")]},
        "resize",
    ),
    "quality_zero": (("--quality", "0"), {"compression_level": 0}, "quality|compression_level"),
    "quality_above_100": (("--quality", "101"), {"compression_level": 101}, "quality|compression_level"),
    "subsampling": (("--subsampling", "4:1:0"), {"subsampling": "4:1:0"}, "subsampling"),
    "greyscale": (("--greyscale", "maybe"), {"greyscale": "maybe"}, "greyscale"),
    "workers": (("--workers", "-1"), {"n_thread": -1}, "workers|n_thread"),
    "halve": (("--halve-above", "0"), {"input_image_max_size_before_being_halved": 0}, "halve"),
    "min_size": (("--min-size", "0"), {"min_size": 0}, "min.size"),
    "exclude_of_no_size": (
        ("--crop-size", "32", "--exclude", "99:cat"),
        {"crop_sz": [32], "exclusions": [["cat"], ["dog"]]},
        "exclu",
    ),
}


def _assert_usage_error(result: Result, words: str) -> None:
    assert result.status == 2, result
    assert "Traceback" not in result.err
    message = result.err.splitlines()[0]
    assert message.startswith("dlas-store"), result
    assert re.search(words, message), message


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_a_bad_option_is_a_usage_error_that_names_it_in_flags_and_config(tmp_path: Path, name: str) -> None:
    flags, config, words = BAD_OPTIONS[name]
    photos = photos_with(tmp_path, {})
    (tmp_path / "c.yml").write_text(yaml.safe_dump(config))
    old_files = read(tmp_path)
    for options in (flags, ("--config", tmp_path / "c.yml")):
        _assert_usage_error(call("extract", *options, photos, tmp_path / "s.lmdb"), words)
        assert read(tmp_path) == old_files


BAD_CONFIGS: dict[str, tuple[bytes, str]] = {
    "unknown": (b"crop_size: 32\n", "crop_size.*crop_sz"),
    "misspelt": (b"tres_sz: 32\n", "tres_sz.*thres_sz"),
    "far_from_all": (b"zzzzzz: 1\n", "zzzzzz"),
    "boolean_for_number": (b"thres_sz: true\n", "thres_sz"),
    "text_for_boolean": (b"vertical_split: maybe\n", "vertical_split"),
    "mapping_for_list": (b"crop_sz: {a: 1}\n", "crop_sz"),
    "fraction_for_number": (b"crop_sz: [32.5]\n", "crop_sz"),
    "masking_without_masks": (b"use_masking: true\n", "mask_path"),
    "list": (b"- crop_sz\n", "c.yml"),
    "scalar": (b"crop_sz\n", "c.yml"),
    "no_yaml": (b"crop_sz: [32\n", "c.yml"),
    "no_text": (b"\xff\xfe\x00crop", "c.yml"),
    "object": (b"crop_sz: !!python/object/apply:os.system ['touch canary']\n", "c.yml|crop_sz"),
    "missing": (b"", "nowhere.yml"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_bad_config_is_an_error_that_names_it(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, words = BAD_CONFIGS[name]
    photos = photos_with(tmp_path, {})
    (tmp_path / "c.yml").write_bytes(content)
    config = tmp_path / ("nowhere.yml" if name == "missing" else "c.yml")
    result = call("extract", "--config", config, photos, tmp_path / "s.lmdb")
    assert re.search(words, error_line(result, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yml", "photos"]


def test_a_report_that_cannot_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    result = call(
        "extract", *SMALL, "--report", tmp_path / "no" / "r.json", photos_with(tmp_path, {}), tmp_path / "s.lmdb"
    )
    assert result.status in (1, 2)
    assert "r.json" in error_line(result, result.status)
    assert not (tmp_path / "s.lmdb").exists()


def test_what_is_no_photo_does_not_stop_an_extraction(tmp_path: Path) -> None:
    photos = photos_with(tmp_path, {})
    Path(os.fsdecode(os.fsencode(photos) + b"/bad\xff.txt")).touch()
    (photos / "zero.jpg").symlink_to("/dev/zero")
    (photos / "up").symlink_to("..")
    result = call("extract", *SMALL, photos, tmp_path / "s.lmdb")
    assert result.status == 0, result
    assert "left out, neither a file nor a folder: 1 (zero.jpg)" in result.out
    assert "left out, link to a folder that it lies in: 1 (up)" in result.out
    assert r"bad\xff.txt" in result.out
