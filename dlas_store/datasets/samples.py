"""Samples: a picture with its reference, and the dict that a trainer takes for an HQ and an LQ sample."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from dlas_store.datasets.planes import Planes, pack


class Sample(NamedTuple):
    """A picture with its reference at one resolution.

    Attributes:
        patch: float32 (3, H, W).
        reference: float32 (4, H, W); the last channel is the mask.
        center: row and column of the patch's centre in the reference, in pixels of this resolution.
        path: path of the file or image that the patch was cut from.
    """

    patch: Planes
    reference: Planes
    center: tuple[int, int]
    path: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.patch.shape[1], self.patch.shape[2]


def pack_pair(hq: Sample, lq: Sample) -> dict[str, Any]:
    """Return an HQ and an LQ sample as the trainer takes them; SingleImageDataset describes all keys but the paths."""
    return {
        "hq": pack(hq.patch),
        "lq": pack(lq.patch),
        "gt_fullsize_ref": pack(hq.reference),
        "lq_fullsize_ref": pack(lq.reference),
        "gt_center": torch.tensor(hq.center),
        "lq_center": torch.tensor(lq.center),
        "HQ_path": hq.path,
        "LQ_path": lq.path,
    }
