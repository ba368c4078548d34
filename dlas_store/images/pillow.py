"""Decoder of pictures by Pillow, independent of the settings that a program gives Pillow.

``ImageFile.LOAD_TRUNCATED_IMAGES`` and ``Image.MAX_IMAGE_PIXELS`` hold for the whole process: the program that uses
this package may have set them. Here truncated pictures are always errors, and the caller limits the pixels.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageFile, TiffImagePlugin, WebPImagePlugin

from dlas_store.errors import ImageError
from dlas_store.images.memory import Pixels
from dlas_store.images.png import PNG_END, PNG_START, essential_chunks, is_png_of_16_bits

PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""Exceptions that Pillow raises for malformed bytes, some of them because it did not expect these bytes."""

_NO_SIZE = "not identified by this driver"
"""Pillow's message about a header without a size, or with a side of 0 pixels."""

ORIENTATION = 0x112
"""Number of the EXIF tag Orientation."""

_START_BYTES = 30
"""Bytes at the start of a file that tell its format, and the size of a WebP."""


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int


def check_size(size: Size, max_pixels: float) -> None:
    """Raise ImageError if a picture has more pixels than a limit."""
    if size.height * size.width > max_pixels:
        raise ImageError(f"{size.width} x {size.height} pixels are more than the limit of {max_pixels}")


def open_with_pillow(file: IO[bytes], formats: tuple[str, ...], *, max_pixels: float) -> PillowImage.Image:
    """Open a picture without decoding its pixels.

    Args:
        file: an image file; it must stay open as long as the picture is in use.
        formats: Pillow's names of the allowed formats.
        max_pixels: height times width above which the picture is refused.

    Raises:
        ImageError: the file has another format, is damaged, or has more than max_pixels pixels.
    """
    start = file.read(_START_BYTES)
    if not start:
        raise ImageError("the file is empty")
    for name in formats:
        open_format, accepts = _plugin(name)
        if accepts is None or accepts(start) is True:
            file.seek(0)
            if name == "WEBP":
                check_size(_webp_size(start), max_pixels)  # the decoder allocates the pixels as it opens the file
            picture = _open_png(file, open_format) if name == "PNG" else _open(file, name, open_format)
            check_size(Size(picture.height, picture.width), max_pixels)
            return picture
    raise ImageError(f"not a picture of a kind that is read ({', '.join(formats)})")


def decode_by_pillow(data: bytes, *, alpha: bool, max_pixels: float, formats: tuple[str, ...]) -> Pixels:
    """Decode a picture by Pillow, but a PNG of 16 bits by OpenCV.

    Args:
        data: the bytes of an image file.
        alpha: return RGBA, with alpha 255 if the picture has none.
        max_pixels: height times width above which the picture is refused.
        formats: Pillow's names of the allowed formats.

    Returns:
        uint8 (H, W, 3) RGB, or (H, W, 4) RGBA, contiguous.

    Raises:
        ImageError: the bytes are no picture, are damaged or truncated, or have more than max_pixels pixels.
    """
    try:
        return _decode(data, alpha, max_pixels, formats)
    except _DamagedPixelsError:
        if not data.startswith(PNG_START):
            raise
        # Pillow may have refused a chunk behind the pixels, which does not change them.
        return _decode(essential_chunks(data), alpha, max_pixels, formats)


def to_rgb(array: Pixels, *, alpha: bool) -> Pixels:
    """Return (H, W), (H, W, 3) or (H, W, 4) pixels as RGB (H, W, 3), or with ``alpha`` as RGBA (H, W, 4).

    The result is contiguous. It may share the memory of ``array``.
    """
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if alpha and array.shape[2] == 3:
        array = np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])
    return np.ascontiguousarray(array[:, :, : 4 if alpha else 3])


class _DamagedPixelsError(ImageError):
    """Pillow opened a picture, but could not decode it."""


def _decode(data: bytes, alpha: bool, max_pixels: float, formats: tuple[str, ...]) -> Pixels:
    with open_with_pillow(io.BytesIO(data), formats, max_pixels=max_pixels) as picture:
        try:
            # Pillow forgets the orientation of a TIFF when it loads the pixels.
            orientation = picture.getexif().get(ORIENTATION, 1) if picture.format == "TIFF" else 1
            _load(picture)
            if is_png_of_16_bits(data):
                return _decode_png16(data, alpha=alpha)
            return _to_pixels(picture, orientation, alpha=alpha)
        except ImageError:
            raise
        except PILLOW_ERRORS as error:
            raise _DamagedPixelsError(f"damaged or truncated picture ({_reason(error)})") from error


# Opening and loading


_OpenFormat = Callable[[IO[bytes], str], PillowImage.Image]


def _plugin(name: str) -> tuple[_OpenFormat, Callable[[bytes], bool | str] | None]:
    """Return the functions of a format: one opens a file, the other one recognises its first bytes."""
    PillowImage.preinit()
    open_format, accepts = PillowImage.OPEN[name]
    return (_WebPFile if name == "WEBP" else open_format), accepts


