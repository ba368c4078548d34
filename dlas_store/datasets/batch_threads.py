"""An executor that makes batches in a pool of threads: each in parts, several batches at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from itertools import pairwise
from typing import Any

from dlas_store.datasets.batches import BatchWork


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

    def make(self, builder: BatchWork) -> Future[Any]:
        """Let the pool make a batch that was begun; the future gives it, or raises what making it raised."""
        batch = _SharedBatch()
        batch.future.set_running_or_notify_cancel()
        for part in batch.split(builder, self._parts):
            self._submit(self._part_jobs, part)
        return batch.future

    def begin_and_make(self, begin: Callable[[], BatchWork]) -> Future[Any]:
        """Let the pool begin a batch and make it; see make."""
        batch = _SharedBatch()
        self._submit(self._batch_jobs, partial(self._start, batch, begin))
        return batch.future

    def _start(self, batch: _SharedBatch, begin: Callable[[], BatchWork]) -> None:
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

    def split(self, builder: BatchWork, parts: int) -> list[Callable[[], None]]:
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

    def _fill(self, builder: BatchWork, start: int, stop: int) -> None:
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
