"""Bicubic reduction as MATLAB's imresize does it, which super-resolution compares its results by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlas_store.datasets.planes import Planes


def matlab_reduce(planes: Planes, factor: int) -> Planes:
    """Bring the sides down by a factor, as ``imresize(picture, 1 / factor)``: bicubic, antialiased, not clipped.

    What lies beyond an edge is the picture mirrored there.

    Args:
        planes: float32 (C, H, W).
        factor: from 1.

    Returns:
        A new array, float32 (C, ceil(H / factor), ceil(W / factor)); values may leave the range of the argument.
    """
    weights = _weights(factor)
    rows = _reduce_rows(planes, factor, weights)
    columns = _reduce_rows(rows.swapaxes(1, 2), factor, weights)
    return np.ascontiguousarray(columns.swapaxes(1, 2))


def _weights(factor: int) -> NDArray[np.float32]:
    """Return what each source pixel counts for a pixel of the result, float32 (4 * factor,) or one fewer, of sum 1.

    With a whole factor the centres of all pixels of the result lie alike among those of the source, so that one row of
    weights serves all. The kernel is stretched by the factor, which is the antialiasing.
    """
    reach = 2 * factor
    # From the pixel's centre to those of the source: halves where the factor is even, else whole numbers.
    distances = np.arange(1 - reach, reach) if factor % 2 else np.arange(-reach, reach) + 0.5
    kernel = _cubic(np.abs(distances) / factor)
    return np.asarray(kernel / kernel.sum(), np.float32)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Keys' cubic kernel with a = -1/2 for distances in [0, 2], in source pixels before the stretching."""
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
