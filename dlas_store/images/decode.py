"""Decoder of pictures to RGB: JPEG by libjpeg-turbo, other formats by Pillow."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import IO, Any, Literal, NamedTuple, NoReturn

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from dlas_store.errors import ConfigError, ImageError
from dlas_store.images.memory import Pixels, empty_aligned

Decoder = Literal["simplejpeg", "pyturbojpeg"]
"""Decoder of JPEG; both decoders give the same pixels."""

MAX_PIXELS = 89_478_485
"""Height times width above which a picture is refused before any allocation; Pillow's limit, 256 MiB of RGB."""

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp"})
"""File name endings, in lower or upper case, by which DL-Art-School recognises pictures."""

PICTURE_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "WEBP")
"""Formats that stores and folders may hold. Pillow reads more, and starts other programs for some of them (EPS)."""

PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, zlib.error)
"""Exceptions that Pillow raises for malformed bytes."""

ORIENTATION = 0x112
"""Number of the EXIF tag Orientation."""

DECODING_OFFSET = 16
"""Bytes from the start of a cache line to the start of an array into which decoding is fastest.

At this offset the decoder's vectors are not aligned. The decoder writes aligned vectors past the caches, which takes
longer (``python -m benchmarks steps``), and the next reader of the pixels then waits for memory.
"""

_Colors = Literal["RGB", "RGBA", "BGR"]

_JPEG_START = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"

_UNNAMED_SUBSAMPLING = "a subsampling that simplejpeg has no name for"

_PILLOW_COLORSPACES = ("CMYK", "YCCK", _UNNAMED_SUBSAMPLING)
"""Colour spaces of JPEGs that Pillow decodes: simplejpeg cannot convert them to RGB, or gives other pixels."""

_TURBOJPEG_REMEDY = "pip install dlas-store[turbojpeg] and the system's libjpeg-turbo, or take decoder simplejpeg"


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int


def decode(
    data: bytes,
    *,
    alpha: bool = False,
    max_pixels: int = MAX_PIXELS,
    decoder: Decoder = "simplejpeg",
    formats: tuple[str, ...] = PICTURE_FORMATS,
    reduction: Literal[1, 2, 4, 8] = 1,
    bgr: bool = False,
    buffer: Pixels | None = None,
) -> Pixels:
    """Decode a picture.

    Args:
        data: the bytes of an image file; the format is recognised by these bytes, not by a name.
        alpha: return RGBA, with alpha 255 if the picture has none. Without this option alpha is dropped, not
            composited.
        max_pixels: height times width above which the picture is refused.
        decoder: decoder of baseline and progressive JPEG.
        formats: Pillow's names of the allowed formats.
        reduction: divisor by which simplejpeg reduces a JPEG's sides, rounded up; other pictures keep their size.
        bgr: return colours in OpenCV's order; excludes alpha.
        buffer: uint8 array, contiguous and large enough, into which simplejpeg decodes a JPEG; the result is a view.

    Returns:
        uint8 (H, W, 3) RGB (or BGR), or (H, W, 4) RGBA. Grey is repeated, CMYK is converted, 16-bit values are divided
        by 257 and rounded. EXIF rotation is not applied.

    Raises:
        ImageError: the bytes are no picture, are damaged or truncated, or have more than max_pixels pixels.
        ConfigError: the decoder is pyturbojpeg, which cannot be loaded.
    """
    assert not (alpha and bgr)
    if data.startswith(_JPEG_START):
        size, colorspace = _jpeg_header(data)
        _check_size(size, max_pixels)
        if colorspace not in _PILLOW_COLORSPACES:
            colors: _Colors = "RGBA" if alpha else "BGR" if bgr else "RGB"
            min_size = Size(-(-size.height // reduction), -(-size.width // reduction))
            return _decode_jpeg(data, colors, decoder, min_size, buffer)
    pixels = _decode_by_pillow(data, alpha=alpha, max_pixels=max_pixels, formats=formats)
    return np.ascontiguousarray(pixels[:, :, ::-1]) if bgr else pixels


def decode_into(
    data: bytes | memoryview, out: Pixels, *, max_pixels: int = MAX_PIXELS, decoder: Decoder = "simplejpeg"
) -> Pixels:
    """Decode a picture into an array if both have the same size.

    Args:
        data: see decode.
        out: uint8 (H, W, 3), contiguous. Its content is undefined if another array is returned, or after an error.
        max_pixels: see decode.
        decoder: see decode.

    Returns:
        ``out``, or a new array if the picture has another size; either holds the pixels that decode returns.

    Raises:
        ImageError: see decode.
    """
    if decoder == "simplejpeg" and _is_jpeg_for(data, out, max_pixels):
        try:
            simplejpeg.decode_jpeg(data, "RGB", buffer=out)
        except ValueError:
            pass  # decode() below describes the damage
        else:
            return out
    pixels = decode(bytes(data), max_pixels=max_pixels, decoder=decoder)
    if pixels.shape != out.shape:
        return pixels
    out[...] = pixels
    return out


def empty_pixels(shape: tuple[int, ...]) -> Pixels:
    """Return an uninitialised array for decoded pictures: uint8 (..., 3), contiguous, aligned at DECODING_OFFSET."""
    return empty_aligned(shape, np.uint8, offset=DECODING_OFFSET)


def to_rgb(array: Pixels, *, alpha: bool) -> Pixels:
    """Return (H, W), (H, W, 3) or (H, W, 4) pixels as RGB (H, W, 3), or with ``alpha`` as RGBA (H, W, 4).

    The result is contiguous. It may share the memory of ``array``.
    """
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if alpha and array.shape[2] == 3:
        array = np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])
    return np.ascontiguousarray(array[:, :, : 4 if alpha else 3])


