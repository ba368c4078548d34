"""Keeping some of what is slow to make."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def cached(cache: dict[K, V], capacity: int, key: K, make: Callable[[K], V]) -> V:
    """Return the value of a key, made by ``make(key)`` and kept where it is not there.

    For any number of threads without a lock, which a fork beside one of them could leave locked in the child: two may
    make the same value. At the capacity the newest value makes room, so that reading in order costs the others nothing.
    A cache of bound methods (lru_cache) would keep its owner alive.
    """
    value = cache.get(key)
    if value is None:
        value = make(key)
        if len(cache) >= capacity:
            with suppress(KeyError):  # another thread may have cleared it
                cache.popitem()
        cache[key] = value
    return value
