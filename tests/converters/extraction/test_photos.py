"""Headers and pixels of photos: rotation, reduced decoding, and area averages that agree with OpenCV's."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dlas_store.converters.extraction.headers import open_photo, parse_header, photo_squares, rejection_of
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.photos import PixelBuffer, load_photo, resize_pixels
from dlas_store.errors import ImageError
from dlas_store.images.decode import PICTURE_FORMATS, Size, decode
from tests.support.photo_files import ENDINGS, decoded, encoded, scene, upright
from tests.support.sample_data import noise

PLAIN = ExtractOptions.read({"crop_sz": 16})
IGNORING = ExtractOptions.read({"crop_sz": 16, "ignore_exif": True})


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x112] = orientation
    return block.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff"])
def test_photos_are_turned_as_they_were_held(ending: str, orientation: int) -> None:
    data = encoded(scene(40, 56), ending, orientation=orientation)
    with Image.open(io.BytesIO(encoded(scene(40, 56), ending))) as image:
        stored = np.array(image.convert("RGB"))
    header = parse_header(data)
    assert (header.size, header.orientation) == (Size(40, 56), orientation)
    for options, expected in ((PLAIN, upright(stored, orientation)), (IGNORING, stored)):
        photo = load_photo(data, header, options, [0])
        assert np.array_equal(photo.pixels[:, :, ::-1], expected)


def test_an_exif_block_behind_the_pixels_of_a_png_counts() -> None:
    data = encoded(scene(40, 56), "png")
    late = data[:-12] + png_chunk(b"eXIf", exif(6).removeprefix(b"Exif\0\0")) + data[-12:]
    assert parse_header(late).orientation == 6


@pytest.mark.parametrize(
    "block", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", exif(9), b"Exif\0\0" + bytes(40)]
)
def test_a_broken_exif_block_counts_as_upright(block: bytes) -> None:
    assert parse_header(encoded(scene(40, 56), "jpg", exif=block)).orientation == 1


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_header_is_read_without_pixels(ending: str) -> None:
    data = encoded(scene(40, 56), ending)
    header = parse_header(data)
    assert (header.size, header.mode, header.frames, header.bits) == (Size(40, 56), "RGB", 1, 8)
    assert rejection_of(header, PLAIN) is None
    if ending in ("jpg", "png", "ppm", "bmp"):  # decoders of the other formats refuse truncated files
        assert parse_header(data[: len(data) * 3 // 4]) == header


def test_stores_and_folders_do_not_read_tiff() -> None:
    assert "TIFF" not in PICTURE_FORMATS
    with pytest.raises(ImageError, match="not a picture of a kind"):
        decode(encoded(scene(40, 56), "tiff"))


def test_a_buffer_takes_one_photo_after_another() -> None:
    buffer = PixelBuffer()
    for height, width in ((40, 56), (20, 30), (80, 56)):
        data = encoded(scene(height, width), "jpg", quality=95)
        alone = load_photo(data, parse_header(data), PLAIN, [0]).pixels
        assert np.array_equal(load_photo(data, parse_header(data), PLAIN, [0], buffer).pixels, alone)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [Size(640, 960), Size(641, 963), Size(1027, 1399)])
def test_places_in_a_photo_decoded_reduced_are_those_of_the_whole(size: Size, orientation: int) -> None:
    opt = {"crop_sz": 256, "resize_final_img": 0.125, "input_image_max_size_before_being_halved": 1000}
    data = encoded(scene(*size, cell=64), "jpg", quality=95, orientation=orientation)
    header = parse_header(data)
    exact = load_photo(data, header, ExtractOptions.read(opt), [0])
    fast = load_photo(data, header, ExtractOptions.read(opt | {"fast_decode": True}), [0])
    assert fast.is_reduced
    assert not exact.is_reduced
    (square,) = photo_squares(header, ExtractOptions.read(opt)).values()
    for row, col in ((0, 0), (0, square.side - 256), (square.side - 256, 0), (37, 51)):
        regions = [photo.region(square.top + row, square.left + col, 256) for photo in (exact, fast)]
        # A reduced pixel is the mean of the pixels that it covers; a shift by half of it would differ more.
        means = [pixels.mean((0, 1)) for pixels in regions]
        assert np.abs(means[0] - means[1]).max() < 2.5


def test_an_empty_or_missing_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageError, match="the file is empty"):
        open_photo(tmp_path / "empty.jpg")
    with pytest.raises(ImageError, match="cannot be read"):
        open_photo(tmp_path / "missing.jpg")


def test_what_decoders_of_the_tests_say_is_what_is_cut_up() -> None:
    data = encoded(scene(40, 56), "jpg", quality=95)
    assert np.array_equal(load_photo(data, parse_header(data), PLAIN, [0]).pixels[:, :, ::-1], decoded(data))


@settings(max_examples=60)
@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    rows=st.integers(1, 120),
    cols=st.integers(1, 120),
    seed=st.integers(0, 9),
)
def test_resized_gives_what_opencv_gives(height: int, width: int, rows: int, cols: int, seed: int) -> None:
    picture = noise(height + 3, width + 5, seed=seed)
    for pixels in (picture[1 : 1 + height, 2 : 2 + width], np.ascontiguousarray(picture[:height, :width])):
        expected = cv2.resize(pixels, (cols, rows), interpolation=cv2.INTER_AREA)
        difference = np.abs(resize_pixels(pixels, Size(rows, cols)).astype(int) - expected)
        # Floats are summed in another order, which may round an average of x.5 differently.
        assert difference.max() <= 1
        assert (difference > 0).sum() <= 2 + 0.01 * difference.size


@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_the_average_of_equal_pixels_is_their_value(value: int) -> None:
    pixels = np.full((1999, 1501, 3), value, np.uint8)
    assert (resize_pixels(pixels, Size(256, 256)) == value).all()


def test_pixels_of_that_size_are_not_copied() -> None:
    pixels = noise(20, 30)
    assert resize_pixels(pixels, Size(20, 30)) is pixels
