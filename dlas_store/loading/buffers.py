"""Pools of memory: buffers of batches, reused once nothing refers to them, and scratch arrays to decode into."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from dlas_store.images.decode import empty_pixels
from dlas_store.images.memory import Pixels
from dlas_store.loading.batch import Allocate, new_array

BYTES_TOGETHER = 1 << 20
"""Bytes of patches to decode before they are written into the batch: at most what the processor's caches hold."""

_SMALL_BYTES = 1 << 16
"""Size below which NumPy's own allocator is as fast as the pool."""

_MAX_LEARNED_BYTES = (32 << 20) - (1 << 16)
"""Size just below 32 MiB, the largest freed block that glibc adapts to."""

_PROBE = [np.empty(0)]
_FREE_REFERENCES = sys.getrefcount(_PROBE[0])
"""Reference count of an array that only a list refers to; measured, because it is a detail of the interpreter."""


class BufferPool:
    """A pool of arrays: an array's memory is lent again once no array, tensor or view refers to it.

    A reader may therefore keep a batch, and its memory, for any time. New memory costs as much time as decoding into
    it, because the system has to clear each page. Any number of threads may use the pool.
    """

    def __init__(self, batches: int) -> None:
        """Set up an empty pool.

        Args:
            batches: how many batches' free arrays to keep.
        """
        self._batches = batches
        self._arrays: dict[tuple[tuple[int, ...], str, int], list[NDArray[Any]]] = {}
        # Each process has its own lock: a lock that another thread holds during a fork stays locked in the child.
        self._locks: dict[int, threading.Lock] = {}

    def batch_allocator(self) -> Allocate:
        """Return a function that lends the arrays of one batch, each contiguous, its content undefined."""
        count_of: Counter[tuple[tuple[int, ...], str]] = Counter()

        def allocate(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
            kind = (shape, np.dtype(dtype).str)
            # A batch may have several arrays of a kind, as HQ and LQ at scale 1. Each of them has its own list, so that
            # as many batches' arrays are kept.
            count_of[kind] += 1
            return self._lend(shape, dtype, self._arrays.setdefault((*kind, count_of[kind]), []))

        return allocate

    def _lend(self, shape: tuple[int, ...], dtype: DTypeLike, arrays: list[NDArray[Any]]) -> NDArray[Any]:
        with self._locks.setdefault(os.getpid(), threading.Lock()):
            for position in range(len(arrays)):
                if is_free(arrays, position):
                    return arrays[position]
            array = new_array(shape, dtype)
            if array.nbytes >= _SMALL_BYTES:
                arrays.append(array)
                # All arrays of the list are in use. The oldest leaves the pool, and its reader alone keeps it.
                del arrays[: -self._batches]
            return array


class ScratchPool:
    """A LIFO pool of scratch arrays: the last one returned, still warm in cache, is lent first.

    The pool keeps as many arrays as were in use at a time. Any number of threads may use it. Pickling empties it.
    """

    def __init__(self) -> None:
        self._free: list[tuple[tuple[int, ...], list[Pixels]]] = []

    def __reduce__(self) -> tuple[type[ScratchPool], tuple[()]]:
        return ScratchPool, ()

    @contextmanager
    def patches(self, shape: tuple[int, ...]) -> Iterator[list[Pixels]]:
        """Lend arrays to decode patches into; nothing may refer to them after the block.

        Args:
            shape: of the patches, (N, H, W, 3).

        Yields:
            N arrays, uint8 (H, W, 3), their content undefined.
        """
        try:
            free_shape, arrays = self._free.pop()
        except IndexError:
            free_shape, arrays = (), []
        if free_shape != shape:  # arrays of another shape are dropped
            arrays = list(empty_pixels(shape))
        yield arrays
        self._free.append((shape, arrays))


@cache
def keep_freed_memory_in_process() -> None:
    """Make glibc keep the memory that an item's arrays free, so that the next item's arrays reuse it.

    glibc returns memory to the system when the free end of a heap exceeds twice the largest block that was ever freed;
    the system has to clear each page that the process takes again. A single free of a block of up to 32 MiB, which
    need not be written to, raises that limit. Loaders call this function as they start, in each process that makes
    batches.
    """
    np.empty(_MAX_LEARNED_BYTES, np.uint8)


def new_pinned_array(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array in page-locked memory, from which a GPU copies without the processor.

    PyTorch reuses such memory once a GPU has read it. PyTorch recognises the memory by its first byte, so the array has
    to begin there, without the offset DECODING_OFFSET of images/decode.py.
    """
    empty = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True)
    array: NDArray[Any] = empty.numpy()
    return array


def is_free(arrays: Sequence[Any], position: int) -> bool:
    """Return whether only the list refers to its array (or tuple) at a position: no variable, view or tensor."""
    return sys.getrefcount(arrays[position]) == _FREE_REFERENCES
