"""Photo files: encoded photos of every kind, photos that a command must skip, and extractions with their results."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from dlas_store import open_source
from dlas_store.cli.main import main
from tests.support.file_trees import write
from tests.support.sample_data import Array

ORIENTATION = 0x0112
"""Number of the EXIF and TIFF tag of a photo's orientation."""

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
    """Return random colours with gradients between them.

    JPEG preserves the colours of 4-pixel cells well, and the picture still differs from itself shifted by one pixel.

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
    """Encode a photo in the format of a file ending, without loss if the format allows (PNG, WebP, BMP, PPM, TIFF).

    Args:
        pixels: uint8 (H, W) or (H, W, 3 or 4), or a picture of any mode.
        ending: a key of ENDINGS.
        orientation: EXIF orientation; 1 writes no tag.
        options: options of Pillow's save for the format.
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
    """Decode a file to pixels in the stored orientation, uint8 (H, W, 3)."""
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.convert("RGB"))


def upright(pixels: Array, orientation: int) -> Array:
    """Rotate and flip stored pixels upright, by the EXIF standard's table of 0th row and 0th column."""
    upright_by_orientation = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels.transpose(1, 0, 2)[:, ::-1],
        7: pixels.transpose(1, 0, 2)[::-1, ::-1],
        8: pixels.transpose(1, 0, 2)[::-1],
    }
    return np.ascontiguousarray(upright_by_orientation[orientation])


def _animated(ending: str) -> bytes:
    frames = [Image.fromarray(scene(64, 64, seed=seed)) for seed in range(3)]
    return encoded(frames[0], ending, save_all=True, append_images=frames[1:])


