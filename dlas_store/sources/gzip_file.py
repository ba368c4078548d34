"""GzipFile, a gzip-compressed file that is read at any offset: it keeps states of the decompressor to go on from."""

from __future__ import annotations

import os
import threading
import weakref
import zlib
from bisect import bisect_right
from pathlib import Path
from typing import Any, NamedTuple

from dlas_store.errors import DamagedError

_STATE_DISTANCE = 4 << 20
"""Bytes of decompressed data between two kept states; a state takes some 40 kB."""

_CHUNK = 1 << 16
_GZIP = 31
"""zlib's window size of 32 KiB, with a header and a checksum of gzip."""


class _State(NamedTuple):
    """A state of the decompressor: bytes that it gave and took so far, and the decompressor."""

    given: int
    taken: int
    decompressor: Any


class GzipFile:
    """A gzip-compressed file of one or several members; threads take turns.

    Reading forward decompresses each byte once. Reading backward goes on from the last state kept before the offset.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._finalizer = weakref.finalize(self, os.close, self._descriptor)
        self._lock = threading.Lock()
        self._states = [_State(0, 0, zlib.decompressobj(_GZIP))]
        self._current = self._copy(self._states[0])
        self._pending = b""  # decompressed bytes that end at ``_current.given``

    def read(self, offset: int, size: int) -> bytes:
        """Return decompressed bytes, fewer only at the end of the file.

        Raises:
            DamagedError: the file is damaged, cut short, or cannot be read.
        """
        with self._lock:
            try:
                return self._read(offset, size)
            except (OSError, zlib.error) as error:
                raise DamagedError(f"{self._path}: cannot be decompressed ({error}); take a whole copy") from error

    def close(self) -> None:
        """Close the file."""
        self._finalizer()
        self._states.clear()

    def _read(self, offset: int, size: int) -> bytes:
        self._go_to(offset)
        chunks = []
        while size > 0:
            start = offset - (self._current.given - len(self._pending))
            if chunk := self._pending[start : start + size]:
                chunks.append(chunk)
                offset, size = offset + len(chunk), size - len(chunk)
            elif not self._advance():
                break
        return b"".join(chunks)

    def _go_to(self, offset: int) -> None:
        """Decompress until the pending bytes reach an offset; begin again from a kept state if it lies before them."""
        if offset < self._current.given - len(self._pending):
            position = bisect_right(self._states, offset, key=lambda state: state.given) - 1
            self._current, self._pending = self._copy(self._states[position]), b""
        while self._current.given < offset and self._advance():
            pass

    def _advance(self) -> bool:
        """Decompress the next bytes; return whether there were any."""
        given, taken, decompressor = self._current
        self._pending = b""
        while not self._pending:
            if decompressor.eof:  # of one member; another may follow, or a padding of zeros
                taken -= len(decompressor.unused_data)
                if not self._read_at(taken).strip(b"\0"):
                    return False
                decompressor = zlib.decompressobj(_GZIP)
            packed = decompressor.unconsumed_tail
            if not packed:
                packed = self._read_at(taken)
                taken += len(packed)
            if not packed:
                raise zlib.error("cut short")
            self._pending = decompressor.decompress(packed, _CHUNK)
        self._current = _State(given + len(self._pending), taken, decompressor)
        if self._current.given - self._states[-1].given >= _STATE_DISTANCE:
            self._states.append(self._copy(self._current))
        return True

    def _read_at(self, offset: int) -> bytes:
        return os.pread(self._descriptor, _CHUNK, offset)

    @staticmethod
    def _copy(state: _State) -> _State:
        return state._replace(decompressor=state.decompressor.copy())
