"""One photo's images: reference, tiles and what is kept of where they came from, encoded one after another.

The tiles of one crop size: each cut out of the photo, or of the whole square brought to their size.

Masks: which tiles of a photo are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dlas_store.converters.extraction.geometry import Square, Tile, center, tiles_by_crop
from dlas_store.converters.extraction.headers import (
    Rejection,
    header_of,
    photo_squares,
    read_photo,
    rejection_of,
    why_no_tile,
)
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.photos import (
    JpegEncoder,
    Photo,
    PixelBuffer,
    Place,
    TilesOfPicture,
    load_photo,
    resized,
)
from dlas_store.errors import ImageError
from dlas_store.images.decode import Size, decode
from dlas_store.images.memory import Pixels
from dlas_store.sources.base import Image


class TileLayer:
    """Tiles of one crop size and one size."""

    def __init__(self, photo: Photo, square: Square, tiles: list[Tile]) -> None:
        """Bring the square to the tiles' size, where that is less work than bringing them there one by one.

        Args:
            photo: what they are cut out of.
            square: the part of it in which they lie.
            tiles: one or more.
        """
        self._photo = photo
        self._square = square
        self._tiles = tiles
        self._crop, self._size = tiles[0].crop, tiles[0].size
        self._factor = self._crop // self._size
        self._picture = self._square_in_size()
        self._places = list(map(self._place, tiles))

    def pixels(self) -> Iterator[Pixels]:
        """Yield the tiles' pixels, uint8 (size, size, 3) BGR; some are views."""
        for tile, place in zip(self._tiles, self._places, strict=True):
            if self._picture is None or place is None:
                yield self._tile_in_size(tile)
            else:
                yield place.square(self._picture, self._size)

    def jpegs(self, encoder: JpegEncoder) -> Iterator[bytes]:
        """Yield the tiles as JPEGs, each made when it is asked for."""
        if self._picture is None:
            yield from map(encoder.encode, self.pixels())
            return
        places = [place for place in self._places if place is not None]
        of_picture = TilesOfPicture(self._picture, places, self._size, encoder)
        for tile, place in zip(self._tiles, self._places, strict=True):
            yield encoder.encode(self._tile_in_size(tile)) if place is None else of_picture.encode(place)

    def _square_in_size(self) -> Pixels | None:
        """Return the square brought to the tiles' size; None where each is brought there by itself."""
        if self._crop % self._size or self._photo.is_reduced:
            return None
        side = self._square.side // self._factor * self._factor
        if self._factor > 1 and len(self._tiles) * self._crop**2 <= side**2:
            return None
        small = side // self._factor
        return resized(self._photo.region(self._square.top, self._square.left, side), Size(small, small))

    def _place(self, tile: Tile) -> Place | None:
        """Return where a tile lies in the picture; None where it would differ from the tile brought to size alone."""
        if self._picture is None or tile.row % self._factor or tile.col % self._factor:
            return None
        return Place(tile.row // self._factor, tile.col // self._factor)

    def _tile_in_size(self, tile: Tile) -> Pixels:
        crop = self._photo.region(self._square.top + tile.row, self._square.left + tile.col, self._crop)
        return resized(crop, Size(self._size, self._size))


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


class EncodedTile(NamedTuple):
    """A tile as it is stored: file name, JPEG, size in pixels."""

    file: str
    data: bytes
    size: Size


@dataclass(frozen=True, slots=True, eq=False)
class CutImage:
    """An image that is about to be cut out of a photo.

    Attributes:
        image: name, centres and extra fields; files and sizes follow from the tiles.
        tiles: where they lie, in order of their ids, which count from 0.
    """

    image: Image
    tiles: list[Tile]
    _photo: Photo
    _square: Square
    _options: ExtractOptions

    @property
    def photo_pixels(self) -> int:
        """Number of pixels of the photo, as stored."""
        origin = self.image.extra["photo"]
        return int(origin["height"] * origin["width"])

    def reference(self) -> bytes:
        """Return the square brought to the tile dimension, as a JPEG."""
        side = self._options.tile_dimension
        return self._encoder.encode(resized(self._photo.region(*self._square), Size(side, side)))

    def pixels(self) -> Iterator[Pixels]:
        """Yield the tiles' pixels in order, uint8 (size, size, 3) BGR; some are views of the photo's."""
        for layer in self._layers():
            yield from layer.pixels()

    def encoded(self) -> Iterator[EncodedTile]:
        """Yield the tiles, each cut and encoded when it is asked for."""
        jpegs = chain.from_iterable(layer.jpegs(self._encoder) for layer in self._layers())
        for number, (tile, data) in enumerate(zip(self.tiles, jpegs, strict=True)):
            yield EncodedTile(f"{number:08d}.jpg", data, Size(tile.size, tile.size))

    def _layers(self) -> Iterator[TileLayer]:
        for _, tiles in groupby(self.tiles, key=lambda tile: (tile.crop, tile.size)):
            yield TileLayer(self._photo, self._square, list(tiles))

    @property
    def _encoder(self) -> JpegEncoder:
        return JpegEncoder(self._options.quality, self._options.subsampling)


class CutPhoto(NamedTuple):
    """What a photo gives: its images, or why there are none."""

    images: list[CutImage]
    problem: Rejection | None


def cut_photo(root: Path, path: str, options: ExtractOptions, buffer: PixelBuffer | None = None) -> CutPhoto:
    """Decode a photo and find its tiles; holds the photo's pixels for as long as its images are used.

    Args:
        root: folder of the photos.
        path: the photo's, below it.
        options: of the extraction.
        buffer: memory that may hold the photo's pixels; the images of the photo before are of no use any more.
    """
    try:
        data = read_photo(root / path)
        header = header_of(data)
        problem = rejection_of(header, options)
        if problem is not None:
            return CutPhoto([], problem)
        wanted = options.wanted_crops(path)
        mask = read_mask(path, options)
        photo = load_photo(data, header, options, wanted, buffer)
    except ImageError as error:
        return CutPhoto([], Rejection(str(error), bad=True))
    origin = {"path": path, "bytes": len(data), "height": header.size.height, "width": header.size.width}
    cut = [
        _cut_image(
            image_name(path) + suffix,
            origin=origin,
            photo=photo,
            square=square,
            mask=mask,
            wanted=wanted,
            options=options,
        )
        for suffix, square in photo_squares(header, options).items()
    ]
    images = [image for image in cut if image.tiles]
    return CutPhoto(images, None if images else why_no_tile(header, options, wanted))


def image_name(path: str) -> str:
    """Return the name of a photo's image: the path without its ending, with ``__`` for each separator.

    >>> image_name("2019/sea.side.JPG")
    '2019__sea.side'
    """
    return path.rpartition(".")[0].replace("/", "__")


def _cut_image(
    name: str,
    *,
    origin: dict[str, Any],
    photo: Photo,
    square: Square,
    mask: Mask | None,
    wanted: list[int],
    options: ExtractOptions,
) -> CutImage:
    tiles: list[Tile] = []
    crops = []
    for of_crop in kept_tiles(square.side, options, wanted, mask):
        if of_crop:
            crops.append({"size": of_crop[0].crop, "first": len(tiles), "count": len(of_crop)})
            tiles += of_crop
    centers = {number: center(tile, square.side, options.tile_dimension) for number, tile in enumerate(tiles)}
    extra = {"photo": origin, "square": square._asdict(), "crops": crops}
    image = Image(name=name, files=(), centers=centers, has_reference=True, extra=extra)
    return CutImage(image, tiles, photo, square, options)
