"""Worker processes: jobs with results in order, progress, and Ctrl-C that leaves no process and no lock behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import connection, resource_tracker
from multiprocessing.sharedctypes import Synchronized, SynchronizedArray
from types import FrameType
from typing import TypeVar

from dlas_store.errors import StoreError, write_errors
from dlas_store.progress import ProgressBar

Job = TypeVar("Job")
Result = TypeVar("Result")

_HAS_SIGNAL_MASKS = hasattr(signal, "pthread_sigmask")  # Windows has none
_POLL_SECONDS = 0.1

_PATCHES_PER_REPORT = 64
"""A worker reports progress once for so many patches, because each report takes a lock that all workers share."""


class StoppedError(StoreError):
    """A job that was stopped because the whole run stops."""


class Progress:
    """Counter of a job's finished work, which reports now and then; without a report function it costs almost nothing.

    >>> progress = Progress()
    >>> progress.advance(1, 2000)
    """

    def __init__(self, report: Callable[[int, int], None] | None = None) -> None:
        """Create a counter at zero.

        Args:
            report: called with the patches and bytes since its last call; None drops the counts.
        """
        self._report = report
        self._patches = 0
        self._payload_bytes = 0

    def advance(self, patches: int, payload_bytes: int) -> None:
        """Count finished work.

        Args:
            patches: patches finished since the last call.
            payload_bytes: bytes of these patches and of references.

        Raises:
            StoppedError: the run stops; the job must not catch this error.
        """
        if self._report is None:
            return
        self._patches += patches
        self._payload_bytes += payload_bytes
        if self._patches >= _PATCHES_PER_REPORT:
            self.flush()

    def flush(self) -> None:
        """Report the counts since the last report.

        Raises:
            StoppedError: the run stops.
        """
        if self._report is not None:
            patches, payload_bytes = self._patches, self._payload_bytes
            self._patches = self._payload_bytes = 0
            self._report(patches, payload_bytes)


_worker_progress = Progress()
"""The progress of a worker process's jobs. It is a global because a started pool passes nothing but jobs to workers."""


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_workers(workers: int | None, *, jobs: int | None = None) -> int:
    """Return the number of worker processes to start; 0 runs the jobs in this process.

    Args:
        workers: requested number; None requests one per core.
        jobs: number of jobs, if known; no more workers than jobs are started.
    """
    count = available_cores() if workers is None else workers
    return count if jobs is None else min(count, jobs)


def run_in_order(
    function: Callable[[Job, Progress], Result], jobs: Iterable[Job], *, workers: int, bar: ProgressBar | None = None
) -> Iterator[Result]:
    """Yield ``function(job, progress)`` for every job, in the order of the jobs.

    At most two jobs per worker are running or wait to be yielded, so memory does not grow with the number of jobs. When
    the iterator is closed, a job raises an error or Ctrl-C is pressed, each worker stops at its next
    ``progress.advance``. Workers also end when this process is killed.

    Args:
        function: module-level function that calls ``progress.advance`` now and then.
        jobs: first arguments of the function, picklable.
        workers: number of processes; 0 runs each job in this process, when its result is requested.
        bar: progress bar to update, in patches.

    Raises:
        StoreError: a worker process was killed from outside.
        WriteError: the system has no room for the memory that the processes share.
        Exception: any error that a job raised.
    """
    if workers == 0:
        return _run_here(function, jobs, bar)
    return _run_in_workers(function, jobs, workers, bar)


