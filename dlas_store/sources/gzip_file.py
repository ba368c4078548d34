"""GzipFile, a gzip-compressed file that is read at any offset: it keeps states of the decompressor to go on from."""

from __future__ import annotations

import os
import threading
import weakref
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dlas_store.errors import DamagedError

_SPAN_BYTES = 1 << 21
"""Approximate number of decompressed bytes from one kept state to the next; a state takes some 40 kB."""

_CACHED_SPANS = 16
"""Number of spans that stay decompressed: files in another order than their names are then decompressed once."""

_CHUNK = 1 << 16
_GZIP = 31
"""zlib's window size of 32 KiB, with a header and a checksum of gzip."""


class SpanCache:
    """The decompressed spans that were used last, of all compressed files of a source in one process.

    Attributes:
        lock: held while a file is read, so that threads take turns.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._spans: OrderedDict[tuple[Path, int], bytes] = OrderedDict()

    def get(self, key: tuple[Path, int]) -> bytes | None:
        """Return a cached span."""
        if key in self._spans:
            self._spans.move_to_end(key)
        return self._spans.get(key)

    def add(self, key: tuple[Path, int], span: bytes) -> None:
        """Add a span in place of the one that was not used for the longest time."""
        self._spans[key] = span
        if len(self._spans) > _CACHED_SPANS:
            self._spans.popitem(last=False)


class _State(NamedTuple):
    """A state of the decompressor: bytes that it gave and took so far, and the decompressor."""

    given: int
    taken: int
    decompressor: Any


class GzipFile:
    """A gzip-compressed file of one or several members.

    The file is divided into spans. A state of the decompressor is kept for the start of each span that was reached.

    Args:
        path: the file.
        cache: holds the decompressed spans.
    """

    def __init__(self, path: Path, cache: SpanCache) -> None:
        self._path = path
        self._cache = cache
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._finalizer = weakref.finalize(self, os.close, self._descriptor)
        self._states = [_State(0, 0, zlib.decompressobj(_GZIP))]
        self._is_whole = False  # whether the last state is that of the file's end

    def read(self, offset: int, size: int) -> bytes:
        """Return decompressed bytes, fewer only at the end of the file.

        Raises:
            DamagedError: the file is damaged, cut short, or cannot be read.
        """
        with self._cache.lock:
            try:
                return b"".join(self._pieces(offset, offset + size))
            except (OSError, zlib.error) as error:
                raise DamagedError(f"{self._path}: cannot be decompressed ({error}); take a whole copy") from error

    def close(self) -> None:
        """Close the file."""
        self._finalizer()
        self._states.clear()

    def _pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the parts of the spans from one offset to another."""
        while not self._is_whole and self._states[-1].given <= start:
            self._span(len(self._states) - 1)
        number = bisect_right(self._states, start, key=lambda state: state.given) - 1
        while start < stop:
            first = self._states[number].given
            piece = self._span(number)[start - first : stop - first]
            if not piece:
                return
            yield piece
            start += len(piece)
            number += 1

    def _span(self, number: int) -> bytes:
        """Return the decompressed bytes of a span, an empty text at the end of the file."""
        span = self._cache.get((self._path, number))
        if span is None:
            span = self._decompress(number)
            self._cache.add((self._path, number), span)
        return span

    def _decompress(self, number: int) -> bytes:
        """Decompress a span, and keep the state at its end if it is the last span that was reached."""
        given, taken, decompressor = self._states[number]
        decompressor = decompressor.copy()
        chunks: list[bytes] = []
        length = 0
        while length < _SPAN_BYTES:
            if decompressor.eof:  # of one member; another may follow, or a padding of zeros
                end = taken - len(decompressor.unused_data)
                if not self._read_at(end).strip(b"\0"):
                    self._is_whole = True
                    break
                taken, decompressor = end, zlib.decompressobj(_GZIP)
            packed = decompressor.unconsumed_tail
            if not packed:
                packed = self._read_at(taken)
                taken += len(packed)
            if not packed:
                raise zlib.error("cut short")
            chunks.append(decompressor.decompress(packed, _CHUNK))
            length += len(chunks[-1])
        if number + 1 == len(self._states) and length:
            self._states.append(_State(given + length, taken, decompressor))
        return b"".join(chunks)

    def _read_at(self, offset: int) -> bytes:
        return os.pread(self._descriptor, _CHUNK, offset)
