"""Benchmarks run, and what they report follows from what they measured. How fast anything is, is not tested."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from samples import DATA

from dlas_store.converters.importing import import_store

ROOT = Path(__file__).parents[1]
ROUNDS = 3


def run(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=check, capture_output=True, text=True)


def measure(tmp_path: Path, *arguments: str | Path) -> dict[str, Any]:
    """Run a benchmark and return its JSON, after checking what all have in common."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    file = tmp_path / "report.json"
    done = run(*arguments, "--rounds", str(ROUNDS), "--json", file, "--scratch", scratch)
    assert list(scratch.iterdir()) == []
    report: dict[str, Any] = json.loads(file.read_text())
    assert report["benchmark"] == arguments[0]
    assert report["options"]["rounds"] == ROUNDS
    assert report["machine"].keys() == {"cpu", "cores", "memory_bytes", "system"}
    assert report["versions"].keys() >= {"python", "dlas-store", "lmdb", "numpy", "simplejpeg", "torch"}
    assert report["comparisons"]
    for comparison in report["comparisons"]:
        check_comparison(comparison)
        assert all(name in done.stdout for name in comparison["results"])
    return report


def check_comparison(comparison: dict[str, Any]) -> None:
    reference = comparison["results"][comparison["reference"]]["rounds"]
    for result in comparison["results"].values():
        rounds = result["rounds"]
        assert len(rounds) == ROUNDS
        assert (result["low"], result["median"], result["high"]) == (min(rounds), median(rounds), max(rounds))
        pairs = zip(rounds, reference, strict=True)
        by_ratio = comparison["relation"] == "ratio"
        assert result["relative"] == median(a / b if by_ratio else a - b for a, b in pairs)


def test_read_measures_synthetic_patches(tmp_path: Path) -> None:
    report = measure(tmp_path, "read", "--patches", "150", "--size", "64", "--batch", "16")
    (comparison,) = report["comparisons"]
    assert list(comparison["results"]) == [
        "decoding alone, in memory, all cores",
        "folder, DataLoader",
        "store, DataLoader",
        "store, read_pixels, one core",
        "store, read (bytes), one core",
    ]
    assert "150 patches of 64 x 64 pixels" in report["subject"]


def test_read_measures_data_of_the_user(tmp_path: Path) -> None:
    store = tmp_path / "own.lmdb"
    import_store([DATA / "chunked"], store)
    report = measure(tmp_path, "read", "--store", store, "--folder", DATA / "chunked", "--patches", "300")
    assert report["options"]["store"] == str(store)
    assert "300 patches" in report["subject"]


def test_read_measures_a_store_without_its_folder(tmp_path: Path) -> None:
    store = tmp_path / "own.lmdb"
    import_store([DATA / "chunked"], store)
    (comparison,) = measure(tmp_path, "read", "--store", store, "--patches", "50")["comparisons"]
    assert len(comparison["results"]) == 4


def test_read_refuses_a_folder_that_is_not_the_stores(tmp_path: Path) -> None:
    store = tmp_path / "own.lmdb"
    import_store([DATA / "chunked_video"], store)
    done = run("read", "--store", store, "--folder", DATA / "chunked", check=False)
    assert done.returncode == 1
    assert "hold different patches" in done.stderr


def test_import_measures_time_and_disk_space(tmp_path: Path) -> None:
    report = measure(tmp_path, "import", "--patches", "250", "--size", "64")
    (comparison,) = report["comparisons"]
    assert list(comparison["results"]) == ["cp -r, then sync -f", "dlas-store import"]
    figures = report["figures"]
    assert figures["store_to_folder_on_disk"] == figures["store_disk_bytes"] / figures["folder_disk_bytes"]
    assert "256 files" in report["subject"]  # 250 patches in 3 images with a reference and centres each


def test_import_measures_a_folder_of_the_user(tmp_path: Path) -> None:
    report = measure(tmp_path, "import", "--folder", DATA / "chunked_video")
    assert report["figures"]["store_disk_bytes"] > 0


def test_open_measures_time_and_memory_by_size(tmp_path: Path) -> None:
    time, memory = measure(tmp_path, "open", "--patches", "5000", "90000")["comparisons"]
    assert list(time["results"]) == list(memory["results"]) == ["1,000 patches", "5,000 patches", "90,000 patches"]
    assert all(milliseconds > 0 for result in time["results"].values() for milliseconds in result["rounds"])


def test_extract_measures_synthetic_photos(tmp_path: Path) -> None:
    report = measure(tmp_path, "extract", "--photos", "2", "--megapixels", "0.5,0.8")
    (comparison,) = report["comparisons"]
    assert list(comparison["results"]) == [
        "decoding and encoding alone, in memory, all cores",
        "dlas-store extract, to a store",
        "dlas-store extract, to a folder",
    ]
    store = comparison["results"]["dlas-store extract, to a store"]["relative"]
    assert report["figures"]["speed_of_store_to_limit"] == 1 / store
    assert "2 photos, 1 megapixels, 39 tiles" in report["subject"]


def test_extract_measures_photos_of_the_user(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(DATA / "photos" / "retina.jpg", photos)
    assert "1 photos, 2 megapixels" in measure(tmp_path, "extract", "--folder", photos)["subject"]


@pytest.mark.parametrize(
    "arguments",
    [["read", "--rounds", "0"], ["import", "--patches", "-1"], ["extract", "--megapixels", "5,2"], ["export"]],
)
def test_a_wrong_option_is_a_usage_error(arguments: list[str]) -> None:
    assert run(*arguments, check=False).returncode == 2


def test_every_contender_runs_once_a_round_and_each_round_starts_with_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.measuring import run_rounds

    order: list[str] = []
    contenders = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
    results = run_rounds(contenders, rounds=4)
    assert "".join(order) == "abcbcacababc"
    assert results["a"] == [1, 6, 8, 10]
