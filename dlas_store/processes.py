"""Run jobs in worker processes: results in order, progress as they go, nothing left behind when stopped."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import connection
from multiprocessing.sharedctypes import Synchronized, SynchronizedArray
from typing import TYPE_CHECKING, NoReturn, TypeVar

from dlas_store.errors import StoreError, write_errors
from dlas_store.interrupts import leave_interrupts_to_parent, processes_start

if TYPE_CHECKING:
    from tqdm import tqdm

    ProgressBar = tqdm[NoReturn]

J = TypeVar("J")
R = TypeVar("R")

_POLL_SECONDS = 0.1

_PATCHES_A_REPORT = 64
"""The workers lock what they share once for so many patches."""

# A worker's share in what the processes have in common; set when the worker starts.
_done: SynchronizedArray[int]
_stopping: Synchronized[int]
_unreported = [0, 0]


class StoppedError(StoreError):
    """The job was given up since the whole run stops."""


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def report_done(patches: int, payload_bytes: int) -> None:
    """Tell the parent, from inside a job, what was done since the last call.

    Raises:
        StoppedError: the run stops; the job should let this through.
    """
    _unreported[0] += patches
    _unreported[1] += payload_bytes
    if _unreported[0] >= _PATCHES_A_REPORT:
        _pass_on()


def _pass_on() -> None:
    with _done.get_lock():
        for position, count in enumerate(_unreported):
            _done[position] += count
            _unreported[position] = 0
    if _stopping.value:
        raise StoppedError("stopped")


def _run_job(function: Callable[[J], R], job: J) -> R:
    result = function(job)
    _pass_on()
    return result


def run_in_order(
    function: Callable[[J], R], jobs: Iterable[J], *, workers: int, bar: ProgressBar | None = None
) -> Iterator[R]:
    """Yield ``function(job)`` for every job, in the order of the jobs.

    At most two jobs a worker are under way or waiting to be yielded, so memory does not grow with the number of jobs.
    Closing the iterator, an error in a job and Ctrl-C stop the workers at their next report_done; they also end when
    this process is killed.

    Args:
        function: a module-level function, which calls report_done every now and then.
        jobs: its arguments, picklable.
        workers: number of processes.
        bar: where progress is shown, in patches.

    Raises:
        StoreError: a worker process was killed from outside.
        WriteError: no room for what the processes have in common.
        Exception: whatever a job raised.
    """
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with write_errors("memory that worker processes share, in /dev/shm or where temporary files go"):
        done = context.Array("Q", 2)
        stopping = context.Value("b", 0)
    remaining = iter(jobs)
    waiting: deque[Future[R]] = deque()
    executor = ProcessPoolExecutor(workers, context, _start_worker, (done, stopping))
    try:
        with processes_start(context.get_start_method()):
            waiting.extend(executor.submit(_run_job, function, job) for job in islice(remaining, 2 * workers))
        while waiting:
            while not wait(list(islice(waiting, 1)), _POLL_SECONDS).done:
                _show(bar, done)
            yield waiting.popleft().result()
            waiting.extend(executor.submit(_run_job, function, job) for job in islice(remaining, 1))
        _show(bar, done)
    except BrokenProcessPool as error:
        raise StoreError(
            "a worker process was killed, perhaps for lack of memory; the same command with fewer --workers goes on"
        ) from error
    finally:
        stopping.value = 1
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker(done: SynchronizedArray[int], stopping: Synchronized[int]) -> None:
    global _done, _stopping
    _done, _stopping = done, stopping
    _unreported[:] = 0, 0  # a forked worker has what its parent did itself
    gc.freeze()  # what the parent had is here for good: no collection need look at it, nor copy its pages
    leave_interrupts_to_parent()
    # A pool's workers wait for jobs for ever when their parent is killed.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _show(bar: ProgressBar | None, done: SynchronizedArray[int]) -> None:
    if bar is None:
        return
    patches, payload_bytes = done[:]
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
