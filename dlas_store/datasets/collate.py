"""Batches of items whose tensors differ in size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from dlas_store.errors import StoreError


def zero_pad(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make a batch, padding tensors to one size.

    Args:
        items: one or more, of the same keys.

    Returns:
        For each key the tensors of all items, padded with zeros at the end of each dimension to the largest, and
        stacked; numbers as a tensor (n,); a list of the values where they are neither.

    Raises:
        StoreError: items differ in their keys, or their tensors in the number of dimensions.
    """
    for item in items:
        if item.keys() != items[0].keys():
            differing = ", ".join(sorted(map(str, item.keys() ^ items[0].keys())))
            raise StoreError(f"a batch cannot be made of items that differ in their keys: {differing}")
    return {key: _batch(key, [item[key] for item in items]) for key in items[0]}


def _batch(key: str, values: list[Any]) -> Any:
    if all(isinstance(value, int | float) for value in values):
        return torch.tensor(values)
    if not all(isinstance(value, torch.Tensor) for value in values):
        return values
    if len({value.dim() for value in values}) > 1:
        shapes = " and ".join(sorted({str(tuple(value.shape)) for value in values}))
        raise StoreError(f"a batch cannot be made of {key} of different dimensions: {shapes}")
    largest = [max(sides) for sides in zip(*(value.shape for value in values), strict=True)]
    return torch.stack([_padded(value, largest) for value in values])


def _padded(tensor: torch.Tensor, size: list[int]) -> torch.Tensor:
    # pad() counts from the last dimension, with a number for either end of each.
    missing = [number for side, full in zip(tensor.shape, size, strict=True) for number in (full - side, 0)]
    return functional.pad(tensor, missing[::-1]) if any(missing) else tensor
