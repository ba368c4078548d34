"""Memory that patches are decoded into: lent to one at a time, and lent again."""

from __future__ import annotations

import pickle

import pytest

from dlas_store.datasets.decoding_memory import DecodingMemory

SHAPE = (4, 8, 6, 3)


def test_arrays_are_one_a_patch() -> None:
    with DecodingMemory().patches(SHAPE) as arrays:
        assert [array.shape for array in arrays] == [SHAPE[1:]] * SHAPE[0]
        for number, array in enumerate(arrays):
            array[...] = number
        assert [set(array.flat) for array in arrays] == [{0}, {1}, {2}, {3}]


def test_arrays_given_back_are_lent_again_and_those_in_use_to_nobody() -> None:
    memory = DecodingMemory()
    with memory.patches(SHAPE) as first, memory.patches(SHAPE) as second:
        assert {array.ctypes.data for array in first}.isdisjoint(array.ctypes.data for array in second)
    with memory.patches(SHAPE) as again:
        assert again is first  # given back last


def test_another_shape_has_arrays_of_its_own() -> None:
    memory = DecodingMemory()
    with memory.patches(SHAPE):
        pass
    with memory.patches((2, 5, 5, 3)) as arrays:
        assert [array.shape for array in arrays] == [(5, 5, 3)] * 2


def test_after_an_error_they_can_be_had_as_before() -> None:
    memory = DecodingMemory()
    with pytest.raises(ZeroDivisionError), memory.patches(SHAPE):
        raise ZeroDivisionError
    with memory.patches(SHAPE) as arrays:
        assert len(arrays) == SHAPE[0]


def test_a_pickled_one_is_empty() -> None:
    memory = DecodingMemory()
    with memory.patches(SHAPE):
        pass
    assert pickle.loads(pickle.dumps(memory))._free == []