def _open(file: IO[bytes], name: str, open_format: _OpenFormat) -> PillowImage.Image:
    """Open a file as Image.open does, which would compare the size with MAX_IMAGE_PIXELS."""
    try:
        return open_format(file, "")
    except PILLOW_ERRORS as error:
        raise ImageError(f"damaged {name} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """Return an error's message in the words of users; its type if it has no message."""
    if str(error) == _NO_SIZE:
        return "the header has no size, or a side of 0 pixels"
    return str(error) or f"Pillow fails with {type(error).__name__}"


def _webp_size(start: bytes) -> Size:
    """Return the size in the first 30 bytes of a WebP; 0 x 0 for fewer bytes, which no decoder takes."""
    if len(start) < _START_BYTES:
        return Size(0, 0)
    if start[12:16] == b"VP8X":
        return Size(int.from_bytes(start[27:30], "little") + 1, int.from_bytes(start[24:27], "little") + 1)
    if start[12:16] == b"VP8L":
        sides = int.from_bytes(start[21:25], "little")
        return Size((sides >> 14 & 0x3FFF) + 1, (sides & 0x3FFF) + 1)
    return Size(int.from_bytes(start[28:30], "little") & 0x3FFF, int.from_bytes(start[26:28], "little") & 0x3FFF)


def _open_png(file: IO[bytes], open_format: _OpenFormat) -> PillowImage.Image:
    """Open a PNG, of which chunks that do not change the pixels may be damaged."""
    if not ImageFile.LOAD_TRUNCATED_IMAGES:  # else Pillow would accept any damaged chunk
        try:
            return open_format(file, "")
        except PILLOW_ERRORS:
            file.seek(0)
    return _open(io.BytesIO(essential_chunks(file.read())), "PNG", open_format)


def _load(picture: PillowImage.Image) -> None:
    """Decode the pixels of an open picture; an incomplete picture raises one of PILLOW_ERRORS."""
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        picture.load_prepare = partial(_prepare_tiff, picture)  # type: ignore[method-assign]
    if isinstance(picture, WebPImagePlugin.WebPImageFile) or getattr(picture, "use_load_libtiff", False):
        picture.load()  # these do not depend on LOAD_TRUNCATED_IMAGES
    else:
        picture._ended = True  # type: ignore[attr-defined] # else the JPEG plugin may append an end marker
        _load_whole(picture)


def _with_globals(function: Callable[..., Any], names: Mapping[str, object]) -> Callable[..., Any]:
    """Return a copy of a function that sees other values of some global names."""
    function = cast(FunctionType, function)
    return FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


_UNLIMITED = {"Image": SimpleNamespace(**{**vars(PillowImage), "_decompression_bomb_check": lambda *_, **__: None})}
"""PIL.Image for functions of its plugins that compare sizes with MAX_IMAGE_PIXELS."""

_prepare_tiff = _with_globals(TiffImagePlugin.TiffImageFile.load_prepare, _UNLIMITED)

_load_whole = _with_globals(ImageFile.ImageFile.load, {"LOAD_TRUNCATED_IMAGES": False})


class _WebPFile(WebPImagePlugin.WebPImageFile):
    """A WebP file that is opened whatever its size, which open_with_pillow has checked."""

    _open = _with_globals(WebPImagePlugin.WebPImageFile._open, _UNLIMITED)


# Pixels


def _to_pixels(picture: PillowImage.Image, orientation: int, *, alpha: bool) -> Pixels:
    if picture.mode == "F":
        raise ImageError("pixels are floating point numbers, which have no range to convert from")
    if picture.mode.startswith("I"):
        return to_rgb(_from_16_bits(np.asarray(picture)), alpha=alpha)
    # Pillow cannot tell whether a palette that is missing has alpha.
    has_palette = picture.mode != "P" or picture.palette is not None
    has_alpha = "transparency" in picture.info or (has_palette and picture.has_transparency_data)
    array: Pixels = np.array(picture.convert("RGBA" if has_alpha else "RGB"))
    if orientation != 1:
        array = _as_stored(array, orientation)
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
    """Decode a PNG that Pillow decoded, since OpenCV would fill the missing part of a truncated file."""
    # Pillow reduces 16-bit colour to its high bytes; OpenCV keeps all 16 bits.
    import cv2  # noqa: PLC0415 - slow to load and rarely needed here

    # OpenCV gives black pixels for some damaged chunks of animations.
    # OpenCV writes to standard error if the end chunk is missing, which Pillow does not need.
    chunks = essential_chunks(data)
    chunks = chunks if chunks.endswith(PNG_END) else chunks + b"\0\0\0\0" + PNG_END
    array = cv2.imdecode(np.frombuffer(chunks, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ImageError("damaged or truncated picture (OpenCV does not decode it)")
    if array.ndim == 3:
        array = array[:, :, [2, 1, 0, 3][: array.shape[2]]]
    return to_rgb(_from_16_bits(array), alpha=alpha)


def _from_16_bits(array: NDArray[np.generic]) -> Pixels:
    return ((np.clip(array.astype(np.int64), 0, 65535) + 128) // 257).astype(np.uint8)