@contextmanager
def interrupt_delayed() -> Iterator[None]:
    """Delay Ctrl-C until the block ends; a second Ctrl-C takes effect at once.

    Queues, futures and pools use threading.Condition. An interrupt between the acquisition of a condition's
    lock and the start of the block that releases the lock leaves the condition locked, and the clean-up then waits for
    it for ever.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python interrupts the main thread only
        return
    handler = signal.getsignal(signal.SIGINT)
    signals: list[int] = []

    def record_signal(number: int, frame: FrameType | None) -> None:
        if signals and callable(handler):
            handler(number, frame)
        signals.append(number)

    if handler is None:  # the handler was not installed by Python, which therefore could not restore it
        yield
        return
    signal.signal(signal.SIGINT, record_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if signals:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def processes_start(start_method: str) -> Iterator[None]:
    """Delay Ctrl-C until the block ends, and block it in the processes that the block starts.

    A pool that is interrupted while it starts cannot be shut down, and Python's code around a fork swallows interrupts.
    A started process that receives Ctrl-C before it calls leave_interrupts_to_parent would end with an error message.

    Args:
        start_method: multiprocessing's start method of the processes.
    """
    with interrupt_delayed():
        if not _HAS_SIGNAL_MASKS:
            yield
            return
        if start_method != "fork":
            resource_tracker.ensure_running()  # if it started in the block, it would unblock signals again
        blocked_signals = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked_signals)


def leave_interrupts_to_parent() -> None:
    """Ignore Ctrl-C in this process, because a terminal sends it to the parent, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _HAS_SIGNAL_MASKS:
        # Processes that this process starts would inherit a blocked signal.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _run_job(function: Callable[[Job, Progress], Result], job: Job, progress: Progress) -> Result:
    result = function(job, progress)
    progress.flush()
    return result


def _run_worker_job(function: Callable[[Job, Progress], Result], job: Job) -> Result:
    return _run_job(function, job, _worker_progress)


def _run_here(
    function: Callable[[Job, Progress], Result], jobs: Iterable[Job], bar: ProgressBar | None
) -> Iterator[Result]:
    """Run each job in this process, when its result is requested."""
    totals = [0, 0]

    def report(patches: int, payload_bytes: int) -> None:
        totals[0] += patches
        totals[1] += payload_bytes
        _update_bar(bar, *totals)

    progress = Progress(None if bar is None else report)
    for job in jobs:
        yield _run_job(function, job, progress)


def _run_in_workers(
    function: Callable[[Job, Progress], Result], jobs: Iterable[Job], workers: int, bar: ProgressBar | None
) -> Iterator[Result]:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with write_errors("memory that worker processes share, in /dev/shm or where temporary files go"):
        totals = context.Array("Q", 2)  # patches and bytes that all workers have reported
        stopping = context.Value("b", 0)
    remaining_jobs = iter(jobs)
    futures: deque[Future[Result]] = deque()
    executor = ProcessPoolExecutor(workers, context, _start_worker, (totals, stopping))

    def submit(count: int) -> None:
        futures.extend(executor.submit(_run_worker_job, function, job) for job in islice(remaining_jobs, count))

    try:
        with processes_start(context.get_start_method()):
            submit(2 * workers)
        while futures:
            while not wait(list(islice(futures, 1)), _POLL_SECONDS).done:
                _update_bar(bar, *totals[:])
            yield futures.popleft().result()
            submit(1)
        _update_bar(bar, *totals[:])
    except BrokenProcessPool as error:
        raise StoreError(
            "a worker process was killed, perhaps for lack of memory; the same command with fewer --workers goes on"
        ) from error
    finally:
        stopping.value = 1
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker(totals: SynchronizedArray[int], stopping: Synchronized[int]) -> None:
    """Prepare a worker process: progress, garbage collection, Ctrl-C, and its end with the parent."""
    global _worker_progress  # noqa: PLW0603 - a pool's initializer has no other place for state that its jobs share

    def report(patches: int, payload_bytes: int) -> None:
        with totals.get_lock():
            totals[0] += patches
            totals[1] += payload_bytes
        if stopping.value:
            raise StoppedError("stopped")

    _worker_progress = Progress(report)
    gc.freeze()  # collections skip the objects of the parent, so that their shared pages need not be copied
    leave_interrupts_to_parent()
    # Workers of a pool whose parent is killed wait for jobs for ever.
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _update_bar(bar: ProgressBar | None, patches: int, payload_bytes: int) -> None:
    """Set a progress bar to a number of patches, with the mean speed in MB/s."""
    if bar is None:
        return
    seconds = bar.format_dict["elapsed"]
    if seconds:
        bar.set_postfix_str(f"{payload_bytes / 1e6 / seconds:.0f} MB/s", refresh=False)
    bar.update(patches - bar.n)
