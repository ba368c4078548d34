"""A loader that makes batches in worker processes: PyTorch's DataLoader, given whole batches."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from dlas_store.datasets.batch_memory import keep_freed_memory_in_process
from dlas_store.datasets.batch_order import Batch, EpochBatches
from dlas_store.datasets.batch_threads import BatchExecutor
from dlas_store.datasets.batches import Allocate, BatchTransform, BatchWork, Collate, new_array
from dlas_store.datasets.pass_threads import paused_for_fork
from dlas_store.datasets.passes import Loader
from dlas_store.datasets.shared_batches import BufferReceiver, SharedBufferPool, new_slots
from dlas_store.datasets.threads_loader import batch_builder
from dlas_store.interrupts import interrupt_delayed, leave_interrupts_to_parent, processes_start

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

    def _begin(self, batch: Sequence[Any], allocate: Allocate) -> BatchWork:
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
