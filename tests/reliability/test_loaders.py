"""Loaders: every way to read gives every item once, and leaves no process or file, even after an interrupt."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.conftest import Runs
from tests.reliability.support.read_by_loader import CASES, LOADERS, PARENTS, START_METHODS, Case
from tests.support.small_stores import make_store, small_folder

_PATIENCE_SECONDS = 120
_SHARED_MEMORY = Path("/dev/shm")
_MOUNTED = "mount -t tmpfs tmpfs /dev/shm && echo mounted && exec sleep infinity"


class SharedMemory(NamedTuple):
    """Folder for files of shared memory.

    Attributes:
        folder: path of the folder in this process.
        command: command prefix that makes a program put its shared memory into the folder.
        is_own: whether no other program has files in the folder.
    """

    folder: Path
    command: Sequence[str]
    is_own: bool


@pytest.fixture(scope="module")
def shared_memory() -> Iterator[SharedMemory]:
    """Shared memory of the readers alone if root can mount it, else /dev/shm, where parallel tests have files too."""
    holder = None
    if os.geteuid() == 0 and shutil.which("unshare") and shutil.which("nsenter"):
        holder = subprocess.Popen(["unshare", "--mount", "sh", "-c", _MOUNTED], stdout=subprocess.PIPE)
    try:
        if holder is not None and holder.stdout is not None and holder.stdout.readline():
            process = Path("/proc", str(holder.pid))
            own = process / "root" / _SHARED_MEMORY.relative_to("/")
            yield SharedMemory(own, ("nsenter", f"--mount={process / 'ns' / 'mnt'}"), is_own=True)
        else:
            yield SharedMemory(_SHARED_MEMORY, (), is_own=False)
    finally:
        if holder is not None:
            holder.kill()
            holder.communicate()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 20 patches of two sizes, one image a shard."""
    root = tmp_path_factory.mktemp("loaders")
    return make_store(small_folder(root / "chunked", *"abcde"), root / "store.lmdb")


class Reader:
    """Run of the program read_by_loader.py, in a session and with a temporary folder of its own."""

    def __init__(self, store: Path, shared_memory: SharedMemory, cases: Iterable[Case], *flags: str) -> None:
        # Paths below pytest's folder are too long for sockets.
        self._temporary = Path(tempfile.mkdtemp(prefix="dlas_store_"))
        self._shared_memory = shared_memory
        self._shared = set(shared_memory.folder.iterdir())
        program = Path(__file__).parent / "support" / "read_by_loader.py"
        command = [sys.executable, str(program), str(store), ",".join(map(str, cases)), *flags]
        command[:0] = shared_memory.command
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Python's resource tracker may warn about a semaphore that has rightly been removed.
            env=os.environ | {"TMPDIR": str(self._temporary), "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning"},
        )

    def lines(self) -> Iterator[str]:
        """Yield the lines that the program prints."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield line.rstrip("\n")

    def interrupt(self) -> None:
        """Send SIGINT to all processes of the program, as Ctrl-C does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> str:
        """Wait for the end of the program, check that no process or file remains, and return the program's stderr."""
        _, errors = self.process.communicate(timeout=_PATIENCE_SECONDS)
        end = time.monotonic() + 10  # forkserver and the resource tracker end a moment later
        while (remaining := self._remaining()) and time.monotonic() < end:
            time.sleep(0.05)
        assert not remaining, f"{remaining} remain; stderr: {errors}"
        return errors

    def kill(self) -> None:
        """Kill all remaining processes of the program."""
        for process in self._processes():
            process.kill()
        self.process.communicate()
        shutil.rmtree(self._temporary)

    def _remaining(self) -> list[str]:
        """Return the processes of the program that still run, and files that it has not removed."""
        new = set(self._shared_memory.folder.iterdir()) - self._shared
        # Ignore files that programs of other tests have mapped. The program's own processes are in the list anyway.
        in_use = _mapped_files() if new and not self._shared_memory.is_own else set()
        shared = [path for path in map(str, new) if _inode(path) not in (None, *in_use)]
        return [*map(str, self._processes()), *map(str, self._temporary.iterdir()), *shared]

    def _processes(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if _session(process.pid) == self.process.pid]


def _inode(path: str) -> int | None:
    """Return the inode of a file, or None if the file does not exist."""
    try:
        return Path(path).stat().st_ino
    except FileNotFoundError:
        return None


def _mapped_files() -> set[int]:
    """Return the inodes of all mapped files of shared memory, including unlinked files."""
    inodes = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # the process has ended
            inodes |= set(map(int, re.findall(rf"(\d+)\s+{_SHARED_MEMORY}/", maps.read_text())))
    return inodes


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _cases(start_method: str, *loaders: str) -> list[Case]:
    """Return the cases with a start method ("" for threads), for ``loaders`` or for all loaders."""
    return [case for case in CASES if case.start_method == start_method and case.loader in (loaders or LOADERS)]


METHODS = [pytest.param("", id="threads"), *START_METHODS]


@pytest.mark.parametrize("start_method", METHODS)
def test_every_way_to_read_gives_every_item_once_and_leaves_nothing_behind(
    start_method: str, store: Path, shared_memory: SharedMemory, runs: Runs
) -> None:
    """A run reads once with each loader, after one of the four histories; 400 runs read each case 100 times."""
    for run in runs(small=1, full=400):
        cases = [case for case in _cases(start_method) if case.parent == PARENTS[run % len(PARENTS)]]
        reader = Reader(store, shared_memory, cases)
        try:
            assert list(reader.lines()) == list(map(str, cases))
            assert not reader.end()
            assert reader.process.returncode == 0
        finally:
            reader.kill()


@pytest.mark.parametrize("start_method", METHODS)
def test_ctrl_c_in_the_middle_ends_all_processes_and_leaves_nothing_behind(
    start_method: str, store: Path, shared_memory: SharedMemory, runs: Runs
) -> None:
    cases = _cases(start_method, "threads", "workers")
    for run in runs(small=1, full=100):
        rng = random.Random(run)
        case = cases[run % len(cases)]
        reader = Reader(store, shared_memory, [case], "--long")
        try:
            batches = rng.randrange(1, 12)
            assert list(islice(reader.lines(), batches)) == ["batch"] * batches
            time.sleep(rng.random() / 50)
            reader.interrupt()
            errors = reader.end()
            assert "KeyboardInterrupt" in errors, f"{case}, run {run}: {errors}"
            assert reader.process.returncode == -signal.SIGINT, f"{case}, run {run}: {errors}"
        finally:
            reader.kill()
