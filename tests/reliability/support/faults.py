"""Fault injection: count and record the calls that change files, make calls fail, or kill the program at a call.

faults.c is preloaded into the program and intercepts the calls. This module compiles the library, controls it and reads
its log.
"""

from __future__ import annotations

import enum
import errno
import mmap
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

_CONTROL = struct.Struct("<QQQQIi1024s1024s")
_FAIL_AT = struct.Struct("<QIi1024s1024s")
_FAIL_AT_OFFSET = 24
_RECORD = struct.Struct("<9Q")


class Mode(enum.IntEnum):
    """Effects on the Nth call, with the numbers of faults.c."""

    COUNT = 0
    ONCE = 1
    FROM_THERE_ON = 2
    KILL = 3


class Call(enum.IntEnum):
    """Kinds of call, with the numbers of faults.c."""

    CREATE = 0
    WRITE = 1
    TRUNCATE = 2
    ALLOCATE = 3
    SYNC_FILE = 4
    SYNC_ALL = 5
    RENAME = 6
    LINK = 7
    UNLINK = 8
    MKDIR = 9
    RMDIR = 10


class Record(NamedTuple):
    """A call that succeeded.

    Attributes:
        call: kind of the call.
        begun, ended: times of the start and the end; a sync covers the calls that ended before the sync began.
        offset, length: bytes of a write or allocation; for a truncation, the length is the new size.
        is_durable: whether the call wrote to a file that is open for synchronous writing.
        path: absolute path.
        other: new path of a rename or link.
        data: bytes of a write.
    """

    call: Call
    begun: int
    ended: int
    offset: int
    length: int
    is_durable: bool
    path: str
    other: str
    data: bytes


class Faults:
    """Control and counters of the preloaded library.

    Args:
        folder: folder for the library and the control file.
    """

    def __init__(self, folder: Path) -> None:
        self.library = _compile(folder)
        self.control = folder / "control"
        self.control.write_bytes(bytes(_CONTROL.size))
        with self.control.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def watch(
        self, folder: Path, *, log: Path | None = None, mode: Mode = Mode.COUNT, at: int = 0, error: int = errno.EIO
    ) -> None:
        """Watch the calls below a folder from now on.

        Args:
            folder: absolute path without links.
            log: file that records of successful calls are appended to; None for no log.
            mode: effect on the call ``at``.
            at: number of the call, from 1.
            error: errno of the failing calls.
        """
        log_name = b"" if log is None else str(log).encode()
        self._map[:_FAIL_AT_OFFSET] = struct.pack("<QQQ", 0, self._number(8), 0)
        _FAIL_AT.pack_into(self._map, _FAIL_AT_OFFSET, at, mode, error, str(folder).encode(), log_name)

    def stop(self) -> None:
        """Stop watching; the counters keep their values."""
        _FAIL_AT.pack_into(self._map, _FAIL_AT_OFFSET, 0, 0, 0, b"", b"")

    @property
    def calls(self) -> int:
        """Number of calls since watch()."""
        return self._number(0)

    @property
    def failed(self) -> int:
        """Number of calls since watch() that this library made fail."""
        return self._number(16)

    def _number(self, offset: int) -> int:
        number: int = struct.unpack_from("<Q", self._map, offset)[0]
        return number


def read_log(path: Path) -> list[Record]:
    """Return the recorded calls, sorted by their end."""
    return sorted(_records(path.read_bytes()), key=lambda record: record.ended)


def _records(data: bytes) -> Iterator[Record]:
    position = 0
    while position < len(data):
        size, call, begun, ended, offset, length, is_durable, path_length, other_length = _RECORD.unpack_from(
            data, position
        )
        path_end = position + _RECORD.size + path_length
        other_end = path_end + other_length
        yield Record(
            Call(call),
            begun,
            ended,
            offset,
            length,
            bool(is_durable),
            data[position + _RECORD.size : path_end].decode(),
            data[path_end:other_end].decode(),
            data[other_end : position + size],
        )
        position += size


def _compile(folder: Path) -> Path:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.fail("gcc is missing, which compiles the library that intercepts calls; run: apt install gcc libc6-dev")
    source, library = Path(__file__).with_name("faults.c"), folder / "faults.so"
    options = ["-O1", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", library, source, "-ldl"]
    result = subprocess.run([compiler, *options], capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.fail(f"{source.name} does not compile: {result.stderr}")
    return library
