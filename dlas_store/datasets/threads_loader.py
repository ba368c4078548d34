"""A loader that makes batches in threads of this process, ahead of the reader."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

from torch.utils.data import Dataset, Sampler, default_collate

from dlas_store.datasets.batch_memory import BufferPool, keep_freed_memory_in_process, pinned
from dlas_store.datasets.batch_order import Batch, EpochBatches
from dlas_store.datasets.batch_threads import BatchExecutor
from dlas_store.datasets.batches import Allocate, BatchTransform, BatchWork, Collate, CollatingBuilder
from dlas_store.datasets.item_dataset import ItemDataset
from dlas_store.datasets.pass_threads import ForkSafeThreadPool
from dlas_store.datasets.passes import Loader
from dlas_store.datasets.readahead import Readahead
from dlas_store.interrupts import interrupt_delayed

PREFETCH_BATCHES = 3
"""How many batches are made while one is read: two keep all threads busy, one more evens out slow ones."""

_ADVISED_BATCHES = 4
"""How many batches beyond those the kernel is told of, where the disk is slow."""

_FIRST_ALONE_SECONDS = 0.05
"""For how long only the first batch is made; after that the kernel is told of the next ones."""


class ThreadsLoader(Loader):
    """Gives the batches of a dataset, made by threads.

    A batch belongs to its reader, for as long as anything refers to it. The threads, and the batches that they have
    begun, end with the iterator: at the end of the epoch, when the iterator is closed or forgotten, or when an item
    raises, whose error the iterator raises. Several threads use the dataset at a time; those of this library allow it.
    A WorkersLoader may fork its processes beside the iterator and after it, since it waits for a moment when the
    threads do nothing; other forks should not happen beside it (see ForkSafeThreadPool).
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        sampler: Sampler[Any] | Iterable[Any],
        batch_size: int,
        drop_last: bool,
        threads: int,
        collate_fn: Collate | None = None,
        pin_memory: bool = False,
        to_device: BatchTransform | None = None,
    ) -> None:
        """Set up the loader.

        Args:
            dataset: the data, with a length.
            sampler: gives keys, or indices; a batch sampler where it has ``batches``.
            batch_size: items a batch, of this process.
            drop_last: leave out an incomplete last batch.
            threads: how many.
            collate_fn: makes a batch of a list of items; by default PyTorch's own, or what equals it.
            pin_memory: put batches into page-locked memory.
            to_device: makes batches on a device; None makes them in the threads.
        """
        batches = EpochBatches(dataset, sampler, batch_size=batch_size, drop_last=drop_last)
        super().__init__(batches, num_workers=0, num_threads=threads)
        self.collate_fn = collate_fn
        self.pin_memory = pin_memory
        self._to_device = to_device
        self._memory = BufferPool(PREFETCH_BATCHES + 2)

    def __iter__(self) -> Iterator[Any]:
        """Give the batches of an epoch."""
        keep_freed_memory_in_process()
        epoch, batches = self._batches.begin()
        upcoming = self._prefetched(batches)
        futures: deque[Future[Any]] = deque()
        process = os.getpid()
        pool = ForkSafeThreadPool(self.num_threads)
        executor = BatchExecutor(pool, parts=self.num_threads)
        try:
            # Begun here, so that all threads make the first batch before any begins the second.
            with interrupt_delayed():
                if (first_batch := next(upcoming, None)) is not None:
                    futures.append(executor.make(self._begin(first_batch)))
                    # Looking the next ones up would take Python's lock from it; where it takes long, the disk is slow.
                    wait(futures, timeout=_FIRST_ALONE_SECONDS)
            while True:
                with interrupt_delayed():
                    while len(futures) < PREFETCH_BATCHES and (batch := next(upcoming, None)) is not None:
                        futures.append(executor.begin_and_make(partial(self._begin, batch)))
                    if not futures:
                        break
                    made_batch = futures.popleft().result()
                if not epoch.delivered:
                    # The reader waits for no batch any more. Few parts, for each is handed to a thread: as many as
                    # keep all busy while one batch more waits for them.
                    executor.split_into(-(-self.num_threads // (PREFETCH_BATCHES - 1)))
                epoch.delivered += 1
                yield made_batch if self._to_device is None else self._to_device.make(made_batch)
                del made_batch  # its memory is free for the next one as soon as the reader lets go of it
        finally:
            if os.getpid() == process:  # a forked process has no such threads
                with interrupt_delayed():
                    for future in futures:
                        future.cancel()
                    pool.shutdown(wait=True, cancel_futures=True)
        self._batches.end(epoch)

    def _prefetched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Give batches, some of them later than the kernel is told of them."""
        if not isinstance(self.dataset, ItemDataset):
            yield from batches
            return
        readahead = Readahead(self.dataset)
        prefetched: deque[Batch] = deque()
        distance = 0  # of the first one, for which the threads wait
        for batch in batches:
            readahead.prefetch(batch)
            prefetched.append(batch)
            if len(prefetched) > distance:
                yield prefetched.popleft()
                distance = min(distance + 1, _ADVISED_BATCHES)
        yield from prefetched

    def _begin(self, batch: Batch) -> BatchWork:
        allocate = pinned if self.pin_memory else self._memory.of_batch()
        return batch_builder(self.dataset, batch, allocate, self.collate_fn, raw=self._to_device is not None)


def batch_builder(
    dataset: Dataset[Any], batch: Sequence[Any], allocate: Allocate, collate_fn: Collate | None, *, raw: bool = False
) -> BatchWork:
    """Begin a batch of any dataset.

    Args:
        dataset: an ItemDataset makes the batch as a whole; any other, or with a collate function, gives items.
        batch: keys, or indices.
        allocate: gives the memory of its tensors.
        collate_fn: makes it of a list of items.
        raw: begin what an ItemDataset's device_transform() makes the batch of.
    """
    if raw:
        assert isinstance(dataset, ItemDataset)
        return dataset.begin_raw_batch(batch, allocate)
    if isinstance(dataset, ItemDataset) and collate_fn is None:
        return dataset.begin_batch(batch, allocate)
    return CollatingBuilder(dataset.__getitem__, batch, collate_fn or default_collate)
