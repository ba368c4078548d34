"""Benchmarks: they run, and their reports agree with their measurements. No test asserts a speed."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pytest

from dlas_store.converters.importing import import_store
from tests.support.sample_data import DATA, ROOT

ROUNDS = 2
LIMIT = "decoding alone, in memory, all cores"
SMALL = ("--patches", "80", "--size", "64", "--batch", "16")

MODES = [
    "single_image", "multi_frame", "paired_frame", "imagefolder", "stylegan2", "multiscale", "fullimage",
    "torch_dataset", "combined",
]  # fmt: skip


@pytest.fixture(autouse=True)
def checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tests import ``benchmarks``, which is not installed."""
    monkeypatch.syspath_prepend(str(ROOT))


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
    from benchmarks.__main__ import main

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
    from benchmarks import contender_peers

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


def test_every_contender_of_read_gives_every_patch_once(tmp_path: Path) -> None:
    from benchmarks.contenders import WITHOUT_LOADER, list_contenders, make
    from benchmarks.data import write_mode_data
    from benchmarks.reading import Reading

    folder, store = tmp_path / "folder", tmp_path / "folder.lmdb"
    write_mode_data("pixels", folder, store, patches=20, images=4, size=64, quality=90)
    reading = Reading.plan("pixels", store=store, folder=folder, patches=20, batch=8)
    contenders = [contender for contender in list_contenders(reading, tmp_path) if contender.own_data is None]
    assert [contender.name for contender in contenders] == [
        LIMIT,
        "store, threads loader",
        "store, workers loader",
        "store, items, DataLoader",
        *WITHOUT_LOADER,
        "folder, threads loader",
        "folder, DataLoader, TurboJPEG",
        "folder, DataLoader, OpenCV",
        "folder, DataLoader, Pillow",
    ]
    for contender in contenders:
        workload = make(json.loads(json.dumps(contender.as_spec(reading))))()
        items = {workload.check(), workload.run()}
        assert items == {reading.items * reading.epochs} or contender.name in WITHOUT_LOADER


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_can_be_read_by_every_loader(tmp_path: Path, mode: str) -> None:
    from benchmarks.contender_store import prepare_items, prepare_loader, prepare_raw
    from benchmarks.data import write_mode_data
    from benchmarks.modes import MODES as KNOWN
    from benchmarks.reading import Reading

    folder, store = tmp_path / "folder", tmp_path / "folder.lmdb"
    write_mode_data(mode, folder, store, patches=16, images=4, size=64, quality=90)
    chunked = folder if KNOWN[mode].chunked else None
    reading = Reading.plan(mode, store=store, folder=chunked, patches=16, batch=8)
    assert reading == Reading(**json.loads(json.dumps(reading.as_spec())))
    openers = [
        prepare_loader(reading, reading.data, loader="threads"),
        prepare_items(reading, reading.data),
    ]
    if KNOWN[mode].raw:
        openers.append(prepare_raw(reading, reading.data))
    for opener in openers:
        workload = opener()
        assert workload.check() == workload.run() == 16


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


def test_a_store_can_be_read_without_its_folder(tmp_path: Path, own_store: Path) -> None:
    from benchmarks.contenders import list_contenders
    from benchmarks.reading import Reading

    reading = Reading.plan("pixels", store=own_store, folder=None, patches=50, batch=None)
    names = [contender.name for contender in list_contenders(reading, tmp_path)]
    assert "store, threads loader" in names
    assert not any(name.startswith("folder") for name in names)


def test_a_folder_that_is_not_the_stores_is_refused(own_store: Path) -> None:
    from benchmarks.reading import Reading
    from dlas_store import StoreError

    with pytest.raises(StoreError, match="hold different patches"):
        Reading.plan("pixels", store=own_store, folder=DATA / "chunked_video", patches=50, batch=None)


