"""Masks: which tiles of a photo are kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dlas_store.converters.extraction.headers import read_photo
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.tiling import Tile, tiles_by_crop
from dlas_store.errors import ImageError
from dlas_store.pixels import decode

MASK_SIDE = 256
"""A mask has so many rows and columns for the square, whatever the size of that."""

_HALF = 127.5


class Mask(NamedTuple):
    """What is to be kept of a photo's square.

    Attributes:
        sums: float64 (257, 257); entry (r, c) is the sum of all pixels above r and left of c.
        digest: of the mask's file.
    """

    sums: NDArray[np.float64]
    digest: int

    def keeps(self, tile: Tile, side: int) -> bool:
        """Return whether the mean over a tile is at least half of what it can be.

        Args:
            tile: the tile.
            side: of the square, in pixels of the photo.
        """
        top, bottom = _mask_range(tile.row, tile.crop, side)
        left, right = _mask_range(tile.col, tile.crop, side)
        total = self.sums[bottom, right] - self.sums[top, right] - self.sums[bottom, left] + self.sums[top, left]
        return bool(total >= _HALF * (bottom - top) * (right - left))


def read_mask(path: str, options: ExtractOptions) -> Mask | None:
    """Return a photo's mask, None where there are to be none.

    Args:
        path: the photo's, below its folder; the mask lies at that path below the folder of masks, or is called as the
            photo's file; ``.png`` is added in either case.
        options: of the extraction.

    Raises:
        ImageError: the mask is missing, cannot be read, or is not of 256 x 256 pixels.
    """
    if options.masks is None:
        return None
    file = options.masks / f"{path}.png"
    if not file.exists():
        file = options.masks / f"{path.rpartition('/')[2]}.png"
    if not file.exists():
        raise ImageError("its mask is missing")
    try:
        data = read_photo(file)
        pixels = decode(data)
    except ImageError as error:
        raise ImageError(f"its mask: {error}") from error
    if pixels.shape[:2] != (MASK_SIDE, MASK_SIDE):
        raise ImageError(f"its mask is not {MASK_SIDE} x {MASK_SIDE} pixels")
    sums = cv2.integral(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), sdepth=cv2.CV_64F)
    return Mask(cast(NDArray[np.float64], sums), xxh3_64_intdigest(data))


def kept_tiles(side: int, options: ExtractOptions, wanted: list[int], mask: Mask | None) -> Iterator[list[Tile]]:
    """Yield the tiles of each wanted crop size that a mask keeps; see tiles_by_crop."""
    for of_crop in tiles_by_crop(side, options, wanted):
        yield [tile for tile in of_crop if mask is None or mask.keeps(tile, side)]


def _mask_range(start: int, crop: int, side: int) -> tuple[int, int]:
    first = start * MASK_SIDE // side
    return first, max(first + 1, (start + crop) * MASK_SIDE // side)
