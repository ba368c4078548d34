"""Run jobs in worker processes or in this one: results in order, progress, nothing left behind when stopped.

Delays of Ctrl-C where it would do harm: while locks are taken, and while processes start.
"""

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
from typing import TYPE_CHECKING, NoReturn, TypeVar

from dlas_store.errors import StoreError, write_errors

_HAS_MASKS = hasattr(signal, "pthread_sigmask")  # not on Windows


@contextmanager
def interrupt_delayed() -> Iterator[None]:
    """Let Ctrl-C wait until the block is over; pressed again, it takes effect at once.

    Python's conditions stay locked where an interrupt comes between the taking of their lock and the begin of the block
    that gives it back; the clean-up then waits for it for ever. Queues, futures and pools are made of them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is interrupted
        return
    handler = signal.getsignal(signal.SIGINT)
    signals: list[int] = []

    def note_signal(number: int, frame: FrameType | None) -> None:
        if signals and callable(handler):
            handler(number, frame)
        signals.append(number)

    if handler is None:  # it is not one of Python's
        yield
        return
    signal.signal(signal.SIGINT, note_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if signals:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def processes_start(start_method: str) -> Iterator[None]:
    """Let Ctrl-C wait until the block is over, in which processes are started, and have no effect on these.

    A pool that is interrupted while it starts cannot be shut down, and what runs around a fork swallows interrupts. A
    process that is interrupted before it calls leave_interrupts_to_parent ends with an error of its own.

    Args:
        start_method: of the processes.
    """
    with interrupt_delayed():
        if not _HAS_MASKS:
            yield
            return
        if start_method != "fork":
            resource_tracker.ensure_running()  # it would be started in the block, and let signals through again
        blocked_signals = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked_signals)


def leave_interrupts_to_parent() -> None:
    """Let Ctrl-C, which reaches all processes of a terminal, have no effect on this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _HAS_MASKS:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # its own processes need not have it blocked


if TYPE_CHECKING:
    from tqdm import tqdm

    ProgressBar = tqdm[NoReturn]

J = TypeVar("J")
R = TypeVar("R")

_POLL_SECONDS = 0.1

_PATCHES_A_REPORT = 64
"""The workers lock what they share once for so many patches."""


class StoppedError(StoreError):
    """The job was given up since the whole run stops."""


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_workers(workers: int | None, *, jobs: int | None = None) -> int:
    """Return how many worker processes to start; 0 runs the jobs in this process.

    Args:
        workers: how many were asked for; None for one a core.
        jobs: number of jobs, if known; more workers than that would have nothing to do.
    """
    count = available_cores() if workers is None else workers
    return count if jobs is None else min(count, jobs)


class Progress:
    """A job's account of what it has done; costs next to nothing where nobody listens.

    >>> progress = Progress()
    >>> progress.advance(1, 2000)
    """

    def __init__(self, report: Callable[[int, int], None] | None = None) -> None:
        """Create it.

        Args:
            report: called now and then with the patches and bytes since its last call; None where nobody listens.
        """
        self._report = report
        self._patches = 0
        self._payload_bytes = 0

    def advance(self, patches: int, payload_bytes: int) -> None:
        """Count what was done since the last call.

        Raises:
            StoppedError: the run stops; the job should let this through.
        """
        if self._report is None:
            return
        self._patches += patches
        self._payload_bytes += payload_bytes
        if self._patches >= _PATCHES_A_REPORT:
            self.flush()

    def flush(self) -> None:
        """Report what was counted and not reported yet.

        Raises:
            StoppedError: the run stops.
        """
        if self._report is not None:
            patches, payload_bytes = self._patches, self._payload_bytes
            self._patches = self._payload_bytes = 0
            self._report(patches, payload_bytes)


_worker_progress = Progress()
"""The progress of this process's jobs where it is a worker: a pool passes nothing but jobs, once it has started."""


def _run_job(function: Callable[[J, Progress], R], job: J, progress: Progress) -> R:
    result = function(job, progress)
    progress.flush()
    return result


def _run_worker_job(function: Callable[[J, Progress], R], job: J) -> R:
    return _run_job(function, job, _worker_progress)


