"""Batches: the contract of a builder that threads fill together, builders for any dataset, and a padding collate."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

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
"""A function such as new_array: returns a contiguous array of a shape and a type, its content undefined."""

Collate = Callable[[list[Any]], Any]

MakeItem = Callable[[SampleKey], dict[str, Any]]

NO_REFERENCE = -1
"""Value in RawBatch.images of a patch without a reference."""

_zeros_at: WeakValueDictionary[int, NDArray[Any]] = WeakValueDictionary()
"""Arrays of new_zeros that are in use, by their address."""

_IN_BATCH = object()
"""A placeholder for an item's value that was copied into the batch."""

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


class BatchBuilder(Protocol):
    """A batch that is being made: begun once, filled in parts by any number of threads, then finished.

    The parts passed to ``fill`` cover each of 0 .. len(builder) - 1 once. One thread calls ``fill``, or several threads
    at a time. ``finish`` is called when all parts are done. The batch depends neither on the parts nor on their order.
    """

    def __len__(self) -> int:
        """Return the number of items."""

    def fill(self, start: int, stop: int) -> None:
        """Make a part of the items. Positions refer to the order of reading, not to the order in the batch."""

    def finish(self) -> Any:
        """Return the batch, equal to PyTorch's collation of the items in the order of the keys."""


