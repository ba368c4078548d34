"""Progress of a long command on standard error: a bar, a line every 30 seconds, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, Protocol

Display = Literal["bar", "lines", "nothing"]

DISPLAY: ContextVar[Display | None] = ContextVar("DISPLAY", default=None)
"""Display of progress that a program chose. None: a bar if standard error is a terminal, else nothing."""

LINE_SECONDS = 30.0
"""Seconds from one line of progress to the next."""


class ProgressBar(Protocol):
    """A display of one task's progress; tqdm's bars are such displays.

    Attributes:
        n: finished work, in the display's unit.
    """

    n: Any

    @property
    def format_dict(self) -> Any:
        """Facts about the display; ``elapsed`` is the number of seconds since its start."""

    def update(self, n: float | None = 1) -> Any:
        """Add finished work, and show it if it is time to."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> Any:
        """Set the text after the numbers."""


class ProgressLines:
    """A ProgressBar that writes a line to standard error every LINE_SECONDS, for log files."""

    def __init__(self, total: int | None, description: str, unit: str) -> None:
        """Start the clock.

        Args:
            total: total amount of work, None if unknown.
            description: name of the work.
            unit: unit of the work, in the plural.
        """
        self.n: float = 0
        self._total = total
        self._description = description
        self._unit = unit
        self._postfix = ""
        self._started = time.monotonic()
        self._next_line = self._started + LINE_SECONDS

    @property
    def format_dict(self) -> dict[str, float]:
        """The number of seconds since the start, as ``elapsed``."""
        return {"elapsed": time.monotonic() - self._started}

    def update(self, n: float | None = 1) -> None:
        """Add finished work, and write a line if the last one is LINE_SECONDS old."""
        self.n += n or 0
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            sys.stderr.write(f"{self._line(now - self._started)}\n")
            sys.stderr.flush()

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:  # noqa: ARG002 - tqdm's signature
        """Set the text after the numbers."""
        self._postfix = s

    def _line(self, seconds: float) -> str:
        facts = [f"{self.n:,.0f} {self._unit}"]
        if self._total:
            facts = [f"{self.n:,.0f} of {self._total:,} {self._unit} ({100 * self.n / self._total:.0f} %)"]
        facts.append(f"{seconds:,.0f} s")
        if self._total and 0 < self.n < self._total:
            facts.append(f"about {seconds / self.n * (self._total - self.n):,.0f} s left")
        return f"{self._description}: {', '.join([*facts, *filter(None, [self._postfix])])}"


@contextmanager
def progress_bar(total: int | None, description: str, *, unit: str = "patches") -> Iterator[ProgressBar | None]:
    """Show progress as DISPLAY says; yield None if nothing is shown.

    Args:
        total: total amount of work, None if unknown.
        description: name of the work.
        unit: unit of the work, in the plural.
    """
    display = DISPLAY.get() or ("bar" if sys.stderr is not None and sys.stderr.isatty() else "nothing")
    if display == "lines":
        yield ProgressLines(total, description, unit)
    elif display == "nothing":
        yield None
    else:
        yield from _terminal_bar(total, description, unit)


def _terminal_bar(total: int | None, description: str, unit: str) -> Iterator[ProgressBar]:
    from tqdm import tqdm  # noqa: PLC0415 - slow to load, and needed by bars only

    tqdm.monitor_interval = 0  # its monitor thread would run while workers are forked
    with tqdm(total=total, desc=description, unit=f" {unit}", unit_scale=True, dynamic_ncols=True) as bar:
        try:
            yield bar
        except BaseException:
            bar.leave = False  # the bar would be drawn again below the message
            raise
