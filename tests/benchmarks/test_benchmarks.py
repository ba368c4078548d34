"""Benchmarks: they run, and their reports agree with their measurements. No test asserts a speed."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytest

from benchmarks import contender_peers
from benchmarks.__main__ import main
from dlas_store.converters.importing import import_store
from tests.support.sample_data import DATA, ROOT

ROUNDS = 2
LIMIT = "decoding alone, in memory, all cores"
SMALL = ("--patches", "80", "--size", "64", "--batch", "16")


@pytest.fixture(scope="module")
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the user's own, made of a chunked folder."""
    store = tmp_path_factory.mktemp("own") / "own.lmdb"
    import_store([DATA / "chunked"], store)
    return store


class Done(NamedTuple):
    """Exit status and output of ``python -m benchmarks``."""

    status: int
    stdout: str
    stderr: str


def run(*arguments: str | Path, check: bool = True) -> Done:
    """Run a benchmark in this process, which has done the slow imports; measured code runs in child processes."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["benchmarks", *map(str, arguments)])
        try:
            status = main()
        except SystemExit as end:
            status = int(end.code or 0)
    assert not check or status == 0, err.getvalue()
    return Done(status, out.getvalue(), err.getvalue())


def run_alone(*arguments: str | Path, check: bool = True) -> Done:
    """Run a benchmark in a process of its own, as a user does."""
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def measure(
    tmp_path: Path, *arguments: str | Path, rounds: int = ROUNDS, run: Callable[..., Done] = run
) -> dict[str, Any]:
    """Run a benchmark and return its JSON, after checks that hold for every benchmark."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    file = tmp_path / "report.json"
    done = run(*arguments, "--rounds", str(rounds), "--json", file, "--scratch", scratch)
    assert list(scratch.iterdir()) == []
    report: dict[str, Any] = json.loads(file.read_text())
    assert report["benchmark"] == arguments[0]
    assert report["options"]["rounds"] == rounds
    assert report["machine"].keys() == {"cpu", "cores", "memory_bytes", "system"}
    assert report["versions"].keys() >= {"python", "dlas-store", "lmdb", "numpy", "simplejpeg", "torch"}
    assert report["comparisons"]
    for comparison in report["comparisons"]:
        # Only one run measures the memory of reading.
        check_comparison(comparison, 1 if comparison["title"].startswith("Memory") else rounds)
        assert all(name in done.stdout for name in comparison["results"])
    return report


def check_comparison(comparison: dict[str, Any], rounds_run: int) -> None:
    reference = comparison["results"][comparison["reference"]]["rounds"]
    for result in comparison["results"].values():
        rounds = result["rounds"]
        assert len(rounds) == rounds_run
        assert (result["low"], result["median"], result["high"]) == (min(rounds), median(rounds), max(rounds))
        pairs = zip(rounds, reference, strict=True)
        by_ratio = comparison["relation"] == "ratio"
        assert result["relative"] == median(a / b if by_ratio else a - b for a, b in pairs)


def test_read_measures_loaders_and_what_they_cost(tmp_path: Path) -> None:
    patterns = ("store, *s loader", "store, read*", "folder, DataLoader, Pillow")
    report = measure(tmp_path, "read", *SMALL, "--only", *patterns)
    loaders, alone, cpu, memory = report["comparisons"]
    assert list(loaders["results"]) == [
        LIMIT,
        "store, threads loader",
        "store, workers loader",
        "folder, DataLoader, Pillow",
    ]
    assert list(alone["results"]) == [LIMIT, "store, read_pixels, one core", "store, read (bytes), one core"]
    assert list(cpu["results"]) == list(memory["results"]) == list(loaders["results"])
    assert all(megabytes > 10 for result in memory["results"].values() for megabytes in result["rounds"])
    assert report["figures"]["items"] == 80
    assert report["notes"] == contender_peers.notes()
    assert all("not installed" in note for note in report["notes"])
    assert "80 items of 80 images, patches of 64 x 64 pixels" in report["subject"]


def test_read_measures_items_with_references(tmp_path: Path) -> None:
    report = measure(
        tmp_path, "read", "--mode", "single_image", *SMALL, "--images", "20", "--only", "* device", "*items*", rounds=1
    )
    names = ["store, threads loader, before the device", "store, items, DataLoader", "folder, items, DataLoader"]
    assert list(report["comparisons"][0]["results"]) == [LIMIT, *names]
    assert report["figures"]["images"] == 20


def test_read_from_the_disk_compares_with_the_folder(tmp_path: Path) -> None:
    contenders = ("store, threads loader", "folder, DataLoader, TurboJPEG")
    against_limit, against_folder, _ = measure(tmp_path, "read", *SMALL, "--cold", "--only", *contenders, rounds=1)[
        "comparisons"
    ]
    assert list(against_limit["results"]) == list(against_folder["results"]) == [LIMIT, *contenders]
    assert against_folder["reference"] == contenders[1]