def run_in_order(
    function: Callable[[J, Progress], R], jobs: Iterable[J], *, workers: int, bar: ProgressBar | None = None
) -> Iterator[R]:
    """Yield ``function(job, progress)`` for every job, in the order of the jobs.

    At most two jobs a worker are under way or waiting to be yielded, so memory does not grow with the number of jobs.
    Closing the iterator, an error in a job and Ctrl-C stop the workers at their next ``progress.advance``; they also
    end when this process is killed.

    Args:
        function: a module-level function, which calls ``progress.advance`` every now and then.
        jobs: its first arguments, picklable.
        workers: number of processes; 0 runs each job in this one, when its result is asked for.
        bar: where progress is shown, in patches.

    Raises:
        StoreError: a worker process was killed from outside.
        WriteError: no room for what the processes have in common.
        Exception: whatever a job raised.
    """
    if workers == 0:
        return _run_here(function, jobs, bar)
    return _run_in_workers(function, jobs, workers, bar)


def _run_here(function: Callable[[J, Progress], R], jobs: Iterable[J], bar: ProgressBar | None) -> Iterator[R]:
    done = [0, 0]

    def report(patches: int, payload_bytes: int) -> None:
        done[0] += patches
        done[1] += payload_bytes
        _show(bar, *done)

    progress = Progress(None if bar is None else report)
    for job in jobs:
        yield _run_job(function, job, progress)


def _run_in_workers(
    function: Callable[[J, Progress], R], jobs: Iterable[J], workers: int, bar: ProgressBar | None
) -> Iterator[R]:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with write_errors("memory that worker processes share, in /dev/shm or where temporary files go"):
        done = context.Array("Q", 2)
        stopping = context.Value("b", 0)
    remaining = iter(jobs)
    waiting: deque[Future[R]] = deque()
    executor = ProcessPoolExecutor(workers, context, _start_worker, (done, stopping))
    try:
        with processes_start(context.get_start_method()):
            waiting.extend(executor.submit(_run_worker_job, function, job) for job in islice(remaining, 2 * workers))
        while waiting:
            while not wait(list(islice(waiting, 1)), _POLL_SECONDS).done:
                _show(bar, *done[:])
            yield waiting.popleft().result()
            waiting.extend(executor.submit(_run_worker_job, function, job) for job in islice(remaining, 1))
        _show(bar, *done[:])
    except BrokenProcessPool as error:
        raise StoreError(
            "a worker process was killed, perhaps for lack of memory; the same command with fewer --workers goes on"
        ) from error
    finally:
        stopping.value = 1
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker(done: SynchronizedArray[int], stopping: Synchronized[int]) -> None:
    global _worker_progress  # noqa: PLW0603 - a pool's initializer has no other place for what its jobs share

    def report(patches: int, payload_bytes: int) -> None:
        with done.get_lock():
            done[0] += patches
            done[1] += payload_bytes
        if stopping.value:
            raise StoppedError("stopped")

    _worker_progress = Progress(report)
    gc.freeze()  # what the parent had is here for good: no collection need look at it, nor copy its pages
    leave_interrupts_to_parent()
    # A pool's workers wait for jobs for ever when their parent is killed.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _show(bar: ProgressBar | None, patches: int, payload_bytes: int) -> None:
    if bar is None:
        return
    seconds = bar.format_dict["elapsed"]
    if seconds:
        bar.set_postfix_str(f"{payload_bytes / 1e6 / seconds:.0f} MB/s", refresh=False)
    bar.update(patches - bar.n)


@contextmanager
def progress_bar(total: int | None, description: str, *, unit: str = "patches") -> Iterator[ProgressBar | None]:
    """Show a bar on a terminal; give None where there is none.

    Args:
        total: how much there is to do; None where that is not known.
        description: what is done.
        unit: what is counted.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm  # noqa: PLC0415 - slow to load, and not needed in a pipe

    tqdm.monitor_interval = 0  # its thread would be there when workers are forked
    with tqdm(total=total, desc=description, unit=f" {unit}", unit_scale=True) as bar:
        yield bar
