"""Memory of pixels: arrays begin at the alignment that is fastest to write; a bounded cache keeps its first values."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dlas_store.images.decode import empty_pixels
from dlas_store.images.memory import BoundedCache, empty_aligned
from dlas_store.loading.batch import new_array

CACHE_LINE = 64

SHAPES = [(1, 1, 3), (20, 30, 3), (256, 256, 3), (16, 256, 256, 3), (65, 255, 257, 3), (7,)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "offset"), [(np.uint8, 0), (np.uint8, 16), (np.float32, 0), (np.float32, 32)])
def test_arrays_begin_where_they_are_asked_to(shape: tuple[int, ...], dtype: type, offset: int) -> None:
    arrays = [empty_aligned(shape, dtype, offset=offset) for _ in range(4)]
    assert {array.ctypes.data % CACHE_LINE for array in arrays} == {offset}
    for number, array in enumerate(arrays):
        assert (array.shape, array.dtype, array.flags.c_contiguous) == (shape, dtype, True)
        array[...] = number
    for number, array in enumerate(arrays):
        assert (array == number).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
def test_a_view_tells_that_the_array_is_in_use(shape: tuple[int, ...], dtype: type) -> None:
    array = new_array(shape, dtype)
    assert array[1:].base is array
    assert array.reshape(-1)[:1].base is array


@pytest.mark.parametrize("shape", [(0,), (0, 4, 4, 3), (2, 0, 4, 3)])
def test_arrays_of_nothing_can_be_had(shape: tuple[int, ...]) -> None:
    for array in (empty_pixels(shape), empty_aligned(shape, np.float32)):
        assert array.shape == shape


def test_pictures_are_decoded_where_vectors_are_not_aligned_and_floats_written_in_whole_lines() -> None:
    assert new_array((4, 5, 3), np.uint8).ctypes.data % 32 == 16
    assert new_array((4, 5, 3), np.float32).ctypes.data % CACHE_LINE == 0


def test_a_kept_value_is_made_once() -> None:
    cache: BoundedCache[int, str] = BoundedCache(2)
    made_keys: list[int] = []

    def make(key: int) -> str:
        made_keys.append(key)
        return str(key)

    assert cache.peek(1) is None
    assert [cache.get(key, make) for key in (1, 1, 2, 1)] == ["1", "1", "2", "1"]
    assert made_keys == [1, 2]
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
