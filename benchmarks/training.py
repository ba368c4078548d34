"""Settings of a measured training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of data, loader and network, as plain values, which can be sent to another process.

    Attributes:
        options: options of dataset and loader.
        in_memory: whether the loop repeats a few batches from memory; no loader can be faster.
        width: channels of the network.
        blocks: residual blocks of the network.
        steps: steps a pass.
        device: device that the network is trained on.
        torch_threads: PyTorch's threads in the loop's process; None leaves PyTorch its own choice.
    """

    options: dict[str, Any]
    in_memory: bool
    width: int
    blocks: int
    steps: int
    device: str
    torch_threads: int | None
