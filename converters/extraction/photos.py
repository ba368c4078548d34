"""Pixels of photos: decoding upright and halved, area averaging, and encoding of tiles as JPEGs."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from dlas_store.converters.extraction.geometry import halved_size
from dlas_store.converters.extraction.headers import PHOTO_FORMATS, UPRIGHT, Header, photo_squares, upright_size
from dlas_store.converters.extraction.options import ExtractOptions, Subsampling
from dlas_store.errors import ImageError
from dlas_store.images.decode import Size, decode
from dlas_store.images.memory import Pixels
from dlas_store.images.png import check_png

_LOG = logging.getLogger(__name__)

try:
    from dlas_store.converters.extraction._jpeg_crop import JpegBlocks
except ImportError as error:  # installed without a compiler
    _LOG.debug("Each tile is encoded by itself, which is slower, because a C extension is missing (%s)", error)
    JpegBlocks = None  # type: ignore[assignment, misc]

Reduction = Literal[1, 2, 4, 8]
"""Divisor of a JPEG's sides while it is decoded."""

_REVERSED = ((3, 4, 7, 8), (2, 3, 6, 7))
"""EXIF orientations in which the order of rows, and of columns, is the reverse of the stored one."""

_MIN_FACTOR = 3
"""Below this factor of reduction OpenCV is as fast."""

_MIN_PIXELS = 1 << 16
"""Below this number of pixels the time does not matter, and a different rounding would be visible."""

_ROWS_PER_STEP = 32
"""Rows of the result that are averaged at a time, so that their sums stay in the processor's cache."""

_SAMPLING = {
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
}

_UNITS = {"4:2:0": Size(16, 16), "4:2:2": Size(8, 16), "4:4:4": Size(8, 8)}
"""Size of a JPEG's MCU (minimum coded unit). MCUs are coded independently, except for the difference of their means."""

_MIN_OVERLAP = 2
"""Minimum average number of tiles of a grid that share a pixel. With fewer, encoding each tile is as fast as encoding
the region that they cover, finding its blocks and cropping the tiles."""

_MAX_SHARED_AREA = 2
"""Maximum total area of the regions that are encoded and kept for several tiles, in areas of the picture. Without a
limit, each of many grids could keep the whole picture."""


class Photo(NamedTuple):
    """A decoded photo.

    Attributes:
        pixels: uint8 (H, W, 3) BGR, upright and halved.
        rows: mapping of the photo's rows to pixels.
        cols: mapping of the photo's columns to pixels.
    """

    pixels: Pixels
    rows: Axis
    cols: Axis

    @property
    def is_reduced(self) -> bool:
        """Whether the photo was decoded at less than its size."""
        return self.rows.scale != 1 or self.cols.scale != 1

    def region(self, top: int, left: int, side: int) -> Pixels:
        """Return a square of the photo; a view."""
        return self.pixels[self.rows.range(top, side), self.cols.range(left, side)]


class Axis(NamedTuple):
    """Mapping of one side of a photo to pixels that may have been decoded at reduced size.

    Attributes:
        length: number of decoded pixels.
        scale: decoded pixels per pixel of the photo.
        origin: start of the photo, in decoded pixels.
    """

    length: int
    scale: float = 1.0
    origin: float = 0.0

    def range(self, start: int, length: int) -> slice:
        """Return the decoded pixels nearest to a range of the photo; their number does not depend on the start."""
        if self.scale == 1 and not self.origin:
            return slice(start, start + length)
        count = max(1, round(length * self.scale))
        first = min(max(0, round(self.origin + start * self.scale)), self.length - count)
        return slice(first, first + count)


