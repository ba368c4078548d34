"""A loader that makes batches in threads of this process, ahead of the reader.

An executor that makes batches in a pool of threads: each in parts, several batches at a time.

Prefetch: while page faults show that data is not cached, tell the kernel which pages the next batches need.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, wait
from functools import partial
from itertools import pairwise
from typing import Any

from torch.utils.data import Dataset, Sampler, default_collate

from dlas_store.loading.batch import Allocate, BatchBuilder, BatchTransform, Collate, CollatingBuilder
from dlas_store.loading.buffers import BufferPool, keep_freed_memory_in_process, pinned
from dlas_store.loading.dataset import ItemDataset
from dlas_store.loading.loader import Batch, EpochBatches, Loader
from dlas_store.loading.thread_pool import ForkSafeThreadPool
from dlas_store.processes import interrupt_delayed
from dlas_store.sampling.rng import SampleKey


class BatchExecutor:
    """Lets a pool make batches.

    A thread that is free takes a part of a batch that was begun before it begins another one, so that batches come one
    after another rather than several at a time and late.
    """

    def __init__(self, pool: Executor, *, parts: int) -> None:
        """Take the pool, and how many threads share a batch."""
        self._pool = pool
        self._parts = parts
        self._part_jobs: deque[Callable[[], None]] = deque()
        self._batch_jobs: deque[Callable[[], None]] = deque()

    def split_into(self, parts: int) -> None:
        """Let another number of threads share each batch from now on."""
        self._parts = parts

    def make(self, builder: BatchBuilder) -> Future[Any]:
        """Let the pool make a batch that was begun; the future gives it, or raises what making it raised."""
        batch = _SharedBatch()
        batch.future.set_running_or_notify_cancel()
        for part in batch.split(builder, self._parts):
            self._submit(self._part_jobs, part)
        return batch.future

    def begin_and_make(self, begin: Callable[[], BatchBuilder]) -> Future[Any]:
        """Let the pool begin a batch and make it; see make."""
        batch = _SharedBatch()
        self._submit(self._batch_jobs, partial(self._start, batch, begin))
        return batch.future

    def _start(self, batch: _SharedBatch, begin: Callable[[], BatchBuilder]) -> None:
        if not batch.future.set_running_or_notify_cancel():
            return
        try:
            first_part, *other_parts = batch.split(begin(), self._parts)
            for part in other_parts:
                self._submit(self._part_jobs, part)
        except BaseException as error:  # noqa: BLE001 - the reader of the batch gets it
            batch.fail(error)
        else:
            first_part()

    def _submit(self, jobs: deque[Callable[[], None]], job: Callable[[], None]) -> None:
        jobs.append(job)
        self._pool.submit(self._do_one)  # there are as many of these as jobs

    def _do_one(self) -> None:
        try:
            job = self._part_jobs.popleft()
        except IndexError:
            job = self._batch_jobs.popleft()
        job()


class _SharedBatch:
    """A batch that several threads make; none waits for another, and the one that ends last finishes the batch."""

    def __init__(self) -> None:
        self.future: Future[Any] = Future()
        self._lock = threading.Lock()

    def split(self, builder: BatchBuilder, parts: int) -> list[Callable[[], None]]:
        """Return a function for each part of the batch, one or more, that makes it."""
        count = len(builder)
        self._remaining_parts = parts = min(parts, count)
        bounds = [count * part // parts for part in range(parts + 1)]
        return [partial(self._fill, builder, start, stop) for start, stop in pairwise(bounds)]

    def fail(self, error: BaseException) -> None:
        """Let an error come in place of the batch."""
        with self._lock:
            if not self.future.done():
                self.future.set_exception(error)

    def _fill(self, builder: BatchBuilder, start: int, stop: int) -> None:
        try:
            if not self.future.done():
                builder.fill(start, stop)
            with self._lock:
                self._remaining_parts -= 1
                is_last = not self._remaining_parts
            if is_last and not self.future.done():
                self.future.set_result(builder.finish())
        except BaseException as error:  # noqa: BLE001 - as above
            self.fail(error)


try:
    from resource import RUSAGE_SELF, getrusage
except ImportError:  # not on Windows, which reads ahead as it likes

    def _disk_reads() -> int:
        return 0
else:

    def _disk_reads() -> int:
        return getrusage(RUSAGE_SELF).ru_majflt


_BATCHES = 64
"""For how many batches a page that had to be waited for keeps prefetching going."""

_FIRST_BATCHES = 8


class Readahead:
    """Prefetches batches while pages of this process had to be waited for, lately.

    Where all is in memory a prefetch costs two system calls a patch for nothing, 1 to 2 % of decoding it.
    """

    def __init__(self, dataset: ItemDataset) -> None:
        self._dataset = dataset
        self._counted_reads = _disk_reads()
        self._remaining_batches = _FIRST_BATCHES

    def prefetch(self, draws: Sequence[SampleKey]) -> None:
        """Tell the kernel of a batch that will be read soon."""
        reads = _disk_reads()
        if reads > self._counted_reads:
            self._counted_reads, self._remaining_batches = reads, _BATCHES
        if self._remaining_batches:
            self._remaining_batches -= 1
            self._dataset.prefetch(draws)


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

    def _begin(self, batch: Batch) -> BatchBuilder:
        allocate = pinned if self.pin_memory else self._memory.of_batch()
        return batch_builder(self.dataset, batch, allocate, self.collate_fn, raw=self._to_device is not None)


def batch_builder(
    dataset: Dataset[Any], batch: Sequence[Any], allocate: Allocate, collate_fn: Collate | None, *, raw: bool = False
) -> BatchBuilder:
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
        return dataset.batch_builder(batch, allocate)
    return CollatingBuilder(dataset.__getitem__, batch, collate_fn or default_collate)
