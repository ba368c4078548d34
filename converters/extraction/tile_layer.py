"""The tiles of one crop size: each cut out of the photo, or of the whole square brought to their size."""

from __future__ import annotations

from collections.abc import Iterator

from dlas_store.aligned_memory import Pixels
from dlas_store.converters.extraction.averaging import resized
from dlas_store.converters.extraction.photos import Photo
from dlas_store.converters.extraction.tile_encoding import JpegEncoder, Place, TilesOfPicture
from dlas_store.converters.extraction.tiling import Square, Tile
from dlas_store.pixels import Size


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
