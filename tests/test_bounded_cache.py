"""A bounded cache makes what it lacks, keeps the first values, and holds no more than its capacity."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from dlas_store.bounded_cache import BoundedCache


def test_a_kept_value_is_made_once() -> None:
    cache: BoundedCache[int, str] = BoundedCache(2)
    made: list[int] = []

    def make(key: int) -> str:
        made.append(key)
        return str(key)

    assert cache.peek(1) is None
    assert [cache.get(key, make) for key in (1, 1, 2, 1)] == ["1", "1", "2", "1"]
    assert made == [1, 2]
    assert cache.peek(2) == "2"


def test_at_the_capacity_the_newest_value_makes_room() -> None:
    cache: BoundedCache[int, str] = BoundedCache(3)
    for key in range(10):
        cache.get(key, str)
    assert list(cache.entries) == [0, 1, 9]


def test_what_cannot_be_made_is_not_kept() -> None:
    cache: BoundedCache[int, float] = BoundedCache(3)
    with pytest.raises(ZeroDivisionError):
        cache.get(0, lambda key: 1 / key)
    assert cache.entries == {}


def test_clearing_keeps_the_dict_that_others_hold() -> None:
    cache: BoundedCache[int, str] = BoundedCache(3)
    entries = cache.entries
    cache.get(1, str)
    cache.clear()
    assert entries == {}
    assert cache.get(1, str) is entries[1] is cache.peek(1)


def test_threads_get_right_values_while_others_clear_it() -> None:
    cache: BoundedCache[int, str] = BoundedCache(4)

    def use(key: int) -> str:
        if key % 50 == 0:
            cache.clear()
        return cache.get(key % 9, str)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(use, range(5000))) == [str(key % 9) for key in range(5000)]
