"""A process that opens a store, reads from it, and prints what that cost as JSON; opening.py starts it.

It imports what a program that reads needs, and no more, before it looks at clock and memory.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import dlas_store


def main(path: str, seed: int, reads: int) -> None:
    """Open a store, read its first patch, and some at random."""
    random_numbers = random.Random(seed)
    dirty_before = private_dirty_bytes()
    started = time.perf_counter()
    source = dlas_store.open_source(path)
    source.read(0)
    seconds = time.perf_counter() - started
    for _ in range(reads):
        source.read(random_numbers.randrange(len(source)))
    print(json.dumps({"seconds": seconds, "dirty_bytes": private_dirty_bytes() - dirty_before}))


def private_dirty_bytes() -> int:
    """Return the memory that this process shares with nobody and that no file backs (Linux)."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/smaps_rollup does not name Private_Dirty")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
