"""Child process that reads batches and prints the memory used as JSON; memory.py starts it.

With ``worker SPEC`` it prints the Private_Dirty of a worker process after some batches, with ``growth SPEC`` the
Private_Dirty of this process after each epoch, in bytes. SPEC is JSON: ``options`` of dataset and loader, and
``batches`` or ``epochs`` to read.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import sys
from itertools import islice
from typing import Any

from benchmarks.system import private_dirty_bytes
from dlas_store.datasets import Loader, create_dataloader, create_dataset


def worker(options: dict[str, Any], batches: int) -> int:
    """Return the Private_Dirty of the only worker process after some batches, in bytes."""
    loader = iter(_open(options))
    for _ in islice(loader, batches):
        pass
    (process,) = multiprocessing.active_children()
    assert process.pid is not None
    return private_dirty_bytes(process.pid)


def growth(options: dict[str, Any], epochs: int) -> list[int]:
    """Return the Private_Dirty of this process after each epoch, in bytes, without batches and garbage."""
    loader = _open(options)
    dirty_bytes = []
    for _ in range(epochs):
        for _ in loader:
            pass
        gc.collect()
        dirty_bytes.append(private_dirty_bytes())
    return dirty_bytes


def _open(options: dict[str, Any]) -> Loader:
    dataset, collate = create_dataset(options, return_collate=True)
    return create_dataloader(dataset, options, collate_fn=collate)


if __name__ == "__main__":
    spec = json.loads(sys.argv[2])
    print(json.dumps(worker(**spec) if sys.argv[1] == "worker" else growth(**spec)))
