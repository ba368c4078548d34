"""A loader that makes batches in worker processes, and the shared buffer pool in which workers send them.

PyTorch's DataLoader runs the processes and sees each batch as a single item.
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
from dlas_store.loading.loader import BatchKeys, EpochBatches, Loader
from dlas_store.loading.thread_pool import paused_for_fork
from dlas_store.loading.threads import BatchExecutor, batch_builder
from dlas_store.processes import interrupt_delayed, leave_interrupts_to_parent, processes_start

_SLOTS = 64
"""How many tensors of a worker have memory that is reused: enough for about ten batches."""

_SMALL_BYTES = 1 << 16
"""A tensor below this size is pickled: that costs less than a file descriptor."""

_FREE, _TAKEN = 0, 1
"""Flags of slots: the memory of a free slot may be overwritten."""

_END = object()
"""A placeholder for the message after an epoch's last batch."""

_EXIT_PRIORITY = -1000
"""Priority of a worker's last action: multiprocessing removes its temporary folder earlier, at -100."""


class WorkersLoader(Loader):
    """Yields the batches of a dataset, made by worker processes, each with threads of its own."""

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
            dataset: the data, with a length; picklable unless processes are forked.
            sampler: yields keys, or indices; an EpochSampler also divides them into batches.
            batch_size: number of items in a batch of this process.
            drop_last: whether to drop an incomplete last batch.
            workers: number of processes; 0 makes each batch in this process when the reader asks for it.
            threads: number of threads of each worker.
            collate_fn: makes a batch from a list of items; by default PyTorch's own, or an equal result made faster.
            pin_memory: whether to put batches into page-locked memory.
            start_method: of the processes: fork, forkserver or spawn; None means the system's.
            to_device: makes batches on a device; None makes them in the workers.
        """
        batches = EpochBatches(dataset, sampler, batch_size=batch_size, drop_last=drop_last)
        super().__init__(batches, num_workers=workers, num_threads=threads)
        self.pin_memory = pin_memory
        self._collate_fn = collate_fn
        self._start_method = start_method
        self._to_device = to_device

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of an epoch."""
        if not self.num_workers:
            keep_freed_memory_in_process()
        epoch, batches = self._batches.begin()
        # Each epoch has its own slots, because several epochs may run at a time.
        slots = new_slots(self.num_workers)
        dataset = _BatchDataset(
            self.dataset, self.num_threads, self._collate_fn, slots, raw=self._to_device is not None
        )
        loader = DataLoader(
            dataset,
            batch_sampler=_BatchSampler(batches, len(self)),
            collate_fn=_identity,
            num_workers=self.num_workers,
            worker_init_fn=_start_worker,
            multiprocessing_context=self._start_method if self.num_workers else None,
        )
        receiver = BufferReceiver(slots, pin_memory=self.pin_memory)
        start_method = self._start_method or multiprocessing.get_start_method()
        start_guard = processes_start(start_method) if self.num_workers else nullcontext()
        forks = self.num_workers and start_method == "fork"
        processes = _WorkerProcesses()
        try:
            with start_guard, paused_for_fork() if forks else nullcontext():
                iterator = iter(loader)
                processes.attach(iterator)
            while True:
                with interrupt_delayed():
                    message = next(iterator, _END)
                if message is _END:
                    break
                batch = receiver.receive(message)
                epoch.delivered += 1
                yield batch if self._to_device is None else self._to_device.make(batch)
                del batch, message  # workers can use the memory again as soon as the reader releases the batch
        finally:
            processes.end()
        self._batches.end(epoch)


class _WorkerProcesses:
    """The worker processes of an epoch, which end with the epoch or with the program, whichever ends first.

    PyTorch's iterator would end the workers when it is forgotten. An error's traceback may keep the iterator for long,
    and a program that ends first kills the workers, so that their temporary folders stay.
    """

    def __init__(self) -> None:
        self._iterator: Any = None
        self._owner = os.getpid()

    def attach(self, iterator: Any) -> None:
        """Take charge of the workers of a DataLoader's iterator."""
        if hasattr(iterator, "_shutdown_workers"):  # only an iterator with workers has the method
            self._iterator = iterator
            atexit.register(self.end)

    def end(self) -> None:
        """End the workers, and wait until they have ended."""
        if self._iterator is None:
            return
        atexit.unregister(self.end)
        if os.getpid() == self._owner:  # a process that was forked meanwhile must not end them
            with interrupt_delayed():
                self._iterator._shutdown_workers()


