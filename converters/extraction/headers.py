"""Photos' files: which they are, and what their headers say, without decoding pixels.

Why a photo gives no image, as far as its header tells.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple, cast

from PIL import Image as PillowImage
from PIL import ImageFile, TiffImagePlugin

from dlas_store.converters.extraction.geometry import Square, count_tiles, halved, squares
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.errors import ImageError
from dlas_store.images.decode import (
    IMAGE_ENDINGS,
    MAX_PIXELS,
    ORIENTATION,
    PICTURE_FORMATS,
    PILLOW_ERRORS,
    Size,
    open_with_pillow,
)

PHOTO_ENDINGS = tuple(IMAGE_ENDINGS | {".tif", ".tiff"})
"""How the names of photos end, in any case."""

PHOTO_FORMATS = (*PICTURE_FORMATS, "TIFF")

MAX_FILE_BYTES = 1 << 30
"""Larger files are refused: a worker holds the whole of one in memory."""

UPRIGHT = 1
"""The EXIF orientation of a photo whose rows and columns are stored as they are seen."""

_LYING = range(5, 9)
"""Orientations in which stored rows are seen as columns."""

_BITS_PER_SAMPLE, _SAMPLE_FORMAT = 258, 339  # TIFF tags
_FLOATING = 3


class Header(NamedTuple):
    """What is known of a photo without decoding it.

    Attributes:
        kind: its format, in Pillow's names.
        size: its pixels as stored.
        orientation: how it was held, as EXIF has it, 1 to 8; 1 is upright.
        mode: its pixels' kind, in Pillow's names.
        frames: how many pictures it holds; 2 stands for any number above.
        bits: of a channel.
        floating: whether its values are floating point numbers.
    """

    kind: str
    size: Size
    orientation: int
    mode: str
    frames: int
    bits: int
    floating: bool


def open_photo(path: Path | str) -> IO[bytes]:
    """Open a photo's file.

    Raises:
        ImageError: it cannot be opened, is empty, or too large to be read.
    """
    try:
        file = open(path, "rb")  # noqa: PTH123, SIM115 - Path objects are slow; the caller closes it
        size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})") from error
    if not 0 < size <= MAX_FILE_BYTES:
        file.close()
        raise ImageError("the file is empty" if not size else f"the file is larger than {MAX_FILE_BYTES} bytes")
    return file


def read_photo(path: Path | str) -> bytes:
    """Return the bytes of a photo's file.

    Raises:
        ImageError: as open_photo, or it cannot be read.
    """
    with open_photo(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise ImageError(f"cannot be read ({error.strerror})") from error


def read_header(file: IO[bytes]) -> Header:
    """Read a photo's header; decodes no pixels.

    Args:
        file: the photo's, at its start.

    Raises:
        ImageError: no photo, or a damaged one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels, which rejection_of tells, and of damaged EXIF blocks
            with open_with_pillow(file, PHOTO_FORMATS) as picture:
                return _header(file, picture)
    except PILLOW_ERRORS as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"damaged picture ({error})") from error


def header_of(data: bytes) -> Header:
    """Read the header of a photo in memory; see read_header."""
    return read_header(io.BytesIO(data))


def _header(file: IO[bytes], picture: PillowImage.Image) -> Header:
    kind = "JPEG" if picture.format == "MPO" else str(picture.format)  # a JPEG with more pictures behind its end
    size, bits, floating = Size(picture.height, picture.width), 8, picture.mode == "F"
    frames = 2 if kind != "JPEG" and getattr(picture, "is_animated", False) else 1
    exif: bytes | None = picture.info.get("exif")
    if kind == "TIFF":
        tags = cast(TiffImagePlugin.TiffImageFile, picture).tag_v2
        size = Size(tags[257], tags[256])  # Pillow's own is that of the picture turned upright
        bits = max(tags.get(_BITS_PER_SAMPLE, (1,)))
        floating |= _FLOATING in tags.get(_SAMPLE_FORMAT, ())
        return Header(kind, size, _tiff_orientation(picture), picture.mode, frames, bits, floating)
    if kind == "PNG":
        file.seek(24)
        bits = file.read(1)[0]
        exif = _png_exif(file)
    elif kind == "PPM":
        decoding = cast(ImageFile.ImageFile, picture).tile[0].args
        bits = 16 if isinstance(decoding, tuple) and len(decoding) == 2 and int(decoding[1]) > 255 else 8
    if picture.mode.startswith("I"):
        bits = max(bits, 16)
    return Header(kind, size, _exif_orientation(exif), picture.mode, frames, bits, floating)