def test_a_contender_that_loses_a_patch_is_an_error() -> None:
    from benchmarks.process import BatchWorkload

    def epoch(*batches: list[int]) -> BatchWorkload:
        return BatchWorkload(
            lambda: batches,
            epochs=2,
            count=len,
            identify=lambda batch: batch,
            expected=lambda _: Counter([1, 2, 3]),
        )

    assert epoch([2, 1], [3]).run() == epoch([2, 1], [3]).check() == 6
    for wrong in (epoch([1, 2], [2]), epoch([1, 2]), epoch([1, 2], [3, 3])):
        with pytest.raises(AssertionError, match="every patch once"):
            wrong.check()


def test_a_contender_that_fails_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    from benchmarks.process import ContenderProcess
    from dlas_store import StoreError

    spec = {"options": {"mode": "pixels", "paths": str(tmp_path / "none")}, "in_memory": False, "width": 1, "blocks": 1}
    spec |= {"steps": 1, "device": "cpu", "torch_threads": None}
    with (
        ContenderProcess("mine", module="contender_training", spec=spec) as process,
        pytest.raises(StoreError, match=r"^mine: .*none', which does not exist"),
    ):
        process.run()


def test_cpu_time_counts_processes_that_have_ended() -> None:
    from benchmarks.system import cpu_seconds_below

    before = cpu_seconds_below(os.getpid())
    subprocess.run([sys.executable, "-c", "sum(range(5_000_000))"], check=True)
    assert cpu_seconds_below(os.getpid()) > before


def test_peak_memory_sees_what_was_freed_again() -> None:
    from benchmarks.system import memory_bytes, watch_memory

    start = memory_bytes(os.getpid())
    with watch_memory(os.getpid()) as peak:
        child = subprocess.Popen(
            [sys.executable, "-c", "block = b'1' * (64 << 20); print(); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        child.stdout.readline()
        while peak.value < start + (64 << 20):  # until a sample sees the block; else the test's timeout ends the loop
            pass
        child.communicate(b"\n")
    assert memory_bytes(os.getpid()) < peak.value


def test_files_leave_the_page_cache(tmp_path: Path) -> None:
    from benchmarks.system import drop_from_page_cache, page_residency

    file = tmp_path / "file"
    file.write_bytes(bytes(100_000))
    drop_from_page_cache([tmp_path])
    with file.open("rb") as stream:
        assert not any(page_residency(stream.fileno()))
        stream.read()
        assert all(page_residency(stream.fileno()))


def test_a_mapped_file_that_stays_in_the_page_cache_is_an_error(tmp_path: Path) -> None:
    from benchmarks.system import drop_from_page_cache
    from dlas_store import StoreError

    np.save(tmp_path / "file.npy", np.zeros(100_000))
    mapped = np.load(tmp_path / "file.npy", mmap_mode="r")
    assert mapped.sum() == 0
    with pytest.raises(StoreError, match="stay in the page cache"):
        drop_from_page_cache([tmp_path])


def test_a_chart_shows_ratios(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    from benchmarks.report import Comparison, write_chart

    rounds = {"limit": [10, 12], "store": [9, 9], "folder": [3, 4]}
    comparison = Comparison(title="Reading", unit="items/s", reference="limit", rounds=rounds)
    write_chart(tmp_path / "chart.png", comparison, subject="words " * 50, highlighted=["store"])
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.width == 1800
        colours = {colour for count, colour in picture.convert("RGB").getcolors(1 << 24) if count > 10_000}
    assert {(31, 111, 235), (182, 190, 201)} <= colours


def test_a_chart_without_matplotlib_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import report
    from dlas_store import StoreError

    monkeypatch.setattr(report, "find_spec", lambda _: None)
    with pytest.raises(StoreError, match=r"pip install 'dlas-store\[plot\]'"):
        report.require_matplotlib()


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


def test_every_contender_runs_once_a_round_and_each_round_starts_with_another() -> None:
    from benchmarks.report import run_rounds

    order: list[str] = []
    contenders = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
    results = run_rounds(contenders, rounds=4)
    assert "".join(order) == "abcbcacababc"
    assert results["a"] == [1, 6, 8, 10]
