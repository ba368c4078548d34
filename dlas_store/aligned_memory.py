"""Arrays that begin where a processor's cache lines do, or at a distance from there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Pixels = NDArray[np.uint8]

_CACHE_LINE = 64


def empty_aligned(shape: tuple[int, ...], dtype: DTypeLike, *, offset: int = 0) -> NDArray[Any]:
    """Return an array, contiguous, its content undefined.

    Views of it refer to it, as they do to an array that owns its memory.

    Args:
        shape: its shape.
        dtype: its type, one that a memoryview has too.
        offset: after how many bytes of a cache line it begins.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return np.empty(shape, dtype)
    memory = np.empty(size + _CACHE_LINE, np.uint8)
    start = (offset - memory.__array_interface__["data"][0]) % _CACHE_LINE
    # Not a slice of the array, or made of it by numpy: views would refer to it.
    return np.asarray(memory.data[start : start + size].cast(dtype.char, shape))  # type: ignore[arg-type]
