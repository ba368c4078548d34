"""Ctrl-C in a command: a message at once, and a limit of the time until the command ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Self

INTERRUPTED_STATUS = 130

_SECONDS_TO_END = 1.5
"""Time from Ctrl-C to the end of the process, if the command does not end earlier. Nothing is lost: a store or folder
that is being written stays as after a kill, and the same command goes on from there."""


class Interrupts:
    """A context that announces the first Ctrl-C at once; the second, or some time, then ends the process.

    Ctrl-C still raises KeyboardInterrupt in the main thread, so that workers stop and locks are released. Outside the
    main thread, and where SIGINT is ignored, the context changes nothing.

    Attributes:
        advice: text that ends the message.
    """

    def __init__(self) -> None:
        """Create the context; SIGINT is handled from the beginning of its block."""
        self.advice = ""
        self._announced = False
        self._installed = False

    def __enter__(self) -> Self:
        """Handle SIGINT, unless the process ignores it or its program has a handler of its own."""
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._announce)
            self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restore the handler; after a Ctrl-C it stays, because a second one may come while Python ends."""
        if self._installed and not self._announced:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _announce(self, number: int, frame: FrameType | None) -> None:
        if self._announced:
            _end()
        self._announced = True
        _write(f"dlas-store: interrupted, ending what is under way; Ctrl-C again ends at once{self.advice}\n")
        timer = threading.Timer(_SECONDS_TO_END, _end)
        timer.daemon = True
        timer.start()
        signal.default_int_handler(number, frame)


def _write(text: str) -> None:
    """Write to standard error past Python's buffer, which the interrupted code may be writing to."""
    start = "\n" if sys.stderr.isatty() else ""  # a progress bar may stand on the line
    os.write(2, (start + text).encode())


def _end() -> None:
    os._exit(INTERRUPTED_STATUS)
