"""A batch while it is made: begun once, filled in parts by any number of threads, then finished.

Batches of items whose tensors differ in size.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch.nn import functional
from torch.utils.data import default_collate

from dlas_store.errors import StoreError
from dlas_store.images.decode import empty_pixels
from dlas_store.images.memory import empty_aligned
from dlas_store.sampling.rng import SampleKey

Allocate = Callable[[tuple[int, ...], DTypeLike], NDArray[Any]]
"""Gives an array of a shape and a type, contiguous, its content undefined; new_array does."""

Collate = Callable[[list[Any]], Any]

MakeItem = Callable[[SampleKey], dict[str, Any]]


def new_array(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array in new memory, where writing is fastest: bytes where pictures are decoded, floats in whole lines.

    Planes that are written past the caches take longer where their rows begin in the middle of a cache line.
    """
    if np.dtype(dtype) == np.uint8:
        return empty_pixels(shape)
    return empty_aligned(shape, dtype) if np.dtype(dtype) == np.float32 else np.empty(shape, dtype)


class BatchBuilder(Protocol):
    """A batch that is being made.

    ``fill`` is called for parts that cover 0 .. len(work) - 1 once, by one thread or several at a time; ``finish`` when
    all of them are done. Neither order nor parts change the batch.
    """

    def __len__(self) -> int:
        """Return the number of items."""

    def fill(self, start: int, stop: int) -> None:
        """Make a part of the items; positions are in reading order, not in that of the batch."""

    def finish(self) -> Any:
        """Return the batch, equal to what PyTorch's own collate makes of the items, in the order asked for."""


NO_REFERENCE = -1
"""In RawBatch.images, a patch that has no reference."""


class RawBatch(NamedTuple):
    """A batch of N patches as they are decoded, item by item and in each frame by frame.

    Attributes:
        pixels: uint8 (N, H, W, 3), RGB.
        references: the number of the image in the dataset's source, which is the same in every process, and uint8
            (h, w, 3), RGB, of each reference that a patch of the batch has.
        images: int64 (N,), the place of a patch's reference among them, NO_REFERENCE for none.
        squares: int64 (N, 3): where the patch lies in its reference, row, column and width, in pixels of a reference
            of the size of the patch; 0 without a reference.
        paths: of the items.
        shape: the leading dimensions of the tensors that are made of it: (items,) or (items, frames).
    """

    pixels: torch.Tensor
    references: list[tuple[int, torch.Tensor]]
    images: torch.Tensor
    squares: torch.Tensor
    paths: list[str]
    shape: tuple[int, ...]


class BatchTransform(Protocol):
    """Makes batches on a device of what ItemDataset.begin_raw_batch() gives."""

    def make(self, raw: RawBatch) -> Any:
        """Return the batch that a trainer takes, its tensors on the device."""


class BatchOfItems(Sequence[dict[str, Any]]):
    """A finished batch that can be taken apart into its items.

    Attributes:
        batch: the whole batch.
    """

    def __init__(self, batch: dict[str, Any], count: int) -> None:
        self.batch = batch
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: Any) -> Any:
        if not 0 <= position < self._count:
            raise IndexError(position)
        return {key: value[position] for key, value in self.batch.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__, range(self._count))


class CollatingBuilder:
    """A batch of items that are made one by one, for datasets that have no better way."""

    def __init__(self, make_item: MakeItem, draws: Sequence[SampleKey], collate: Collate) -> None:
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


class StackingBuilder:
    """A batch of items that are made one by one, each copied into the batch while the processor's caches hold it.

    Items are dicts; the batch is what PyTorch's own collate makes of them, its tensors in memory that is given.
    """

    def __init__(self, make_item: MakeItem, draws: Sequence[SampleKey], allocate: Allocate) -> None:
        self._make_item = make_item
        self._draws = draws
        self._allocate = allocate
        self._lock = threading.Lock()
        self._arrays: dict[str, NDArray[Any]] = {}
        self._items: list[dict[str, Any]] = [{}] * len(draws)

    def __len__(self) -> int:
        return len(self._draws)

    def fill(self, start: int, stop: int) -> None:
        """Make a part of the items."""
        for position in range(start, stop):
            item = self._make_item(self._draws[position])
            self._items[position] = {
                key: _IN_BATCH if is_plain(value) and self._take(position, key, value.numpy()) else value
                for key, value in item.items()
            }

    def finish(self) -> dict[str, Any]:
        """Return the batch."""
        return {key: self._collated(key, [item[key] for item in self._items]) for key in self._items[0]}

    def _take(self, position: int, key: str, value: NDArray[Any]) -> bool:
        """Copy a value into the batch, if it is of the shape and type of the first one there."""
        with self._lock:
            array = self._arrays.get(key)
            if array is None:
                array = self._arrays[key] = self._allocate((len(self._draws), *value.shape), value.dtype)
        if array.shape[1:] != value.shape or array.dtype != value.dtype:
            return False
        array[position] = value
        return True

    def _collated(self, key: str, values: list[Any]) -> Any:
        if all(value is _IN_BATCH for value in values):
            return torch.from_numpy(self._arrays[key])
        rows = enumerate(values)
        # PyTorch's own says what is wrong with tensors of several sizes.
        return default_collate(
            [torch.from_numpy(self._arrays[key][row]) if value is _IN_BATCH else value for row, value in rows]
        )


_IN_BATCH = object()


def check_one_size(path_of: Callable[[int], str], sizes: Sequence[tuple[int, ...]], *, advice: str) -> None:
    """Check that the pictures of a batch have one size.

    Args:
        path_of: gives the path of one by its position.
        sizes: height and width of each.
        advice: what to do where they differ.

    Raises:
        StoreError: they differ; the message names the first one that is unlike those before it.
    """
    for position, (height, width) in enumerate(sizes):
        if (height, width) != sizes[0]:
            raise StoreError(
                f"{path_of(position)}: {width} x {height} pixels, where others of its batch have "
                f"{sizes[0][1]} x {sizes[0][0]}; {advice}"
            )


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
