"""Memory of pixels: arrays aligned to cache lines, a cache of a bounded number of values, and lists of indices."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, SupportsIndex, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

Pixels = NDArray[np.uint8]

_CACHE_LINE = 64
"""Bytes of a cache line."""

K = TypeVar("K")
V = TypeVar("V")


def empty_aligned(shape: tuple[int, ...], dtype: DTypeLike, *, offset: int = 0) -> NDArray[Any]:
    """Return an uninitialised contiguous array that begins at an offset from a cache line.

    The base of a view of the array is the array, as if the array owned its memory.

    Args:
        shape: shape of the array.
        dtype: type of the array; memoryview must have the type too.
        offset: bytes from the start of a cache line to the start of the array.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return np.empty(shape, dtype)
    memory = np.empty(size + _CACHE_LINE, np.uint8)
    start = (offset - memory.__array_interface__["data"][0]) % _CACHE_LINE
    # The memoryview hides ``memory`` from NumPy, which otherwise would make ``memory`` the base of the array's views.
    return np.asarray(memory.data[start : start + size].cast(dtype.char, shape))  # type: ignore[arg-type]


class BoundedCache(Generic[K, V]):
    """A cache of a bounded number of values, for any number of threads.

    The cache has no lock: a child forked while a thread holds a lock could never take it. So two threads may make the
    same value. A full cache replaces its newest value, so that reading everything in order keeps the older values.
    The caller passes the function that makes a missing value to each call, because a cache that kept a bound method, as
    lru_cache does, would keep the method's object alive.

    >>> cache = BoundedCache[int, str](capacity=2)
    >>> cache.get(5, str), cache.peek(5), cache.peek(6)
    ('5', '5', None)

    Attributes:
        capacity: number of values to keep, at least 1. It may be lowered at any time.
        entries: the cached values by key. It stays the same dict, so that code in C may hold it.
        peek: function that returns the cached value of a key, else None; just the dict's look-up.
    """

    __slots__ = ("capacity", "entries", "peek")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.entries: dict[K, V] = {}
        self.peek: Callable[[K], V | None] = self.entries.get

    def get(self, key: K, make: Callable[[K], V]) -> V:
        """Return the cached value of a key; a missing value is made by ``make(key)`` and cached."""
        value = self.entries.get(key)
        if value is None:
            value = make(key)
            if len(self.entries) >= self.capacity:
                with suppress(KeyError):  # another thread may have emptied the cache
                    self.entries.popitem()
            self.entries[key] = value
        return value

    def clear(self) -> None:
        """Remove all values."""
        self.entries.clear()


def as_indices(indices: Sequence[int]) -> list[int]:
    """Return indices as Python's integers; NumPy's would overflow in arithmetic.

    Raises:
        TypeError: ``indices`` is a single index, or holds anything but integers.
    """
    try:
        return list(map(operator.index, indices))
    except TypeError:
        if isinstance(indices, SupportsIndex) and not isinstance(indices, Sequence):
            raise TypeError(
                f"the indices must be a sequence of integers, got {indices!r}; source[{indices!r}] reads one patch"
            ) from None
        raise TypeError(f"the indices must be a sequence of integers, got {indices!r}") from None
