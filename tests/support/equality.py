"""Equality of items and batches in every property that a reader can observe."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import torch


def assert_same(first: Any, second: Any) -> None:
    """Check that two items or batches are equal: types, keys and their order, shapes, dtypes and values."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    elif isinstance(first, Mapping):
        assert list(first) == list(second)
        for key, value in first.items():
            assert_same(value, second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for pair in zip(first, second, strict=True):
            assert_same(*pair)
    else:
        assert first == second


def assert_pickled_gives_the_same(dataset: Any, *indices: int) -> None:
    """Check that an unpickled copy of a dataset has the dataset's class and gives the same items."""
    copy = pickle.loads(pickle.dumps(dataset))
    assert type(copy) is type(dataset)
    for index in indices:
        assert_same(copy[index], dataset[index])
