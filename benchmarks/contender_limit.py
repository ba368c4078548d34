"""Contenders without a loader: decoding patches from memory, and reading a store in one thread.

Decode limit, the upper bound of every loader: decoding patches from memory on all cores and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
import simplejpeg

from benchmarks.modes import MODES
from benchmarks.process import Open
from benchmarks.reading import Reading
from dlas_store import open_source
from dlas_store.images.decode import Size
from dlas_store.images.memory import Pixels
from dlas_store.processes import available_cores
from dlas_store.sources.base import Source


class DecodeLimit:
    """Decodes batches in threads, each into one of a few reused buffers (simplejpeg releases the GIL).

    Args:
        encoded: JPEGs of one size.
        size: the JPEGs' size in pixels.
        batch: patches a batch.
        threads: number of threads.
    """

    def __init__(self, encoded: Sequence[bytes], *, size: Size, batch: int, threads: int) -> None:
        self._encoded = encoded
        self._batch = batch
        self._threads = threads
        self._free: SimpleQueue[Pixels] = SimpleQueue()
        for _ in range(threads):
            self._free.put(np.zeros((batch, size.height, size.width, 3), np.uint8))

    def run(self) -> int:
        """Decode every patch once and return the number of patches."""
        with ThreadPoolExecutor(self._threads) as pool:
            return sum(pool.map(self._decode, range(0, len(self._encoded), self._batch)))

    def _decode(self, first: int) -> int:
        buffers = self._free.get()
        encoded = self._encoded[first : first + self._batch]
        for data, pixels in zip(encoded, buffers, strict=False):
            simplejpeg.decode_jpeg(data, "RGB", buffer=pixels)
        self._free.put(buffers)
        return len(encoded)


_LEAST_RAW_READS = 50_000
"""Minimum number of reads a pass: one read takes some microseconds, so fewer would be too short to time."""


@dataclass(frozen=True)
class PlainPass:
    """A pass that gives no batches.

    Attributes:
        run: runs the pass once and returns its number of items; see Pass.
    """

    run: Callable[[], int]

    def check(self) -> int:
        """Run the pass; its items are not checked."""
        return self.run()


def prepare_limit(reading: Reading) -> Open:
    """Read the patches into memory, unmeasured, and return a function that makes the decode limit.

    The limit decodes as many pictures as the items of a pass consist of.
    """
    pictures = MODES[reading.mode].pictures
    encoded = list(reading.payloads()) * reading.epochs * pictures
    size = Size(reading.height, reading.width)
    limit = DecodeLimit(encoded, size=size, batch=reading.batch, threads=available_cores())
    return lambda: PlainPass(lambda: limit.run() // pictures)


def prepare_pixels(reading: Reading) -> Open:
    """Return a function that opens a pass over batches of pixels by read_pixels."""

    def read(source: Source) -> int:
        order = _shuffled(reading)
        batches = (order[first : first + reading.batch] for first in range(0, len(order), reading.batch))
        return sum(len(source.read_pixels(chosen)) for chosen in batches)

    return _prepare_source(reading, read)


def prepare_bytes(reading: Reading) -> Open:
    """Return a function that opens a pass over encoded bytes, one by one, repeated until it can be timed."""

    def read(source: Source) -> int:
        order = _shuffled(reading)
        passes = -(-_LEAST_RAW_READS // len(order))
        for _ in range(passes):
            for index in order:
                source.read(index)
        return passes * len(order)

    return _prepare_source(reading, read)


def _prepare_source(reading: Reading, read: Callable[[Source], int]) -> Open:
    assert reading.store is not None
    path = reading.store

    def open_data() -> PlainPass:
        source = open_source(path)
        return PlainPass(lambda: read(source))

    return open_data


def _shuffled(reading: Reading) -> list[int]:
    rng = np.random.default_rng(0)
    order: list[int] = np.concatenate([rng.permutation(reading.items) for _ in range(reading.epochs)]).tolist()
    return order
