"""Rounds of reading: with all in the page cache, or with nothing there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import page_cache
from benchmarks.contender_process import ContenderProcess, Run
from benchmarks.measuring import run_rounds
from benchmarks.read_contenders import WITHOUT_LOADER, Contender
from benchmarks.reading import Reading


@dataclass(frozen=True)
class Measured:
    """What contenders came to.

    Attributes:
        runs: contender -> one run a round.
        memory: contender -> bytes at its peak in a run of its own; empty where that was not looked at.
    """

    runs: Mapping[str, Sequence[Run]]
    memory: Mapping[str, int]


def write_peers(reading: Reading, contenders: Sequence[Contender]) -> None:
    """Let each peer write its data, in a process that ends with that."""
    for contender in contenders:
        if contender.own_data is not None:
            with _start(contender, reading) as process:
                process.wait_until_ready()


def measure_warm(reading: Reading, contenders: Sequence[Contender], *, rounds: int) -> Measured:
    """Measure contenders that live side by side, each in its process, in which nothing else is.

    The first pass of each is looked at and not timed: it warms up what stays from pass to pass. After the rounds one
    more is made for the memory.

    Raises:
        StoreError: one did not give every patch once, or failed.
    """
    with ExitStack() as stack:
        processes = {each.name: stack.enter_context(_start(each, reading)) for each in contenders}
        for process in processes.values():
            process.check()
        timed: dict[str, Callable[[], Run]] = {name: process.run for name, process in processes.items()}
        runs = run_rounds(timed, rounds=rounds)
        memory = {name: process.peak_memory() for name, process in processes.items()}
    _check_items(reading, runs)
    return Measured(runs, memory)


def measure_cold(reading: Reading, contenders: Sequence[Contender], *, rounds: int, data: Sequence[Path]) -> Measured:
    """Measure contenders in fresh processes, each run after all data is dropped from the page cache.

    Opening is part of a run. That the contenders give every patch once is looked at by measure_warm only; here the
    items are counted.

    Args:
        reading: what to read.
        contenders: who reads it.
        rounds: how many.
        data: all that they read from, of which nothing may be mapped.

    Raises:
        StoreError: one failed, or the data stays in the page cache.
    """

    def run(contender: Contender) -> Run:
        with _start(contender, reading) as process:
            process.wait_until_ready()
            page_cache.drop(data)
            return process.run()

    runs = run_rounds({each.name: partial(run, each) for each in contenders}, rounds=rounds)
    _check_items(reading, runs)
    return Measured(runs, {})


def _start(contender: Contender, reading: Reading) -> ContenderProcess:
    return ContenderProcess(contender.name, module="read_contenders", spec=contender.as_spec(reading))


def _check_items(reading: Reading, runs: Mapping[str, Sequence[Run]]) -> None:
    for name, each in runs.items():
        counts = {run.items for run in each}
        # Encoded bytes are read so fast that a pass repeats them.
        assert counts == {reading.items * reading.epochs} or name in WITHOUT_LOADER, f"{name}: {counts} items"
