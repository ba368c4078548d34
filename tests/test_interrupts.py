"""Ctrl-C is delayed while it would do harm, and then takes effect once."""

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
    """Check that each test restores the signal handler and unblocks the signal."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def _wait_for_signal(is_handled: Callable[[], bool] = lambda: False) -> None:
    """Wait for the signal: a library's thread, which does not block it, may receive it first and pass it on late."""
    deadline = time.monotonic() + 10
    while not is_handled() and time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.mark.parametrize("delay", DELAYS)
def test_ctrl_c_is_raised_when_the_block_is_over(delay: Any) -> None:
    continued = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the error is raised when the block ends
        with delay():
            os.kill(os.getpid(), signal.SIGINT)
            continued.append(True)
        _wait_for_signal()
    assert continued


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
    continued = []
    with pytest.raises(KeyboardInterrupt), interrupt_delayed():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        continued.append(True)
    assert not continued


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
        continued = False
        with interrupt_delayed():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            continued = True
        assert continued
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_blocks_in_blocks_and_in_threads_are_fine() -> None:
    continued = []

    def block(delay: AbstractContextManager[None]) -> None:
        with delay:
            continued.append(True)

    thread = threading.Thread(target=block, args=(interrupt_delayed(),))
    thread.start()
    thread.join()
    with pytest.raises(KeyboardInterrupt), interrupt_delayed():  # noqa: PT012
        with suppress(ZeroDivisionError), interrupt_delayed():
            os.kill(os.getpid(), signal.SIGINT)
        continued.append(True)
    assert continued == [True, True]


class InterruptingSampler:
    """A sampler of 40 items that presses Ctrl-C in this process after 20 of them."""

    def __init__(self) -> None:
        self.continued = False

    def __len__(self) -> int:
        return 40

    def __iter__(self) -> Iterator[int]:
        yield from range(20)
        os.kill(os.getpid(), signal.SIGINT)
        self.continued = True
        yield from range(20, 40)


@pytest.mark.parametrize("loader", ["threads", "workers"])
def test_ctrl_c_does_not_come_in_the_middle_of_a_loaders_own_work(loader: str) -> None:
    """An interrupt of that work can leave a condition locked; the end of the epoch would then wait for ever."""
    sampler = InterruptingSampler()
    options = {"loader": loader, "n_workers": 1, "phase": "train", "batch_size": 2}
    batches = create_dataloader(Rolls(), options, sampler=sampler, collate_fn=list)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        list(batches)
    assert sampler.continued
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dlas_store")]
    assert not multiprocessing.active_children()


def send_mask(sender: Connection) -> None:
    """Send whether SIGINT is blocked before and after leave_interrupts_to_parent, and the handler after that call."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    os.kill(os.getpid(), signal.SIGINT)  # as if Ctrl-C were pressed while the process starts
    leave_interrupts_to_parent()
    after = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    sender.send((signal.SIGINT in before, signal.SIGINT in after, signal.getsignal(signal.SIGINT)))


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_ctrl_c_does_not_reach_a_process_that_starts(start_method: str) -> None:
    """A process that Ctrl-C reached would end with an error message besides that of its parent."""
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
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
