"""A process with one contender; contender_process.py starts it and says by its input what it should do.

``MODULE SPEC``: the module's ``make(spec)`` prepares, and returns what opens the data. Every answer is a line of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from typing import Any

from benchmarks.contender import Open, Pass
from dlas_store import StoreError


def main(module: str, spec: str) -> None:
    """Prepare, then run a pass, or check one, for each line of input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this by closing its input
    # Answers have a file of their own: what libraries print goes where errors go.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        opening: Open = importlib.import_module(module).make(json.loads(spec))
        answer(ready=True)
        opened: Pass | None = None
        while command := sys.stdin.readline().strip():
            started, cpu_started = time.perf_counter(), time.process_time()
            if opened is None:
                opened = opening()
            items = opened.run() if command == "run" else opened.check()
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
            answer(seconds=seconds, cpu_seconds=cpu_seconds, items=items)
    except (StoreError, OSError, ImportError, AssertionError) as error:
        answer(error=f"{type(error).__name__}: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
