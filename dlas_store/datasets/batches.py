"""A batch while it is made: begun once, filled in parts by any number of threads, then finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch.utils.data import default_collate

from dlas_store.aligned_memory import empty_aligned
from dlas_store.datasets.draws import Draw
from dlas_store.pixels import empty_pixels

Allocate = Callable[[tuple[int, ...], DTypeLike], NDArray[Any]]
"""Gives an array of a shape and a type, contiguous, its content undefined; new_array does."""

Collate = Callable[[list[Any]], Any]

MakeItem = Callable[[Draw], dict[str, Any]]


def new_array(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array in new memory, where writing is fastest: bytes where pictures are decoded, floats in whole lines.

    Planes that are written past the caches take longer where their rows begin in the middle of a cache line.
    """
    if np.dtype(dtype) == np.uint8:
        return empty_pixels(shape)
    return empty_aligned(shape, dtype) if np.dtype(dtype) == np.float32 else np.empty(shape, dtype)


class BatchWork(Protocol):
    """A batch that is being made.

    ``fill`` is called for parts that cover 0 .. len(work) - 1 once, by one thread or several at a time; ``finish`` when
    all of them are done. Neither order nor parts change what comes out.
    """

    def __len__(self) -> int:
        """Return the number of items."""

    def fill(self, start: int, stop: int) -> None:
        """Make a part of the items; positions are in reading order, not in that of the batch."""

    def finish(self) -> Any:
        """Return the batch: what PyTorch's own collate makes of the items, in the order asked for."""


class BatchOfItems(Sequence[dict[str, Any]]):
    """A finished batch that can be taken apart into its items.

    Attributes:
        whole: the batch.
    """

    def __init__(self, whole: dict[str, Any], count: int) -> None:
        self.whole = whole
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: Any) -> Any:
        if not 0 <= position < self._count:
            raise IndexError(position)
        return {key: value[position] for key, value in self.whole.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__, range(self._count))


class ItemsWork:
    """A batch of items that are made one by one, for datasets that have no better way."""

    def __init__(self, make_item: MakeItem, draws: Sequence[Draw], collate: Collate) -> None:
        self._make_item = make_item
        self._draws = draws
        self._collate = collate
        self._items: list[Any] = [None] * len(draws)

    def __len__(self) -> int:
        return len(self._draws)

    def fill(self, start: int, stop: int) -> None:
        """Make a part of the items."""
        for position in range(start, stop):
            self._items[position] = self._make_item(self._draws[position])

    def finish(self) -> Any:
        """Return the batch that the collate function makes."""
        return self._collate(self._items)


def stack_items(items: Sequence[Mapping[str, Any]], *, allocate: Allocate) -> dict[str, Any]:
    """Make the batch that PyTorch's own collate makes, its tensors in memory that ``allocate`` gives."""
    return {key: _stack([item[key] for item in items], allocate) for key in items[0]}


def _stack(values: list[Any], allocate: Allocate) -> Any:
    first = values[0]
    if not all(is_plain(value) and value.shape == first.shape and value.dtype == first.dtype for value in values):
        return default_collate(values)  # which says what is wrong with tensors of several sizes
    dtype = first.numpy().dtype
    return torch.stack(values, out=torch.from_numpy(allocate((len(values), *first.shape), dtype)))


def is_plain(value: Any) -> bool:
    """Return whether a value is a tensor whose memory numpy can share."""
    if type(value) is not torch.Tensor or value.layout != torch.strided or value.requires_grad:
        return False
    return value.device.type == "cpu" and value.dtype in _NUMPY_TYPES and not (value.is_conj() or value.is_neg())


_NUMPY_TYPES = frozenset(
    {
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.float32,
        torch.float64,
    }
)
