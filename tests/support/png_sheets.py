"""PNG sheets: their pixels, and pictures to look for on a sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.sample_data import Array

GREY = (60, 60, 60)


def pixels_of(file: Path) -> Array:
    with Image.open(file) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.asarray(picture)


def places_of(part: Array, sheet: Array) -> list[tuple[int, int]]:
    """Return row and column of every place at which a sheet contains exactly the pixels of a part."""
    height, width = part.shape[:2]
    starts = (sheet[: sheet.shape[0] - height + 1, : sheet.shape[1] - width + 1] == part[0, 0]).all(-1)
    return [
        (row, col)
        for row, col in np.argwhere(starts).tolist()
        if np.array_equal(sheet[row : row + height, col : col + width], part)
    ]


def flat(height: int, width: int, color: tuple[int, int, int] = GREY) -> Array:
    return np.full((height, width, 3), color, np.uint8)


def magnified(pixels: Array, times: int) -> Array:
    return np.kron(pixels, np.ones((times, times, 1), np.uint8))
