"""A loader that makes batches in threads of this process, with an executor and a prefetch of its own."""

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
from dlas_store.loading.buffers import BufferPool, keep_freed_memory_in_process, new_pinned_array
from dlas_store.loading.dataset import ItemDataset
from dlas_store.loading.loader import BatchKeys, EpochBatches, Loader
from dlas_store.loading.thread_pool import ForkSafeThreadPool
from dlas_store.processes import interrupt_delayed
from dlas_store.sampling.rng import SampleKey

try:
    from resource import RUSAGE_SELF, getrusage
except ImportError:  # on Windows, which has a readahead of its own

    def _disk_reads() -> int:
        return 0
else:

    def _disk_reads() -> int:
        """Return how many page faults of this process have read from the disk."""
        return getrusage(RUSAGE_SELF).ru_majflt


PREFETCH_BATCHES = 3
"""How many batches are made while one is read: two keep all threads busy, the third evens out slow batches."""

_READAHEAD_DISTANCE = 4
"""How many batches beyond the batch that begins next the kernel is told of, if the disk is slow."""

_FIRST_ALONE_SECONDS = 0.05
"""Longest time during which only the first batch is made; afterwards the kernel is told of the next batches."""

_READAHEAD_BATCHES = 64
"""How many batches the kernel is told of after a page fault that read from the disk."""

_FIRST_READAHEAD_BATCHES = 8
"""How many batches the kernel is told of at the start of a loader's first epoch, before any page fault."""


