"""Ctrl-C in a command: said at once, and ended soon or at the second Ctrl-C."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.command_line import PROGRAM, await_while_running, start
from tests.support.file_trees import write
from tests.support.photo_files import encoded, scene

MESSAGE = "dlas-store: interrupted, ending what is under way; Ctrl-C again ends at once"

SLOW = (
    "import os, sys, time\n"
    "from dlas_store.cli import main\n"
    "from dlas_store.converters.extraction import workers\n"
    "def stay(*_):\n"
    "    open(sys.argv[-1] + '.started', 'w').close()\n"
    "    time.sleep(60)\n"
    "workers.tile_photo = stay\n"
    "sys.exit(main.main(sys.argv[1:]))\n"
)
"""Program that is the command, with photos that take a minute each."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough photos that a test can interrupt an extraction in the middle."""
    data = encoded(scene(1200, 1600), "jpeg")
    return write(tmp_path_factory.mktemp("photos") / "photos", {f"{number:02}.jpg": data for number in range(40)})


def interrupt(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)


@pytest.mark.parametrize("dst", ["tiles.lmdb", "tiles"])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_extract_says_at_once_that_it_ends_and_ends_within_two_seconds(
    dst: str, workers: str, photos: Path, tmp_path: Path
) -> None:
    process = start("extract", photos, tmp_path / dst, "--step", "32,64", "--workers", workers)
    await_while_running(process, lambda: [*tmp_path.glob(f"{dst}.partial/*.tmp"), *tmp_path.glob("*/building-*/*")])
    interrupt(process)
    pressed = time.monotonic()
    assert process.stderr is not None
    assert select.select([process.stderr], [], [], 1)[0], "nothing was said within a second"
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - pressed < 3  # two seconds, and one for a loaded machine
    assert process.returncode == 130
    assert (out, err) == ("", f"{MESSAGE}; run the same command again to go on from here\n")


@pytest.mark.parametrize("presses", [1, 2])
def test_a_photo_that_takes_long_does_not_hold_the_command(presses: int, photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "t.lmdb"
    words = [sys.executable, "-c", SLOW, "extract", "--workers", "2", str(photos), str(target)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        await_while_running(process, Path(f"{target}.started").exists)
        workers = psutil.Process(process.pid).children(recursive=True)
        pressed = time.monotonic()
        for _ in range(presses):
            interrupt(process)
            time.sleep(0.2)
        _, err = process.communicate(timeout=20)
        seconds = time.monotonic() - pressed
    assert err.count(MESSAGE) == 1
    assert err.count("\n") == 1
    assert process.returncode == 130
    assert seconds < (3 if presses == 1 else 1.2)
    assert not psutil.wait_procs(workers, timeout=20)[1]


def test_a_background_job_that_ignores_interrupts_goes_on(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos", {"1.jpg": encoded(scene(512, 512), "jpeg")})
    words = [*PROGRAM, "extract", str(folder), str(tmp_path / "t.lmdb")]
    shell = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *words]
    with subprocess.Popen(shell, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert (tmp_path / "t.lmdb").exists()
