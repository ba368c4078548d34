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

_MAX_WAIT_SECONDS = 5.0
"""How long a fork waits for jobs that do not end, such as a job that waits for a job of another, paused pool."""


class ForkSafeThreadPool(ThreadPoolExecutor):
    """A thread pool that paused_for_fork() pauses, so that worker processes can be forked beside it and right after it.

    A forked process has only the thread that forked it, but every lock in the state of that moment: a lock that another
    thread held stays locked for ever. Python makes its own locks safe for forks, but OpenCV does not. A thread takes
    OpenCV's locks while it works, and once more when it ends: the memory that OpenCV keeps for each thread is freed
    after Python has joined the thread.
    """

    def __init__(self, threads: int) -> None:
        """Set up the pool.

        Args:
            threads: number of threads.
        """
        self._jobs = 0
        self._closing = False
        self._files_of_threads: dict[int, int | None] = {}
        super().__init__(threads, "dlas_store", initializer=_thread_recorder(self._files_of_threads))

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run a job in a thread. A job that has not begun when the pool is shut down is cancelled."""
        with _gate.changed:
            self._jobs += 1
        try:
            return super().submit(self._do, partial(fn, *args, **kwargs))
        except BaseException:
            self._count_done()
            raise

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel the jobs that have not begun, with ``cancel_futures`` or without, and end the threads.

        With ``wait`` the method returns when the process has none of the pool's threads.
        """
        # Garbage collection in one of the pool's own threads may close a forgotten iterator; that thread cannot wait
        # for itself.
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
                    _wait_for_thread_end(file)
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
    """Pause all pools of this process during the block; wait some seconds for running jobs first."""
    thread = threading.get_ident()
    try:
        with _gate.changed:
            _gate.forking_threads.append(thread)
            _gate.changed.wait_for(lambda: not _gate.sections, _MAX_WAIT_SECONDS)
        yield
    finally:
        with _gate.changed:
            _gate.forking_threads.remove(thread)
            _gate.changed.notify_all()


class _Gate:
    """A gate that keeps forks and sections apart.

    A section is a block during which no fork may happen. The gate counts the running sections, and lists the threads
    that fork or wait to fork.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Open the gate, also in a forked process, which has none of the other threads."""
        self.changed = threading.Condition()
        self.sections = 0
        self.forking_threads: list[int] = []

    @contextmanager
    def section(self, unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Run a block during which no fork may happen.

        The block begins when no thread waits to fork, or when ``unless`` returns true.
        """
        thread = threading.get_ident()
        with self.changed:
            # A forking thread may itself close an epoch's iterator, by garbage collection, so it must not wait.
            self.changed.wait_for(lambda: not self.forking_threads or thread in self.forking_threads or unless())
            self.sections += 1
        try:
            yield
        finally:
            with self.changed:
                self.sections -= 1
                if self.forking_threads:
                    self.changed.notify_all()


_gate = _Gate()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_gate.reset)


def _thread_recorder(files_of_threads: dict[int, int | None]) -> Callable[[], None]:
    """Return a function that opens a /proc file of the thread that calls it, and adds the file to a dict."""

    def record_thread() -> None:
        try:
            # The system reuses a thread's number, but an open file always refers to the same thread.
            files_of_threads[threading.get_ident()] = os.open("/proc/thread-self/comm", os.O_RDONLY)
        except OSError:  # not on Linux; no other system forks workers by default
            files_of_threads[threading.get_ident()] = None

    return record_thread


def _wait_for_thread_end(file: int) -> None:
    """Wait until the system has ended the thread of a /proc file, which cannot be read from then on."""
    while True:
        try:
            os.pread(file, 1, 0)
        except ProcessLookupError:
            return
        time.sleep(_POLL_SECONDS)
