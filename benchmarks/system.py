"""Processor time and memory of processes, and files in the page cache, as Linux reports them."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dlas_store import StoreError

_SAMPLE_SECONDS = 0.02

_MAX_KEPT_SHARE = 0.01
"""Maximum share of pages that may stay in the page cache: the system may keep a page that is in use."""


def cpu_seconds_below(pid: int) -> float:
    """Return the processor time of all descendants of a process, including descendants that have ended, in seconds.

    The system counts processor time in steps of 10 ms. The process itself can measure its own time exactly by
    time.process_time().
    """
    table = _processes()
    root, *descendants = (table[tree_pid] for tree_pid in _tree(pid, table))
    ticks = root.ticks_of_ended + sum(process.ticks + process.ticks_of_ended for process in descendants)
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int) -> int:
    """Return the memory of a process and its descendants that no file backs, in bytes.

    Memory that several of these processes share counts once. Mapped files do not count: they are page cache, which the
    system takes back when memory runs short.
    """
    return sum(_unbacked_bytes(tree_pid) for tree_pid in _tree(pid, _processes()))


def private_dirty_bytes(pid: int | str = "self") -> int:
    """Return the memory that a process shares with no other process and that no file backs, in bytes."""
    return _rollup(pid)["Private_Dirty"]


class PeakMemory:
    """Peak memory of a process tree.

    Attributes:
        value: the peak in bytes; see memory_bytes.
    """

    def __init__(self) -> None:
        self.value = 0


@contextmanager
def watch_memory(pid: int) -> Iterator[PeakMemory]:
    """Sample the memory of a process tree every 20 ms, at the start and at the end.

    A sample stops the process while the system reads the process's memory map, so do not time a run meanwhile.
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


def drop_from_page_cache(paths: Iterable[Path]) -> None:
    """Drop files, and all files below folders, from the page cache. No process may have one of the files mapped.

    The system's cache of folders and names stays, since only an administrator can drop that cache. It helps contenders
    that open many files.

    Raises:
        StoreError: pages stay in the page cache, as they do in a file system in memory.
    """
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    os.sync()  # the system cannot drop a page that is not on the disk yet
    pages = cached_pages = 0
    for path in files:
        file = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            in_cache = page_residency(file)
            pages += len(in_cache)
            cached_pages += sum(in_cache)
        finally:
            os.close(file)
    if cached_pages > pages * _MAX_KEPT_SHARE:
        raise StoreError(
            f"{cached_pages:,} of {pages:,} pages stay in the page cache, as in a file system in memory; "
            "give --scratch, or data, on a disk"
        )


def page_residency(file: int) -> bytes:
    """Return a byte for each page of an open file: 1 if the page is in the page cache. The call reads no page."""
    size = os.fstat(file).st_size
    if not size:
        return b""
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with mmap.mmap(file, size, flags=mmap.MAP_PRIVATE) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(ctypes.byref(start), ctypes.c_size_t(size), pages)
        del start  # the map cannot be closed while an object refers to its memory
    if failed:
        raise OSError(ctypes.get_errno(), "mincore failed")
    return bytes(page & 1 for page in pages)


class _Process:
    """Entry of the process table: parent, own ticks, and ticks of children that have ended."""

    def __init__(self, stat: str) -> None:
        # The name, in brackets, may contain any character, so count the fields after the name (proc(5)).
        fields = stat.rpartition(")")[2].split()
        self.parent = int(fields[1])
        self.ticks = int(fields[11]) + int(fields[12])
        self.ticks_of_ended = int(fields[13]) + int(fields[14])


def _processes() -> dict[int, _Process]:
    table = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                table[int(entry.name)] = _Process(Path(entry.path, "stat").read_text(encoding="utf-8"))
            except OSError:  # the process has ended meanwhile
                continue
    return table


def _tree(pid: int, table: dict[int, _Process]) -> list[int]:
    """Return the process ids of a process and its descendants."""
    children: dict[int, list[int]] = {}
    for child, process in table.items():
        children.setdefault(process.parent, []).append(child)
    tree = [pid]
    for parent in tree:  # the loop itself appends to the list
        tree += children.get(parent, [])
    return [tree_pid for tree_pid in tree if tree_pid in table]


def _unbacked_bytes(pid: int) -> int:
    try:
        rollup = _rollup(pid)
    except (OSError, ProcessLookupError):  # the process has ended meanwhile
        return 0
    return rollup.get("Pss_Anon", 0) + rollup.get("Pss_Shmem", 0)


def _rollup(pid: int | str) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, _ in map(str.split, lines)}
