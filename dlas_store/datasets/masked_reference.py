"""The reference of a patch in a batch, with the mask of where the patch lies in it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from dlas_store.aligned_memory import Pixels
from dlas_store.datasets.patches import MASK_OUTSIDE
from dlas_store.datasets.planes import Planes, area_resize, loops_for, to_unit
from dlas_store.datasets.references import Reference
from dlas_store.source import Center


def write_reference(
    reference: Reference,
    square: Center,
    *,
    size: tuple[int, int],
    target: tuple[int, int],
    hq: Planes,
    lq: Planes,
) -> None:
    """Write a reference, with the mask of a patch as its fourth channel, as HQ and as LQ.

    Args:
        reference: of the image.
        square: where the patch lies in its reference, in pixels of a reference of ``size``.
        size: height and width of the patch.
        target: height and width that the patch is brought to, before it is cropped at the bottom and right.
        hq: float32 (4, h, w), contiguous.
        lq: float32 (4, h / s, w / s), contiguous.
    """
    _, height, width = hq.shape
    if size == target:  # then cropping the mask and clamping its square are the same
        size = target = (height, width)
    loops = loops_for(size, hq, lq)
    if loops is not None and target == (height, width):
        loops.write_reference(*loops_arguments(reference, square, size, hq=hq, lq=lq))
        return
    if reference.hq.dtype == np.uint8:
        to_unit(cast(Pixels, reference.hq), hq[:3])
    else:
        hq[:3] = reference.hq
    lq[:3] = reference.lq
    mask = np.full((1, *size), MASK_OUTSIDE, np.float32)
    top, bottom, left, right = mask_box(square, size)
    mask[:, top:bottom, left:right] = 1
    hq[3:] = area_resize(mask, target)[:, :height, :width]
    area_resize(hq[3:], lq.shape[1:], out=lq[3:])


def loops_arguments(
    reference: Reference, square: Center, size: tuple[int, int], *, hq: Planes, lq: Planes
) -> tuple[Any, ...]:
    """Return what the loops in C take to do it, where they can and nothing is cropped; see write_reference."""
    return reference.hq, reference.lq, mask_box(square, size), MASK_OUTSIDE, size, hq, lq


def mask_box(square: Center, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return where the mask of a patch's square is 1: first row, the row behind the last, and the same of columns.

    Args:
        square: its centre and side, in pixels of the reference.
        size: height and width of the reference, to which the square is clamped.
    """
    half, (height, width) = square.width // 2, size
    top, bottom = square.row - half, square.row + half
    left, right = square.col - half, square.col + half
    return (
        min(max(top, 0), height),
        min(max(bottom, 0), height),
        min(max(left, 0), width),
        min(max(right, 0), width),
    )
