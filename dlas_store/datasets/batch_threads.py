"""Batches made by a pool of threads: each in parts, several batches at a time."""

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
        self._begun: deque[Callable[[], None]] = deque()
        self._waiting: deque[Callable[[], None]] = deque()

    def split_into(self, parts: int) -> None:
        """Let another number of threads share each batch from now on."""
        self._parts = parts

    def make(self, work: BatchWork) -> Future[Any]:
        """Let the pool make a batch that was begun; the future gives it, or raises what making it raised."""
        batch = _SharedBatch()
        batch.future.set_running_or_notify_cancel()
        for part in batch.share(work, self._parts):
            self._submit(self._begun, part)
        return batch.future

    def begin_and_make(self, begin: Callable[[], BatchWork]) -> Future[Any]:
        """Let the pool begin a batch and make it; see make."""
        batch = _SharedBatch()
        self._submit(self._waiting, partial(self._start, batch, begin))
        return batch.future

    def _start(self, batch: _SharedBatch, begin: Callable[[], BatchWork]) -> None:
        if not batch.future.set_running_or_notify_cancel():
            return
        try:
            first, *others = batch.share(begin(), self._parts)
            for part in others:
                self._submit(self._begun, part)
        except BaseException as error:  # noqa: BLE001 - whoever waits for the batch gets it
            batch.fail(error)
        else:
            first()

    def _submit(self, jobs: deque[Callable[[], None]], job: Callable[[], None]) -> None:
        jobs.append(job)
        self._pool.submit(self._do_one)  # there are as many of these as jobs

    def _do_one(self) -> None:
        try:
            job = self._begun.popleft()
        except IndexError:
            job = self._waiting.popleft()
        job()


class _SharedBatch:
    """No thread ever waits for another: the one that ends last finishes the batch."""

    def __init__(self) -> None:
        self.future: Future[Any] = Future()
        self._lock = threading.Lock()

    def share(self, work: BatchWork, parts: int) -> list[Callable[[], None]]:
        """Return what makes each part of the batch, one or more."""
        count = len(work)
        self._left = parts = min(parts, count)
        bounds = [count * part // parts for part in range(parts + 1)]
        return [partial(self._fill, work, start, stop) for start, stop in pairwise(bounds)]

    def fail(self, error: BaseException) -> None:
        """Let an error come in place of the batch."""
        with self._lock:
            if not self.future.done():
                self.future.set_exception(error)

    def _fill(self, work: BatchWork, start: int, stop: int) -> None:
        try:
            if not self.future.done():
                work.fill(start, stop)
            with self._lock:
                self._left -= 1
                is_last = not self._left
            if is_last and not self.future.done():
                self.future.set_result(work.finish())
        except BaseException as error:  # noqa: BLE001 - as above
            self.fail(error)
