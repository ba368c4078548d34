"""Extraction: options of a config, the dry run, the report and the summary."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import termios
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dlas_store.cli.main import main
from tests.support.command_line import PROGRAM, done, run
from tests.support.file_trees import read, write
from tests.support.photo_files import SMALL, encoded, extract, images_of, scene

pytestmark = pytest.mark.usefixtures("opencv_without_threads")


# --config


def _config(tmp_path: Path, options: Mapping[str, Any]) -> Path:
    return write(tmp_path, {"config.yml": yaml.safe_dump(dict(options)).encode()}) / "config.yml"


CONFIGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "sizes": (
        {"crop_sz": [32, 64], "step": [16, 40], "thres_sz": 4, "resize_final_img": [0.5, 0.25]},
        ("--crop-size", "32,64", "--step", "16,40", "--threshold", "4", "--resize", "0.5,0.25"),
    ),
    "one_size": ({"crop_sz": 48, "step": 20, "thres_sz": 4}, ("--crop-size", "48", "--step", "20", "--threshold", "4")),
    "only_resize": ({"crop_sz": [48], "only_resize": True}, ("--crop-size", "48", "--only-resize")),
    "split": (
        {"crop_sz": [48], "vertical_split": True, "min_size": 8},
        ("--crop-size", "48", "--vertical-split", "--min-size", "8"),
    ),
    "masks": (
        {"crop_sz": [32], "step": [32], "use_masking": True, "mask_path": "masks"},
        ("--crop-size", "32", "--step", "32", "--masks", "masks"),
    ),
    "no_masks": ({"crop_sz": 32, "use_masking": False, "mask_path": "nowhere"}, ("--crop-size", "32")),
    "exclusions": (
        {"crop_sz": [32, 64], "exclusions": [["one", "x"], []]},
        ("--crop-size", "32,64", "--exclude", "32:one", "--exclude", "32:x"),
    ),
    "halve": (
        {"crop_sz": [32], "input_image_max_size_before_being_halved": 90},
        ("--crop-size", "32", "--halve-above", "90"),
    ),
    "encoding": (
        {"crop_sz": [32], "compression_level": 70, "subsampling": "4:4:4", "n_thread": 2},
        ("--crop-size", "32", "--quality", "70", "--subsampling", "4:4:4"),
    ),
    "photos": (
        {"crop_sz": [32], "greyscale": "convert", "ignore_exif": True, "fast_decode": False},
        ("--crop-size", "32", "--greyscale", "convert", "--ignore-exif"),
    ),
}


@pytest.fixture
def varied(tmp_path: Path) -> Path:
    """Photos whose extraction depends on every option, and their masks."""
    files = {
        "one.png": encoded(scene(70, 110), "png"),
        "sub/two.jpg": encoded(scene(120, 80, seed=1), "jpg", quality=90, orientation=6),
        "sub/grey.png": encoded(scene(80, 80, seed=2)[..., 0], "png"),
    }
    mask = np.zeros((256, 256), np.uint8)
    mask[:200] = 255
    write(tmp_path / "masks", {f"{name}.png": encoded(mask, "png") for name in files})
    return write(tmp_path / "photos", files)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_with_the_names_of_the_original_does_what_flags_do(
    varied: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options, flags = CONFIGS[name]
    by_flags = extract(varied, *flags)
    by_config = extract(varied, "--config", _config(tmp_path, options), to="config.lmdb")
    assert by_config.images == by_flags.images
    assert by_config.images
    plain = extract(varied, "--crop-size", flags[1], to="plain.lmdb")
    assert (plain.images == by_flags.images) == (name == "no_masks")


def test_flags_override_a_config(varied: Path, tmp_path: Path) -> None:
    config = _config(
        tmp_path,
        {"crop_sz": [32, 64], "step": [32, 64], "thres_sz": 1, "compression_level": 10, "greyscale": "convert"},
    )
    flags = ("--threshold", "128", "--quality", "80", "--greyscale", "skip", "--step", "40,80")
    overridden = extract(varied, "--config", config, *flags)
    assert overridden.images == extract(varied, "--crop-size", "32,64", *flags, to="flags.lmdb").images


def test_folders_of_a_config_give_way_to_those_of_the_command(varied: Path, tmp_path: Path) -> None:
    config = _config(
        tmp_path, {"crop_sz": 64, "input_folder": "/nowhere/a", "save_folder": "/nowhere/b", "dest": "file"}
    )
    ended = run("extract", "--config", config, varied, tmp_path / "s.lmdb")
    assert ended.status == 0
    lines = [line for line in ended.err.splitlines() if "input_folder" in line]
    assert len(lines) == 1
    assert "save_folder" in lines[0]
    assert images_of(tmp_path / "s.lmdb") == extract(varied, "--crop-size", "64", to="flags.lmdb").images


# --dry-run

DRY = {
    "plain": SMALL,
    "split": ("--vertical-split", "--min-size", "1", *SMALL),
    "sizes": ("--crop-size", "32,64", "--step", "20,30", "--threshold", "4", "--exclude", "32:two"),
    "masks": ("--masks", "masks", *SMALL),
    "halved": ("--halve-above", "100", "--min-size", "1", *SMALL),
    "only_resize": ("--only-resize", *SMALL),
    "convert": ("--greyscale", "convert", *SMALL),
}


@pytest.mark.parametrize("name", DRY)
def test_a_dry_run_says_what_will_come_and_writes_nothing(
    varied: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    old_files = read(tmp_path)
    assert main(["extract", "--dry-run", *DRY[name], "photos", "s.lmdb"]) == 0
    assert read(tmp_path) == old_files
    printed = capsys.readouterr()
    assert printed.err == ""
    outcome = extract(varied, *DRY[name])
    printed_counts = {
        word: int(number.replace(",", "")) for number, word in re.findall(r"(\d[\d,]*) (\w+)", printed.out)
    }
    assert printed_counts["photos"] == len({image.extra["photo"]["path"] for image in outcome.images.values()})
    assert printed_counts["images"] == outcome.report["images"]
    assert printed_counts["patches"] == outcome.report["patches"]
    assert re.search(r"[\d.,]+ [kMG]?B\b|bytes", printed.out)
    assert re.search(r"\d (s|min|h|seconds|minutes)\b", printed.out)


def test_the_estimate_of_bytes_is_of_the_right_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write(tmp_path / "photos", {f"{n}.png": encoded(scene(300, 300, seed=n), "png") for n in range(4)})
    options = ("--crop-size", "128", "--step", "64")
    assert main(["extract", "--dry-run", *options, str(photos), str(tmp_path / "s.lmdb")]) == 0
    (number, unit) = re.findall(r"([\d.,]+) ([kMG]?B)\b", capsys.readouterr().out)[0]
    estimate = float(number.replace(",", "")) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    assert 0.25 < estimate / extract(photos, *options).report["bytes"] < 4


# --report and the summary


def test_the_report_counts_what_came_out(varied: Path, tmp_path: Path) -> None:
    outcome = extract(varied, *SMALL)
    report = outcome.report
    assert set(report) == {"images", "patches", "bytes", "seconds", "skipped", "present", "changed"}
    assert report["images"] == len(outcome.images) == 2
    assert report["patches"] == sum(len(image.files) for image in outcome.images.values())
    assert report["bytes"] == sum(
        len(content) for image in outcome.images.values() for content in (*image.tiles, image.reference)
    )
    assert 0 < report["seconds"] < 100
    assert (report["present"], report["changed"]) == (0, [])
    assert [(entry["photo"], entry["bad"]) for entry in report["skipped"]] == [("sub/grey.png", False)]


def test_the_summary_counts_and_lists_photos_by_reason(varied: Path, tmp_path: Path) -> None:
    report_file = tmp_path / "r.json"
    out = done("extract", *SMALL, "--exclude", "one", "--report", report_file, varied, tmp_path / "s.lmdb")
    report = json.loads(report_file.read_text())
    assert "1 image" in out
    assert f"{report['patches']} " in out
    assert "MB" in out
    for entry in report["skipped"]:
        assert any(entry["photo"] in line and entry["reason"] in line for line in out.splitlines()), out


def test_progress_is_shown_on_a_terminal_and_not_in_a_pipe(varied: Path, tmp_path: Path) -> None:
    leader, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    command = [*PROGRAM, "extract", *SMALL, str(varied), str(tmp_path / "s.lmdb")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=terminal)
    os.close(terminal)
    shown = b""
    with suppress(OSError):  # Linux raises it after the last process closed the terminal
        while chunk := os.read(leader, 4096):
            shown += chunk
    os.close(leader)
    assert process.wait() == 0
    assert re.search(r"\d+%|\d+/\d+|/s", shown.decode()), shown
    assert "\r" not in done("extract", *SMALL, varied, tmp_path / "t.lmdb")
