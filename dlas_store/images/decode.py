"""Decoder of pictures to RGB: JPEG by libjpeg-turbo, other formats by Pillow."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import IO, Any, Literal, NoReturn

import numpy as np
import simplejpeg

from dlas_store.errors import ConfigError, ImageError
from dlas_store.images.jpeg import JPEG_END, JPEG_START, without_surplus_bytes
from dlas_store.images.libjpeg import find_damage
from dlas_store.images.memory import Pixels, empty_aligned
from dlas_store.images.pillow import Size as Size  # noqa: PLC0414 - other modules import it from here
from dlas_store.images.pillow import check_size, decode_by_pillow, open_with_pillow
from dlas_store.images.png import PNG_END, PNG_START, check_png

Decoder = Literal["simplejpeg", "pyturbojpeg"]
"""Decoder of JPEG; both decoders give the same pixels."""

MAX_PIXELS = 89_478_485
"""Height times width above which a picture is refused before any allocation; Pillow's limit, 256 MiB of RGB."""

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp"})
"""File name endings, in lower or upper case, by which DL-Art-School recognises pictures."""

PICTURE_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "WEBP")
"""Formats that stores and folders may hold. Pillow reads more, and starts other programs for some of them (EPS)."""

LARGE_FILE_BYTES = 256 << 20
"""Size above which a file is read only if the picture in its header may take so many bytes."""

_HEADER_BYTES = 4 << 20
"""Bytes at the start of a large file among which its header is looked for."""

_MAX_BYTES_PER_PIXEL = 32
"""Most bytes that a pixel may take in a file: three numbers of 16 bits as text take 18."""

DECODING_OFFSET = 16
"""Bytes from the start of a cache line to the start of an array into which decoding is fastest.

At this offset the decoder's vectors are not aligned. The decoder writes aligned vectors past the caches, which takes
longer (``python -m benchmarks steps``), and the next reader of the pixels then waits for memory.
"""

_Colors = Literal["RGB", "RGBA", "BGR"]


_PILLOW_COLORSPACES = ("CMYK", "YCCK")
"""Colour spaces of JPEGs that Pillow decodes: simplejpeg gives other pixels."""

_TURBOJPEG_REMEDY = "pip install dlas-store[turbojpeg] and the system's libjpeg-turbo, or take decoder simplejpeg"


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
    is_strict: bool = False,
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
        is_strict: refuse what else is decoded though it may be damaged: a PNG that lacks rows, which are black, and a
            JPEG with bytes other than zeros behind the data of a scan, which may have changed, or with scans in an
            unusual order, of which one may be missing.

    Returns:
        uint8 (H, W, 3) RGB (or BGR), or (H, W, 4) RGBA. Grey is repeated, CMYK is converted, 16-bit values are divided
        by 257 and rounded. EXIF rotation is not applied.

    Raises:
        ImageError: the bytes are no picture, are damaged or truncated, or have more than max_pixels pixels.
        ConfigError: the decoder is pyturbojpeg, which cannot be loaded.
    """
    assert not (alpha and bgr)
    if data.startswith(JPEG_START):
        size, colorspace, refusal = _jpeg_header(data)
        check_size(size, max_pixels)
        if not refusal and colorspace not in _PILLOW_COLORSPACES:
            colors: _Colors = "RGBA" if alpha else "BGR" if bgr else "RGB"
            min_size = Size(-(-size.height // reduction), -(-size.width // reduction))
            try:
                return _decode_jpeg(data, colors, decoder, min_size, buffer)
            except ImageError as error:
                refusal = str(error.__cause__)
        if damage := find_damage(data, size, refusal, is_strict=is_strict):
            raise ImageError(f"damaged or truncated JPEG ({damage})")
    pixels = decode_by_pillow(data, alpha=alpha, max_pixels=max_pixels, formats=formats)
    if is_strict and data.startswith(PNG_START):
        check_png(data)
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
    if not data.startswith(JPEG_START):
        return _pillow_size(data, PICTURE_FORMATS, max_pixels)
    size = _jpeg_header(data)[0]
    check_size(size, max_pixels)
    return size


def check_picture(
    data: bytes, *, decode_all: bool = False, max_pixels: int = MAX_PIXELS, decoder: Decoder = "simplejpeg"
) -> Size:
    """Check that bytes are a complete picture and return the picture's size.

    The check reads the header and looks for the end marker of JPEG and PNG. A picture without an end marker is decoded,
    and so is a JPEG whose header simplejpeg refuses; with ``decode_all`` every picture is decoded, strictly, so that
    damage which readers cannot see is found.

    Raises:
        ImageError: the bytes are no picture, are damaged or truncated, or have more than max_pixels pixels.
    """
    if data.startswith(JPEG_START):
        size, _, refusal = _jpeg_header(data)
        check_size(size, max_pixels)
        is_plausible = not refusal and data.endswith(JPEG_END)
    else:
        size = image_size(data, max_pixels=max_pixels)
        is_plausible = data.startswith(PNG_START) and data.endswith(PNG_END)
    if decode_all or not is_plausible:
        decode(data, max_pixels=max_pixels, decoder=decoder, is_strict=decode_all)
    return size


def check_large_file(file: IO[bytes], byte_count: int, *, max_pixels: int = MAX_PIXELS) -> None:
    """Check that a file above LARGE_FILE_BYTES may be a picture, before it is read into memory.

    Args:
        file: the file, at its start, which is where it is left.
        byte_count: size of the file.
        max_pixels: height times width above which the picture is refused.

    Raises:
        ImageError: the file is no picture, or is too large for the picture in its header.
    """
    start = file.read(_HEADER_BYTES)
    file.seek(0)
    # Pillow reads the header of a WebP with its pixels, of which there are fewer than 2^28, compressed.
    pixels = 1 << 25 if start[8:12] == b"WEBP" else math.prod(image_size(start, max_pixels=max_pixels))
    if byte_count > LARGE_FILE_BYTES + _MAX_BYTES_PER_PIXEL * pixels:
        raise ImageError(f"the file has {byte_count} bytes, too many for a picture of {pixels} pixels")


def _jpeg_header(data: bytes) -> tuple[Size, str, str]:
    """Return size, colour space, and the reason why simplejpeg refuses the header, "" if it does not.

    Raises:
        ImageError: Pillow refuses the header too.
    """
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError) as error:  # KeyError: a subsampling without a name
        try:
            size = _pillow_size(data, ("JPEG",), math.inf)
        except ImageError:
            size = _pillow_size(without_surplus_bytes(data), ("JPEG",), math.inf)
        return size, "", str(error)
    return Size(height, width), colorspace, ""


def _pillow_size(data: bytes, formats: tuple[str, ...], max_pixels: float) -> Size:
    with open_with_pillow(io.BytesIO(data), formats, max_pixels=max_pixels) as picture:
        return Size(picture.height, picture.width)


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
