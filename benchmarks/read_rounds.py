"""Rounds of reading, with the data in the page cache (warm) or dropped from it (cold)."""

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
    """Runs and memory of the contenders.

    Attributes:
        runs: contender -> one run a round.
        memory: contender -> peak memory in bytes of a run of its own; empty if memory was not measured.
    """

    runs: Mapping[str, Sequence[Run]]
    memory: Mapping[str, int]


def write_peers(reading: Reading, contenders: Sequence[Contender]) -> None:
    """Let each peer write its data, in a process that ends afterwards."""
    for contender in contenders:
        if contender.own_data is not None:
            with _start(contender, reading) as process:
                process.wait_until_ready()


def measure_warm(reading: Reading, contenders: Sequence[Contender], *, rounds: int) -> Measured:
    """Measure contenders that live side by side, each alone in a process of its own.

    The first pass of each contender is checked and not timed; it warms up whatever stays from pass to pass. After the
    rounds, one more pass measures the memory.

    Raises:
        StoreError: a contender did not give every patch once, or failed.
    """
    with ExitStack() as stack:
        processes = {contender.name: stack.enter_context(_start(contender, reading)) for contender in contenders}
        for process in processes.values():
            process.check()
        timed: dict[str, Callable[[], Run]] = {name: process.run for name, process in processes.items()}
        runs = run_rounds(timed, rounds=rounds)
        memory = {name: process.peak_memory() for name, process in processes.items()}
    _check_items(reading, runs)
    return Measured(runs, memory)


def measure_cold(reading: Reading, contenders: Sequence[Contender], *, rounds: int, data: Sequence[Path]) -> Measured:
    """Measure contenders in fresh processes, each run after all data is dropped from the page cache.

    Opening is part of a run. Only measure_warm checks that contenders give every patch once; here only the items are
    counted.

    Args:
        reading: the patches to read.
        contenders: the contenders to measure.
        rounds: number of rounds.
        data: paths of all data that the contenders read; no process may have any of it mapped.

    Raises:
        StoreError: a contender failed, or the data stays in the page cache.
    """

    def run(contender: Contender) -> Run:
        with _start(contender, reading) as process:
            process.wait_until_ready()
            page_cache.drop(data)
            return process.run()

    runs = run_rounds({contender.name: partial(run, contender) for contender in contenders}, rounds=rounds)
    _check_items(reading, runs)
    return Measured(runs, {})


def _start(contender: Contender, reading: Reading) -> ContenderProcess:
    return ContenderProcess(contender.name, module="read_contenders", spec=contender.as_spec(reading))


def _check_items(reading: Reading, runs: Mapping[str, Sequence[Run]]) -> None:
    for name in runs:
        counts = {run.items for run in runs[name]}
        # Encoded bytes are read so fast that a pass repeats them.
        assert counts == {reading.items * reading.epochs} or name in WITHOUT_LOADER, f"{name}: {counts} items"
