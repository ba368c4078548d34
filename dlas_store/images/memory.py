"""A cache of a bounded number of values that are slow to make.

Arrays that begin where a processor's cache lines do, or at a distance from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

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


K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """A cache for any number of threads, without a lock, which a fork beside one of them could leave locked.

    Two threads may therefore make the same value. At the capacity the newest value makes room, so that reading in order
    costs the others nothing. A cache of bound methods (lru_cache) would keep their owner alive; this one gets the
    function with each call.

    >>> cache = BoundedCache[int, str](capacity=2)
    >>> cache.get(5, str), cache.peek(5), cache.peek(6)
    ('5', '5', None)

    Attributes:
        capacity: how many values to keep, from 1; may be lowered at any time.
        entries: the values that are kept; always the same dict, so that code in C may hold it.
        peek: returns the kept value of a key, else None; a lookup in the dict and nothing else.
    """

    __slots__ = ("capacity", "entries", "peek")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.entries: dict[K, V] = {}
        self.peek: Callable[[K], V | None] = self.entries.get

    def get(self, key: K, make: Callable[[K], V]) -> V:
        """Return the value of a key, made by ``make(key)`` and kept where it is not there."""
        value = self.entries.get(key)
        if value is None:
            value = make(key)
            if len(self.entries) >= self.capacity:
                with suppress(KeyError):  # another thread may have cleared it
                    self.entries.popitem()
            self.entries[key] = value
        return value

    def clear(self) -> None:
        """Forget all values."""
        self.entries.clear()
