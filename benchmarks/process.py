"""Handle of a contender in a process of its own, so that threads, memory and workers belong to it alone.

Contenders: passes over the same patches, each of which must give every patch once.
"""

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


class Pass(Protocol):
    """A pass over the data, which can be run repeatedly. It lives in a process of its own; see contender_main."""

    def run(self) -> int:
        """Run the timed pass once and return its number of items."""

    def check(self) -> int:
        """Run the pass once, check its items, and return their number.

        Raises:
            AssertionError: the pass did not give every item once.
        """


Open = Callable[[], Pass]
"""A function that opens the data; with a cold cache its time counts too."""


class BatchPass:
    """A pass over the batches of one or more epochs.

    Args:
        start: begins an epoch and returns its batches.
        epochs: number of epochs in a pass, more than one if there is little data.
        count: returns the number of items in a batch.
        identify: returns an identifier for each item of a batch.
        expected: takes the counted identifiers of an epoch and returns the counts that it should have.
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
        """Take all batches; release each at once."""
        items = 0
        for _ in range(self._epochs):
            for batch in self._start():
                items += self._count(batch)
        return items

    def check(self) -> int:
        """Take all batches and compare each epoch with the expected counts; only the identifiers are kept."""
        items = 0
        for _ in range(self._epochs):
            counts: Counter[Hashable] = Counter()
            for batch in self._start():
                counts.update(self._identify(batch))
            assert counts == self._expected(counts), "an epoch did not give every patch once"
            items += counts.total()
        return items


CHECKOUT = Path(__file__).parents[1]

_PATIENCE_SECONDS = 20


class Run(NamedTuple):
    """Cost of one pass.

    Attributes:
        items: number of items.
        seconds: wall-clock time in the contender's own process.
        cpu_seconds: processor time of the contender's process and all its descendants.
    """

    items: int
    seconds: float
    cpu_seconds: float


class ContenderProcess:
    """Starts a process, which then prepares its contender in the background; ``with`` ends it."""

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
        """Wait until the process has done its imports and its unmeasured preparation.

        Raises:
            StoreError: the process failed.
        """
        if not self._is_ready:
            self._answer()
            self._is_ready = True

    def check(self) -> int:
        """Run a checked pass and return its number of items. The first pass also opens the data.

        Raises:
            StoreError: the pass did not give every item once, or the process failed.
        """
        return int(self._ask("check")["items"])

    def run(self) -> Run:
        """Run a pass. The first pass, if no check came before it, also opens the data.

        Raises:
            StoreError: the process failed.
        """
        self.wait_until_ready()
        before = cpu_seconds_below(self._process.pid)
        answer = self._ask("run")
        descendants = cpu_seconds_below(self._process.pid) - before
        return Run(answer["items"], answer["seconds"], answer["cpu_seconds"] + descendants)

    def peak_memory(self) -> int:
        """Run an untimed pass and return the peak memory of the process and its descendants, in bytes.

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