class CollatingBuilder:
    """A batch of items that are made one by one, then collated: for datasets that cannot make a batch faster."""

    def __init__(self, make_item: MakeItem, keys: Sequence[SampleKey], collate: Collate) -> None:
        self._make_item = make_item
        self._keys = keys
        self._collate = collate
        self._items: list[Any] = [None] * len(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def fill(self, start: int, stop: int) -> None:
        """Make a part of the items."""
        for position in range(start, stop):
            self._items[position] = self._make_item(self._keys[position])

    def finish(self) -> Any:
        """Return the batch that the collate function makes."""
        return self._collate(self._items)


class StackingBuilder:
    """A batch of items that are made one by one, each copied into the batch while the processor's caches hold it.

    Items are dicts. The batch equals PyTorch's collation of the items; ``allocate`` returns the memory of its tensors.
    """

    def __init__(self, make_item: MakeItem, keys: Sequence[SampleKey], allocate: Allocate) -> None:
        self._make_item = make_item
        self._keys = keys
        self._allocate = allocate
        self._lock = threading.Lock()
        self._arrays: dict[str, NDArray[Any]] = {}
        self._items: list[dict[str, Any]] = [{}] * len(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def fill(self, start: int, stop: int) -> None:
        """Make a part of the items."""
        for position in range(start, stop):
            item = self._make_item(self._keys[position])
            self._items[position] = {
                key: _IN_BATCH if is_plain(value) and self._copy(position, key, value.numpy()) else value
                for key, value in item.items()
            }

    def finish(self) -> dict[str, Any]:
        """Return the batch."""
        return {key: self._collated(key, [item[key] for item in self._items]) for key in self._items[0]}

    def _copy(self, position: int, key: str, value: NDArray[Any]) -> bool:
        """Copy a value into the batch if it has shape and type of the first value; return whether it was copied."""
        with self._lock:
            array = self._arrays.get(key)
            if array is None:
                array = self._arrays[key] = self._allocate((len(self._keys), *value.shape), value.dtype)
        if array.shape[1:] != value.shape or array.dtype != value.dtype:
            return False
        array[position] = value
        return True

    def _collated(self, key: str, values: list[Any]) -> Any:
        if all(value is _IN_BATCH for value in values):
            return torch.from_numpy(self._arrays[key])
        rows = enumerate(values)
        # PyTorch's own collation explains what is wrong with tensors of several sizes.
        return default_collate(
            [torch.from_numpy(self._arrays[key][row]) if value is _IN_BATCH else value for row, value in rows]
        )


class BatchOfItems(Sequence[dict[str, Any]]):
    """A finished batch, as a sequence of its items.

    Attributes:
        batch: the batch, a dict of tensors and lists.
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


class RawBatch(NamedTuple):
    """A batch of N decoded patches, item by item and within an item frame by frame.

    Attributes:
        pixels: uint8 (N, H, W, 3), RGB.
        references: a pair for each reference that a patch of the batch has: the number of its image in the dataset's
            source, which is the same in every process, and its pixels, uint8 (h, w, 3), RGB.
        images: int64 (N,), the position in ``references`` of each patch's reference, NO_REFERENCE for none.
        squares: int64 (N, 3), where each patch lies in its reference: row, column and width, in pixels of a reference
            that has the size of the patch; 0 without a reference.
        paths: of the items.
        shape: leading dimensions of the tensors made from the batch: (items,) or (items, frames).
    """

    pixels: torch.Tensor
    references: list[tuple[int, torch.Tensor]]
    images: torch.Tensor
    squares: torch.Tensor
    paths: list[str]
    shape: tuple[int, ...]


class BatchTransform(Protocol):
    """A transform that makes batches on a device from the raw batches of an ItemDataset."""

    def make(self, raw: RawBatch) -> Any:
        """Return the batch for a trainer, its tensors on the device."""


def zero_pad(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collate items, padding tensors to one size.

    Args:
        items: one or more, with the same keys.

    Returns:
        For each key, the items' tensors, padded with zeros at the end of each dimension to the largest size and
        stacked. Numbers become a tensor (n,). Values of any other type become a list.

    Raises:
        StoreError: the items have different keys, or a key's tensors different numbers of dimensions.
    """
    for item in items:
        if item.keys() != items[0].keys():
            keys = ", ".join(sorted(map(str, item.keys() ^ items[0].keys())))
            raise StoreError(f"a batch cannot be made of items that differ in their keys: {keys}")
    return {key: _padded_values(key, [item[key] for item in items]) for key in items[0]}


def new_array(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array in new memory, aligned for fast writing: uint8 for the decoder, float32 to cache lines.

    Non-temporal stores to large float channels take longer if rows begin in the middle of a cache line.
    """
    if np.dtype(dtype) == np.uint8:
        return empty_pixels(shape)
    return empty_aligned(shape, dtype) if np.dtype(dtype) == np.float32 else np.empty(shape, dtype)


def new_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array of zeros that stays one. A worker sends no data for a tensor of it; see is_of_new_zeros."""
    zeros = np.zeros(shape, dtype)
    _zeros_at[zeros.ctypes.data] = zeros
    return zeros


def is_of_new_zeros(value: torch.Tensor) -> bool:
    """Return whether a tensor is all of an array of new_zeros."""
    zeros = _zeros_at.get(value.data_ptr())
    return zeros is not None and zeros.nbytes == value.nbytes


def is_plain(value: Any) -> bool:
    """Return whether a value is a tensor whose memory NumPy can share."""
    if type(value) is not torch.Tensor or value.layout != torch.strided or value.requires_grad:
        return False
    return value.device.type == "cpu" and value.dtype in _NUMPY_TYPES and not (value.is_conj() or value.is_neg())


def check_one_size(path_at: Callable[[int], str], sizes: Sequence[tuple[int, ...]], *, advice: str) -> None:
    """Check that the images of a batch have one size.

    Args:
        path_at: returns the path of the image at a position.
        sizes: height and width of each image.
        advice: end of the message: what to do if sizes differ.

    Raises:
        StoreError: sizes differ; the message names the first image whose size differs from that of the images before.
    """
    for position, (height, width) in enumerate(sizes):
        if (height, width) != sizes[0]:
            raise StoreError(
                f"{path_at(position)}: {width} x {height} pixels, where others of its batch have "
                f"{sizes[0][1]} x {sizes[0][0]}; {advice}"
            )


def _padded_values(key: str, values: list[Any]) -> Any:
    if all(isinstance(value, int | float) for value in values):
        return torch.tensor(values)
    if not all(isinstance(value, torch.Tensor) for value in values):
        return values
    if len({value.dim() for value in values}) > 1:
        shapes = " and ".join(sorted({str(tuple(value.shape)) for value in values}))
        raise StoreError(f"a batch cannot be made of {key} of different dimensions: {shapes}")
    size = [max(sides) for sides in zip(*(value.shape for value in values), strict=True)]
    return torch.stack([_padded(value, size) for value in values])


def _padded(tensor: torch.Tensor, size: list[int]) -> torch.Tensor:
    # pad() takes two numbers a dimension, one for each end, and begins with the last dimension.
    padding = [number for side, full_side in zip(tensor.shape, size, strict=True) for number in (full_side - side, 0)]
    return functional.pad(tensor, padding[::-1]) if any(padding) else tensor