def _deep(ending: str) -> bytes:
    """Return a colour photo of 16 bits a channel, which Pillow would silently reduce to 8 bits."""
    is_encoded, file = cv2.imencode(f".{ending}", scene(64, 64).astype(np.uint16) * 257)
    assert is_encoded
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
    truncated = "truncat|cut|short|end|damaged|decode|incomplete|premature"
    return {
        "empty.jpg": (b"", "empty|zero|0 bytes"),
        "empty.png": (b"", "empty|zero|0 bytes"),
        "text.jpg": (b"this is no photo\n" * 9, unreadable),
        "zeros.png": (bytes(1000), unreadable),
        "head.jpg": (jpg[:20], f"{truncated}|{unreadable}"),
        "cut.jpg": (jpg[: len(jpg) // 2], truncated),
        "cut_late.jpg": (jpg[:-200], truncated),
        "cut_progressive.jpg": (encoded(scene(64, 64), "jpg", progressive=True)[:-400], truncated),
        "cut.png": (png[: len(png) // 2], truncated),
        "cut_late.png": (png[:-200], truncated),
        "cut.webp": (encoded(scene(64, 64), "webp")[:-40], truncated),
        "cut.bmp": (encoded(scene(64, 64), "bmp")[:-40], truncated),
        "cut.ppm": (encoded(scene(64, 64), "ppm")[:-40], truncated),
        "cut.tiff": (encoded(scene(64, 64), "tiff")[:-400], f"{truncated}|{unreadable}"),
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
"""File name -> content, and a pattern that the reason for skipping the file must match (any case)."""

SMALL = ("--crop-size", "32", "--step", "32", "--threshold", "8")
"""Options for photos of some dozen pixels."""


class Extracted(NamedTuple):
    """An image of a store or folder, read back."""

    files: tuple[str, ...]
    tiles: list[bytes]
    reference: bytes
    centers: dict[int, tuple[int, int, int]]
    extra: dict[str, Any]


class Outcome(NamedTuple):
    """Result of an extraction: exit status, report and images."""

    status: int
    report: dict[str, Any]
    images: dict[str, Extracted]

    def reason(self, photo: str) -> str:
        """Return the reason for skipping a photo; the report must give exactly one."""
        (entry,) = (entry for entry in self.report["skipped"] if entry["photo"] == photo)
        assert isinstance(entry["reason"], str)
        return str(entry["reason"])


def images_of(path: Path) -> dict[str, Extracted]:
    """Return the images of a store or folder, by name."""
    images = {}
    with open_source(path) as source:
        for number in range(source.image_count):
            image, first = source.image(number), source.first_patch(number)
            reference = source.read_reference(number)
            assert reference is not None
            assert image.centers is not None
            images[image.name] = Extracted(
                image.files,
                [source.read(first + position) for position in range(len(image.files))],
                reference,
                {number: tuple(center) for number, center in image.centers.items()},
                dict(image.extra),
            )
    return images


def extract(photos: Path, *options: str | Path, to: str = "s.lmdb") -> Outcome:
    """Extract to ``to`` beside the photos, in this process, and read the result back."""
    target, report = photos.with_name(to), photos.with_name(f"{to}.json")
    status = main(["extract", *map(str, (photos, target, "--workers", "1", "--report", report, *options))])
    return Outcome(status, json.loads(report.read_text()), images_of(target) if target.exists() else {})


def extract_pixels(folder: Path, photos: Mapping[str, Array], *options: str | Path) -> Outcome:
    """Write photos as PNG files, given as path without ending -> pixels, and extract from the files."""
    return extract(
        write(folder / "photos", {f"{name}.png": encoded(pixels, "png") for name, pixels in photos.items()}), *options
    )


MAX_MEAN_DIFFERENCE = 2
"""Promised maximum mean difference after decoding, of 255. A square that is one pixel off differs by about 10."""


class Tile(NamedTuple):
    """Expected pixels and centre of a patch."""

    pixels: Array
    center: tuple[int, int, int]


def centred(pixels: Array) -> tuple[Array, int, int]:
    """Return the square at the middle of pixels, and the square's top and left."""
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side], top, left


def averaged(pixels: Array, side: int) -> Array:
    return cv2.resize(np.ascontiguousarray(pixels), (side, side), interpolation=cv2.INTER_AREA)


def starts(side: int, crop: int, step: int, threshold: int) -> list[int]:
    positions = list(range(0, side - crop + 1, step))
    if positions and side - (positions[-1] + crop) > threshold:
        positions.append(side - crop)
    return positions


def expected_tiles(
    square: Array, crops: Sequence[int], steps: Sequence[int], threshold: int, resize: Sequence[float] | None = None
) -> dict[int, list[Tile]]:
    """Return the expected tiles of a square by crop size; sizes without a tile are missing."""
    factors = resize or [crops[0] / crop for crop in crops]
    side = len(square)
    scale = side / round(crops[0] * factors[0])
    tiles: dict[int, list[Tile]] = {}
    for crop, step, factor in zip(crops, steps, factors, strict=True):
        for row in starts(side, crop, step, threshold):
            for col in starts(side, crop, step, threshold):
                pixels = averaged(square[row : row + crop, col : col + crop], int(crop * factor))
                center = (int((row + crop // 2) // scale), int((col + crop // 2) // scale), int(crop // scale))
                tiles.setdefault(crop, []).append(Tile(pixels, center))
    return tiles


def assert_close(content: bytes, pixels: Array) -> None:
    """Compare a tile with expected pixels, encoded as DL-Art-School's script does: by OpenCV at quality 95."""
    is_encoded, expected = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert is_encoded
    assert simplejpeg.decode_jpeg_header(content)[:2] == pixels.shape[:2]
    difference = simplejpeg.decode_jpeg(content).astype(int) - simplejpeg.decode_jpeg(expected.tobytes())
    assert np.abs(difference).mean() <= MAX_MEAN_DIFFERENCE


def assert_made_of(image: Extracted, square: Array, tiles: Mapping[int, Sequence[Tile]], side: int) -> None:
    """Compare an image with its square and the tiles of each crop size."""
    expected = [tile for of_size in tiles.values() for tile in of_size]
    assert image.files == tuple(f"{number:08d}.jpg" for number in range(len(expected)))
    assert image.centers == {number: tile.center for number, tile in enumerate(expected)}
    first, crops = 0, []
    for size, of_size in tiles.items():
        crops.append({"size": size, "first": first, "count": len(of_size)})
        first += len(of_size)
    assert [entry for entry in image.extra["crops"] if entry["count"]] == crops
    assert_close(image.reference, averaged(square, side))
    for content, tile in zip(image.tiles, expected, strict=True):
        assert_close(content, tile.pixels)
