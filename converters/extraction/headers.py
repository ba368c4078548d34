"""Headers of photos, read without decoding pixels, and the reasons to reject a photo by its header."""

from __future__ import annotations

import io
import math
import os
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple, cast

from PIL import Image as PillowImage
from PIL import ImageFile, TiffImagePlugin

from dlas_store.converters.extraction.geometry import Square, count_tiles, halved_size, squares
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.errors import ImageError
from dlas_store.images.decode import IMAGE_ENDINGS, MAX_PIXELS, PICTURE_FORMATS, Size
from dlas_store.images.pillow import ORIENTATION, PILLOW_ERRORS, open_with_pillow

PHOTO_ENDINGS = tuple(IMAGE_ENDINGS | {".tif", ".tiff"})
"""Endings of photos' file names, in lower case; the ending of a file may have any case."""

PHOTO_FORMATS = (*PICTURE_FORMATS, "TIFF")

MAX_FILE_BYTES = 1 << 30
"""Larger files are rejected, because a worker holds a whole file in memory."""

UPRIGHT = 1
"""EXIF orientation of a photo whose rows and columns are stored as they are seen."""

_TRANSPOSED = range(5, 9)
"""EXIF orientations in which stored rows are seen as columns."""

_BITS_PER_SAMPLE, _SAMPLE_FORMAT = 258, 339  # TIFF tags
_FLOAT_FORMAT = 3

