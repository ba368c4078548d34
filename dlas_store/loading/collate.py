"""Batches that reach the loop of any PyTorch DataLoader in shared memory that is reused, and their collate function."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch.utils.data import default_collate, get_worker_info

from dlas_store.loading.batch import Allocate, BatchOfItems, new_array
from dlas_store.loading.shared_memory import BufferReceiver, SharedBufferPool, new_slots, pack, unpack

_receivers: dict[int, BufferReceiver] = {}
"""Process id of a worker -> receiver of its batches, in the process of the loop."""


def collate(items: Sequence[Any]) -> Any:
    """Return a batch of items, for PyTorch's DataLoader.

    Items that a StoreDataset made together are their batch already, which a worker process sends without a copy. Any
    other items are collated by PyTorch.

    Raises:
        SharedMemoryError: a worker process cannot send the batch.
    """
    if not isinstance(items, BatchOfItems):
        return default_collate(list(items))
    return items.batch if get_worker_info() is None else _Worker.of_this_process().send(items.batch)


def batch_allocator() -> Allocate:
    """Return the function that lends the memory of a batch: shared with the process of the loop in a worker."""
    return new_array if get_worker_info() is None else _Worker.of_this_process().allocate


class _Worker:
    """A worker's pool of shared memory, and its messages."""

    def __init__(self) -> None:
        self._slots: torch.Tensor | None = new_slots(1)  # None when they were sent
        self._pool = SharedBufferPool(self._slots, 0)
        self.allocate = self._pool.allocate

    @staticmethod
    @cache
    def of_this_process() -> _Worker:
        """Return the only object of a worker process; the process of the loop has none that workers could inherit."""
        return _Worker()

    def send(self, batch: Any) -> _SentBatch:
        """Return a batch as a message, pickled at once, so that the loop gets the error if that fails."""
        packed = pack((self._slots, self._pool.send(batch)))
        self._slots = None
        return _SentBatch(os.getpid(), packed)


class _SentBatch:
    """A message with a batch; unpickled, it is the batch."""

    def __init__(self, worker: int, packed: bytes) -> None:
        self._worker = worker
        self._packed = packed

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, (self._worker, self._packed)


def _receive(worker: int, packed: bytes) -> Any:
    slots, message = unpack(packed)
    if slots is not None:
        for process in [process for process in _receivers if not _is_running(process)]:
            del _receivers[process]  # batches that the loop keeps also keep their memory
        _receivers[worker] = BufferReceiver(slots, pin_memory=False)
    return _receivers[worker].receive(message)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
