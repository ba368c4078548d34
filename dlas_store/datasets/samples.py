"""A picture with its reference, and how the trainer takes a pair of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from dlas_store.datasets.planes import Planes, pack


class Sample(NamedTuple):
    """A picture with its reference at one resolution.

    Attributes:
        patch: (3, H, W).
        reference: (4, H, W), the mask is the last plane.
        center: row and column of the patch's centre in the reference, in pixels of this resolution.
        path: where the patch comes from.
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
    """Return HQ and LQ as the trainer takes them; SingleImageDataset says what is in it, but for the paths."""
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
