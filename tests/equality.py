"""Equality of items or batches, in everything that a reader can observe."""

from __future__ import annotations

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
