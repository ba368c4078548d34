"""What a training loop is measured with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, and from what; plain values, for they go to another process.

    Attributes:
        options: of dataset and loader.
        in_memory: whether the loop gets a few batches over and over, which lie in memory: no loader can be faster.
        width: channels of the network.
        blocks: its depth.
        steps: a pass.
        device: where it is trained.
        torch_threads: of PyTorch in the loop's process; None leaves its own choice.
    """

    options: dict[str, Any]
    in_memory: bool
    width: int
    blocks: int
    steps: int
    device: str
    torch_threads: int | None
