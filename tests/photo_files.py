"""Photos of every format as encoded files, and bad photos that a command must skip."""

from __future__ import annotations

import io
import struct
from typing import Any

import cv2
import numpy as np
from PIL import Image
from samples import Array

ORIENTATION = 0x0112
"""Number of the EXIF and TIFF tag for a photo's orientation."""

ENDINGS = {
    "jpg": "JPEG",
    "jpeg": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "bmp": "BMP",
    "ppm": "PPM",
    "tif": "TIFF",
    "tiff": "TIFF",
}
"""File ending -> Pillow's name of the format."""

_QUICK_AND_EXACT: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 1},
    "WEBP": {"lossless": True, "exact": True, "method": 0},
}


def scene(height: int, width: int, *, seed: int = 0, cell: int = 4) -> Array:
    """Return random colours that blend into each other.

    With cells of 4 pixels JPEG preserves the colours well, and a picture still differs from itself shifted by a pixel.

    Args:
        height: height in pixels.
        width: width in pixels.
        seed: seed of the colours.
        cell: pixels from one random colour to the next.

    Returns:
        uint8 (height, width, 3).
    """
    coarse = np.random.default_rng(seed).integers(0, 256, (height // cell + 2, width // cell + 2, 3), np.uint8)
    enlarged = cv2.resize(coarse, None, fx=cell, fy=cell, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(enlarged[:height, :width])


def flat(height: int, width: int, colour: tuple[int, int, int] = (200, 100, 50)) -> Array:
    """Return pixels of one colour, uint8 (height, width, 3)."""
    return np.full((height, width, 3), colour, np.uint8)


def encoded(pixels: Array | Image.Image, ending: str, *, orientation: int = 1, **options: Any) -> bytes:
    """Return a photo encoded in the format of an ending, lossless if the format allows (PNG, WebP, BMP, PPM, TIFF).

    Args:
        pixels: uint8 (H, W) or (H, W, 3 or 4), or a picture of any mode.
        ending: a key of ENDINGS.
        orientation: the EXIF orientation; 1 writes no tag.
        options: options of Pillow's save for this format.
    """
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    kind = ENDINGS[ending]
    options = {**_QUICK_AND_EXACT.get(kind, {}), **options}
    if orientation != 1:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["tiffinfo" if kind == "TIFF" else "exif"] = {ORIENTATION: orientation} if kind == "TIFF" else exif
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(content: bytes) -> Array:
    """Return the pixels of a file in stored orientation, uint8 (H, W, 3)."""
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.convert("RGB"))


def upright(pixels: Array, orientation: int) -> Array:
    """Return stored pixels turned upright, by the table of the EXIF standard (0th row, 0th column)."""
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels.transpose(1, 0, 2)[:, ::-1],
        7: pixels.transpose(1, 0, 2)[::-1, ::-1],
        8: pixels.transpose(1, 0, 2)[::-1],
    }
    return np.ascontiguousarray(turned[orientation])


def _animated(ending: str) -> bytes:
    frames = [Image.fromarray(scene(64, 64, seed=seed)) for seed in range(3)]
    return encoded(frames[0], ending, save_all=True, append_images=frames[1:])


def _deep(ending: str) -> bytes:
    """Return a colour photo of 16 bits a channel, which Pillow would silently reduce to 8."""
    done, file = cv2.imencode(f".{ending}", scene(64, 64).astype(np.uint16) * 257)
    assert done
    return file.tobytes()


def _claims(content: bytes, ending: str, side: int) -> bytes:
    """Return a photo whose header claims a square of ``side`` pixels."""
    if ending == "jpg":
        frame = content.index(b"\xff\xc0")
        return content[: frame + 5] + struct.pack(">HH", side, side) + content[frame + 9 :]
    if ending == "ppm":
        return b"P6 %d %d 255\n" % (side, side) + bytes(1000)
    assert ending == "bmp"
    return content[:18] + struct.pack("<ii", side, side) + content[26:]


def _bad_photos() -> dict[str, tuple[bytes, str]]:
    jpg, png = encoded(scene(64, 64), "jpg", quality=95), encoded(scene(64, 64), "png")
    rgb = Image.fromarray(scene(64, 64))
    unreadable = "not|no |cannot|read|unknown|damaged|decode"
    cut = "truncat|cut|short|end|damaged|decode|incomplete|premature"
    return {
        "empty.jpg": (b"", "empty|zero|0 bytes"),
        "empty.png": (b"", "empty|zero|0 bytes"),
        "text.jpg": (b"this is no photo\n" * 9, unreadable),
        "zeros.png": (bytes(1000), unreadable),
        "head.jpg": (jpg[:20], f"{cut}|{unreadable}"),
        "cut.jpg": (jpg[: len(jpg) // 2], cut),
        "cut_late.jpg": (jpg[:-200], cut),
        "cut_progressive.jpg": (encoded(scene(64, 64), "jpg", progressive=True)[:-400], cut),
        "cut.png": (png[: len(png) // 2], cut),
        "cut_late.png": (png[:-200], cut),
        "cut.webp": (encoded(scene(64, 64), "webp")[:-40], cut),
        "cut.bmp": (encoded(scene(64, 64), "bmp")[:-40], cut),
        "cut.ppm": (encoded(scene(64, 64), "ppm")[:-40], cut),
        "cut.tiff": (encoded(scene(64, 64), "tiff")[:-400], f"{cut}|{unreadable}"),
        "cmyk.jpg": (encoded(rgb.convert("CMYK"), "jpg"), "CMYK"),
        "cmyk.tif": (encoded(rgb.convert("CMYK"), "tif"), "CMYK"),
        "deep.png": (_deep("png"), "16"),
        "deep.tiff": (_deep("tiff"), "16"),
        "deep.ppm": (b"P6 64 64 65535\n" + bytes(64 * 64 * 6), "16"),
        "deep_grey.png": (encoded(Image.new("I;16", (64, 64)), "png"), "16"),
        "animated.webp": (_animated("webp"), "animat|frames|pages|pictures"),
        "animated.png": (_animated("png"), "animat|frames|pages|pictures"),
        "pages.tiff": (_animated("tiff"), "animat|frames|pages|pictures"),
        "huge.jpg": (_claims(jpg, "jpg", 65_000), "pixels"),
        "huge.ppm": (_claims(b"", "ppm", 100_000), "pixels"),
        "huge.bmp": (_claims(encoded(scene(64, 64), "bmp"), "bmp", 100_000), "pixels"),
    }


BAD_PHOTOS: dict[str, tuple[bytes, str]] = _bad_photos()
"""File name -> content, and a pattern, of any case, that the reason for skipping the file must match."""
