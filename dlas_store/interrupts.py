"""Delays of Ctrl-C where it would do harm: while locks are taken, and while processes start."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

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
