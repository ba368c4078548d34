"""Contender process: a contender's workload in a process of its own, with its own threads, memory and workers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from benchmarks.system import cpu_seconds_below, watch_memory
from dlas_store import StoreError

CHECKOUT = Path(__file__).parents[1]
"""Root of the repository: working directory of child processes, so that they can import this package."""

_PATIENCE_SECONDS = 20


class Workload(Protocol):
    """Work of a contender on the data, which can be run repeatedly; see process_main.py."""

    def run(self) -> int:
        """Do the work once and return its number of items."""

    def check(self) -> int:
        """Do the work once, check its items, and return their number.

        Raises:
            AssertionError: the work did not give every item once.
        """


OpenWorkload = Callable[[], Workload]
"""Function that opens the data; if the page cache is cold, the time of opening counts too."""


class BatchWorkload:
    """Workload that takes the batches of one or more epochs.

    Args:
        start: starts an epoch and returns its batches.
        epochs: number of epochs in a run, more than one if there is little data.
        count: returns the number of items in a batch.
        identify: returns an identifier for each item of a batch.
        expected: takes the identifiers of an epoch, counted, and returns the correct counts.
    """

    def __init__(
        self,
        start: Callable[[], Iterable[Any]],
        *,
        epochs: int,
        count: Callable[[Any], int],
        identify: Callable[[Any], Iterable[Hashable]],
        expected: Callable[[Counter[Hashable]], Counter[Hashable]],
    ) -> None:
        self._start = start
        self._epochs = epochs
        self._count = count
        self._identify = identify
        self._expected = expected

    def run(self) -> int:
        """Take all batches, releasing each batch at once."""
        items = 0
        for _ in range(self._epochs):
            for batch in self._start():
                items += self._count(batch)
        return items

    def check(self) -> int:
        """Take all batches and compare each epoch with the expected counts, keeping only the identifiers."""
        items = 0
        for _ in range(self._epochs):
            counts: Counter[Hashable] = Counter()
            for batch in self._start():
                counts.update(self._identify(batch))
            assert counts == self._expected(counts), "an epoch did not give every patch once"
            items += counts.total()
        return items


class Run(NamedTuple):
    """Cost of one run.

    Attributes:
        items: number of items.
        seconds: wall-clock time in the contender's own process.
        cpu_seconds: processor time of the contender's process and all descendants of the process.
    """

    items: int
    seconds: float
    cpu_seconds: float


class ContenderProcess:
    """Handle of a process that prepares its contender in the background; ``with`` ends the process."""

    def __init__(self, name: str, *, module: str, spec: Mapping[str, Any]) -> None:
        """Start the process.

        Args:
            name: name of the contender in error messages.
            module: module of this package whose ``make(spec)`` prepares the contender.
            spec: argument of ``make``, as JSON values.
        """
        self._name = name
        command = [sys.executable, "-m", "benchmarks.process_main", f"benchmarks.{module}", json.dumps(spec)]
        self._process = subprocess.Popen(  # noqa: S603 - this package's own
            command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._is_ready = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if kind is None:
            self._process.stdin.close()
            try:
                self._process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        else:
            self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def wait_until_ready(self) -> None:
        """Wait until the process has finished its imports and its unmeasured preparation.

        Raises:
            StoreError: the process failed.
        """
        if not self._is_ready:
            self._answer()
            self._is_ready = True

    def check(self) -> int:
        """Run and check the workload, and return its number of items. The first run also opens the data.

        Raises:
            StoreError: the workload did not give every item once, or the process failed.
        """
        return int(self._ask("check")["items"])

    def run(self) -> Run:
        """Run the workload and return its cost. The first run also opens the data, if no check has opened them.

        Raises:
            StoreError: the process failed.
        """
        self.wait_until_ready()
        before = cpu_seconds_below(self._process.pid)
        answer = self._ask("run")
        descendants = cpu_seconds_below(self._process.pid) - before
        return Run(answer["items"], answer["seconds"], answer["cpu_seconds"] + descendants)

    def peak_memory(self) -> int:
        """Run the workload, untimed, and return the peak memory of the process and its descendants, in bytes.

        Raises:
            StoreError: the process failed.
        """
        self.wait_until_ready()
        with watch_memory(self._process.pid) as peak:
            self._ask("run")
        return peak.value

    def _ask(self, command: str) -> dict[str, Any]:
        self.wait_until_ready()
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise StoreError(f"{self._name}: its process ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise StoreError(f"{self._name}: {answer['error']}")
        return answer
