"""Tiles of a photo: selection by its mask, and images whose tiles are cropped and encoded on demand."""

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
    parse_header,
    photo_squares,
    read_photo,
    rejection_of,
    rejection_without_tiles,
)
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.photos import (
    JpegEncoder,
    Photo,
    PixelBuffer,
    Place,
    TileEncoder,
    load_photo,
    resize_pixels,
)
from dlas_store.errors import ImageError
from dlas_store.images.decode import Size, decode
from dlas_store.images.memory import Pixels
from dlas_store.sources.base import Image

MASK_SIDE = 256
"""Rows and columns of a mask, which covers a whole square of any size."""

_HALF_WHITE = 127.5


class TiledPhoto(NamedTuple):
    """Result of splitting a photo: its images, or the reason why there are none."""

    images: list[TiledImage]
    rejection: Rejection | None


def tile_photo(root: Path, path: str, options: ExtractOptions, buffer: PixelBuffer | None = None) -> TiledPhoto:
    """Decode a photo and find its tiles; the images keep the photo's pixels in memory.

    Args:
        root: folder of the photos.
        path: the photo's path below the folder.
        options: options of the extraction.
        buffer: memory that may hold the photo's pixels; the images of the previous photo become invalid.
    """
    try:
        data = read_photo(root / path)
        header = parse_header(data)
        rejection = rejection_of(header, options)
        if rejection is not None:
            return TiledPhoto([], rejection)
        crop_indices = options.crop_indices(path)
        mask = read_mask(path, options)
        photo = load_photo(data, header, options, crop_indices, buffer)
    except ImageError as error:
        return TiledPhoto([], Rejection(str(error), is_error=True))
    origin = {"path": path, "bytes": len(data), "height": header.size.height, "width": header.size.width}
    candidates = [
        _tile_square(
            image_name(path) + suffix,
            origin=origin,
            photo=photo,
            square=square,
            mask=mask,
            crop_indices=crop_indices,
            options=options,
        )
        for suffix, square in photo_squares(header, options).items()
    ]
    images = [image for image in candidates if image.tiles]
    return TiledPhoto(images, None if images else rejection_without_tiles(header, options, crop_indices))


def image_name(path: str) -> str:
    """Return the name of a photo's image: the path without its ending, with ``__`` for each separator.

    >>> image_name("2019/sea.side.JPG")
    '2019__sea.side'
    """
    return path.rpartition(".")[0].replace("/", "__")


class EncodedTile(NamedTuple):
    """A tile as it is stored: file name, JPEG, size in pixels."""

    file: str
    data: bytes
    size: Size