def as_batch(pictures: Sequence[Pixels]) -> Pixels | list[Pixels]:
    """Return pictures as one array (n, H, W, C) if all have the same size, else as a list."""
    if pictures and all(picture.shape == pictures[0].shape for picture in pictures):
        return np.stack(pictures)
    return list(pictures)


def decode_batch(
    indices: Sequence[int], decode_one: Callable[[int], Pixels], decode_one_into: Callable[[int, Pixels], Pixels]
) -> Pixels | list[Pixels]:
    """Decode pictures into one array (n, H, W, 3) if all have the same size, else into a list of arrays.

    Args:
        indices: indices of the pictures.
        decode_one: function that decodes a picture into a new array.
        decode_one_into: function that decodes a picture into an array, as decode_into does.
    """
    if not indices:
        return []
    first = decode_one(indices[0])
    batch = empty_pixels((len(indices), *first.shape))
    batch[0] = first
    rows = [batch[0], *(decode_one_into(index, row) for index, row in zip(indices[1:], batch[1:], strict=True))]
    return (
        batch if all(row.base is batch for row in rows) else [row.copy() if row.base is batch else row for row in rows]
    )


def image_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Size:
    """Return the size in a picture's header.

    Raises:
        ImageError: the bytes are no picture, or the header has more than max_pixels pixels.
    """
    if data.startswith(_JPEG_START):
        size = _jpeg_header(data)[0]
    else:
        with _open_bytes(data) as picture:
            size = Size(picture.height, picture.width)
    _check_size(size, max_pixels)
    return size


def check_picture(
    data: bytes, *, decode_all: bool = False, max_pixels: int = MAX_PIXELS, decoder: Decoder = "simplejpeg"
) -> Size:
    """Check that bytes are a complete picture and return the picture's size.

    The check reads the header and looks for the end marker of JPEG and PNG. A picture without an end marker is decoded;
    with ``decode_all`` every picture is decoded.

    Raises:
        ImageError: the bytes are no picture, are damaged or truncated, or have more than max_pixels pixels.
    """
    size = image_size(data, max_pixels=max_pixels)
    jpeg_ends = data.startswith(_JPEG_START) and data.endswith(_JPEG_END)
    png_ends = data.startswith(_PNG_START) and data.endswith(_PNG_END)
    if decode_all or not (jpeg_ends or png_ends):
        decode(data, max_pixels=max_pixels, decoder=decoder)
    return size


def open_with_pillow(file: IO[bytes], formats: tuple[str, ...]) -> PillowImage.Image:
    """Open a picture without decoding its pixels.

    Args:
        file: an image file; it must stay open as long as the picture is in use.
        formats: Pillow's names of the allowed formats.

    Raises:
        ImageError: the file has another format, is damaged, or has more than MAX_PIXELS pixels.
    """
    if not file.read(1):
        raise ImageError("the file is empty")
    file.seek(0)
    try:
        return PillowImage.open(file, formats=formats)
    except UnidentifiedImageError as error:
        raise ImageError(f"not a picture of a kind that is read ({', '.join(formats)})") from error
    except (PillowImage.DecompressionBombError, PillowImage.DecompressionBombWarning) as error:
        raise ImageError(f"more pixels than the limit of {MAX_PIXELS}") from error
    except PILLOW_ERRORS as error:
        raise ImageError(f"damaged picture ({error})") from error


def _check_size(size: Size, max_pixels: int) -> None:
    if size.height * size.width > max_pixels:
        raise ImageError(f"{size.width} x {size.height} pixels are more than the limit of {max_pixels}")


def _jpeg_header(data: bytes) -> tuple[Size, str]:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise ImageError(f"damaged JPEG header ({error})") from error
    except KeyError:
        with _open_bytes(data, ("JPEG",)) as picture:
            return Size(picture.height, picture.width), _UNNAMED_SUBSAMPLING
    return Size(height, width), colorspace


