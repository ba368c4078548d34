"""Geometry of tiles in a photo, without pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.images.decode import Size
from dlas_store.sources.base import Center


class Square(NamedTuple):
    """A square of a photo that is split into tiles, in pixels of the photo after rotation and halving."""

    top: int
    left: int
    side: int


class Tile(NamedTuple):
    """One tile of a square.

    Attributes:
        row: first row of the crop, in pixels of the square.
        col: first column of the crop.
        crop: side of the crop, in pixels of the square.
        size: side of the tile after the crop was resized.
    """

    row: int
    col: int
    crop: int
    size: int


def halved_size(size: Size, limit: int) -> Size:
    """Return half the size if its longer side is above the limit, else the size itself.

    >>> halved_size(Size(4001, 5501), 5500), halved_size(Size(4001, 5500), 5500)
    (Size(height=2000, width=2750), Size(height=4001, width=5500))
    """
    return Size(size.height // 2, size.width // 2) if max(size) > limit else size


def squares(size: Size, *, vertical_split: bool) -> dict[str, Square]:
    """Return the squares of a photo, by the suffix that the photo's name gets.

    A photo has one square, at its centre. A vertical split has one square per half: the side is the half's own shorter
    side, the rows are centred, and the columns touch the seam.

    >>> squares(Size(4, 10), vertical_split=False)
    {'': Square(top=0, left=3, side=4)}
    >>> squares(Size(4, 11), vertical_split=True)
    {'_left': Square(top=0, left=1, side=4), '_right': Square(top=0, left=5, side=4)}
    """
    height, width = size
    if not vertical_split:
        side = min(height, width)
        return {"": Square((height - side) // 2, (width - side) // 2, side)}
    seam = width // 2
    left, right = min(height, seam), min(height, width - seam)
    return {
        "_left": Square((height - left) // 2, seam - left, left),
        "_right": Square((height - right) // 2, seam, right),
    }


def starts(side: int, crop: int, step: int, threshold: int) -> list[int]:
    """Return the first pixel of each crop in a row or column.

    Args:
        side: side of the square.
        crop: side of a crop.
        step: distance from one crop to the next.
        threshold: if more pixels than this remain at the end, a last crop ends there.

    >>> starts(1000, 256, 300, 127), starts(1000, 256, 300, 128), starts(100, 256, 300, 1)
    ([0, 300, 600, 744], [0, 300, 600, 744], [])
    """
    firsts = list(range(0, side - crop + 1, step))
    if firsts and side - (firsts[-1] + crop) > threshold:
        firsts.append(side - crop)
    return firsts


def tiles_by_crop(side: int, options: ExtractOptions, crop_indices: list[int]) -> Iterator[list[Tile]]:
    """Yield the tiles of each crop size, row by row.

    Args:
        side: side of the square.
        options: options of the extraction; with only_resize the square is the one tile.
        crop_indices: indices of the crop sizes to use.
    """
    if options.only_resize:
        yield [Tile(0, 0, side, options.tile_dimension)] if crop_indices and side else []
        return
    for index in crop_indices:
        crop = options.crop_sizes[index]
        firsts = starts(side, crop, options.steps[index], options.threshold)
        yield [Tile(row, col, crop, options.tile_sizes[index]) for row in firsts for col in firsts]


def count_tiles(side: int, options: ExtractOptions, crop_indices: list[int]) -> tuple[int, int]:
    """Return the number of a square's tiles, and the number of their pixels after resizing; see tiles_by_crop."""
    if options.only_resize:
        count = int(bool(crop_indices) and side > 0)
        return count, count * options.tile_dimension**2
    count = pixels = 0
    for index in crop_indices:
        crop_count = len(starts(side, options.crop_sizes[index], options.steps[index], options.threshold)) ** 2
        count += crop_count
        pixels += crop_count * options.tile_sizes[index] ** 2
    return count, pixels


def center(tile: Tile, side: int, tile_dimension: int) -> Center:
    """Return a tile's centre and width in pixels of the reference.

    Args:
        tile: the tile.
        side: side of the square.
        tile_dimension: side of the reference.
    """
    scale = side / tile_dimension
    half = tile.crop // 2
    return Center(int((tile.row + half) // scale), int((tile.col + half) // scale), int(tile.crop // scale))