def test_read_measures_data_of_the_user(tmp_path: Path, own_store: Path) -> None:
    report = measure(
        tmp_path,
        "read",
        "--store",
        own_store,
        "--folder",
        DATA / "chunked",
        "--patches",
        "600",
        "--only",
        "folder, DataLoader, Pillow",
        rounds=1,
    )
    assert report["options"]["store"] == str(own_store)
    # The store has fewer patches, so a run reads them several times.
    assert report["figures"]["items"] > 300
    assert report["figures"]["images"] == 4


def test_importing_loads_nothing_that_is_optional_or_slow() -> None:
    program = "import sys, benchmarks.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    optional = {"torch", "matplotlib", "webdataset", "litdata", "grain", "array_record", "lance", "pyarrow"}
    assert not optional & set(done.stdout.split())


def test_first_measures_the_first_batch_and_a_resumed_one(tmp_path: Path) -> None:
    report = measure(
        tmp_path, "first", "--patches", "3000", "--batch", "16", "--step", "100", "--modes", "pixels", rounds=1
    )
    first, resumed = report["comparisons"]
    assert list(first["results"]) == list(resumed["results"])
    assert list(first["results"]) == ["pixels, threads loader", "pixels, workers loader"]
    figures = report["figures"]
    assert figures["resumed_runs_equal_to_an_uninterrupted_pass"] == figures["resumed_runs"] == 2


def test_first_refuses_a_step_that_an_epoch_does_not_have() -> None:
    done = run("first", "--patches", "100", "--batch", "10", "--step", "10", check=False)
    assert (done.status, "give a smaller --step" in done.stderr) == (1, True)


def test_memory_measures_workers_and_epochs(tmp_path: Path) -> None:
    options = ("--patches", "3000", "--batches", "5", "--epochs", "5", "--epoch-patches", "40", "--size", "64")
    worker, growth = measure(tmp_path, "memory", *options, "--modes", "pixels", rounds=1)["comparisons"]
    assert list(worker["results"]) == ["1,000 patches", "3,000 patches"]
    assert list(growth["results"]) == [f"after epoch {number}" for number in (2, 4, 5)]


def test_train_measures_every_loader(tmp_path: Path) -> None:
    options = ("--patches", "32", "--size", "64", "--batch", "8", "--steps", "6", "--width", "2", "--blocks", "1")
    few = ("--threads", "2", "--workers", "1", "--torch-threads", "1")
    (table,) = measure(tmp_path, "train", *options, *few, rounds=1)["comparisons"]
    assert table["title"] == "Training, 2 channels, on cpu"
    assert list(table["results"]) == ["batches in memory", "threads loader, n_threads 2", "workers loader, n_workers 1"]


def test_train_refuses_a_device_that_is_none() -> None:
    done = run("train", "--device", "abacus", check=False)
    assert (done.status, "--device must be" in done.stderr) == (1, True)


def test_import_measures_time_and_disk_space(tmp_path: Path) -> None:
    report = measure(tmp_path, "import", "--patches", "250", "--size", "64")
    (comparison,) = report["comparisons"]
    assert list(comparison["results"]) == ["cp -r, then sync -f", "dlas-store import"]
    figures = report["figures"]
    assert figures["store_to_folder_on_disk"] == figures["store_disk_bytes"] / figures["folder_disk_bytes"]
    assert "256 files" in report["subject"]  # 250 patches in 3 images with a reference and centres each


def test_import_measures_a_folder_of_the_user(tmp_path: Path) -> None:
    report = measure(tmp_path, "import", "--folder", DATA / "chunked_video", run=run_alone)
    assert report["figures"]["store_disk_bytes"] > 0


def test_steps_measure_the_loader_from_decoding_up(tmp_path: Path) -> None:
    (comparison,) = measure(tmp_path, "steps", "--patches", "128", "--size", "32")["comparisons"]
    names = list(comparison["results"])
    assert (names[0], names[-1], len(names)) == ("decoding alone, in memory, all cores", "threads loader", 8)
    assert all(rate > 0 for result in comparison["results"].values() for rate in result["rounds"])


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
    report = measure(tmp_path, "extract", "--folder", photos, "--step", "256,300")
    assert "1 photos, 2 megapixels" in report["subject"]
    assert "tiles every 256 and 300 pixels" in report["subject"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["read", "--rounds", "0"],
        ["read", "--mode", "video"],
        ["import", "--patches", "-1"],
        ["extract", "--megapixels", "5,2"],
        ["extract", "--step", "128"],
        ["extract", "--step", "128,0"],
        ["extract", "--step", "wide"],
        ["export"],
    ],
)
def test_a_wrong_option_is_a_usage_error(arguments: list[str]) -> None:
    assert run(*arguments, check=False).status == 2


def test_a_wrong_option_is_the_exit_status_of_the_process() -> None:
    assert run_alone("export", check=False).status == 2
