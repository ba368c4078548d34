"""ForkSafeThreadPool: forks beside it and after it are safe, and its threads end for certain."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dlas_store.loading import thread_pool
from dlas_store.loading.thread_pool import ForkSafeThreadPool, paused_for_fork
from tests.support.small_stores import in_child

PATIENCE = 60


SELF = Path("/proc/self")


def threads_of_the_system() -> set[Path]:
    return set((SELF / "task").iterdir())


def use_opencv() -> None:
    cv2.split(np.zeros((32, 32, 3), np.uint8))


class WaitingJob:
    """A job that runs until it is released."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.released = threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.released.wait(PATIENCE)


@pytest.fixture
def pool() -> Any:
    """A pool of two threads, shut down after the test."""
    threads = ForkSafeThreadPool(2)
    yield threads
    threads.shutdown()


def beside(action: Callable[[], Any]) -> threading.Thread:
    """Start an action in a thread outside the pool."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def is_over(thread: threading.Thread) -> bool:
    thread.join(PATIENCE)
    return not thread.is_alive()


def test_the_system_has_none_of_the_threads_after_shutdown() -> None:
    before = threads_of_the_system()
    for _ in range(30):
        threads = ForkSafeThreadPool(3)
        for job in [threads.submit(use_opencv) for _ in range(6)]:
            job.result()
        assert len(threads_of_the_system()) > len(before)
        threads.shutdown()
        assert threads_of_the_system() <= before


def test_no_file_stays_open() -> None:
    before = list((SELF / "fd").iterdir())
    for _ in range(20):
        threads = ForkSafeThreadPool(3)
        threads.submit(use_opencv).result()
        threads.shutdown()
    assert len(list((SELF / "fd").iterdir())) == len(before)


def test_jobs_give_what_they_return_or_raise(pool: ForkSafeThreadPool) -> None:
    assert [pool.submit(divmod, number, 3).result() for number in range(5)] == [divmod(n, 3) for n in range(5)]
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result()


def test_standing_still_waits_for_jobs_and_lets_none_begin(pool: ForkSafeThreadPool) -> None:
    waiting_job = WaitingJob()
    pool.submit(waiting_job)
    waiting_job.begun.wait(PATIENCE)
    order: list[str] = []
    resume = threading.Event()

    def pause() -> None:
        with paused_for_fork():
            order.append("paused")
            second = pool.submit(order.append, "job")
            resume.wait(PATIENCE)
            order.append("resumed")
        second.result(PATIENCE)

    forking = beside(pause)
    while not thread_pool._gate.forking_threads:
        pass
    assert order == []
    waiting_job.released.set()
    while "paused" not in order:
        pass
    resume.set()
    assert is_over(forking)
    assert order == ["paused", "resumed", "job"]


def test_a_job_without_end_does_not_hold_up_a_fork_for_ever(
    pool: ForkSafeThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_pool, "_MAX_WAIT_SECONDS", 0.05)
    waiting_job = WaitingJob()
    job = pool.submit(waiting_job)
    waiting_job.begun.wait(PATIENCE)
    with paused_for_fork():
        assert not job.done()
    waiting_job.released.set()
    job.result(PATIENCE)


def test_shutdown_waits_for_what_was_begun_and_gives_up_the_rest() -> None:
    threads = ForkSafeThreadPool(1)
    waiting_job = WaitingJob()
    done: list[int] = []
    first = threads.submit(waiting_job)
    waiting_job.begun.wait(PATIENCE)
    for number in range(100):
        threads.submit(done.append, number)
    closing = beside(threads.shutdown)
    while not threads._closing:
        pass
    assert closing.is_alive()
    waiting_job.released.set()
    assert is_over(closing)
    assert first.done()
    assert done == []
    with pytest.raises(RuntimeError, match="after shutdown"):
        threads.submit(use_opencv)


def test_threads_end_at_no_time_when_somebody_forks(pool: ForkSafeThreadPool) -> None:
    second_pool = ForkSafeThreadPool(2)
    second_pool.submit(use_opencv).result()
    with paused_for_fork():
        closing = beside(second_pool.shutdown)
        while not second_pool._closing:
            pass
        closing.join(0.2)
        assert closing.is_alive()
    assert is_over(closing)


def test_whoever_forks_may_end_a_pass_meanwhile(pool: ForkSafeThreadPool) -> None:
    waiting_job = WaitingJob()
    pool.submit(waiting_job)
    pool.submit(use_opencv)
    waiting_job.begun.wait(PATIENCE)
    waiting_job.released.set()

    def pause() -> None:
        with paused_for_fork():
            for _ in range(10):
                pool.submit(use_opencv)
            pool.shutdown()

    assert is_over(beside(pause))


def test_a_thread_of_the_pool_may_end_it() -> None:
    # Garbage collection in one of the threads closes a forgotten iterator in that way.
    threads = ForkSafeThreadPool(2)
    threads.submit(use_opencv).result()
    ending = threads.submit(threads.shutdown)
    ending.result(PATIENCE)
    with pytest.raises(RuntimeError, match="after shutdown"):
        threads.submit(use_opencv)


def test_a_process_forked_meanwhile_has_threads_of_its_own(pool: ForkSafeThreadPool) -> None:
    def use_threads() -> None:
        child_pool = ForkSafeThreadPool(2)
        assert child_pool.submit(divmod, 7, 2).result(PATIENCE) == (3, 1)
        with paused_for_fork():
            use_opencv()
        child_pool.shutdown()

    with paused_for_fork():
        assert in_child(use_threads) == 0