class PixelBuffer:
    """Reusable memory for decoded photos; each photo overwrites the previous one.

    New memory for each photo would take a tenth of the decoding time, because the system clears it first.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def reserve(self, size: Size) -> Pixels:
        """Return uint8 memory, one-dimensional, for at least the pixels of a photo of that size."""
        needed = size.height * size.width * 3
        if len(self._memory) < needed:
            self._memory = np.empty(needed, np.uint8)
        return self._memory


def load_photo(
    data: bytes, header: Header, options: ExtractOptions, crop_indices: list[int], buffer: PixelBuffer | None = None
) -> Photo:
    """Decode a photo, rotate it upright, and halve it if it is too large.

    Args:
        data: bytes of the photo's file.
        header: header of the photo.
        options: options of the extraction.
        crop_indices: indices of the crop sizes that the photo will be split into.
        buffer: memory that may hold the photo; overwrites the previous photo.

    Returns:
        The photo; an alpha channel is dropped, not composited, and greyscale is repeated for each channel.

    Raises:
        ImageError: the photo is damaged or truncated.
    """
    reduction = _reduction(header, options, crop_indices)
    memory = None if buffer is None else buffer.reserve(header.size)
    pixels = decode(data, formats=PHOTO_FORMATS, reduction=reduction, bgr=True, buffer=memory)
    if header.kind == "PNG":
        check_png(data)
    if pixels.shape[:2] == header.size:
        reduction = 1  # Pillow decodes some JPEGs, and never at less than their size
    if reduction == 1 and pixels.shape[:2] != header.size:
        raise ImageError(f"decodes to another size than the {header.size.width} x {header.size.height} of its header")
    orientation = UPRIGHT if options.ignore_exif else header.orientation
    pixels = _rotate_upright(pixels, orientation)
    full_size = upright_size(header, options)
    size = halved_size(full_size, options.halve_above)
    if reduction == 1:
        return Photo(resize_pixels(pixels, size), Axis(size.height), Axis(size.width))
    rows, cols = (
        Axis(
            pixels.shape[axis],
            full_size[axis] / size[axis] / reduction,
            # The last stored pixel may cover less of the photo than the others; a reversed axis begins with it.
            pixels.shape[axis] - full_size[axis] / reduction if orientation in _REVERSED[axis] else 0.0,
        )
        for axis in (0, 1)
    )
    return Photo(pixels, rows, cols)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Let OpenCV use one thread inside the block, because the worker processes use all cores.

    The worker processes must start inside the block: a process that is forked while OpenCV has threads waits for them
    forever.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def resize_pixels(pixels: Pixels, size: Size) -> Pixels:
    """Resize pixels by area averaging, as OpenCV's INTER_AREA does; a larger size is interpolated.

    Large reductions take a third of OpenCV's time.

    Args:
        pixels: uint8 (H, W, 3); rows may have gaps between them, as in a view of a larger picture.
        size: size of the result.

    Returns:
        uint8 (size.height, size.width, 3); the given array itself if it has that size.
    """
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    by_whole_pixels = height % size.height == width % size.width == 0  # OpenCV has a fast path for these
    opencv_is_as_fast = by_whole_pixels or height < _MIN_FACTOR * size.height or height * width < _MIN_PIXELS
    if opencv_is_as_fast or width < size.width:
        return cast(Pixels, cv2.resize(pixels, (size.width, size.height), interpolation=cv2.INTER_AREA))
    averages: Pixels = np.empty((*size, pixels.shape[2]), np.uint8)
    edges = np.arange(size.height + 1) * (height / size.height)
    for top in range(0, size.height, _ROWS_PER_STEP):
        rows = averages[top : top + _ROWS_PER_STEP]
        sums = _sum_rows(pixels, edges[top : top + len(rows) + 1])
        narrow = cv2.resize(sums, (size.width, len(rows)), interpolation=cv2.INTER_AREA)
        rows[:] = np.rint(narrow * np.float32(size.height / height))
    return averages


class JpegEncoder(NamedTuple):
    """Encoder of tiles.

    Attributes:
        quality: 1 to 100.
        subsampling: chroma subsampling.
    """

    quality: int
    subsampling: Subsampling

    @property
    def unit(self) -> Size:
        """Size of an MCU; a JPEG can be cropped at multiples of it."""
        return _UNITS[self.subsampling]

    def encode(self, pixels: Pixels) -> bytes:
        """Encode BGR pixels with OpenCV: simplejpeg uses the fast DCT, whose errors are visible at quality 95."""
        return bytes(self._encode(pixels))

    def encode_blocks(self, pixels: Pixels) -> JpegBlocks | None:
        """Encode BGR pixels from which JPEGs will be cropped; None if cropping is not possible."""
        if JpegBlocks is None:
            return None
        try:
            return JpegBlocks(self._encode(pixels))
        except ValueError:  # this OpenCV was built with an encoder that makes JPEGs of another kind
            return None

    def _encode(self, pixels: Pixels) -> Any:
        sampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _SAMPLING[self.subsampling])
        return cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, self.quality, *sampling))[1]


class Place(NamedTuple):
    """Top left pixel of a tile in a picture."""

    row: int
    col: int

    def square(self, picture: Pixels, side: int) -> Pixels:
        """Return the square of that side which starts here; a view."""
        return picture[self.row : self.row + side, self.col : self.col + side]


class TileEncoder:
    """Encodes tiles of one size in one picture; each JPEG equals the tile encoded alone, byte for byte.

    Tiles whose places differ by whole MCUs form a grid. Tiles of one grid that overlap have equal blocks. If many tiles
    of a grid overlap, the region that they cover is encoded once, when the first tile of the grid is asked for, and
    each tile is cropped from it along the blocks.
    """

    def __init__(self, picture: Pixels, places: Sequence[Place], size: int, encoder: JpegEncoder) -> None:
        """Choose the grids whose tiles are encoded together.

        Args:
            picture: uint8 (H, W, 3) BGR.
            places: places of the tiles.
            size: side of a tile, in pixels.
            encoder: quality and subsampling of the tiles.
        """
        self._picture = picture
        self._size = size
        self._encoder = encoder
        self._regions: dict[Place, _Region] = {}
        self._blocks: dict[Place, JpegBlocks | None] = {}
        if size % encoder.unit.height or size % encoder.unit.width:
            return
        places_of_grid = defaultdict(list)
        for place in places:
            places_of_grid[self._grid(place)].append(place)
        free_area = _MAX_SHARED_AREA * picture.shape[0] * picture.shape[1]
        for grid, grid_places in sorted(places_of_grid.items(), key=lambda item: -len(item[1])):
            rows, cols = zip(*grid_places, strict=True)
            region = _Region(min(rows), min(cols), max(rows) + size, max(cols) + size)
            if len(grid_places) * size**2 >= _MIN_OVERLAP * region.area and region.area <= free_area:
                self._regions[grid] = region
                free_area -= region.area

    def encode(self, place: Place) -> bytes:
        """Return a tile as a JPEG."""
        grid = self._grid(place)
        region = self._regions.get(grid)
        if region is not None:
            if grid not in self._blocks:
                self._blocks[grid] = self._encoder.encode_blocks(region.view(self._picture))
            blocks = self._blocks[grid]
            if blocks is not None:
                return blocks.crop(place.row - region.top, place.col - region.left, self._size, self._size)
        return self._encoder.encode(place.square(self._picture, self._size))

    def _grid(self, place: Place) -> Place:
        """Return the key of a place's grid: the place modulo the MCU."""
        return Place(place.row % self._encoder.unit.height, place.col % self._encoder.unit.width)


