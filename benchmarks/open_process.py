"""Child process that opens a store, reads patches, and prints time and memory as JSON; open.py starts it.

The process imports only the modules that a reading program needs, before it measures time and memory.
"""

from __future__ import annotations

import json
import random
import sys
import time

import dlas_store
from benchmarks.system import private_dirty_bytes


def main(path: str, seed: int, reads: int) -> None:
    """Open a store, and read the first patch and then random patches."""
    random_numbers = random.Random(seed)
    dirty_before = private_dirty_bytes()
    started = time.perf_counter()
    source = dlas_store.open_source(path)
    source.read(0)
    seconds = time.perf_counter() - started
    for _ in range(reads):
        source.read(random_numbers.randrange(len(source)))
    print(json.dumps({"seconds": seconds, "dirty_bytes": private_dirty_bytes() - dirty_before}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
