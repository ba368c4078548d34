"""Buffer pools of batches that worker processes send: memory that both sides map once and use again."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from dlas_store.datasets.batch_memory import is_free
from dlas_store.datasets.batches import RawPatches, is_plain, new_array
from dlas_store.pixels import DECODING_OFFSET

_SLOTS = 64
"""Tensors of a worker that are used again; those of some ten batches."""

_SMALL_BYTES = 1 << 16
"""Tensors below this are sent as they are: that costs less than a file descriptor."""

_FREE, _TAKEN = 0, 1


def new_slots(workers: int) -> torch.Tensor:
    """Return flags that tell workers which of their slots are free again, for both sides; int8 (workers, slots)."""
    slots = torch.zeros((max(1, workers), _SLOTS), dtype=torch.int8)
    return slots.share_memory_()  # type: ignore[no-untyped-call, no-any-return]


class SentTensor(NamedTuple):
    """A tensor as a worker sends it.

    Attributes:
        worker: number of the worker.
        slot: where the tensor lies; -1 for one that is used once.
        memory: the slot's tensor, where the receiver does not have it yet.
        shape: of the tensor.
    """

    worker: int
    slot: int
    memory: torch.Tensor | None
    shape: tuple[int, ...]


class SharedBufferPool:
    """A worker's side: lends the memory of batches, and sends them without a copy."""

    def __init__(self, slots: torch.Tensor, worker: int) -> None:
        """Take the slots of new_slots, and which worker this is."""
        self._flags = slots[worker].numpy()
        self._worker = worker
        self._tensors: list[torch.Tensor] = []
        self._sent_slots: set[int] = set()
        self._slot_at: dict[int, int] = {}

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array, contiguous, its content undefined."""
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        if int(np.prod(shape)) * kind.itemsize < _SMALL_BYTES:
            return new_array(shape, dtype)
        slot = self._find_slot(shape, kind)
        if slot is None:
            return new_array(shape, dtype)  # as many batches are kept as there are slots
        self._flags[slot] = _TAKEN
        tensor = self._tensors[slot]
        self._slot_at[tensor.data_ptr()] = slot
        array: NDArray[Any] = tensor.numpy()
        return array

    def send(self, batch: Any) -> Any:
        """Return a batch as a message to BufferReceiver; memory that was allocated and is not in it is free again."""
        message = batch
        if isinstance(batch, dict):
            message = {key: self._send(value) for key, value in batch.items()}
        elif isinstance(batch, RawPatches):
            message = batch._replace(**{key: self._send(value) for key, value in batch._asdict().items()})
        for slot in self._slot_at.values():
            self._flags[slot] = _FREE
        self._slot_at.clear()
        return message

    def _find_slot(self, shape: tuple[int, ...], kind: torch.dtype) -> int | None:
        for slot, tensor in enumerate(self._tensors):
            if self._flags[slot] == _FREE and tensor.shape == shape and tensor.dtype == kind:
                return slot
        if len(self._tensors) == _SLOTS:
            return None
        self._tensors.append(_new_shared(shape, kind))
        return len(self._tensors) - 1

    def _send(self, value: Any) -> Any:
        if not is_plain(value):
            return value
        slot = self._slot_at.pop(value.data_ptr(), None)
        if slot is None:
            is_small = value.nbytes < _SMALL_BYTES
            return value.numpy() if is_small else SentTensor(self._worker, -1, value, tuple(value.shape))
        memory = None if slot in self._sent_slots else self._tensors[slot]
        self._sent_slots.add(slot)
        return SentTensor(self._worker, slot, memory, tuple(value.shape))


def _new_shared(shape: tuple[int, ...], kind: torch.dtype) -> torch.Tensor:
    # It begins with a page. Of wider types than bytes, whole cache lines are left out.
    memory = torch.empty(DECODING_OFFSET + math.prod(shape), dtype=kind).share_memory_()  # type: ignore[no-untyped-call]
    return memory[DECODING_OFFSET:].view(shape)  # type: ignore[no-any-return]


class BufferReceiver:
    """The reader's side: receives batches, and frees their slots once nothing refers to them."""

    def __init__(self, slots: torch.Tensor, *, pin_memory: bool) -> None:
        """Take the slots of new_slots, and whether batches are copied into page-locked memory."""
        self._flags = slots.numpy()
        self._pin_memory = pin_memory
        self._array_in: dict[tuple[int, int], list[NDArray[Any]]] = {}
        self._lent_places: set[tuple[int, int]] = set()

    def receive(self, batch: Any) -> Any:
        """Return a batch that a worker sent."""
        self._free_slots()
        if isinstance(batch, dict):
            return {key: self._receive(value) for key, value in batch.items()}
        if isinstance(batch, RawPatches):
            return batch._replace(**{key: self._receive(value) for key, value in batch._asdict().items()})
        return batch

    def _receive(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value)
        if not isinstance(value, SentTensor):
            return value
        place = (value.worker, value.slot)
        if value.slot < 0:
            assert value.memory is not None
            return self._pinned(value.memory)
        if value.memory is not None:
            self._array_in[place] = [value.memory.numpy()]
        self._lent_places.add(place)
        return self._pinned(torch.from_numpy(self._array_in[place][0].reshape(value.shape)))

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory() if self._pin_memory else tensor

    def _free_slots(self) -> None:
        for place in [place for place in self._lent_places if is_free(self._array_in[place], 0)]:
            self._lent_places.remove(place)
            self._flags[place] = _FREE
