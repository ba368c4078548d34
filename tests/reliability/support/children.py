"""Forked children for runs that could end their process; a signal becomes a failure with the number of the run."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from dlas_store.processes import run_in_order

_BATCH = 2000


def each_in_child(function: Callable[[int], object], numbers: Sequence[int], *, memory: int | None = None) -> None:
    """Run ``function(number)`` for every number in a forked child.

    Args:
        function: function that raises if the run fails.
        numbers: numbers of the runs.
        memory: bytes that the child may map beyond the mappings of this process, or None for no limit.

    Raises:
        AssertionError: a run failed or its process ended; the message names the run.
    """
    context = multiprocessing.get_context("fork")
    for start in range(0, len(numbers), _BATCH):
        current = context.Value("q", -1)
        receiver, sender = context.Pipe(duplex=False)
        batch = numbers[start : start + _BATCH]
        child = context.Process(target=_run, args=(function, batch, memory, current, sender))
        child.start()
        sender.close()
        message = _received(receiver)
        child.join()
        assert message is None, f"run {current.value}: {message}"
        assert child.exitcode == 0, f"run {current.value} ended its process with {child.exitcode}"


def _received(receiver: Any) -> str | None:
    try:
        return str(receiver.recv())
    except EOFError:
        return None


def _run(
    function: Callable[[int], object], numbers: Sequence[int], memory: int | None, current: Any, sender: Any
) -> None:
    if memory is not None:
        limit = _mapped_bytes() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        for number in numbers:
            current.value = number
            function(number)
    except BaseException:  # noqa: BLE001 - the parent reports every failure
        sender.send(traceback.format_exc())
        sys.exit(0)


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def work_here(monkeypatch: Any, *modules: str) -> None:
    """Make modules run their workers' jobs in this process, which saves the start of workers."""

    def run_here(function: Any, jobs: Any, *, workers: int, bar: Any = None) -> Iterator[Any]:
        return run_in_order(function, jobs, workers=0)

    for module in modules:
        monkeypatch.setattr(import_module(module), "run_in_order", run_here)
