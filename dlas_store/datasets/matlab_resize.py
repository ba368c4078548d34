"""Bicubic reduction equal to MATLAB's imresize, the standard by which super-resolution compares results."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlas_store.datasets.planes import Planes


def matlab_reduce(planes: Planes, factor: int) -> Planes:
    """Reduce both sides by a factor, as ``imresize(picture, 1 / factor)`` does: bicubic, antialiased, not clipped.

    Beyond an edge the picture is continued by its mirror image.

    Args:
        planes: float32 (C, H, W).
        factor: a whole number from 1.

    Returns:
        A new array, float32 (C, ceil(H / factor), ceil(W / factor)). Its values may leave the argument's range.
    """
    weights = _weights(factor)
    rows = _reduce_rows(planes, factor, weights)
    columns = _reduce_rows(rows.swapaxes(1, 2), factor, weights)
    return np.ascontiguousarray(columns.swapaxes(1, 2))


def _weights(factor: int) -> NDArray[np.float32]:
    """Return the weights of source pixels for a pixel of the result, float32 (4 * factor,) or one fewer, of sum 1.

    With a whole factor, every pixel of the result has the same offset to the source pixels around it, so that one row
    of weights serves all. The kernel is stretched by the factor, which makes it antialiased.
    """
    reach = 2 * factor
    # Distances from the pixel's centre to those of source pixels: halves if the factor is even, else whole numbers.
    distances = np.arange(1 - reach, reach) if factor % 2 else np.arange(-reach, reach) + 0.5
    kernel = _cubic(np.abs(distances) / factor)
    return np.asarray(kernel / kernel.sum(), np.float32)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Keys' cubic kernel with a = -1/2 for distances in [0, 2], in source pixels before it is stretched."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance <= 1, near, far)


def _reduce_rows(planes: Planes, factor: int, weights: NDArray[np.float32]) -> Planes:
    channels, height, width = planes.shape
    count = -(-height // factor)
    first = factor // 2 - len(weights) // 2
    last = (count - 1) * factor + first + len(weights)
    mirrored = np.pad(planes, ((0, 0), (-first, max(last - height, 0)), (0, 0)), "symmetric")
    reduced = np.zeros((channels, count, width), np.float32)
    for tap, weight in enumerate(weights):
        reduced += weight * mirrored[:, tap : tap + (count - 1) * factor + 1 : factor]
    return reduced
