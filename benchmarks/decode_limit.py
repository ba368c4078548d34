"""Decode limit, the upper bound of every loader: decoding patches from memory on all cores and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
import simplejpeg

from dlas_store.aligned_memory import Pixels
from dlas_store.pixels import Size


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