def _is_jpeg_for(data: bytes | memoryview, out: Pixels, max_pixels: int) -> bool:
    """Return whether a picture is a JPEG that simplejpeg can decode directly into ``out``."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):
        return False
    return (height, width, 3) == out.shape and colorspace not in _PILLOW_COLORSPACES and height * width <= max_pixels


def _decode_jpeg(data: bytes, colorspace: _Colors, decoder: Decoder, min_size: Size, buffer: Pixels | None) -> Pixels:
    if decoder == "pyturbojpeg":
        return _decode_by_turbojpeg(data, colorspace)
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            data, colorspace, min_height=min_size.height, min_width=min_size.width, buffer=buffer
        )
    except ValueError as error:
        raise ImageError(f"damaged or truncated JPEG ({error})") from error
    return pixels


def _decode_by_turbojpeg(data: bytes, colorspace: _Colors) -> Pixels:
    """Decode a JPEG by PyTurboJPEG, an optional package, to uint8 (H, W, 3) RGB or BGR, or (H, W, 4) RGBA.

    Several threads may decode at once.

    Raises:
        ImageError: the JPEG is damaged or truncated.
        ConfigError: PyTurboJPEG or libjpeg-turbo is missing, or too old or too new.
    """
    decoder = _load_turbojpeg()
    try:
        # Never pass dst=: some versions write outside a strided array, or into a read-only array.
        pixels: Pixels = decoder.decode(data, pixel_format={"RGB": 0, "BGR": 1, "RGBA": 7}[colorspace])
    except (OSError, ValueError) as error:
        raise ImageError(f"damaged or truncated JPEG ({error})") from error
    return pixels


@cache
def _load_turbojpeg() -> Any:
    """Return a TurboJPEG that raises for damaged data; an unchanged TurboJPEG warns and returns partial pixels."""
    try:
        from turbojpeg import TurboJPEG  # noqa: PLC0415 - an optional package

        decoder = TurboJPEG()
        error_string = decoder._TurboJPEG__get_error_string
        decoder._TurboJPEG__report_error  # noqa: B018 - raises AttributeError if this version lacks it
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"decoder pyturbojpeg cannot be loaded ({reason}); {_TURBOJPEG_REMEDY}") from error

    def report_error(handle: object) -> NoReturn:
        raise OSError(error_string(handle))

    # TurboJPEG calls this for every status but success. A warnings filter would do too, but all threads would share it.
    decoder._TurboJPEG__report_error = report_error
    return decoder


def _decode_by_pillow(data: bytes, *, alpha: bool, max_pixels: int, formats: tuple[str, ...]) -> Pixels:
    """Decode a picture by Pillow, but a PNG of 16 bits by OpenCV."""
    if data.startswith(_PNG_START) and data[24:25] == b"\x10":
        image_size(data, max_pixels=max_pixels)
        return _decode_png16(data, alpha=alpha)
    with _open_bytes(data, formats) as picture:
        _check_size(Size(picture.height, picture.width), max_pixels)
        return _pillow_pixels(picture, alpha=alpha)


def _open_bytes(data: bytes, formats: tuple[str, ...] = PICTURE_FORMATS) -> PillowImage.Image:
    return open_with_pillow(io.BytesIO(data), formats)


def _pillow_pixels(picture: PillowImage.Image, *, alpha: bool) -> Pixels:
    try:
        if picture.mode == "F":
            raise ImageError("pixels are floating point numbers, which have no range to convert from")
        if picture.mode.startswith("I"):
            return to_rgb(_from_16_bits(np.asarray(picture)), alpha=alpha)
        has_alpha = picture.has_transparency_data
        orientation = picture.getexif().get(ORIENTATION, 1) if picture.format == "TIFF" else 1
        array: Pixels = np.array(picture.convert("RGBA" if has_alpha else "RGB"))
        if orientation != 1:
            array = _as_stored(array, orientation)
    except PILLOW_ERRORS as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"damaged or truncated picture ({error})") from error
    return to_rgb(array, alpha=alpha)


def _as_stored(array: Pixels, orientation: int) -> Pixels:
    """Undo the EXIF rotation that Pillow applies to TIFF and to no other format."""
    if orientation in (2, 3, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7):
        array = array[::-1]
    if orientation in (5, 7):
        array = array.swapaxes(0, 1)
    return np.rot90(array, {6: 1, 8: -1}.get(orientation, 0))


def _decode_png16(data: bytes, *, alpha: bool) -> Pixels:
    # Pillow reduces 16-bit colour to its high bytes; OpenCV keeps all 16 bits.
    import cv2  # noqa: PLC0415 - slow to load and rarely needed here

    with _open_bytes(data) as picture:
        try:
            picture.load()  # Pillow raises for a truncated file; OpenCV would fill the missing part
        except PILLOW_ERRORS as error:
            raise ImageError(f"damaged or truncated picture ({error})") from error
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ImageError("damaged or truncated picture")
    if array.ndim == 3:
        array = array[:, :, [2, 1, 0, 3][: array.shape[2]]]
    return to_rgb(_from_16_bits(array), alpha=alpha)


def _from_16_bits(array: NDArray[np.generic]) -> Pixels:
    return ((np.clip(array.astype(np.int64), 0, 65535) + 128) // 257).astype(np.uint8)