class _BatchSampler(Sampler[BatchKeys]):
    """The keys of an epoch's batches, as a batch sampler for DataLoader."""

    def __init__(self, batches: Iterator[BatchKeys], count: int) -> None:
        self._batches = batches
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[BatchKeys]:
        return self._batches


class _BatchDataset(Dataset[Any]):
    """A dataset that returns a batch at a time; a worker's batches lie in memory shared with its parent."""

    def __init__(
        self, dataset: Dataset[Any], threads: int, collate_fn: Collate | None, slots: torch.Tensor, *, raw: bool
    ) -> None:
        self._dataset = dataset
        self._threads = threads
        self._collate_fn = collate_fn
        self._slots = slots
        self._raw = raw
        self._buffers: SharedBufferPool | None = None
        self._executor: BatchExecutor | None = None

    def __getitems__(self, keys: Sequence[Any]) -> Any:
        worker = get_worker_info()
        if worker is None:
            builder = self._begin(keys, new_array)
            builder.fill(0, len(builder))
            return builder.finish()
        if self._buffers is None:
            self._buffers = SharedBufferPool(self._slots, worker.id)
            if self._threads > 1:
                self._executor = BatchExecutor(ThreadPoolExecutor(self._threads), parts=self._threads)
        builder = self._begin(keys, self._buffers.allocate)
        if self._executor is not None:
            return self._buffers.send(self._executor.make(builder).result())
        builder.fill(0, len(builder))
        return self._buffers.send(builder.finish())

    def _begin(self, keys: Sequence[Any], allocate: Allocate) -> BatchBuilder:
        return batch_builder(self._dataset, keys, allocate, self._collate_fn, raw=self._raw)


