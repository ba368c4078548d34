"""The buffer pool of batches, whose memory is used again once nothing refers to the batch that had it.

Memory that patches are decoded into before they are written elsewhere.
"""

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

_SMALL_BYTES = 1 << 16
"""Below this numpy's own allocator is as fast."""


class BufferPool:
    """Lends arrays, and lends their memory again when no array, tensor or view of it is left.

    So a batch may be kept for as long as anyone likes: it then keeps its memory. New memory costs as much time as
    decoding into it, for the system has to clear every page of it. For any number of threads.
    """

    def __init__(self, batches: int) -> None:
        """Set up an empty pool.

        Args:
            batches: how many batches' free arrays to keep.
        """
        self._batches = batches
        self._arrays: dict[tuple[tuple[int, ...], str, int], list[NDArray[Any]]] = {}
        # A lock for each process: one that another thread holds during a fork stays locked in the child.
        self._locks: dict[int, threading.Lock] = {}

    def of_batch(self) -> Allocate:
        """Return a function that lends the arrays of one batch, each contiguous, its content undefined."""
        count_of: Counter[tuple[tuple[int, ...], str]] = Counter()

        def allocate(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
            kind = (shape, np.dtype(dtype).str)
            # A batch may have several of a kind, as HQ and LQ at scale 1; each is held for as many batches.
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
                # An array that is in use for long belongs to its reader.
                del arrays[: -self._batches]
            return array


_LARGEST_LEARNT_FROM = (32 << 20) - (1 << 16)


@cache
def keep_freed_memory_in_process() -> None:
    """Let memory that the arrays of an item free stay with the process, where the next item's arrays take it from.

    glibc gives memory back to the system once twice the largest block that it ever freed lies at the end of a heap; the
    system has to clear every page of it when it is taken again. It learns from blocks of up to 32 MiB, which need not
    be written to. Loaders call this as they start, in each process that makes batches.
    """
    np.empty(_LARGEST_LEARNT_FROM, np.uint8)


def pinned(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array in page-locked memory, which a GPU copies from by itself.

    PyTorch keeps such memory for reuse, and knows until when a GPU reads it. It knows it by its first byte, so that the
    array has to begin there (compare pixels.DECODING_OFFSET).
    """
    empty = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True)
    array: NDArray[Any] = empty.numpy()
    return array


def is_free(arrays: Sequence[Any], position: int) -> bool:
    """Return whether nothing but a list refers to an array (or a tuple) in it: no variable, no view, no tensor."""
    return sys.getrefcount(arrays[position]) == _FREE


_PROBE = [np.empty(0)]
_FREE = sys.getrefcount(_PROBE[0])
"""The count of what only its list refers to; measured, for it is a detail of the interpreter."""


BYTES_TOGETHER = 1 << 20
"""Patches up to so many bytes are decoded before they are written: they stay in the processor's caches."""


class ScratchPool:
    """Gives arrays, and gives those again that were given back last, which a processor's caches may still hold.

    For any number of threads; it keeps as many as were in use at a time. A pickled one is empty.
    """

    def __init__(self) -> None:
        self._free: list[tuple[tuple[int, ...], list[Pixels]]] = []

    def __reduce__(self) -> tuple[type[ScratchPool], tuple[()]]:
        return ScratchPool, ()

    @contextmanager
    def patches(self, shape: tuple[int, ...]) -> Iterator[list[Pixels]]:
        """Lend the arrays of a shape (N, H, W, 3), uint8, one a patch, their content undefined.

        Nothing may refer to them behind the block.
        """
        try:
            kept, arrays = self._free.pop()
        except IndexError:
            kept, arrays = (), []
        if kept != shape:  # those of another shape are let go of
            arrays = list(empty_pixels(shape))
        yield arrays
        self._free.append((shape, arrays))
