"""Batches made by a pool of threads: each in parts, several batches at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from itertools import pairwise
from typing import Any

from dlas_store.datasets.batches import BatchWork


def submit_batch(pool: Executor, begin: Callable[[], BatchWork], *, parts: int) -> Future[Any]:
    """Let a pool make a batch.

    Args:
        pool: threads.
        begin: begins the batch; called by one of them.
        parts: how many threads share it.

    Returns:
        Gives the batch, or raises what making it raised.
    """
    batch: _SharedBatch = _SharedBatch(pool, begin, parts)
    pool.submit(batch.start)
    return batch.future


class _SharedBatch:
    """No thread ever waits for another: the one that ends last finishes the batch."""

    def __init__(self, pool: Executor, begin: Callable[[], BatchWork], parts: int) -> None:
        self.future: Future[Any] = Future()
        self._pool = pool
        self._begin = begin
        self._parts = parts
        self._lock = threading.Lock()

    def start(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self._work = self._begin()
            count = len(self._work)
            parts = min(self._parts, count)
            bounds = [count * part // parts for part in range(parts + 1)]
            self._left = parts
            for start, stop in pairwise(bounds[1:]):
                self._pool.submit(self._fill, start, stop)
        except BaseException as error:  # noqa: BLE001 - whoever waits for the batch gets it
            self._fail(error)
        else:
            self._fill(bounds[0], bounds[1])

    def _fill(self, start: int, stop: int) -> None:
        try:
            if not self.future.done():
                self._work.fill(start, stop)
            with self._lock:
                self._left -= 1
                is_last = not self._left
            if is_last and not self.future.done():
                self.future.set_result(self._work.finish())
        except BaseException as error:  # noqa: BLE001
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if not self.future.done():
                self.future.set_exception(error)
