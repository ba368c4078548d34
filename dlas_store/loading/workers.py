"""A loader that makes batches in worker processes: PyTorch's DataLoader, given whole batches.

Buffer pools of batches that worker processes send: memory that both sides map once and use again.
"""

from __future__ import annotations

import atexit
import math
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from dlas_store.images.decode import DECODING_OFFSET
from dlas_store.loading.batch import Allocate, BatchBuilder, BatchTransform, Collate, RawBatch, is_plain, new_array
from dlas_store.loading.buffers import is_free, keep_freed_memory_in_process
from dlas_store.loading.loader import Batch, EpochBatches, Loader
from dlas_store.loading.thread_pool import paused_for_fork
from dlas_store.loading.threads import BatchExecutor, batch_builder
from dlas_store.processes import interrupt_delayed, leave_interrupts_to_parent, processes_start

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
        elif isinstance(batch, RawBatch):
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
        if isinstance(batch, RawBatch):
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


_AFTER_ALL_ELSE = -1000
"""When to do something as a process ends; multiprocessing removes its temporary folder at -100."""


class WorkersLoader(Loader):
    """Gives the batches of a dataset, made by worker processes, each with threads of its own."""

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        sampler: Sampler[Any] | Iterable[Any],
        batch_size: int,
        drop_last: bool,
        workers: int,
        threads: int,
        collate_fn: Collate | None = None,
        pin_memory: bool = False,
        start_method: str | None = None,
        to_device: BatchTransform | None = None,
    ) -> None:
        """Set up the loader.

        Args:
            dataset: the data, with a length; picklable where processes are not forked.
            sampler: gives keys, or indices; a batch sampler where it has ``batches``.
            batch_size: items a batch, of this process.
            drop_last: leave out an incomplete last batch.
            workers: number of processes; 0 makes batches in this one, while it waits for them.
            threads: of each of them.
            collate_fn: makes a batch of a list of items; by default PyTorch's own, or what equals it.
            pin_memory: put batches into page-locked memory.
            start_method: of the processes: fork, forkserver or spawn; None takes the system's.
            to_device: makes batches on a device; None makes them in the workers.
        """
        batches = EpochBatches(dataset, sampler, batch_size=batch_size, drop_last=drop_last)
        super().__init__(batches, num_workers=workers, num_threads=threads)
        self.pin_memory = pin_memory
        self._collate_fn = collate_fn
        self._start_method = start_method
        self._to_device = to_device

    def __iter__(self) -> Iterator[Any]:
        """Give the batches of an epoch."""
        if not self.num_workers:
            keep_freed_memory_in_process()
        epoch, batches = self._batches.begin()
        # Memory is shared by the workers of an epoch, and there may be several epochs at a time.
        slots = new_slots(self.num_workers)
        dataset = _WholeBatches(
            self.dataset, self.num_threads, self._collate_fn, slots, raw=self._to_device is not None
        )
        loader = DataLoader(
            dataset,
            batch_sampler=_Batches(batches, len(self)),
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            worker_init_fn=_start_worker,
            multiprocessing_context=self._start_method if self.num_workers else None,
        )
        receiver = BufferReceiver(slots, pin_memory=self.pin_memory)
        start_method = self._start_method or multiprocessing.get_start_method()
        forks = start_method == "fork"
        starting = processes_start(start_method) if self.num_workers else nullcontext()
        processes = _WorkerProcesses()
        try:
            with starting, paused_for_fork() if self.num_workers and forks else nullcontext():
                iterator = iter(loader)
                processes.are_of(iterator)
            while True:
                with interrupt_delayed():
                    message = next(iterator, _END)
                if message is _END:
                    break
                made_batch = receiver.receive(message)
                epoch.delivered += 1
                yield made_batch if self._to_device is None else self._to_device.make(made_batch)
                del made_batch, message  # their memory is free as soon as the reader lets go of it
        finally:
            processes.end()
        self._batches.end(epoch)


_END = object()


class _WorkerProcesses:
    """The workers of an epoch, which end with it, or with the program, whichever comes first.

    PyTorch's iterator would end them when it is forgotten. An error's traceback may put that off for long; a program
    that ends before kills them, so that their temporary folders stay.
    """

    def __init__(self) -> None:
        self._iterator: Any = None
        self._owner = os.getpid()

    def are_of(self, iterator: Any) -> None:
        """Take the iterator of a DataLoader."""
        if hasattr(iterator, "_shutdown_workers"):  # not without workers
            self._iterator = iterator
            atexit.register(self.end)

    def end(self) -> None:
        """End them, and wait for that."""
        if self._iterator is None:
            return
        atexit.unregister(self.end)
        if os.getpid() == self._owner:  # not of a process that was forked meanwhile
            with interrupt_delayed():
                self._iterator._shutdown_workers()


class _Batches(Sampler[Batch]):
    """The batches of an epoch, as DataLoader takes them."""

    def __init__(self, batches: Iterator[Batch], count: int) -> None:
        self._batches = batches
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        return self._batches


class _WholeBatches(Dataset[Any]):
    """A dataset that gives a batch at a time; a worker's batches lie in memory shared with its parent."""

    def __init__(
        self, dataset: Dataset[Any], threads: int, collate_fn: Collate | None, slots: torch.Tensor, *, raw: bool
    ) -> None:
        self._dataset = dataset
        self._threads = threads
        self._collate_fn = collate_fn
        self._slots = slots
        self._raw = raw
        self._memory: SharedBufferPool | None = None
        self._executor: BatchExecutor | None = None

    def __getitems__(self, batch: Sequence[Any]) -> Any:
        worker = get_worker_info()
        if worker is None:
            builder = self._begin(batch, new_array)
            builder.fill(0, len(builder))
            return builder.finish()
        if self._memory is None:
            self._memory = SharedBufferPool(self._slots, worker.id)
            if self._threads > 1:
                self._executor = BatchExecutor(ThreadPoolExecutor(self._threads), parts=self._threads)
        builder = self._begin(batch, self._memory.allocate)
        if self._executor is not None:
            return self._memory.send(self._executor.make(builder).result())
        builder.fill(0, len(builder))
        return self._memory.send(builder.finish())

    def _begin(self, batch: Sequence[Any], allocate: Allocate) -> BatchBuilder:
        return batch_builder(self._dataset, batch, allocate, self._collate_fn, raw=self._raw)


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    leave_interrupts_to_parent()
    keep_freed_memory_in_process()
    # The first tensor that is sent makes a socket in a temporary folder, which the end of the process removes. Batches
    # are sent by a thread that this end does not wait for: beside it, the folder would stay behind.
    ForkingPickler.dumps(torch.zeros(1).share_memory_())  # type: ignore[no-untyped-call]
    Finalize(None, _exit_at_once, exitpriority=_AFTER_ALL_ELSE)
    # One thread a core is the aim; OpenCV's own pool in each would fight over the cores.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _exit_at_once() -> None:
    """End a worker that has not failed as forked processes end: at once.

    Else a spawned one would end its interpreter first, which stops threads wherever they are. In the middle of C++ of
    PyTorch, as the one that sends batches may be, that aborts the process, and the parent gets an error.
    """
    if sys.exc_info()[0] is None:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(0)