class ThreadsLoader(Loader):
    """Yields the batches of a dataset, made by threads.

    A batch belongs to its reader for as long as anything refers to it. Threads and unfinished batches end with the
    iterator: at the end of the epoch, when the iterator is closed or forgotten, or when an item raises an error, which
    the iterator raises. Several threads use the dataset at a time; this library's datasets allow that. A WorkersLoader
    may fork its processes while the iterator exists and after it, because the WorkersLoader pauses the threads first.
    Other forks should not happen while the iterator exists (see ForkSafeThreadPool).
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
            sampler: yields keys, or indices; an EpochSampler also divides them into batches.
            batch_size: number of items in a batch of this process.
            drop_last: whether to drop an incomplete last batch.
            threads: number of threads.
            collate_fn: makes a batch from a list of items; by default PyTorch's own, or an equal result made faster.
            pin_memory: whether to put batches into page-locked memory.
            to_device: makes batches on a device; None makes them in the threads.
        """
        batches = EpochBatches(dataset, sampler, batch_size=batch_size, drop_last=drop_last)
        super().__init__(batches, num_workers=0, num_threads=threads)
        self.collate_fn = collate_fn
        self.pin_memory = pin_memory
        self._to_device = to_device
        self._buffers = BufferPool(PREFETCH_BATCHES + 2)
        self._readahead = Readahead(dataset) if isinstance(dataset, ItemDataset) else None

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of an epoch."""
        keep_freed_memory_in_process()
        epoch, batches = self._batches.begin()
        upcoming = self._prefetched(batches)
        futures: deque[Future[Any]] = deque()
        process = os.getpid()
        pool = ForkSafeThreadPool(self.num_threads)
        executor = BatchExecutor(pool, parts=self.num_threads)
        try:
            # The first batch begins in this thread, so that all threads make it before any begins the second batch.
            with interrupt_delayed():
                if (keys := next(upcoming, None)) is not None:
                    futures.append(executor.make(self._begin(keys)))
                    # To locate the next batches would take Python's lock from the threads that make the first. If the
                    # first batch takes long, the disk is slow, and the next batches are prefetched.
                    wait(futures, timeout=_FIRST_ALONE_SECONDS)
                    keys = next(upcoming, None)
            while True:
                with interrupt_delayed():
                    while len(futures) < PREFETCH_BATCHES and keys is not None:
                        begin = partial(self._begin, keys)
                        if (keys := next(upcoming, None)) is None:
                            executor.split_into(self.num_threads)  # the last batch, after which no thread finds work
                        futures.append(executor.begin_and_make(begin))
                    if not futures:
                        break
                    batch = futures.popleft().result()
                if not epoch.delivered and keys is not None:
                    # After the first batch the reader need not wait, and each part costs a submission to the pool. So
                    # few parts are best: as many as keep all threads busy while one batch waits for its reader.
                    executor.split_into(-(-self.num_threads // (PREFETCH_BATCHES - 1)))
                epoch.delivered += 1
                yield batch if self._to_device is None else self._to_device.make(batch)
                del batch  # the next batch can use the memory as soon as the reader releases it
        finally:
            if os.getpid() == process:  # a forked process does not have these threads
                with interrupt_delayed():
                    for future in futures:
                        future.cancel()
                    pool.shutdown(wait=True, cancel_futures=True)
        self._batches.end(epoch)

    def _prefetched(self, batches: Iterator[BatchKeys]) -> Iterator[BatchKeys]:
        """Yield batches of keys, and tell the kernel of up to _READAHEAD_DISTANCE batches beyond each."""
        if self._readahead is None:
            yield from batches
            return
        prefetched: deque[BatchKeys] = deque()
        distance = 0  # 0 for the first batch, because the threads wait for it
        for batch in batches:
            self._readahead.prefetch(batch)
            prefetched.append(batch)
            if len(prefetched) > distance:
                yield prefetched.popleft()
                distance = min(distance + 1, _READAHEAD_DISTANCE)
        yield from prefetched

    def _begin(self, keys: BatchKeys) -> BatchBuilder:
        allocate = new_pinned_array if self.pin_memory else self._buffers.batch_allocator()
        return batch_builder(self.dataset, keys, allocate, self.collate_fn, raw=self._to_device is not None)


def batch_builder(
    dataset: Dataset[Any], keys: Sequence[Any], allocate: Allocate, collate_fn: Collate | None, *, raw: bool = False
) -> BatchBuilder:
    """Begin a batch of any dataset.

    Args:
        dataset: an ItemDataset makes the batch itself, unless there is a collate function; any other dataset is asked
            for each item.
        keys: sample keys, or indices.
        allocate: returns the memory of the batch's tensors.
        collate_fn: makes the batch from a list of items; None means PyTorch's own.
        raw: begin a RawBatch for an ItemDataset's device_transform().
    """
    if raw:
        assert isinstance(dataset, ItemDataset)
        return dataset.begin_raw_batch(keys, allocate)
    if isinstance(dataset, ItemDataset) and collate_fn is None:
        return dataset.batch_builder(keys, allocate)
    return CollatingBuilder(dataset.__getitem__, keys, collate_fn or default_collate)


class BatchExecutor:
    """An executor of batches: a thread pool makes them, each in parts.

    A free thread takes a part of a batch that has begun before it begins another batch. Batches are therefore finished
    one after another, rather than several at a time and late.
    """

    def __init__(self, pool: Executor, *, parts: int) -> None:
        """Set up the executor.

        Args:
            pool: the thread pool.
            parts: number of parts of each batch.
        """
        self._pool = pool
        self._parts = parts
        self._part_jobs: deque[Callable[[], None]] = deque()
        self._batch_jobs: deque[Callable[[], None]] = deque()

    def split_into(self, parts: int) -> None:
        """Split each later batch into another number of parts."""
        self._parts = parts

    def make(self, builder: BatchBuilder) -> Future[Any]:
        """Make a batch that has begun; return the future of the batch, or of the first error in making it."""
        batch = _SharedBatch()
        batch.future.set_running_or_notify_cancel()
        for part in batch.split(builder, self._parts):
            self._submit(self._part_jobs, part)
        return batch.future

    def begin_and_make(self, begin: Callable[[], BatchBuilder]) -> Future[Any]:
        """Begin a batch in the pool, and make it; see make."""
        batch = _SharedBatch()
        self._submit(self._batch_jobs, partial(self._start, batch, begin))
        return batch.future

    def _start(self, batch: _SharedBatch, begin: Callable[[], BatchBuilder]) -> None:
        if not batch.future.set_running_or_notify_cancel():
            return
        try:
            first_part, *further_parts = batch.split(begin(), self._parts)
            for part in further_parts:
                self._submit(self._part_jobs, part)
        except BaseException as error:  # noqa: BLE001 - the future raises it for the batch's reader
            batch.fail(error)
        else:
            first_part()

    def _submit(self, jobs: deque[Callable[[], None]], job: Callable[[], None]) -> None:
        jobs.append(job)
        self._pool.submit(self._do_one)  # one call for each job

    def _do_one(self) -> None:
        try:
            job = self._part_jobs.popleft()
        except IndexError:
            job = self._batch_jobs.popleft()
        job()


class _SharedBatch:
    """A batch made by several threads: none waits for another, and the last one to end finishes the batch."""

    def __init__(self) -> None:
        self.future: Future[Any] = Future()
        self._lock = threading.Lock()

    def split(self, builder: BatchBuilder, parts: int) -> list[Callable[[], None]]:
        """Return one or more functions, each of which makes a part of the batch."""
        count = len(builder)
        self._remaining_parts = parts = min(parts, count)
        bounds = [count * part // parts for part in range(parts + 1)]
        return [partial(self._fill, builder, start, stop) for start, stop in pairwise(bounds)]

    def fail(self, error: BaseException) -> None:
        """Let the future raise an error, unless it is done."""
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
        except BaseException as error:  # noqa: BLE001 - the future raises it for the batch's reader
            self.fail(error)


class Readahead:
    """A prefetch of batches, active while page faults show that data is not cached.

    If all data is cached, a prefetch costs two system calls a patch in vain: 1 to 2 % of the time to decode the patch.
    """

    def __init__(self, dataset: ItemDataset) -> None:
        self._dataset = dataset
        self._counted_reads = _disk_reads()
        self._remaining_batches = _FIRST_READAHEAD_BATCHES

    def prefetch(self, keys: Sequence[SampleKey]) -> None:
        """Tell the kernel which pages a batch needs soon, if recent page faults show that data is not cached."""
        reads = _disk_reads()
        if reads > self._counted_reads:
            self._counted_reads, self._remaining_batches = reads, _READAHEAD_BATCHES
        if self._remaining_batches:
            self._remaining_batches -= 1
            self._dataset.prefetch(keys)
