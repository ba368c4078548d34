"""Geometry of tiles in a photo, without pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.images.decode import Size
from dlas_store.sources.base import Center


class Square(NamedTuple):
    """The part of a photo that is cut up, in pixels of the photo after rotation and halving."""

    top: int
    left: int
    side: int


class Tile(NamedTuple):
    """One tile of a square.

    Attributes:
        row: of its first row, in pixels of the square.
        col: of its first column.
        crop: its side there.
        size: its side once it is brought to size.
    """

    row: int
    col: int
    crop: int
    size: int


def halved(size: Size, limit: int) -> Size:
    """Return the size at which a photo is cut up: half, where its longer side is above the limit.

    >>> halved(Size(4001, 5501), 5500), halved(Size(4001, 5500), 5500)
    (Size(height=2000, width=2750), Size(height=4001, width=5500))
    """
    return Size(size.height // 2, size.width // 2) if max(size) > limit else size


def squares(size: Size, *, vertical_split: bool) -> dict[str, Square]:
    """Return what is cut up of a photo, by what is added to the photo's name.

    That is its centre; in a split that of each half, by the half's own shorter side, with columns towards the seam.

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
    """Return where the tiles of a row or column start.

    Args:
        side: of the square.
        crop: side of a tile.
        step: from one to the next.
        threshold: where more pixels than this are left over at the end, one more tile ends there.

    >>> starts(1000, 256, 300, 127), starts(1000, 256, 300, 128), starts(100, 256, 300, 1)
    ([0, 300, 600, 744], [0, 300, 600, 744], [])
    """
    found = list(range(0, side - crop + 1, step))
    if found and side - (found[-1] + crop) > threshold:
        found.append(side - crop)
    return found


def tiles_by_crop(side: int, options: ExtractOptions, wanted: list[int]) -> Iterator[list[Tile]]:
    """Yield the tiles of each wanted crop size, row by row.

    Args:
        side: of the square.
        options: crop sizes and what goes with them; with only_resize the square is the one tile.
        wanted: positions of the crop sizes to cut.
    """
    if options.only_resize:
        yield [Tile(0, 0, side, options.tile_dimension)] if wanted and side else []
        return
    for at in wanted:
        crop = options.crop_sizes[at]
        places = starts(side, crop, options.steps[at], options.threshold)
        yield [Tile(row, col, crop, options.tile_sizes[at]) for row in places for col in places]


def count_tiles(side: int, options: ExtractOptions, wanted: list[int]) -> tuple[int, int]:
    """Return how many tiles a square gives, and the pixels of all of them once they are brought to size."""
    if options.only_resize:
        count = int(bool(wanted) and side > 0)
        return count, count * options.tile_dimension**2
    count = pixels = 0
    for at in wanted:
        of_size = len(starts(side, options.crop_sizes[at], options.steps[at], options.threshold)) ** 2
        count += of_size
        pixels += of_size * options.tile_sizes[at] ** 2
    return count, pixels


def center(tile: Tile, side: int, tile_dimension: int) -> Center:
    """Return where a tile lies in the reference, in the reference's pixels.

    Args:
        tile: the tile.
        side: of the square.
        tile_dimension: side of the reference.
    """
    scale = side / tile_dimension
    half = tile.crop // 2
    return Center(int((tile.row + half) // scale), int((tile.col + half) // scale), int(tile.crop // scale))
