"""Photos as they are cut up: decoded, upright, halved where they are too large.

Area averaging: what OpenCV's INTER_AREA gives, in a third of the time where much is averaged.

Tiles as JPEGs: what several of them share is encoded once, and each is cut out of that along its blocks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from dlas_store.converters.extraction.geometry import halved
from dlas_store.converters.extraction.headers import PHOTO_FORMATS, UPRIGHT, Header, oriented, photo_squares
from dlas_store.converters.extraction.options import ExtractOptions, Subsampling
from dlas_store.errors import ImageError
from dlas_store.images.decode import Size, decode
from dlas_store.images.memory import Pixels

_LEAST_FACTOR = 3
"""Below this OpenCV is as fast."""

_LEAST_PIXELS = 1 << 16
"""Below this the time does not matter, and in a picture of a few pixels a rounding that differs is seen."""

_ROWS_AT_ONCE = 32
"""Rows of the result, whose sums then stay in the processor's cache."""


def resized(pixels: Pixels, size: Size) -> Pixels:
    """Return pixels area-averaged to a size; where that is larger they are interpolated.

    Args:
        pixels: uint8 (H, W, 3); rows may lie apart, as in a view of a larger picture.
        size: of the result.

    Returns:
        uint8 (size.height, size.width, 3), the pixels themselves where they have that size.
    """
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    by_whole_pixels = height % size.height == width % size.width == 0  # OpenCV has a fast way for these
    opencv_is_as_fast = by_whole_pixels or height < _LEAST_FACTOR * size.height or height * width < _LEAST_PIXELS
    if opencv_is_as_fast or width < size.width:
        return cast(Pixels, cv2.resize(pixels, (size.width, size.height), interpolation=cv2.INTER_AREA))
    averaged: Pixels = np.empty((*size, pixels.shape[2]), np.uint8)
    edges = np.arange(size.height + 1) * (height / size.height)
    for top in range(0, size.height, _ROWS_AT_ONCE):
        rows = averaged[top : top + _ROWS_AT_ONCE]
        sums = _sum_rows(pixels, edges[top : top + len(rows) + 1])
        narrow = cv2.resize(sums, (size.width, len(rows)), interpolation=cv2.INTER_AREA)
        rows[:] = np.rint(narrow * np.float32(size.height / height))
    return averaged