_GREYSCALE = frozenset({"1", "L", "LA", "La"})
_COLOUR = frozenset({"RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "YCbCr"})


class Header(NamedTuple):
    """Header of a photo.

    Attributes:
        kind: Pillow's name of the file format.
        size: size in pixels, as stored.
        orientation: EXIF orientation, 1 to 8; 1 is upright.
        mode: Pillow's name of the pixel format.
        frames: number of pictures in the file; 2 means two or more.
        bits: bits per channel.
        is_float: whether the pixels are floating point numbers.
    """

    kind: str
    size: Size
    orientation: int
    mode: str
    frames: int
    bits: int
    is_float: bool


class Rejection(NamedTuple):
    """Reason why a photo gives no image.

    Attributes:
        reason: text that is equal for all photos with the same problem.
        is_error: whether the photo is bad; otherwise the options exclude it.
    """

    reason: str
    is_error: bool


NO_TILE = Rejection("smaller than every crop size", is_error=False)
MASKED_OUT = Rejection("every tile is masked out", is_error=False)
EXCLUDED = Rejection("excluded by a term", is_error=False)


def is_photo(path: str) -> bool:
    """Return whether the ending of a file name is that of a photo, in lower or upper case."""
    return path.lower().endswith(PHOTO_ENDINGS)


def open_photo(path: Path | str) -> IO[bytes]:
    """Open a photo's file.

    Raises:
        ImageError: the file cannot be opened, is empty, or is larger than MAX_FILE_BYTES.
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
        ImageError: the file cannot be opened or read, is empty, or is larger than MAX_FILE_BYTES.
    """
    with open_photo(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise ImageError(f"cannot be read ({error.strerror})") from error


def read_header(file: IO[bytes]) -> Header:
    """Read a photo's header; decodes no pixels.

    Args:
        file: the photo's file, at its start.

    Raises:
        ImageError: the file is no photo, or is damaged.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged EXIF blocks.
            warnings.simplefilter("ignore")
            with open_with_pillow(file, PHOTO_FORMATS, max_pixels=math.inf) as picture:
                return _header(file, picture)
    except PILLOW_ERRORS as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"damaged picture ({error})") from error


def parse_header(data: bytes) -> Header:
    """Read the header of a photo in memory; see read_header."""
    return read_header(io.BytesIO(data))


def upright_size(header: Header, options: ExtractOptions) -> Size:
    """Return the size of a photo after it was rotated upright."""
    height, width = header.size
    is_transposed = header.orientation in _TRANSPOSED and not options.ignore_exif
    return Size(width, height) if is_transposed else header.size


def photo_squares(header: Header, options: ExtractOptions) -> Mapping[str, Square]:
    """Return the squares of a photo, in pixels of the upright and halved photo; see squares."""
    size = halved_size(upright_size(header, options), options.halve_above)
    return squares(size, vertical_split=options.vertical_split)


def rejection_of(header: Header, options: ExtractOptions) -> Rejection | None:
    """Return why a photo is rejected by its header, None if it is accepted."""
    return _pixel_rejection(header, options) or _size_rejection(header, options)


def rejection_without_tiles(header: Header, options: ExtractOptions, crop_indices: list[int]) -> Rejection:
    """Return why an accepted photo gives no tile.

    Args:
        header: header of the photo.
        options: options of the extraction.
        crop_indices: indices of the crop sizes that the photo is split into.
    """
    if not crop_indices:
        return EXCLUDED
    sides = [square.side for square in photo_squares(header, options).values()]
    return MASKED_OUT if any(count_tiles(side, options, crop_indices)[0] for side in sides) else NO_TILE


def _header(file: IO[bytes], picture: PillowImage.Image) -> Header:
    kind = "JPEG" if picture.format == "MPO" else str(picture.format)  # MPO: a JPEG followed by more pictures
    size, bits, is_float = Size(picture.height, picture.width), 8, picture.mode == "F"
    frames = 2 if kind != "JPEG" and getattr(picture, "is_animated", False) else 1
    exif: bytes | None = picture.info.get("exif")
    if kind == "TIFF":
        tags = cast(TiffImagePlugin.TiffImageFile, picture).tag_v2
        size = Size(tags[257], tags[256])  # Pillow's size is that of the upright picture
        bits = max(tags.get(_BITS_PER_SAMPLE, (1,)))
        is_float |= _FLOAT_FORMAT in tags.get(_SAMPLE_FORMAT, ())
        return Header(kind, size, _tiff_orientation(picture), picture.mode, frames, bits, is_float)
    if kind == "PNG":
        file.seek(24)
        bits = file.read(1)[0]
        exif = _png_exif(file)
    elif kind == "PPM":
        args = cast(ImageFile.ImageFile, picture).tile[0].args  # the decoder's: format, and maximum value if not 255
        bits = 16 if isinstance(args, tuple) and len(args) == 2 and int(args[1]) > 255 else 8
    if picture.mode.startswith("I"):
        bits = max(bits, 16)
    return Header(kind, size, _exif_orientation(exif), picture.mode, frames, bits, is_float)


def _png_exif(file: IO[bytes]) -> bytes | None:
    """Return the EXIF block of a PNG; the block may follow the pixels, which Pillow would decode to reach it."""
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
    except (*PILLOW_ERRORS, KeyError, AttributeError, AssertionError, OverflowError):
        return UPRIGHT


def _tiff_orientation(picture: PillowImage.Image) -> int:
    try:
        return _valid_orientation(picture.getexif().get(ORIENTATION))
    except (*PILLOW_ERRORS, KeyError, AttributeError, AssertionError, OverflowError):
        return UPRIGHT


def _valid_orientation(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else UPRIGHT


def _pixel_rejection(header: Header, options: ExtractOptions) -> Rejection | None:
    is_grey = header.mode in _GREYSCALE
    if header.size.height * header.size.width > MAX_PIXELS:
        reason = f"more pixels than the limit of {MAX_PIXELS}"
    elif header.frames > 1:
        reason = "animated, or with several pages"
    elif header.mode == "CMYK":
        reason = "CMYK, convert it to RGB first"
    elif header.is_float:
        reason = "floating point numbers for pixels, convert it to 8 bits first"
    elif header.bits > 8:
        reason = "16 bits a channel, convert it to 8 bits first"
    elif not is_grey and header.mode not in _COLOUR:
        reason = f"pixel format {header.mode}, convert it to RGB first"
    elif is_grey and not options.convert_greyscale:
        return Rejection("greyscale, accepted with --greyscale convert", is_error=False)
    else:
        return None
    return Rejection(reason, is_error=True)


def _size_rejection(header: Header, options: ExtractOptions) -> Rejection | None:
    if min(halved_size(header.size, options.halve_above)) >= options.min_size:
        return None
    return Rejection(f"its shorter side is below the minimum of {options.min_size} pixels", is_error=False)
