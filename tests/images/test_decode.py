"""Decoding gives the same pixels for all formats and decoders, and an error for bytes that are no complete picture."""

from __future__ import annotations

import importlib.util
import io
import struct
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from dlas_store.errors import ConfigError, ImageError
from dlas_store.images.decode import MAX_PIXELS, as_batch, check_picture, decode, image_size
from tests.support.sample_data import DATA, Array, noise, png

RGB = noise(20, 30)
GREY = RGB[:, :, 0]
PATCH = (DATA / "chunked/astronaut_left_0/00000001.jpg").read_bytes()
PATCHES = [path.read_bytes() for path in sorted((DATA / "chunked/retina_left_3").glob("*.jpg"))]


def encoded(pixels: Array | PillowImage.Image, kind: str, *, lossless: bool = False) -> bytes:
    file = io.BytesIO()
    picture = pixels if isinstance(pixels, PillowImage.Image) else PillowImage.fromarray(pixels)
    picture.save(file, kind, **({"lossless": True} if lossless else {}))
    return file.getvalue()


def png16(pixels: Array) -> bytes:
    """Return a PNG of uint16 pixels, (H, W) or (H, W, 3 or 4) in RGB order."""
    if pixels.ndim == 3:
        pixels = pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]
    data: bytes = cv2.imencode(".png", pixels)[1].tobytes()
    return data