def _sum_rows(pixels: Pixels, edges: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the sums of the rows between edges, float32 (edges - 1, W, 3); a row that an edge cuts counts in part."""
    height, width, channels = pixels.shape
    flat = np.lib.stride_tricks.as_strided(pixels, (height, width * channels), (pixels.strides[0], 1), writeable=False)
    firsts = np.minimum(edges.astype(np.int64), height)
    sums = np.empty((len(edges) - 1, width * channels), np.float32)
    for row in range(len(sums)):
        cv2.reduce(flat[firsts[row] : firsts[row + 1]], 0, cv2.REDUCE_SUM, dst=sums[row : row + 1], dtype=cv2.CV_32F)
    # Of the row of pixels that an edge cuts, the part above belongs to the sum before.
    parts = flat[np.minimum(firsts, height - 1)] * (edges - firsts).astype(np.float32)[:, None]
    sums -= parts[:-1]
    sums += parts[1:]
    return sums.reshape(-1, width, channels)


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


_REVERSED = ((3, 4, 7, 8), (2, 3, 6, 7))
"""Orientations in which rows, and columns, run against those that are stored."""

Reduction = Literal[1, 2, 4, 8]
"""What the sides of a JPEG are divided by while it is decoded."""


class Photo(NamedTuple):
    """A photo as it is cut up.

    Attributes:
        pixels: uint8 (H, W, 3) BGR, rotated and halved.
        rows: where its rows lie in pixels.
        cols: where its columns lie there.
    """

    pixels: Pixels
    rows: Axis
    cols: Axis

    @property
    def is_reduced(self) -> bool:
        """Whether it was decoded at less than its size."""
        return self.rows.scale != 1 or self.cols.scale != 1

    def region(self, top: int, left: int, side: int) -> Pixels:
        """Return a square of the photo; a view."""
        return self.pixels[self.rows.range(top, side), self.cols.range(left, side)]


class PixelBuffer:
    """Memory that one photo after another is decoded into; only the latest of them is there.

    New memory for each takes a tenth of the time of decoding it, since the system clears it first.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def room(self, size: Size) -> Pixels:
        """Return room for the pixels of a photo, uint8 in one piece."""
        needed = size.height * size.width * 3
        if len(self._memory) < needed:
            self._memory = np.empty(needed, np.uint8)
        return self._memory


class Axis(NamedTuple):
    """How places along one side of a photo lie in pixels that were decoded reduced.

    Attributes:
        length: number of pixels.
        scale: pixels for each of the photo.
        origin: where the photo starts, in pixels.
    """

    length: int
    scale: float = 1.0
    origin: float = 0.0

    def range(self, start: int, length: int) -> slice:
        """Return which pixels are nearest to a range of the photo; as many wherever it starts."""
        if self.scale == 1 and not self.origin:
            return slice(start, start + length)
        count = max(1, round(length * self.scale))
        first = min(max(0, round(self.origin + start * self.scale)), self.length - count)
        return slice(first, first + count)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Let OpenCV use one thread inside the block, since the worker processes have all cores.

    It must be around their start: a process that is forked off while OpenCV has threads waits for them for ever.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def load_photo(
    data: bytes, header: Header, options: ExtractOptions, wanted: list[int], buffer: PixelBuffer | None = None
) -> Photo:
    """Decode a photo, turn it upright, and halve it where it is too large.

    Args:
        data: its file.
        header: what that says of it.
        options: of the extraction.
        wanted: positions of the crop sizes that it will be cut to.
        buffer: memory that may hold the photo, in place of the one before.

    Returns:
        The photo; alpha is dropped, not composited, and greyscale repeated.

    Raises:
        ImageError: it is damaged or truncated.
    """
    reduction = _reduction(header, options, wanted)
    room = None if buffer is None else buffer.room(header.size)
    pixels = decode(data, formats=PHOTO_FORMATS, reduction=reduction, bgr=True, buffer=room)
    if reduction == 1 and pixels.shape[:2] != header.size:
        raise ImageError(f"decodes to another size than the {header.size.width} x {header.size.height} of its header")
    orientation = UPRIGHT if options.ignore_exif else header.orientation
    pixels = _turned(pixels, orientation)
    upright = oriented(header, options)
    size = halved(upright, options.halve_above)
    if reduction == 1:
        return Photo(resized(pixels, size), Axis(size.height), Axis(size.width))
    rows, cols = (
        Axis(
            pixels.shape[axis],
            upright[axis] / size[axis] / reduction,
            # The last of the pixels as stored stands for fewer than the others, and may be the first now.
            pixels.shape[axis] - upright[axis] / reduction if orientation in _REVERSED[axis] else 0.0,
        )
        for axis in (0, 1)
    )
    return Photo(pixels, rows, cols)


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    """Return pixels turned upright."""
    flips = {2: 1, 3: -1, 4: 0, 7: -1}
    turns = {6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
    if orientation in (5, 7):
        pixels = cast(Pixels, cv2.transpose(pixels))
    if orientation in flips:
        pixels = cast(Pixels, cv2.flip(pixels, flips[orientation]))
    elif orientation in turns:
        pixels = cast(Pixels, cv2.rotate(pixels, turns[orientation]))
    return pixels


def _reduction(header: Header, options: ExtractOptions, wanted: list[int]) -> Reduction:
    """Return what a JPEG may be divided by so that nothing that is made of it is larger than what is decoded."""
    if not options.fast_decode or header.kind != "JPEG":
        return 1
    least = min(square.side for square in photo_squares(header, options).values()) / options.tile_dimension
    if not options.only_resize:
        least = min([least, *(options.crop_sizes[at] / options.tile_sizes[at] for at in wanted)])
    if halved(header.size, options.halve_above) != header.size:
        least *= 2
    factors: tuple[Reduction, ...] = (8, 4, 2)
    return next((factor for factor in factors if factor <= least), 1)
