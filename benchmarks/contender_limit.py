"""Contenders of ``read`` without a loader: decoding patches from memory, and reading a store in one thread.

Decoding from memory on all cores, with nothing else to do, is the decode limit: the upper bound of every loader.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
import simplejpeg

from benchmarks.modes import MODES
from benchmarks.process import OpenWorkload
from benchmarks.reading import Reading
from dlas_store import open_source
from dlas_store.images.decode import Size
from dlas_store.images.memory import Pixels
from dlas_store.processes import available_cores
from dlas_store.sources.base import Source

_MIN_RAW_READS = 50_000
"""Minimum number of reads a run: a read takes some microseconds, so fewer reads would be too short to time."""


class DecodeLimit:
    """Decodes batches in threads, each batch into one of a few reused buffers (simplejpeg releases the GIL).

    Args:
        encoded: JPEGs of one size.
        size: size of the JPEGs, in pixels.
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


@dataclass(frozen=True)
class PlainWorkload:
    """A workload without batches.

    Attributes:
        run: runs the workload once and returns its number of items; see Workload.
    """

    run: Callable[[], int]

    def check(self) -> int:
        """Run the workload; its items are not checked."""
        return self.run()


def prepare_limit(reading: Reading) -> OpenWorkload:
    """Read the patches into memory, unmeasured, and return a function that makes the decode limit.

    A run of the limit decodes as many pictures as the items of a loader's run consist of.
    """
    pictures = MODES[reading.mode].pictures
    encoded = list(reading.payloads()) * reading.epochs * pictures
    size = Size(reading.height, reading.width)
    limit = DecodeLimit(encoded, size=size, batch=reading.batch, threads=available_cores())
    return lambda: PlainWorkload(lambda: limit.run() // pictures)


def prepare_pixels(reading: Reading) -> OpenWorkload:
    """Return a function that opens a workload: batches of pixels in random order, by read_pixels in one thread."""

    def read(source: Source) -> int:
        order = _shuffled(reading)
        batches = (order[first : first + reading.batch] for first in range(0, len(order), reading.batch))
        return sum(len(source.read_pixels(indices)) for indices in batches)

    return _prepare_source(reading, read)


def prepare_bytes(reading: Reading) -> OpenWorkload:
    """Return a function that opens a workload: encoded bytes, patch by patch, in epochs enough to be timed."""

    def read(source: Source) -> int:
        order = _shuffled(reading)
        repeats = -(-_MIN_RAW_READS // len(order))
        for _ in range(repeats):
            for index in order:
                source.read(index)
        return repeats * len(order)

    return _prepare_source(reading, read)


def _prepare_source(reading: Reading, read: Callable[[Source], int]) -> OpenWorkload:
    assert reading.store is not None
    path = reading.store

    def open_data() -> PlainWorkload:
        source = open_source(path)
        return PlainWorkload(lambda: read(source))

    return open_data


def _shuffled(reading: Reading) -> list[int]:
    rng = np.random.default_rng(0)
    order: list[int] = np.concatenate([rng.permutation(reading.items) for _ in range(reading.epochs)]).tolist()
    return order
