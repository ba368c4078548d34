"""Area averaging: what OpenCV's INTER_AREA gives, in a third of the time where much is averaged."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from dlas_store.aligned_memory import Pixels
from dlas_store.pixels import Size

_LEAST_FACTOR = 3
"""Below this OpenCV is as fast."""

_LEAST_PIXELS = 1 << 16
"""Below this the time does not matter, and in a picture of a few pixels a rounding that differs is seen."""

_ROWS_AT_ONCE = 32
"""Rows of the result, whose sums then stay in the processor's cache."""


def resized(pixels: Pixels, size: Size) -> Pixels:
    """Return pixels area-averaged to a size; where that is larger they are interpolated.

    Args:
        pixels: uint8 (H, W, 3); rows may lie apart, as in a view of a larger picture.
        size: of the result.

    Returns:
        uint8 (size.height, size.width, 3), the pixels themselves where they have that size.
    """
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    by_whole_pixels = height % size.height == width % size.width == 0  # OpenCV has a fast way for these
    opencv_is_as_fast = by_whole_pixels or height < _LEAST_FACTOR * size.height or height * width < _LEAST_PIXELS
    if opencv_is_as_fast or width < size.width:
        return cast(Pixels, cv2.resize(pixels, (size.width, size.height), interpolation=cv2.INTER_AREA))
    averaged: Pixels = np.empty((*size, pixels.shape[2]), np.uint8)
    edges = np.arange(size.height + 1) * (height / size.height)
    for top in range(0, size.height, _ROWS_AT_ONCE):
        rows = averaged[top : top + _ROWS_AT_ONCE]
        sums = _sum_rows(pixels, edges[top : top + len(rows) + 1])
        narrow = cv2.resize(sums, (size.width, len(rows)), interpolation=cv2.INTER_AREA)
        rows[:] = np.rint(narrow * np.float32(size.height / height))
    return averaged


def _sum_rows(pixels: Pixels, edges: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the sums of the rows between edges, float32 (edges - 1, W, 3); a row that an edge cuts counts in part."""
    height, width, channels = pixels.shape
    flat = np.lib.stride_tricks.as_strided(pixels, (height, width * channels), (pixels.strides[0], 1), writeable=False)
    firsts = np.minimum(edges.astype(np.int64), height)
    sums = np.empty((len(edges) - 1, width * channels), np.float32)
    for row in range(len(sums)):
        cv2.reduce(flat[firsts[row] : firsts[row + 1]], 0, cv2.REDUCE_SUM, dst=sums[row : row + 1], dtype=cv2.CV_32F)
    # Of the row of pixels that an edge cuts, the part above belongs to the sum before.
    parts = flat[np.minimum(firsts, height - 1)] * (edges - firsts).astype(np.float32)[:, None]
    sums -= parts[:-1]
    sums += parts[1:]
    return sums.reshape(-1, width, channels)
