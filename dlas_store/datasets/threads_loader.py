"""The loader that decodes in threads of this process, batches ahead of whoever reads them."""

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

_ANNOUNCED_AHEAD = 4
"""How many batches beyond those the disk is asked for, where it is slow."""

_FIRST_ALONE_SECONDS = 0.05
"""For how long only the first batch is made; after that the disk is asked for the next ones."""


class ThreadsLoader(Loader):
    """Gives the batches of a dataset, made by threads.

    A batch belongs to whoever gets it, for as long as anything refers to it. Threads, and what they have begun, end
    with the pass: at its end, when its iterator is closed or forgotten, or when an item raises, which the pass passes
    on. The dataset is used by several threads at a time; those of this library may be. A WorkersLoader may fork its
    processes beside a pass and after one, since it waits for a moment when the threads do nothing; whoever else forks
    should not do so beside a pass (see ForkSafeThreadPool).
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
        """Take what to read.

        Args:
            dataset: with a length.
            sampler: gives draws, or indices; a batch sampler where it has ``batches``.
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
        upcoming = self._announced(batches)
        making: deque[Future[Any]] = deque()
        process = os.getpid()
        pool = ForkSafeThreadPool(self.num_threads)
        threads = BatchExecutor(pool, parts=self.num_threads)
        try:
            # Begun here, so that all threads make the first batch before any begins the second.
            with interrupt_delayed():
                if (first := next(upcoming, None)) is not None:
                    making.append(threads.make(self._begin(first)))
                    # Looking the next ones up would take Python's lock from it; where it takes long, the disk is slow.
                    wait(making, timeout=_FIRST_ALONE_SECONDS)
            while True:
                with interrupt_delayed():
                    while len(making) < PREFETCH_BATCHES and (batch := next(upcoming, None)) is not None:
                        making.append(threads.begin_and_make(partial(self._begin, batch)))
                    if not making:
                        break
                    made = making.popleft().result()
                if not epoch.delivered:
                    # Nobody waits for a batch any more. Few parts, for each is handed to a thread: as many as keep all
                    # busy while one batch more waits for them.
                    threads.split_into(-(-self.num_threads // (PREFETCH_BATCHES - 1)))
                epoch.delivered += 1
                yield made if self._to_device is None else self._to_device.make(made)
                del made  # its memory is free for the next one as soon as the reader lets go of it
        finally:
            if os.getpid() == process:  # a forked process has no such threads
                with interrupt_delayed():
                    for future in making:
                        future.cancel()
                    pool.shutdown(wait=True, cancel_futures=True)
        self._batches.end(epoch)

    def _announced(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Give batches, some later than the disk is told of them."""
        if not isinstance(self.dataset, ItemDataset):
            yield from batches
            return
        readahead = Readahead(self.dataset)
        waiting: deque[Batch] = deque()
        ahead = 0  # of the first one, for which the threads wait
        for batch in batches:
            readahead.prefetch(batch)
            waiting.append(batch)
            if len(waiting) > ahead:
                yield waiting.popleft()
                ahead = min(ahead + 1, _ANNOUNCED_AHEAD)
        yield from waiting

    def _begin(self, batch: Batch) -> BatchWork:
        allocate = pinned if self.pin_memory else self._memory.of_batch()
        return begin_batch(self.dataset, batch, allocate, self.collate_fn, raw=self._to_device is not None)


def begin_batch(
    dataset: Dataset[Any], batch: Sequence[Any], allocate: Allocate, collate_fn: Collate | None, *, raw: bool = False
) -> BatchWork:
    """Begin a batch of any dataset.

    Args:
        dataset: an ItemDataset makes the batch as a whole; any other, or with a collate function, gives items.
        batch: draws, or indices.
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
