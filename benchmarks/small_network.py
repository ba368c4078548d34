"""A small super-resolution network, the work of a training loop beside reading."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class SmallNetwork(nn.Module):
    """Residual blocks of convolutions at LQ's size and a PixelShuffle, which add detail to enlarged LQ.

    Args:
        width: number of channels.
        blocks: number of residual blocks, of two convolutions each.
        scale: HQ's side over LQ's side.
    """

    def __init__(self, *, width: int, blocks: int, scale: int) -> None:
        super().__init__()
        self._scale = scale
        self._head = nn.Conv2d(3, width, 3, padding=1)
        self._blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(blocks)
        )
        self._tail = nn.Sequential(nn.Conv2d(width, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, lq: torch.Tensor) -> torch.Tensor:
        """Return HQ, float32 (B, 3, h, w), for LQ, float32 (B, 3, h/scale, w/scale)."""
        features: torch.Tensor = self._head(lq)
        for block in self._blocks:
            features = features + block(features)
        detail: torch.Tensor = self._tail(features)
        return functional.interpolate(lq, scale_factor=self._scale) + detail
