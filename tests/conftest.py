"""Shared fixtures: repetitions of the reliability tests, a small disk, and data that several test modules read."""

from __future__ import annotations

import faulthandler
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.support.sample_data import DATA, Array, png

# Speed is no property of the code under test: a machine that other programs load must not fail a test.
settings.register_profile("loaded machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loaded machine")

_OUTCOMES = pytest.StashKey[list[dict[str, Any]]]()


class Runs(Protocol):
    """Returns the numbers of a test's runs; a run's number is its seed."""

    def __call__(self, *, small: int, full: int) -> range: ...


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise pytest.UsageError(f"--soak-part {text}: is not I/N with I from 1 to N")
    return int(match[1]), int(match[2])


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("reliability")
    group.addoption("--soak", action="store_true", help="run the repeating tests, with their full numbers of runs")
    group.addoption("--soak-part", metavar="I/N", default="1/1", help="run the I-th of N parts of the runs")
    group.addoption("--release", action="store_true", help="run the tests of a release too, which install packages")
    group.addoption(
        "--soak-report", metavar="FILE", default="build/soak.jsonl", help="file that --soak appends outcomes to"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "release: installs packages; runs with --release only")
    # A shell starts background jobs with interrupts ignored, which tests and their child processes would inherit.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _part(config.getoption("soak_part"))
    if not config.getoption("release"):
        for item in items:
            if item.get_closest_marker("release"):
                item.add_marker(pytest.mark.skip(reason="--release runs it"))
    if not config.getoption("soak"):
        return
    repeating = [item for item in items if "runs" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=[item for item in items if item not in repeating])
    for item in repeating:
        item.add_marker(pytest.mark.timeout(0))
    items[:] = repeating


@pytest.fixture
def runs(request: pytest.FixtureRequest) -> Runs:
    """Numbers of a test's runs: a few runs, or with --soak this part's share of all runs."""

    def numbers(*, small: int, full: int) -> range:
        if not request.config.getoption("soak"):
            return range(small)
        part, parts = _part(request.config.getoption("soak_part"))
        share = range(part - 1, full, parts)
        faulthandler.cancel_dump_traceback_later()  # a soak test runs for hours without hanging
        request.node.user_properties.append(("runs", len(share)))
        return share

    return numbers


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = (yield).get_result()  # type: ignore[misc]
    if not item.config.getoption("soak") or (report.when != "call" and report.passed):
        return
    outcome: dict[str, Any] = {
        "test": item.nodeid,
        "part": item.config.getoption("soak_part"),
        **dict(item.user_properties),
        "outcome": report.outcome,
        "seconds": round(report.duration, 1),
    }
    if report.failed:
        outcome["error"] = getattr(getattr(report.longrepr, "reprcrash", None), "message", report.longreprtext)
    item.config.stash.setdefault(_OUTCOMES, []).append(outcome)
    path = item.config.rootpath / item.config.getoption("soak_report")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(outcome) + "\n")


class MakeImage(Protocol):
    """Writes an image into a chunked folder and returns the folder."""

    def __call__(
        self,
        name: str,
        patches: Mapping[str, Array],
        *,
        reference: Array | None = None,
        centers: Mapping[int, tuple[tuple[int, int], int]] | None = None,
    ) -> Path: ...


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for outcome in config.stash.get(_OUTCOMES, []):
        terminalreporter.write_line(", ".join(f"{key} {value}" for key, value in outcome.items() if key != "error"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Function that mounts a small disk, or remounts the disk with other options."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a small disk")
    point = tmp_path / "disk"
    point.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        extra = ["-o", f"remount,{options}"] if mounted else ["-o", options]
        result = subprocess.run(["mount", "-t", "tmpfs", *extra, "tmpfs", point], capture_output=True, check=False)
        if result.returncode:
            pytest.skip(f"no mounting here: {result.stderr.decode()}")
        mounted = True
        return point

    yield mount
    if mounted:
        subprocess.run(["umount", point], check=True)


@pytest.fixture(scope="session", params=["folder", "store"])
def sample_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Function from a name to a sample chunked folder, or in a second run to a store made of the folder."""
    from dlas_store.converters.importing import import_store

    def path(name: str) -> Path:
        folder = DATA / name
        store: Path = stores / f"{name}.lmdb"
        if request.param == "store" and not store.exists():
            store.parent.mkdir(exist_ok=True)
            import_store([folder], store)
        return folder if request.param == "folder" else store

    stores = tmp_path_factory.mktemp("stores")
    return path


@pytest.fixture(scope="session")
def chunked_source_path(sample_path: Callable[[str], Path]) -> Path:
    """The sample chunked folder, or in a second run a store made of the folder."""
    return sample_path("chunked")


@pytest.fixture
def make_image(tmp_path: Path) -> MakeImage:
    """Function that writes images into ``tmp_path / "chunked"``."""

    def make(
        name: str,
        patches: Mapping[str, Array],
        *,
        reference: Array | None = None,
        centers: Mapping[int, tuple[tuple[int, int], int]] | None = None,
    ) -> Path:
        folder = tmp_path / "chunked" / name
        folder.mkdir(parents=True)
        for file, pixels in patches.items():
            (folder / file).write_bytes(png(pixels))
        if reference is not None:
            (folder / "ref.jpg").write_bytes(png(reference))
        if centers is not None:
            torch.save(dict(centers), folder / "centers.pt")
        return folder.parent

    return make


@pytest.fixture
def opencv_without_threads() -> Iterator[None]:
    """Keep OpenCV from starting threads in this process, from which the command forks workers."""
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)
