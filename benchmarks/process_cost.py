"""What processes cost: time of the processors, and memory (Linux: all is read from /proc)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SAMPLE_SECONDS = 0.02


def cpu_seconds_below(pid: int) -> float:
    """Return the time of the processors that all below a process have taken, those that have ended included.

    The system counts it in steps of 10 ms. What the process itself took, time.process_time() tells it exactly.
    """
    table = _processes()
    own, *below = (table[process] for process in _tree(pid, table))
    ticks = own.ticks_of_ended + sum(line.ticks + line.ticks_of_ended for line in below)
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int) -> int:
    """Return the memory of a process and all below it that no file backs.

    What several of them share counts once. What is mapped of files is left out: it is the page cache, which the system
    takes back when it needs it, whoever has read the file.
    """
    return sum(_unbacked_bytes(process) for process in _tree(pid, _processes()))


def private_dirty_bytes(pid: int | str = "self") -> int:
    """Return the memory that a process shares with nobody and that no file backs."""
    return _rollup(pid)["Private_Dirty"]


class PeakMemory:
    """The most memory that a process tree had.

    Attributes:
        value: in bytes; see memory_bytes.
    """

    def __init__(self) -> None:
        self.value = 0


@contextmanager
def watch_memory(pid: int) -> Iterator[PeakMemory]:
    """Sample the memory of a process tree, every 20 ms and at both ends.

    A sample stops the process for as long as the system looks at its memory, so nothing is timed meanwhile.
    """
    peak = PeakMemory()
    done = threading.Event()

    def sample() -> None:
        peak.value = max(peak.value, memory_bytes(pid))

    def watch() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            sample()

    sample()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
    sample()


class _Process:
    """A line of the process table: its parent, and the ticks of itself and of children that have ended."""

    def __init__(self, stat: str) -> None:
        # The name, in brackets, may hold anything; fields are counted behind it (proc(5)).
        fields = stat.rpartition(")")[2].split()
        self.parent = int(fields[1])
        self.ticks = int(fields[11]) + int(fields[12])
        self.ticks_of_ended = int(fields[13]) + int(fields[14])


def _processes() -> dict[int, _Process]:
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                found[int(entry.name)] = _Process(Path(entry.path, "stat").read_text(encoding="utf-8"))
            except OSError:  # it has ended meanwhile
                continue
    return found


def _tree(pid: int, table: dict[int, _Process]) -> list[int]:
    children: dict[int, list[int]] = {}
    for process, line in table.items():
        children.setdefault(line.parent, []).append(process)
    tree = [pid]
    for process in tree:  # grows while it is walked
        tree += children.get(process, [])
    return [process for process in tree if process in table]


def _unbacked_bytes(pid: int) -> int:
    try:
        rollup = _rollup(pid)
    except (OSError, ProcessLookupError):  # it has ended meanwhile
        return 0
    return rollup.get("Pss_Anon", 0) + rollup.get("Pss_Shmem", 0)


def _rollup(pid: int | str) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, _ in map(str.split, lines)}
