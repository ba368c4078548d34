"""Child process of one contender; process.py starts it and sends commands to its standard input.

The arguments are ``MODULE SPEC``: the module's ``make(spec)`` prepares the contender and returns a function that opens
the contender's data. Every answer is a line of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from typing import Any

from benchmarks.process import OpenWorkload, Workload
from dlas_store import StoreError


def main(module: str, spec: str) -> None:
    """Prepare the contender, then run or check its workload once for each line of input."""
    # Ctrl-C reaches the parent too, and the parent ends this process by closing its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Answers go to the original standard output; text that libraries print goes to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        open_data: OpenWorkload = importlib.import_module(module).make(json.loads(spec))
        answer(ready=True)
        workload: Workload | None = None
        while command := sys.stdin.readline().strip():
            started, cpu_started = time.perf_counter(), time.process_time()
            if workload is None:
                workload = open_data()
            items = workload.run() if command == "run" else workload.check()
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
            answer(seconds=seconds, cpu_seconds=cpu_seconds, items=items)
    except (StoreError, OSError, ImportError, AssertionError) as error:
        answer(error=f"{type(error).__name__}: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