@dataclass(frozen=True, slots=True, eq=False)
class TiledImage:
    """An image whose tiles are cropped from a photo and encoded on demand.

    Attributes:
        image: name, centres and extra fields; files and sizes follow from the tiles.
        tiles: geometry of the tiles, in order of their ids, which count from 0.
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
        """Return the square, resized to the tile dimension, as a JPEG."""
        side = self._options.tile_dimension
        return self._encoder.encode(resize_pixels(self._photo.region(*self._square), Size(side, side)))

    def pixels(self) -> Iterator[Pixels]:
        """Yield the tiles' pixels in order, uint8 (size, size, 3) BGR; some are views of the photo's pixels."""
        for layer in self._layers():
            yield from layer.pixels()

    def encoded(self) -> Iterator[EncodedTile]:
        """Yield the tiles, each cropped and encoded when it is asked for."""
        jpegs = chain.from_iterable(layer.jpegs(self._encoder) for layer in self._layers())
        for number, (tile, data) in enumerate(zip(self.tiles, jpegs, strict=True)):
            yield EncodedTile(f"{number:08d}.jpg", data, Size(tile.size, tile.size))

    def _layers(self) -> Iterator[TileLayer]:
        for _, tiles in groupby(self.tiles, key=lambda tile: (tile.crop, tile.size)):
            yield TileLayer(self._photo, self._square, list(tiles))

    @property
    def _encoder(self) -> JpegEncoder:
        return JpegEncoder(self._options.quality, self._options.subsampling)


class TileLayer:
    """Tiles of one crop size and one tile size.

    Tiles are views of the whole square resized once, or are resized one by one, whichever is less work.
    """

    def __init__(self, photo: Photo, square: Square, tiles: list[Tile]) -> None:
        """Resize the square to the scale of the tiles, if that is less work than resizing each tile.

        Args:
            photo: the photo.
            square: the square of the photo that the tiles are in.
            tiles: one or more tiles.
        """
        self._photo = photo
        self._square = square
        self._tiles = tiles
        self._crop, self._size = tiles[0].crop, tiles[0].size
        self._factor = self._crop // self._size
        self._picture = self._resized_square()
        self._places = list(map(self._place, tiles))

    def pixels(self) -> Iterator[Pixels]:
        """Yield the tiles' pixels, uint8 (size, size, 3) BGR; some are views."""
        for tile, place in zip(self._tiles, self._places, strict=True):
            if self._picture is None or place is None:
                yield self._resized_tile(tile)
            else:
                yield place.square(self._picture, self._size)

    def jpegs(self, encoder: JpegEncoder) -> Iterator[bytes]:
        """Yield the tiles as JPEGs, each encoded when it is asked for."""
        if self._picture is None:
            yield from map(encoder.encode, self.pixels())
            return
        places = [place for place in self._places if place is not None]
        tile_encoder = TileEncoder(self._picture, places, self._size, encoder)
        for tile, place in zip(self._tiles, self._places, strict=True):
            yield encoder.encode(self._resized_tile(tile)) if place is None else tile_encoder.encode(place)

    def _resized_square(self) -> Pixels | None:
        """Return the square resized to the scale of the tiles; None if each tile is resized by itself."""
        if self._crop % self._size or self._photo.is_reduced:
            return None
        side = self._square.side // self._factor * self._factor
        if self._factor > 1 and len(self._tiles) * self._crop**2 <= side**2:
            return None
        resized_side = side // self._factor
        region = self._photo.region(self._square.top, self._square.left, side)
        return resize_pixels(region, Size(resized_side, resized_side))

    def _place(self, tile: Tile) -> Place | None:
        """Return a tile's place in the resized square; None if the tile resized by itself would differ."""
        if self._picture is None or tile.row % self._factor or tile.col % self._factor:
            return None
        return Place(tile.row // self._factor, tile.col // self._factor)

    def _resized_tile(self, tile: Tile) -> Pixels:
        crop = self._photo.region(self._square.top + tile.row, self._square.left + tile.col, self._crop)
        return resize_pixels(crop, Size(self._size, self._size))


class Mask(NamedTuple):
    """Mask of a photo's square; white keeps a tile.

    Attributes:
        sums: float64 (257, 257); entry (r, c) is the sum of all pixels above r and left of c.
        digest: digest of the mask's file.
    """

    sums: NDArray[np.float64]
    digest: int

    def keeps(self, tile: Tile, side: int) -> bool:
        """Return whether the mask's mean over a tile is at least half white.

        Args:
            tile: the tile.
            side: side of the square, in pixels of the photo.
        """
        top, bottom = _mask_range(tile.row, tile.crop, side)
        left, right = _mask_range(tile.col, tile.crop, side)
        total = self.sums[bottom, right] - self.sums[top, right] - self.sums[bottom, left] + self.sums[top, left]
        return bool(total >= _HALF_WHITE * (bottom - top) * (right - left))


def read_mask(path: str, options: ExtractOptions) -> Mask | None:
    """Return a photo's mask, None if the options name no masks.

    Args:
        path: the photo's path below its folder. The mask is ``path`` plus ``.png`` below the folder of masks, or else
            the photo's file name plus ``.png`` there.
        options: options of the extraction.

    Raises:
        ImageError: the mask is missing, cannot be read, or is not 256 x 256 pixels.
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


def kept_tiles(side: int, options: ExtractOptions, crop_indices: list[int], mask: Mask | None) -> Iterator[list[Tile]]:
    """Yield, for each crop size, the tiles that a mask keeps; see tiles_by_crop."""
    for tiles in tiles_by_crop(side, options, crop_indices):
        yield [tile for tile in tiles if mask is None or mask.keeps(tile, side)]


def _mask_range(start: int, crop: int, side: int) -> tuple[int, int]:
    """Return the mask's pixels, first and end, that a tile covers along one side."""
    first = start * MASK_SIDE // side
    return first, max(first + 1, (start + crop) * MASK_SIDE // side)


def _tile_square(
    name: str,
    *,
    origin: dict[str, Any],
    photo: Photo,
    square: Square,
    mask: Mask | None,
    crop_indices: list[int],
    options: ExtractOptions,
) -> TiledImage:
    """Return the image of one square of a photo; it has no tiles if no crop fits or the mask keeps none."""
    tiles: list[Tile] = []
    crops = []
    for crop_tiles in kept_tiles(square.side, options, crop_indices, mask):
        if crop_tiles:
            crops.append({"size": crop_tiles[0].crop, "first": len(tiles), "count": len(crop_tiles)})
            tiles += crop_tiles
    centers = {number: center(tile, square.side, options.tile_dimension) for number, tile in enumerate(tiles)}
    extra = {"photo": origin, "square": square._asdict(), "crops": crops}
    image = Image(name=name, files=(), centers=centers, has_reference=True, extra=extra)
    return TiledImage(image, tiles, photo, square, options)
