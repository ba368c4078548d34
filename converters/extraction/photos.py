"""Photos as they are cut up: decoded, upright, halved where they are too large."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, cast

import cv2
import numpy as np

from dlas_store.aligned_memory import Pixels
from dlas_store.converters.extraction.averaging import resized
from dlas_store.converters.extraction.headers import PHOTO_FORMATS, UPRIGHT, Header, oriented, photo_squares
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.tiling import halved
from dlas_store.errors import ImageError
from dlas_store.pixels import Size, decode

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
