"""JPEGs that simplejpeg refuses, or decodes otherwise, give Pillow's pixels unless their data are damaged."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageFile

from dlas_store.errors import ImageError
from dlas_store.images.decode import check_picture, decode, image_size
from dlas_store.images.jpeg import without_surplus_bytes
from dlas_store.images.libjpeg import VARIABLE, find_libjpeg
from tests.support.jpeg_files import JFIF, Coding, Factors, adobe, write_jpeg
from tests.support.sample_data import DATA, Array, noise

PATCH = (DATA / "chunked/astronaut_left_0/00000001.jpg").read_bytes()
HEIGHT, WIDTH = 43, 61

COLOURS = {
    "three components": (3, b""),
    "JFIF": (3, JFIF),
    "Adobe RGB": (3, adobe(0)),
    "Adobe YCbCr": (3, adobe(1)),
    "Adobe transform 2": (3, adobe(2)),
    "CMYK": (4, b""),
    "inverted CMYK": (4, adobe(0)),
    "YCCK": (4, adobe(2)),
}

FACTORS = {
    "3x1": [(3, 1), (1, 1), (1, 1), (3, 1)],
    "4x2": [(4, 2), (1, 1), (1, 1)],
    "one chroma plane": [(2, 2), (1, 1), (2, 2), (1, 1)],
    "black": [(2, 2), (1, 1), (1, 1), (1, 1)],
    "chroma above luma": [(1, 1), (2, 1), (1, 2), (1, 1)],
    "1x4": [(1, 4), (1, 1), (1, 2), (1, 1)],
    "all 2x1": [(2, 1), (2, 1), (2, 1), (2, 1)],
    "3x2": [(3, 2), (1, 1), (1, 1), (1, 1)],
}


def planes(count: int) -> list[Array]:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = [
        128 + 100 * np.sin(x / (5 + n)) * np.cos(y / (4 + n)) + noise(HEIGHT, WIDTH, seed=n)[:, :, 0] / 8 - 16
        for n in range(count)
    ]
    return [wave.clip(0, 255).astype(np.uint8) for wave in waves]


def pillows(data: bytes) -> Array:
    with PillowImage.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


def check_read(data: bytes, expected: Array) -> None:
    assert image_size(data) == check_picture(data) == check_picture(data, decode_all=True) == expected.shape[:2]
    np.testing.assert_array_equal(decode(data), expected)
    np.testing.assert_array_equal(decode(data, bgr=True), expected[:, :, ::-1])
    np.testing.assert_array_equal(decode(data, alpha=True)[:, :, :3], expected)


@pytest.fixture(params=[True, False], ids=["with libjpeg", "without libjpeg"])
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> object:
    """With and without a library that is called from C."""
    if not request.param:
        monkeypatch.setenv(VARIABLE, "")
    find_libjpeg.cache_clear()
    yield
    find_libjpeg.cache_clear()


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("restart_interval", [0, 2])
@pytest.mark.parametrize("coding", ["baseline", "progressive"])
@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
@pytest.mark.parametrize("colours", COLOURS.values(), ids=COLOURS)
def test_sampling_factors_without_a_name_are_read(
    colours: tuple[int, bytes], factors: Factors, coding: Coding, restart_interval: int
) -> None:
    count, head = colours
    count = min(count, len(factors))  # four components of 4x2 would have more blocks than an MCU may have
    data = write_jpeg(planes(count), factors[:count], coding=coding, head=head, restart_interval=restart_interval)
    check_read(data, pillows(data))


@pytest.mark.parametrize("head", [b"", JFIF], ids=["plain", "JFIF"])
@pytest.mark.parametrize("factors", [(1, 1), (2, 2), (4, 1), (3, 3)])
def test_grey_with_sampling_factors_is_read(factors: tuple[int, int], head: bytes) -> None:
    for coding in ("baseline", "progressive", "lossless"):
        data = write_jpeg(planes(1), [factors if coding != "lossless" else (1, 1)], coding=coding, head=head)
        check_read(data, pillows(data))


@pytest.mark.parametrize("factors", FACTORS.values(), ids=FACTORS)
def test_components_called_r_g_b_are_rgb(factors: Factors) -> None:
    data = write_jpeg(planes(3), factors[:3], ids=b"RGB")
    check_read(data, pillows(data))


@pytest.mark.usefixtures("_library")
def test_lossless_pictures_are_read() -> None:
    for data in (
        write_jpeg(planes(1), [(1, 1)], coding="lossless"),
        write_jpeg(planes(3), [(1, 1)] * 3, coding="lossless", ids=b"RGB"),
    ):
        check_read(data, pillows(data))


# Surplus bytes


def markers(data: bytes) -> list[int]:
    """Return the positions of all markers but the first."""
    return [at for at in range(2, len(data) - 1) if data[at] == 0xFF and data[at + 1] not in (0x00, 0xFF)]


def clean(*, restart_interval: int = 0, coding: Coding = "baseline") -> bytes:
    """Return a JPEG in whose segments no byte looks like a marker."""
    return write_jpeg(planes(3), [(2, 2), (1, 1), (1, 1)], restart_interval=restart_interval, coding=coding, head=JFIF)


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize(
    "surplus",
    [bytes(258), bytes(3), b"\xff", b"\xff" * 40, b"\x12\x34\x56" * 30],
    ids=["zeros", "few", "FF", "FFs", "any"],
)
@pytest.mark.parametrize(
    ("coding", "restart_interval"), [("baseline", 0), ("baseline", 3), ("progressive", 0), ("progressive", 3)]
)
def test_surplus_bytes_before_any_marker_are_skipped(surplus: bytes, coding: Coding, restart_interval: int) -> None:
    data = clean(coding=coding, restart_interval=restart_interval)
    expected = pillows(data)
    for at in markers(data)[1:14] + markers(data)[-3:]:  # Pillow wants a marker at once
        changed = data[:at] + surplus + data[at:]
        np.testing.assert_array_equal(pillows(changed), expected)
        np.testing.assert_array_equal(decode(changed), expected)
        assert check_picture(changed) == (HEIGHT, WIDTH)
        # The codes of these JPEGs, unlike common ones, end many an interval of a progressive scan in zeros.
        if not surplus.strip(b"\0\xff") and (coding == "baseline" or not restart_interval):
            assert check_picture(changed, decode_all=True) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("garbage", [b"\0", bytes(5000), b"\xff\xd9", b"garbage" * 99])
def test_bytes_behind_the_end_are_skipped(garbage: bytes) -> None:
    for data in (PATCH, write_jpeg(planes(4), FACTORS["3x1"])):
        check_read(data + garbage, pillows(data))


def test_a_strict_check_refuses_other_bytes_behind_the_data_of_a_scan() -> None:
    """They look like the rest of a scan whose data changed."""
    surplus = PATCH[:-2] + b"\x12\x34\x56" * 9 + PATCH[-2:]
    np.testing.assert_array_equal(decode(surplus), pillows(PATCH))
    assert check_picture(surplus) == image_size(PATCH)
    with pytest.raises(ImageError, match="bytes are left behind the data of a scan, which may have changed"):
        check_picture(surplus, decode_all=True)


@pytest.mark.parametrize(
    "data", [PATCH, clean(), clean(coding="progressive", restart_interval=4)], ids=["photo", "baseline", "progressive"]
)
def test_a_jpeg_without_surplus_bytes_stays_as_it_is(data: bytes) -> None:
    assert without_surplus_bytes(data) == data


# Damage


@pytest.mark.skipif(find_libjpeg() is None, reason="Pillow's libjpeg-turbo cannot be called")
@pytest.mark.parametrize("coding", ["baseline", "progressive"])
@pytest.mark.parametrize("colours", COLOURS.values(), ids=COLOURS)
def test_damaged_pictures_of_rare_kinds_are_refused(colours: tuple[int, bytes], coding: Coding) -> None:
    count, head = colours
    data = write_jpeg(planes(count), FACTORS["black"][:count], coding=coding, head=head)
    scan = data.rindex(b"\xff\xda") + 20
    for cut in (40, 200):
        for damaged in (data[: -2 - cut], data[: -2 - cut] + data[-2:]):
            with pytest.raises(ImageError):
                decode(damaged)
        with pytest.raises(ImageError):
            check_picture(data[:scan] + data[scan + cut :], decode_all=True)


def test_surplus_bytes_do_not_hide_damage() -> None:
    scan = PATCH.rindex(b"\xff\xda")
    damaged = PATCH[:scan] + bytes(20) + PATCH[scan:-1500] + PATCH[-2:]
    with pytest.raises(ImageError, match="premature end of data"):
        check_picture(damaged, decode_all=True)
    if find_libjpeg() is not None:
        with pytest.raises(ImageError, match="premature end of data"):
            decode(damaged)


def test_a_strict_check_refuses_whatever_simplejpeg_refuses() -> None:
    generator, refused = random.Random(0), 0
    for _ in range(200):
        at = generator.randrange(700, len(PATCH) - 60)
        damaged = PATCH[:at] + generator.randbytes(40) + PATCH[at + 40 :]
        try:
            check_picture(damaged, decode_all=True)
        except ImageError:
            refused += 1
    assert refused > 120


# Headers, and segments behind the scan

FRAME = PATCH.index(b"\xff\xc0")


def with_segment(marker: int, length: int) -> bytes:
    return PATCH[:FRAME] + bytes([0xFF, marker]) + length.to_bytes(2, "big") + b"ab" + PATCH[FRAME:]


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("length", [0, 1, 2, 3])
@pytest.mark.parametrize("marker", [0xE0, 0xE1, 0xEE, 0xFE])
def test_segments_with_a_wrong_length_are_skipped(marker: int, length: int) -> None:
    data = with_segment(marker, length)
    check_read(data, pillows(data))


@pytest.mark.parametrize("length", [0, 1])
def test_a_first_segment_with_a_wrong_length_is_skipped(length: int) -> None:
    data = PATCH[:4] + length.to_bytes(2, "big") + PATCH[6:]
    check_read(data, pillows(data))


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize(
    "data",
    [
        PATCH[:FRAME] + b"\xff\xd8" + PATCH[FRAME:],
        with_segment(0xF0, 4),
        with_segment(0xCC, 4),
        with_segment(0xDD, 3),
    ],
    ids=["second start", "unknown marker", "bad arithmetic table", "bad restart interval"],
)
def test_a_header_that_no_decoder_reads_is_refused_without_decoding_all(data: bytes) -> None:
    for read in (check_picture, decode):
        with pytest.raises(ImageError) as error:
            read(data)
        assert "subsampling" not in str(error.value)


def test_a_side_of_0_pixels_is_named() -> None:
    with pytest.raises(ImageError, match="the header has no size, or a side of 0 pixels"):
        check_picture(PATCH[: FRAME + 5] + bytes(2) + PATCH[FRAME + 7 :])


needs_library = pytest.mark.skipif(find_libjpeg() is None, reason="Pillow's libjpeg-turbo cannot be called")


@needs_library
@pytest.mark.parametrize("marker", [0xE5, 0xFE, 0xDB, 0xC4])
def test_a_cut_segment_behind_the_scan_changes_no_pixel(marker: int) -> None:
    data = PATCH[:-2] + bytes([0xFF, marker]) + b"\xff\0ab" + PATCH[-2:]
    np.testing.assert_array_equal(decode(data), pillows(data))
    with pytest.raises(ImageError):
        check_picture(data, decode_all=True)


@needs_library
def test_scans_in_an_unusual_order_are_read_but_not_by_a_strict_check() -> None:
    file = io.BytesIO()
    PillowImage.fromarray(noise(40, 30)).save(file, "JPEG", progressive=True)
    last_scan = file.getvalue()[file.getvalue().rindex(b"\xff\xda") : -2]
    data = file.getvalue()[:-2] + last_scan + b"\xff\xd9"
    np.testing.assert_array_equal(decode(data), pillows(data))
    assert check_picture(data) == (40, 30)
    with pytest.raises(ImageError, match="Inconsistent progression"):
        check_picture(data, decode_all=True)


# The program's settings


@pytest.mark.parametrize("is_tolerant", [False, True])
@pytest.mark.parametrize("limit", [None, 10, 1 << 40])
def test_the_programs_settings_of_pillow_change_nothing(
    is_tolerant: bool, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = noise(40, 30)
    files = {}
    for kind in ("PNG", "BMP", "PPM", "WEBP", "TIFF", "JPEG"):
        file = io.BytesIO()
        PillowImage.fromarray(rgb).save(file, kind)
        files[kind] = file.getvalue()
    files["CMYK"] = write_jpeg(planes(4), FACTORS["black"])
    expected = {kind: pillows(data) for kind, data in files.items()}
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", is_tolerant)
    monkeypatch.setattr(PillowImage, "MAX_IMAGE_PIXELS", limit)
    for kind, data in files.items():
        formats = ("BMP", "JPEG", "PNG", "PPM", "WEBP", "TIFF")
        np.testing.assert_array_equal(decode(data, formats=formats), expected[kind])
        for end in (len(data) // 2, len(data) - 90):
            with pytest.raises(ImageError):
                decode(data[:end], formats=formats)
        with pytest.raises(ImageError, match="more than the limit of 100"):
            decode(data, formats=formats, max_pixels=100)
    assert (is_tolerant, limit) == (ImageFile.LOAD_TRUNCATED_IMAGES, PillowImage.MAX_IMAGE_PIXELS)
