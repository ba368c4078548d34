"""Arrays that begin where writing to them is fastest."""

from __future__ import annotations

import numpy as np
import pytest

from dlas_store.aligned_memory import empty_aligned
from dlas_store.datasets.batches import new_array
from dlas_store.pixels import empty_pixels

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
