"""Equality of items or batches, in everything that a reader can observe."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import torch


def assert_same(one: Any, other: Any) -> None:
    """Check that two items or batches are equal: types, keys and their order, shapes, dtypes and values."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, Mapping):
        assert list(one) == list(other)
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other


def assert_pickled_gives_the_same(dataset: Any, *indices: int) -> None:
    """Check that a pickled dataset is of the same class and gives the same items."""
    again = pickle.loads(pickle.dumps(dataset))
    assert type(again) is type(dataset)
    for index in indices:
        assert_same(again[index], dataset[index])
