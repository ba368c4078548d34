"""One photo's images: reference, tiles and what is kept of where they came from, encoded one after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

from dlas_store.aligned_memory import Pixels
from dlas_store.converters.extraction.averaging import resized
from dlas_store.converters.extraction.fitness import Problem, problem_of, why_no_tile
from dlas_store.converters.extraction.headers import header_of, photo_squares, read_photo
from dlas_store.converters.extraction.masks import Mask, kept_tiles, read_mask
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.photos import Photo, PixelBuffer, load_photo
from dlas_store.converters.extraction.tile_encoding import JpegEncoder
from dlas_store.converters.extraction.tile_layer import TileLayer
from dlas_store.converters.extraction.tiling import Square, Tile, center
from dlas_store.errors import ImageError
from dlas_store.pixels import Size
from dlas_store.source import Image


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
    problem: Problem | None


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
        problem = problem_of(header, options)
        if problem is not None:
            return CutPhoto([], problem)
        wanted = options.wanted_crops(path)
        mask = read_mask(path, options)
        photo = load_photo(data, header, options, wanted, buffer)
    except ImageError as error:
        return CutPhoto([], Problem(str(error), bad=True))
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
