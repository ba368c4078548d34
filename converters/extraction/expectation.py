"""What a photo will give, as far as its header tells."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dlas_store.converters.extraction.headers import Header, photo_squares
from dlas_store.converters.extraction.masks import Mask, kept_tiles
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.tiling import count_tiles

_QUALITIES = (1, 50, 75, 90, 95, 100)
_BYTES_A_PIXEL = (0.015, 0.05, 0.08, 0.13, 0.19, 0.45)
"""JPEG bytes a pixel at those qualities, 4:2:0, of 256 x 256 tiles of the sample photos; for estimates."""


class Expected(NamedTuple):
    """What photos are expected to give: exactly, but for the bytes.

    Attributes:
        photo_pixels: of the photos as stored.
        images: number of images.
        tiles: number of tiles.
        tile_pixels: of all tiles and references.
        tile_bytes: of those, once they are encoded; an estimate.
    """

    photo_pixels: int = 0
    images: int = 0
    tiles: int = 0
    tile_pixels: int = 0
    tile_bytes: int = 0


def expectation(header: Header, options: ExtractOptions, wanted: list[int], mask: Mask | None) -> Expected:
    """Return what a photo will give.

    Args:
        header: the photo's.
        options: of the extraction.
        wanted: positions of the crop sizes that it is cut to.
        mask: the photo's, if there is one.
    """
    counts = []
    for square in photo_squares(header, options).values():
        if mask is None:
            count, pixels = count_tiles(square.side, options, wanted)
        else:
            kept = [tile for tiles in kept_tiles(square.side, options, wanted, mask) for tile in tiles]
            count, pixels = len(kept), sum(tile.size**2 for tile in kept)
        if count:
            counts.append((count, pixels + options.tile_dimension**2))
    tile_pixels = sum(pixels for _, pixels in counts)
    return Expected(
        photo_pixels=header.size.height * header.size.width,
        images=len(counts),
        tiles=sum(count for count, _ in counts),
        tile_pixels=tile_pixels,
        tile_bytes=int(tile_pixels * np.interp(options.quality, _QUALITIES, _BYTES_A_PIXEL)),
    )
