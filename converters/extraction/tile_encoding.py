"""Tiles as JPEGs: what several of them share is encoded once, and each is cut out of that along its blocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2

from dlas_store.aligned_memory import Pixels
from dlas_store.converters.extraction.options import Subsampling
from dlas_store.pixels import Size

try:
    from dlas_store.converters.extraction._jpeg_crop import JpegBlocks
except ImportError:  # installed where there was no compiler
    JpegBlocks = None  # type: ignore[assignment, misc]

_SAMPLING = {
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
}

_UNITS = {"4:2:0": Size(16, 16), "4:2:2": Size(8, 16), "4:4:4": Size(8, 8)}
"""What a JPEG is made of: pixels that are encoded by themselves, but for how their mean differs from the one before."""

_LEAST_OVERLAP = 2
"""How many tiles of a grid must share a pixel on average: with fewer it is not faster to encode what they cover, find
its blocks and cut the tiles out than to encode each."""


_MOST_AREA = 2
"""How much is encoded for several tiles, and held, in parts of the picture; many grids would need all of it each."""


class JpegEncoder(NamedTuple):
    """How tiles are encoded.

    Attributes:
        quality: 1 to 100.
        subsampling: of colour.
    """

    quality: int
    subsampling: Subsampling

    @property
    def unit(self) -> Size:
        """What a JPEG can be cut along."""
        return _UNITS[self.subsampling]

    def encode(self, pixels: Pixels) -> bytes:
        """Encode BGR pixels, by OpenCV: simplejpeg uses the fast DCT, whose errors can be seen at quality 95."""
        return bytes(self._encoded(pixels))

    def encode_blocks(self, pixels: Pixels) -> JpegBlocks | None:
        """Encode BGR pixels out of which JPEGs will be cut; None where that is not possible."""
        if JpegBlocks is None:
            return None
        try:
            return JpegBlocks(self._encoded(pixels))
        except ValueError:  # this OpenCV was built with an encoder that makes JPEGs of another kind
            return None

    def _encoded(self, pixels: Pixels) -> Any:
        sampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _SAMPLING[self.subsampling])
        return cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, self.quality, *sampling))[1]


class Place(NamedTuple):
    """Where a tile starts in a picture, in pixels."""

    row: int
    col: int

    def square(self, picture: Pixels, side: int) -> Pixels:
        """Return the square of a side that starts here; a view."""
        return picture[self.row : self.row + side, self.col : self.col + side]


class TilesOfPicture:
    """Tiles of one size in one picture, each encoded as it would be by itself, byte for byte.

    Where tiles of one grid, whose places differ by whole units, lie over each other, their blocks are equal. The part
    of the picture that many such tiles cover is encoded once, when the first of them is asked for.
    """

    def __init__(self, picture: Pixels, places: Sequence[Place], size: int, encoder: JpegEncoder) -> None:
        """Find out which tiles are worth encoding together.

        Args:
            picture: uint8 (H, W, 3) BGR.
            places: of the tiles.
            size: side of a tile, in pixels.
            encoder: of the tiles.
        """
        self._picture = picture
        self._size = size
        self._encoder = encoder
        self._parts: dict[Place, _Part] = {}
        self._blocks: dict[Place, JpegBlocks | None] = {}
        if size % encoder.unit.height or size % encoder.unit.width:
            return
        by_grid = defaultdict(list)
        for place in places:
            by_grid[self._grid(place)].append(place)
        most_area = _MOST_AREA * picture.shape[0] * picture.shape[1]
        for grid, found in sorted(by_grid.items(), key=lambda item: -len(item[1])):
            rows, cols = zip(*found, strict=True)
            part = _Part(min(rows), min(cols), max(rows) + size, max(cols) + size)
            if len(found) * size**2 >= _LEAST_OVERLAP * part.area and part.area <= most_area:
                self._parts[grid] = part
                most_area -= part.area

    def encode(self, place: Place) -> bytes:
        """Return a tile as a JPEG."""
        grid = self._grid(place)
        part = self._parts.get(grid)
        if part is not None:
            if grid not in self._blocks:
                self._blocks[grid] = self._encoder.encode_blocks(part.of(self._picture))
            blocks = self._blocks[grid]
            if blocks is not None:
                return blocks.crop(place.row - part.top, place.col - part.left, self._size, self._size)
        return self._encoder.encode(place.square(self._picture, self._size))

    def _grid(self, place: Place) -> Place:
        """Return what places that differ by whole units have in common."""
        return Place(place.row % self._encoder.unit.height, place.col % self._encoder.unit.width)


class _Part(NamedTuple):
    """A part of a picture."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)

    def of(self, picture: Pixels) -> Pixels:
        return picture[self.top : self.bottom, self.left : self.right]