def png_header(width: int, height: int, *, depth: int = 8) -> bytes:
    """Return a PNG with next to no pixels, whose header claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def jpeg_header(width: int, height: int) -> bytes:
    """Return a JPEG of 30 x 20 pixels whose header claims another size."""
    data = bytearray(encoded(RGB, "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp_header(width: int, height: int) -> bytes:
    data = bytearray(encoded(RGB, "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


HUGE = {
    "png": png_header(60_000, 60_000),
    "png above the limit of Pillow's warning": png_header(10_000, 10_000),
    "png of 16 bits": png_header(60_000, 60_000, depth=16),
    "jpeg": jpeg_header(65_500, 65_500),
    "bmp": bmp_header(60_000, 60_000),
    "ppm": b"P6 60000 60000 255\n",
}


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "WEBP"])
@pytest.mark.parametrize("alpha", [False, True])
def test_lossless_kinds_give_the_pixels_that_were_stored(kind: str, alpha: bool) -> None:
    pixels = decode(encoded(RGB, kind, lossless=kind == "WEBP"), alpha=alpha)
    assert pixels.dtype == np.uint8
    assert (pixels[:, :, 3:] == 255).all()
    np.testing.assert_array_equal(pixels[:, :, :3], RGB)
    assert pixels.shape == (20, 30, 4 if alpha else 3)


def test_jpeg_pixels_are_those_of_pillow() -> None:
    expected = np.asarray(PillowImage.open(io.BytesIO(PATCH)))
    np.testing.assert_array_equal(decode(PATCH), expected)
    np.testing.assert_array_equal(decode(PATCH, alpha=True)[:, :, :3], expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "PPM", "WEBP"])
def test_grey_becomes_rgb(kind: str) -> None:
    flat = np.full((6, 9), 77, np.uint8)
    np.testing.assert_allclose(decode(encoded(flat, kind)), np.full((6, 9, 3), 77), atol=1)


def test_cmyk_jpeg_is_converted() -> None:
    picture = PillowImage.fromarray(np.full((16, 16, 3), (200, 100, 50), np.uint8)).convert("CMYK")
    np.testing.assert_allclose(decode(encoded(picture, "JPEG"))[8, 8], (200, 100, 50), atol=3)
    assert decode(encoded(picture, "JPEG"), alpha=True).shape == (16, 16, 4)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_divided_by_257_and_rounded(channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65_536, (20, 30, channels), np.uint16)
    values[0, :4] = [[0], [128], [129], [65_535]]
    expected = np.floor(values / 257 + 0.5).astype(np.uint8)
    data = png16(values[:, :, 0] if channels == 1 else values)
    np.testing.assert_array_equal(decode(data), np.broadcast_to(expected[:, :, :3], (20, 30, 3)))
    alpha = decode(data, alpha=True)[:, :, 3]
    np.testing.assert_array_equal(alpha, expected[:, :, 3] if channels == 4 else np.full((20, 30), 255))


def test_16_bit_pgm_is_scaled_alike() -> None:
    values = np.arange(0, 65_536, 109, dtype=">u2").reshape(1, -1)
    pixels = decode(b"P5 %d 1 65535\n" % values.size + values.tobytes())
    np.testing.assert_array_equal(pixels[0, :, 0], np.floor(values[0] / 257 + 0.5))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_dropped_not_composited_or_kept(kind: str) -> None:
    rgba = np.dstack([RGB, np.maximum(GREY, 1)])  # WebP drops the colour of pixels with alpha 0
    data = encoded(rgba, kind, lossless=kind == "WEBP")
    np.testing.assert_array_equal(decode(data), RGB)
    np.testing.assert_array_equal(decode(data, alpha=True), rgba)


@pytest.mark.parametrize("transparent", [False, True])
def test_palette_pictures_give_their_colours(transparent: bool) -> None:
    picture = PillowImage.fromarray(GREY % 4, "L")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    file = io.BytesIO()
    picture.save(file, "PNG", **({"transparency": 1} if transparent else {}))
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]], np.uint8)
    np.testing.assert_array_equal(decode(file.getvalue()), colours[GREY % 4])
    alpha = np.where(transparent & (GREY % 4 == 1), 0, 255)
    np.testing.assert_array_equal(decode(file.getvalue(), alpha=True)[:, :, 3], alpha)


def test_exif_rotation_is_not_applied() -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG"):
        file = io.BytesIO()
        PillowImage.fromarray(RGB).save(file, kind, exif=exif)
        assert decode(file.getvalue()).shape == (20, 30, 3)
        assert image_size(file.getvalue()) == (20, 30)


@pytest.mark.parametrize(
    "data",
    [PATCH, png(RGB), png(GREY), png16(RGB.astype(np.uint16)), encoded(RGB, "WEBP"), encoded(RGB, "BMP")],
    ids=["jpeg", "png", "grey png", "16-bit png", "webp", "bmp"],
)
def test_arrays_belong_to_the_caller(data: bytes) -> None:
    for alpha in (False, True):
        pixels = decode(data, alpha=alpha)
        assert pixels.flags.writeable
        assert pixels.flags.c_contiguous


PICTURES = {
    "jpeg": PATCH,
    "cmyk": encoded(PillowImage.fromarray(RGB).convert("CMYK"), "JPEG"),
    "png": png(RGB),
    "png16": png16(RGB.astype(np.uint16) * 257),
    "webp": encoded(RGB, "WEBP"),
    "bmp": encoded(RGB, "BMP"),
    "ppm": encoded(RGB, "PPM"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_truncated_picture_is_an_error(kind: str) -> None:
    data = PICTURES[kind]
    assert check_picture(data) == image_size(data)
    for length in {*range(0, len(data) - 40, 97), len(data) - 40}:
        for check in (decode, check_picture):
            with pytest.raises(ImageError):
                check(data[:length])


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"<html>", bytes(1000)])
def test_what_is_no_picture_is_an_error(data: bytes) -> None:
    for check in (decode, image_size, check_picture):
        with pytest.raises(ImageError):
            check(data)


def test_a_kind_that_starts_other_programs_is_not_opened() -> None:
    with pytest.raises(ImageError, match="not a picture of a kind that is read"):
        decode(encoded(RGB, "EPS"))


@settings(max_examples=300)
@given(data=st.data(), kind=st.sampled_from(sorted(PICTURES)), alpha=st.booleans())
def test_changed_bytes_give_pixels_or_our_error(data: st.DataObject, kind: str, alpha: bool) -> None:
    changed = bytearray(PICTURES[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        changed[data.draw(st.integers(0, min(len(changed), 200) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode(bytes(changed), alpha=alpha, max_pixels=1 << 20)
    except ImageError:
        return
    assert pixels.shape[2] == (4 if alpha else 3)


@pytest.mark.parametrize("kind", HUGE)
def test_a_huge_picture_is_refused_before_it_is_allocated(kind: str) -> None:
    tracemalloc.start()
    try:
        for check in (decode, check_picture):
            with pytest.raises(ImageError, match=r"more (pixels )?than the limit"):
                check(HUGE[kind])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize("kind", PICTURES)
def test_max_pixels_is_the_largest_that_passes(kind: str) -> None:
    height, width = image_size(PICTURES[kind])
    decode(PICTURES[kind], max_pixels=height * width)
    for check in (decode, check_picture):
        with pytest.raises(
            ImageError, match=f"{width} x {height} pixels are more than the limit of {height * width - 1}"
        ):
            check(PICTURES[kind], max_pixels=height * width - 1)
    assert MAX_PIXELS == PillowImage.MAX_IMAGE_PIXELS


def test_check_picture_sees_damage_inside_only_when_it_decodes() -> None:
    damaged = PATCH[:-2000] + PATCH[-1000:]
    assert check_picture(damaged) == image_size(PATCH)
    with pytest.raises(ImageError):
        check_picture(damaged, decode_all=True)


def test_a_batch_is_one_array_when_all_sizes_agree() -> None:
    batch = as_batch([RGB, RGB[::-1]])
    assert isinstance(batch, np.ndarray)
    assert batch.shape == (2, 20, 30, 3)
    mixed = as_batch([RGB, RGB[:5]])
    assert [array.shape for array in mixed] == [(20, 30, 3), (5, 30, 3)]
    assert list(as_batch([])) == []


# PyTurboJPEG


def _has_pyturbojpeg() -> bool:
    if importlib.util.find_spec("turbojpeg") is None:
        return False
    try:
        decode(PATCHES[0], decoder="pyturbojpeg")
    except ConfigError:
        return False
    return True


HAS_PYTURBOJPEG = _has_pyturbojpeg()
needs_pyturbojpeg = pytest.mark.skipif(not HAS_PYTURBOJPEG, reason="PyTurboJPEG or libjpeg-turbo is not installed")


@pytest.mark.skipif(HAS_PYTURBOJPEG, reason="PyTurboJPEG is installed")
def test_a_missing_package_is_an_error_that_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"pip install dlas-store\[turbojpeg\].*libjpeg-turbo"):
        decode(PATCHES[0], decoder="pyturbojpeg")


@needs_pyturbojpeg
@pytest.mark.parametrize("alpha", [False, True])
def test_pixels_are_those_of_simplejpeg(alpha: bool) -> None:
    for data in PATCHES[:20]:
        np.testing.assert_array_equal(decode(data, alpha=alpha, decoder="pyturbojpeg"), decode(data, alpha=alpha))


@needs_pyturbojpeg
@pytest.mark.filterwarnings("ignore")
def test_truncated_and_damaged_files_are_errors_in_every_thread() -> None:
    def is_refused(number: int) -> bool:
        data = PATCHES[number % len(PATCHES)]
        is_truncated = number % 3 == 0
        if is_truncated:
            data = data[: len(data) * (number % 7 + 2) // 10]
        try:
            decode(data, decoder="pyturbojpeg")
        except ImageError:
            return is_truncated
        return not is_truncated

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_refused, range(2000)))