class _Region(NamedTuple):
    """Rectangle of a picture."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)

    def view(self, picture: Pixels) -> Pixels:
        return picture[self.top : self.bottom, self.left : self.right]


def _reduction(header: Header, options: ExtractOptions, crop_indices: list[int]) -> Reduction:
    """Return the largest divisor of a JPEG's sides at which no tile and no reference has to be enlarged."""
    if not options.fast_decode or header.kind != "JPEG":
        return 1
    min_factor = min(square.side for square in photo_squares(header, options).values()) / options.tile_dimension
    if not options.only_resize:
        factors = (options.crop_sizes[index] / options.tile_sizes[index] for index in crop_indices)
        min_factor = min([min_factor, *factors])
    if halved_size(header.size, options.halve_above) != header.size:
        min_factor *= 2
    reductions: tuple[Reduction, ...] = (8, 4, 2)
    return next((reduction for reduction in reductions if reduction <= min_factor), 1)


def _rotate_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Return the pixels of a photo, stored with an EXIF orientation, upright."""
    flips = {2: 1, 3: -1, 4: 0, 7: -1}
    rotations = {6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
    if orientation in (5, 7):
        pixels = cast(Pixels, cv2.transpose(pixels))
    if orientation in flips:
        pixels = cast(Pixels, cv2.flip(pixels, flips[orientation]))
    elif orientation in rotations:
        pixels = cast(Pixels, cv2.rotate(pixels, rotations[orientation]))
    return pixels


def _sum_rows(pixels: Pixels, edges: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the sums of the rows between edges, float32 (edges - 1, W, 3); an edge shares a row between two sums."""
    height, width, channels = pixels.shape
    flat = np.lib.stride_tricks.as_strided(pixels, (height, width * channels), (pixels.strides[0], 1), writeable=False)
    firsts = np.minimum(edges.astype(np.int64), height)
    sums = np.empty((len(edges) - 1, width * channels), np.float32)
    for row in range(len(sums)):
        cv2.reduce(flat[firsts[row] : firsts[row + 1]], 0, cv2.REDUCE_SUM, dst=sums[row : row + 1], dtype=cv2.CV_32F)
    # The share of a row above its edge belongs to the previous sum.
    shares = flat[np.minimum(firsts, height - 1)] * (edges - firsts).astype(np.float32)[:, None]
    sums -= shares[:-1]
    sums += shares[1:]
    return sums.reshape(-1, width, channels)
