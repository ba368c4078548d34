"""Ctrl-C waits where it would do harm, and takes effect once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from multiprocessing.connection import Connection
from typing import Any

import pytest

from dlas_store.loading.create import create_dataloader
from dlas_store.processes import interrupt_delayed, leave_interrupts_to_parent, processes_start
from tests.support.sample_data import ROOT
from tests.support.toy_datasets import Rolls

DELAYS = [pytest.param(interrupt_delayed, id="delayed"), pytest.param(lambda: processes_start("fork"), id="start")]


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    """Handler and mask are what they were, after each test."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def _wait_for_signal(came: Callable[[], bool] = lambda: False) -> None:
    """Wait while a thread of a library, in which nothing blocks the signal, may not have told this one of it yet."""
    deadline = time.monotonic() + 10
    while not came() and time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.mark.parametrize("delay", DELAYS)
def test_ctrl_c_is_raised_when_the_block_is_over(delay: Any) -> None:
    went_on = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it comes when the block is over
        with delay():
            os.kill(os.getpid(), signal.SIGINT)
            went_on.append(True)
        _wait_for_signal()
    assert went_on


@pytest.mark.parametrize("delay", DELAYS)
def test_without_ctrl_c_nothing_is_raised_but_what_the_block_raises(delay: Any) -> None:
    with delay():
        pass
    with pytest.raises(ZeroDivisionError), delay():
        _ = 1 / 0


def test_ctrl_c_is_not_lost_where_the_block_raises() -> None:
    with pytest.raises(KeyboardInterrupt), interrupt_delayed():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        _ = 1 / 0


def test_pressed_again_it_takes_effect_at_once() -> None:
    went_on = []
    with pytest.raises(KeyboardInterrupt), interrupt_delayed():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        went_on.append(True)
    assert not went_on


@pytest.mark.parametrize("delay", DELAYS)
def test_a_handler_of_the_program_is_called_when_the_block_is_over(delay: Any) -> None:
    calls: list[str] = []
    before = signal.signal(signal.SIGINT, lambda *_: calls.append("called"))
    try:
        with delay():
            os.kill(os.getpid(), signal.SIGINT)
            calls.append("in the block")
        _wait_for_signal(lambda: "called" in calls)
        assert calls == ["in the block", "called"]
    finally:
        signal.signal(signal.SIGINT, before)


def test_ignored_interrupts_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        went_on = False
        with interrupt_delayed():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            went_on = True
        assert went_on
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_blocks_in_blocks_and_in_threads_are_fine() -> None:
    went_on = []

    def block(delay: AbstractContextManager[None]) -> None:
        with delay:
            went_on.append(True)

    thread = threading.Thread(target=block, args=(interrupt_delayed(),))
    thread.start()
    thread.join()
    with pytest.raises(KeyboardInterrupt), interrupt_delayed():  # noqa: PT012
        with suppress(ZeroDivisionError), interrupt_delayed():
            os.kill(os.getpid(), signal.SIGINT)
        went_on.append(True)
    assert went_on == [True, True]


class Pressing:
    """An order of items in whose middle Ctrl-C is pressed, in this process."""

    def __init__(self) -> None:
        self.went_on = False

    def __len__(self) -> int:
        return 40

    def __iter__(self) -> Iterator[int]:
        yield from range(20)
        os.kill(os.getpid(), signal.SIGINT)
        self.went_on = True
        yield from range(20, 40)


@pytest.mark.parametrize("loader", ["threads", "workers"])
def test_ctrl_c_does_not_come_in_the_middle_of_a_loaders_own_work(loader: str) -> None:
    """There it can leave a condition locked, for which the end of the pass then waits for ever."""
    order = Pressing()
    options = {"loader": loader, "n_workers": 1, "batch_size": 2}
    batches = create_dataloader(Rolls(), options, sampler=order, collate_fn=list)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        list(batches)
    assert order.went_on
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dlas_store")]
    assert not multiprocessing.active_children()


def send_mask(sender: Connection) -> None:
    """Tell whether interrupts are blocked, before and after they are left to the parent, and how they are handled."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    os.kill(os.getpid(), signal.SIGINT)  # as if it came while the process starts
    leave_interrupts_to_parent()
    after = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    sender.send((signal.SIGINT in before, signal.SIGINT in after, signal.getsignal(signal.SIGINT)))


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_ctrl_c_does_not_reach_a_process_that_starts(start_method: str) -> None:
    """It ended with an error of its own, beside its parent's interrupt."""
    program = (
        "import multiprocessing, signal\n"
        "from tests.test_interrupts import send_mask\n"
        "from dlas_store.processes import processes_start\n"
        "if __name__ == '__main__':\n"
        f"    context = multiprocessing.get_context({start_method!r})\n"
        "    receiver, sender = context.Pipe(duplex=False)\n"
        "    for _ in range(2):\n"
        f"        with processes_start({start_method!r}):\n"
        "            context.Queue()\n"
        "            process = context.Process(target=send_mask, args=(sender,))\n"
        "            process.start()\n"
        "        process.join()\n"
        "        assert process.exitcode == 0\n"
        "        assert receiver.recv() == (True, False, signal.SIG_IGN)\n"
        "        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
