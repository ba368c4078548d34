"""Child process that makes a loader, takes the first batch, and prints the seconds as JSON; first.py starts it.

The argument is JSON: ``options`` of dataset and loader, ``state`` to resume from (or null), and ``steps``. If ``steps``
is not 0, the process then takes as many steps, untimed; it prints the state and the digest of the step it reaches.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from xxhash import xxh3_64_hexdigest

from dlas_store.datasets import create_dataloader, create_dataset


def main(options: dict[str, Any], state: dict[str, int] | None, steps: int) -> None:
    """Take a batch; the clock starts at create_dataset, or at load_state_dict if there is a state."""
    started = time.perf_counter()
    dataset, collate = create_dataset(options, return_collate=True)
    loader = create_dataloader(dataset, options, collate_fn=collate)
    if state is not None:
        started = time.perf_counter()
        loader.load_state_dict(state)
    batches = iter(loader)
    batch = next(batches)
    seconds = time.perf_counter() - started
    for _ in range(steps - 1):
        next(batches)
    reached = loader.state_dict()
    if steps:
        batch = next(batches)
    print(json.dumps({"seconds": seconds, "state": reached, "digest": _digest(batch)}))


def _digest(batch: dict[str, Any]) -> str:
    """Return a hash of all values of a batch."""
    tensors = [value.numpy().tobytes() for value in batch.values() if isinstance(value, torch.Tensor)]
    lists = [value for value in batch.values() if not isinstance(value, torch.Tensor)]
    return xxh3_64_hexdigest(b"".join(tensors) + json.dumps(lists).encode())


if __name__ == "__main__":
    argument = json.loads(sys.argv[1])
    main(argument["options"], argument["state"], argument["steps"])