def _identity(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    leave_interrupts_to_parent()
    keep_freed_memory_in_process()
    # The first tensor that a process sends makes a socket in a temporary folder, which the process removes as it ends.
    # Batches are sent by a thread that the process does not wait for, so that a folder made by the thread could remain.
    ForkingPickler.dumps(torch.zeros(1).share_memory_())  # type: ignore[no-untyped-call]
    Finalize(None, _exit_at_once, exitpriority=_EXIT_PRIORITY)
    # One thread a core is the aim. OpenCV's and PyTorch's own threads in each worker would compete for the cores.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _exit_at_once() -> None:
    """End a worker at once, as forked processes end, unless an error ends it.

    A spawned worker would otherwise finalize its interpreter first, which stops threads wherever they are. The thread
    that sends batches may be inside PyTorch's C++ code: to stop it there aborts the process, and the parent gets an
    error.
    """
    if sys.exc_info()[0] is None:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(0)


def new_slots(workers: int) -> torch.Tensor:
    """Return the flags of all workers' slots, shared with the reader: int8 (workers, slots), _FREE or _TAKEN."""
    slots = torch.zeros((max(1, workers), _SLOTS), dtype=torch.int8)
    return slots.share_memory_()  # type: ignore[no-untyped-call, no-any-return]


class SentTensor(NamedTuple):
    """A message that stands for a tensor of a worker's batch.

    Attributes:
        worker: number of the worker.
        slot: number of the slot whose memory holds the tensor; -1 for memory that is not reused.
        memory: the slot's tensor, or None if the receiver has already mapped it.
        shape: of the tensor.
    """

    worker: int
    slot: int
    memory: torch.Tensor | None
    shape: tuple[int, ...]


class SharedBufferPool:
    """A worker's pool of shared memory: lends the arrays of a batch, and sends the batch without a copy.

    A slot is one tensor of the pool, which both processes map once and use for many batches.
    """

    def __init__(self, slots: torch.Tensor, worker: int) -> None:
        """Set up an empty pool.

        Args:
            slots: the flags of new_slots.
            worker: number of this worker.
        """
        self._flags = slots[worker].numpy()
        self._worker = worker
        self._tensors: list[torch.Tensor] = []
        self._sent_slots: set[int] = set()
        self._slot_at: dict[int, int] = {}  # address of a lent array -> its slot

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return a contiguous array, its content undefined."""
        torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
        if int(np.prod(shape)) * torch_dtype.itemsize < _SMALL_BYTES:
            return new_array(shape, dtype)
        slot = self._find_slot(shape, torch_dtype)
        if slot is None:
            return new_array(shape, dtype)  # the reader keeps batches in all slots
        self._flags[slot] = _TAKEN
        tensor = self._tensors[slot]
        self._slot_at[tensor.data_ptr()] = slot
        array: NDArray[Any] = tensor.numpy()
        return array

    def send(self, batch: Any) -> Any:
        """Return a batch as a message to BufferReceiver. Allocated arrays that are not in the batch become free."""
        message = batch
        if isinstance(batch, dict):
            message = {key: self._send(value) for key, value in batch.items()}
        elif isinstance(batch, RawBatch):
            message = batch._replace(**{key: self._send(value) for key, value in batch._asdict().items()})
        for slot in self._slot_at.values():
            self._flags[slot] = _FREE
        self._slot_at.clear()
        return message

    def _find_slot(self, shape: tuple[int, ...], dtype: torch.dtype) -> int | None:
        """Return a free slot whose tensor has a shape and a type, a new slot if need be; None if no slot is left."""
        for slot, tensor in enumerate(self._tensors):
            if self._flags[slot] == _FREE and tensor.shape == shape and tensor.dtype == dtype:
                return slot
        if len(self._tensors) == _SLOTS:
            return None
        self._tensors.append(_new_shared(shape, dtype))
        return len(self._tensors) - 1

    def _send(self, value: Any) -> Any:
        """Return a batch's value for a message: a SentTensor, a small tensor as an array, or else the value itself."""
        if not is_plain(value):
            return value
        slot = self._slot_at.pop(value.data_ptr(), None)
        if slot is None:
            is_small = value.nbytes < _SMALL_BYTES
            return value.numpy() if is_small else SentTensor(self._worker, -1, value, tuple(value.shape))
        memory = None if slot in self._sent_slots else self._tensors[slot]
        self._sent_slots.add(slot)
        return SentTensor(self._worker, slot, memory, tuple(value.shape))


class BufferReceiver:
    """The reader's side of the pools: receives batches, and frees their slots once nothing refers to them."""

    def __init__(self, slots: torch.Tensor, *, pin_memory: bool) -> None:
        """Set up the receiver.

        Args:
            slots: the flags of new_slots.
            pin_memory: whether to copy batches into page-locked memory.
        """
        self._flags = slots.numpy()
        self._pin_memory = pin_memory
        self._arrays: dict[tuple[int, int], list[NDArray[Any]]] = {}  # each array in a list of its own, for is_free()
        self._lent_slots: set[tuple[int, int]] = set()

    def receive(self, message: Any) -> Any:
        """Return the batch of a worker's message."""
        self._free_slots()
        if isinstance(message, dict):
            return {key: self._receive(value) for key, value in message.items()}
        if isinstance(message, RawBatch):
            return message._replace(**{key: self._receive(value) for key, value in message._asdict().items()})
        return message

    def _receive(self, value: Any) -> Any:
        """Return the batch's value that a value of a message stands for."""
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value)
        if not isinstance(value, SentTensor):
            return value
        slot = (value.worker, value.slot)
        if value.slot < 0:
            assert value.memory is not None
            return self._pinned(value.memory)
        if value.memory is not None:
            self._arrays[slot] = [value.memory.numpy()]
        self._lent_slots.add(slot)
        return self._pinned(torch.from_numpy(self._arrays[slot][0].reshape(value.shape)))

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory() if self._pin_memory else tensor

    def _free_slots(self) -> None:
        for slot in [slot for slot in self._lent_slots if is_free(self._arrays[slot], 0)]:
            self._lent_slots.remove(slot)
            self._flags[slot] = _FREE


def _new_shared(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    # Shared memory begins with a page. The offset counts elements: bytes get the offset that suits the decoder, and
    # float32 elements begin with a cache line.
    memory = torch.empty(DECODING_OFFSET + math.prod(shape), dtype=dtype).share_memory_()  # type: ignore[no-untyped-call]
    return memory[DECODING_OFFSET:].view(shape)  # type: ignore[no-any-return]