def _png_exif(file: IO[bytes]) -> bytes | None:
    """Return the EXIF block of a PNG, which may follow the pixels; Pillow would decode them on the way there."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return file.read(length)
        file.seek(length + 4, os.SEEK_CUR)
    return None


def _exif_orientation(exif: bytes | None) -> int:
    if not exif:
        return UPRIGHT
    try:
        block = PillowImage.Exif()
        block.load(exif)
        return _valid_orientation(block.get(ORIENTATION))
    except (*PILLOW_ERRORS, KeyError, TypeError, AttributeError, AssertionError, OverflowError):
        return UPRIGHT


def _tiff_orientation(picture: PillowImage.Image) -> int:
    try:
        return _valid_orientation(picture.getexif().get(ORIENTATION))
    except (*PILLOW_ERRORS, KeyError, TypeError, AttributeError, AssertionError, OverflowError):
        return UPRIGHT


def _valid_orientation(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else UPRIGHT


def oriented(header: Header, options: ExtractOptions) -> Size:
    """Return the size of a photo once it is upright."""
    height, width = header.size
    return Size(width, height) if header.orientation in _LYING and not options.ignore_exif else header.size


def photo_squares(header: Header, options: ExtractOptions) -> Mapping[str, Square]:
    """Return what is cut up of a photo, in pixels of it upright and halved; see squares."""
    return squares(halved(oriented(header, options), options.halve_above), vertical_split=options.vertical_split)


_GREYSCALE = frozenset({"1", "L", "LA", "La"})
_COLOUR = frozenset({"RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "YCbCr"})


class Rejection(NamedTuple):
    """Why a photo gives no image.

    Attributes:
        reason: in words that are the same for all photos of the kind.
        bad: whether the photo is to blame, and not the options.
    """

    reason: str
    bad: bool


NO_TILE = Rejection("smaller than every crop size", bad=False)
MASKED_OUT = Rejection("every tile is masked out", bad=False)
EXCLUDED = Rejection("excluded by a term", bad=False)


def rejection_of(header: Header, options: ExtractOptions) -> Rejection | None:
    """Return why a photo cannot be taken, None where it can."""
    return _problem_of_pixels(header, options) or _problem_of_size(header, options)


def why_no_tile(header: Header, options: ExtractOptions, wanted: list[int]) -> Rejection:
    """Return why a photo without fault gives no tile.

    Args:
        header: the photo's.
        options: of the extraction.
        wanted: positions of the crop sizes that it is cut to.
    """
    if not wanted:
        return EXCLUDED
    sides = [square.side for square in photo_squares(header, options).values()]
    return MASKED_OUT if any(count_tiles(side, options, wanted)[0] for side in sides) else NO_TILE


def _problem_of_pixels(header: Header, options: ExtractOptions) -> Rejection | None:
    grey = header.mode in _GREYSCALE
    if header.size.height * header.size.width > MAX_PIXELS:
        reason = f"more pixels than the limit of {MAX_PIXELS}"
    elif header.frames > 1:
        reason = "animated, or of several pages"
    elif header.mode == "CMYK":
        reason = "CMYK, convert it to RGB first"
    elif header.floating:
        reason = "floating point numbers for pixels, convert it to 8 bits first"
    elif header.bits > 8:
        reason = "16 bits a channel, convert it to 8 bits first"
    elif not grey and header.mode not in _COLOUR:
        reason = f"pixels of the kind {header.mode}, convert it to RGB first"
    else:
        skipped = grey and not options.convert_greyscale
        return Rejection("greyscale, taken with --greyscale convert", bad=False) if skipped else None
    return Rejection(reason, bad=True)


def _problem_of_size(header: Header, options: ExtractOptions) -> Rejection | None:
    if min(halved(header.size, options.halve_above)) >= options.min_size:
        return None
    return Rejection(f"its shorter side is below the least size of {options.min_size} pixels", bad=False)
