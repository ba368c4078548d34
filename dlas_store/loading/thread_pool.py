"""A thread pool that is paused while this process forks, so that no child inherits a C library's held lock."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_POLL_SECONDS = 0.0002

_PATIENCE_SECONDS = 5.0
"""Of a fork with jobs that do not come to an end, such as one that waits for another pool's, which is paused."""


class ForkSafeThreadPool(ThreadPoolExecutor):
    """A pool of threads beside which, and right after which, paused_for_fork() lets worker processes be forked.

    A forked process has the thread that forked it alone, but every lock as it was: one that another thread held stays
    locked for ever. Python sees to its own locks, OpenCV does not to its. Threads take those while they work, and once
    more when they end: what OpenCV keeps for each of them is freed when Python has joined it already.
    """

    def __init__(self, threads: int) -> None:
        """Take the number of threads."""
        self._jobs = 0
        self._closing = False
        self._files_of_threads: dict[int, int | None] = {}
        super().__init__(threads, "dlas_store", initializer=_thread_noter(self._files_of_threads))

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Let a thread do a job; one that none has begun when the pool is shut down is given up."""
        with _gate.changed:
            self._jobs += 1
        try:
            return super().submit(self._do, partial(fn, *args, **kwargs))
        except BaseException:
            self._count_done()
            raise

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads; with ``wait`` the process has none of them any more when this returns.

        Jobs that wait are given up, with ``cancel_futures`` or not.
        """
        # An iterator that was forgotten may be ended by the garbage collection of one of its own threads.
        wait = wait and threading.get_ident() not in self._files_of_threads
        with _gate.changed:
            self._closing = True
            _gate.changed.notify_all()
            if wait:
                _gate.changed.wait_for(lambda: not self._jobs)
        if wait:
            with _gate.section():
                super().shutdown(wait=True)
                for file in self._files():
                    _wait_until_gone(file)
        else:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
        for file in self._files():
            os.close(file)
        self._files_of_threads.clear()

    def _files(self) -> list[int]:
        return [file for file in self._files_of_threads.values() if file is not None]

    def _do(self, job: Callable[[], R]) -> R:
        try:
            with _gate.section(unless=lambda: self._closing):
                if self._closing:
                    raise CancelledError
                return job()
        finally:
            self._count_done()

    def _count_done(self) -> None:
        with _gate.changed:
            self._jobs -= 1
            if self._closing and not self._jobs:
                _gate.changed.notify_all()


@contextmanager
def paused_for_fork() -> Iterator[None]:
    """Pause the pools of this process for the block; wait some seconds for the jobs that they have begun."""
    this_thread = threading.get_ident()
    try:
        with _gate.changed:
            _gate.closed_by.append(this_thread)
            _gate.changed.wait_for(lambda: not _gate.inside, _PATIENCE_SECONDS)
        yield
    finally:
        with _gate.changed:
            _gate.closed_by.remove(this_thread)
            _gate.changed.notify_all()


class _Gate:
    """Counts the sections that no fork may meet, and knows the threads that wish to fork."""

    def __init__(self) -> None:
        self.open()

    def open(self) -> None:
        """Begin anew, as in a forked process, which has none of the threads."""
        self.changed = threading.Condition()
        self.inside = 0
        self.closed_by: list[int] = []

    @contextmanager
    def section(self, unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Run a block that no fork may meet, once nobody wishes to fork or the condition holds."""
        this_thread = threading.get_ident()
        with self.changed:
            # A thread that forks may itself end an epoch, when its garbage is collected.
            self.changed.wait_for(lambda: not self.closed_by or this_thread in self.closed_by or unless())
            self.inside += 1
        try:
            yield
        finally:
            with self.changed:
                self.inside -= 1
                if self.closed_by:
                    self.changed.notify_all()


_gate = _Gate()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_gate.open)


def _thread_noter(files_of_threads: dict[int, int | None]) -> Callable[[], None]:
    def note_thread() -> None:
        try:
            # Unlike a number, which the system gives again, an open file never comes to mean another thread.
            files_of_threads[threading.get_ident()] = os.open("/proc/thread-self/comm", os.O_RDONLY)
        except OSError:  # not on Linux, and nowhere else are workers forked unless asked for
            files_of_threads[threading.get_ident()] = None

    return note_thread


def _wait_until_gone(thread: int) -> None:
    while True:
        try:
            os.pread(thread, 1, 0)
        except ProcessLookupError:
            return
        time.sleep(_POLL_SECONDS)
