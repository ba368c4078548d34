"""A loader that makes batches in worker processes, which send them in shared memory.

PyTorch's DataLoader runs the processes and sees each batch as a single item.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from multiprocessing.util import Finalize
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from dlas_store.loading.batch import Allocate, BatchBuilder, BatchTransform, Collate, new_array
from dlas_store.loading.buffers import keep_freed_memory_in_process
from dlas_store.loading.loader import BatchKeys, EpochBatches, Loader
from dlas_store.loading.shared_memory import (
    BufferReceiver,
    SharedBufferPool,
    new_slots,
    pack,
    pack_error,
    shared_memory_errors,
    unpack,
)
from dlas_store.loading.thread_pool import paused_for_fork
from dlas_store.loading.threads import BatchExecutor, batch_builder
from dlas_store.processes import interrupt_delayed, leave_interrupts_to_parent, processes_start

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
        """Yield the batches of an epoch.

        Raises:
            SharedMemoryError: the system refuses the processes shared memory, or files to share it by.
            Exception: any error in making a batch.
        """
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
            batch_sampler=_BatchSampler(batches, len(self), packs=bool(self.num_workers)),
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
            with start_guard, paused_for_fork() if forks else nullcontext(), shared_memory_errors():
                iterator = processes.start(loader)
            while True:
                with interrupt_delayed(), shared_memory_errors():
                    message: Any = next(iterator, _END)
                if message is _END:
                    break
                batch = receiver.receive(unpack(message)) if self.num_workers else message
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

    def start(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """Return an iterator of a DataLoader, and take charge of its workers."""
        try:
            iterator = iter(loader)
        except BaseException as error:
            _end_started_workers(error)
            raise
        if hasattr(iterator, "_shutdown_workers"):  # only an iterator with workers has the method
            self._iterator = iterator
            atexit.register(self.end)
        return iterator

    def end(self) -> None:
        """End the workers, and wait until they have ended."""
        if self._iterator is None:
            return
        atexit.unregister(self.end)
        if os.getpid() == self._owner:  # a process that was forked meanwhile must not end them
            with interrupt_delayed():
                self._iterator._shutdown_workers()


def _end_started_workers(error: BaseException) -> None:
    """End the workers that PyTorch's iterator had started before an error stopped it.

    The iterator would end them when the error is forgotten, with an error of its own about what it lacks.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        iterator: Any = frame.f_locals.get("self")
        if hasattr(iterator, "_shutdown_workers"):
            workers = getattr(iterator, "_workers", [])
            iterator._workers_status = [True] * len(workers)
            if workers:
                iterator._shutdown_workers()
            iterator._shutdown = True
            return


class _BatchSampler(Sampler[Any]):
    """The keys of an epoch's batches, as a batch sampler for DataLoader; packed if other processes get them."""

    def __init__(self, batches: Iterator[BatchKeys], count: int, *, packs: bool) -> None:
        self._batches = batches
        self._count = count
        self._packs = packs

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        return map(pack, self._batches) if self._packs else self._batches


class _BatchDataset(Dataset[Any]):
    """A dataset that returns a batch at a time; a worker's batches lie in memory shared with its parent.

    A worker gets packed keys, and returns a packed batch or error (see shared_memory.pack).
    """

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

    def __getitems__(self, keys: Any) -> Any:
        worker = get_worker_info()
        if worker is None:
            builder = self._begin(keys, new_array)
            builder.fill(0, len(builder))
            return builder.finish()
        try:
            return pack(self._make(unpack(keys), worker.id))
        except Exception:  # noqa: BLE001 - the reader raises it
            return pack_error(f"in DataLoader worker process {worker.id}")

    def _make(self, keys: Sequence[Any], worker: int) -> Any:
        """Return a batch as a message to BufferReceiver."""
        if self._buffers is None:
            self._buffers = self._prepare(worker)
        builder = self._begin(keys, self._buffers.allocate)
        if self._executor is not None:
            return self._buffers.send(self._executor.make(builder).result())
        builder.fill(0, len(builder))
        return self._buffers.send(builder.finish())

    def _prepare(self, worker: int) -> SharedBufferPool:
        """Start the threads of this worker, and return its pool."""
        # The first tensor that a process sends makes a socket in a temporary folder, which the process removes as it
        # ends. An item may end the process before, so that a folder made by another thread could remain.
        with shared_memory_errors():
            pack(torch.zeros(1).share_memory_())  # type: ignore[no-untyped-call]
        if self._threads > 1:
            self._executor = BatchExecutor(ThreadPoolExecutor(self._threads), parts=self._threads)
        return SharedBufferPool(self._slots, worker)

    def _begin(self, keys: Sequence[Any], allocate: Allocate) -> BatchBuilder:
        return batch_builder(self._dataset, keys, allocate, self._collate_fn, raw=self._raw)


def _identity(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    leave_interrupts_to_parent()
    keep_freed_memory_in_process()
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
