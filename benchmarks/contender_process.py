"""Handle of a contender in a process of its own, so that threads, memory and workers belong to it alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from benchmarks.process_cost import cpu_seconds_below, watch_memory
from dlas_store import StoreError

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
        command = [sys.executable, "-m", "benchmarks.contender_main", f"benchmarks.{module}", json.dumps(spec)]
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
