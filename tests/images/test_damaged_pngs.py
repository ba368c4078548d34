"""PNGs that lack rows are refused by a strict check; damaged chunks that determine no pixel are no reason to refuse."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageFile, PngImagePlugin

from dlas_store.errors import ImageError
from dlas_store.images.decode import check_picture, decode, image_size

DEPTHS = [
    (0, 1),
    (0, 2),
    (0, 4),
    (0, 8),
    (0, 16),
    (2, 8),
    (2, 16),
    (3, 1),
    (3, 2),
    (3, 4),
    (3, 8),
    (4, 8),
    (4, 16),
    (6, 8),
    (6, 16),
]
"""Colour type and bits of every kind of PNG."""

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
"""First column and row, and the steps, of each pass."""


def chunk(kind: bytes, data: bytes, *, is_damaged: bool = False) -> bytes:
    checksum = zlib.crc32(kind + data) ^ is_damaged
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def rows(width: int, height: int, colours: int, depth: int) -> bytes:
    length = -(-width * depth * CHANNELS[colours] // 8)
    generator = np.random.default_rng(width * height)
    return b"".join(
        b"\0" + generator.integers(0, 256, length, np.uint8).tobytes() for _ in range(height if length else 0)
    )


def make_png(
    colours: int,
    depth: int,
    *,
    missing: int = 0,
    interlace: bool = False,
    extra: bytes = b"",
    after: bytes = b"",
    is_damaged: bool = False,
    size: tuple[int, int] = (21, 13),
) -> bytes:
    """Return a PNG without the last bytes of its rows, with chunks before and behind the pixels."""
    width, height = size
    passes = ADAM7 if interlace else [(0, 0, 1, 1)]
    data = b"".join(
        rows(max(0, -(-(width - x) // dx)), max(0, -(-(height - y) // dy)), colours, depth) for x, y, dx, dy in passes
    )
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if colours == 3 and depth == 8 else b""
    if colours == 3 and depth < 8:
        palette = chunk(b"PLTE", bytes(range(3 << depth)))
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, interlace)
    pixels = zlib.compress(data[: len(data) - missing])
    idats = chunk(b"IDAT", pixels[:50]) + chunk(b"IDAT", pixels[50:], is_damaged=is_damaged)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + extra + idats + after + chunk(b"IEND", b"")


@pytest.mark.parametrize("interlace", [False, True])
@pytest.mark.parametrize(("colours", "depth"), DEPTHS)
def test_a_png_with_fewer_rows_than_it_claims_is_refused(colours: int, depth: int, interlace: bool) -> None:
    for size in ((21, 13), (1, 1), (3, 2), (64, 9)):
        whole = make_png(colours, depth, interlace=interlace, size=size)
        assert check_picture(whole, decode_all=True) == (size[1], size[0])
    for missing in (1, 9, 30):
        with pytest.raises(ImageError):
            check_picture(make_png(colours, depth, missing=missing, interlace=interlace), decode_all=True)


ANCILLARY = {
    "text": chunk(b"tEXt", b"Comment\0here", is_damaged=True),
    "gamma": chunk(b"gAMA", struct.pack(">I", 45455), is_damaged=True),
    "profile": chunk(b"iCCP", b"name\0\0no zlib"),
    "animation": chunk(b"acTL", struct.pack(">II", 3, 0), is_damaged=True),
    "unknown": chunk(b"quXy", b"abc", is_damaged=True),
    "large text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 << 20))),
}


@pytest.mark.parametrize("is_tolerant", [False, True])
@pytest.mark.parametrize("extra", ANCILLARY.values(), ids=ANCILLARY)
@pytest.mark.parametrize(("colours", "depth"), DEPTHS)
def test_a_damaged_chunk_that_determines_no_pixel_is_no_reason_to_refuse(
    colours: int, depth: int, extra: bytes, is_tolerant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = decode(make_png(colours, depth), alpha=True)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", is_tolerant)
    for data in (make_png(colours, depth, extra=extra), make_png(colours, depth, after=extra)):
        assert image_size(data) == check_picture(data, decode_all=True) == (13, 21)
        np.testing.assert_array_equal(decode(data, alpha=True), expected)


def test_transparency_with_a_wrong_checksum_is_kept() -> None:
    whole, damaged = (make_png(3, 8, extra=chunk(b"tRNS", bytes(range(200)), is_damaged=bad)) for bad in (False, True))
    np.testing.assert_array_equal(decode(damaged, alpha=True), decode(whole, alpha=True))


@pytest.mark.parametrize("is_tolerant", [False, True])
def test_damaged_critical_chunks_are_refused(is_tolerant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", is_tolerant)
    whole = make_png(3, 8)
    header = bytearray(whole)
    header[29] ^= 1
    palette = bytearray(whole)
    palette[whole.index(b"PLTE") + 4] ^= 1
    for data in (bytes(header), bytes(palette)):
        for read in (decode, image_size, check_picture):
            with pytest.raises(ImageError, match=r"damaged PNG \(wrong checksum of the chunk b'(IHDR|PLTE)'\)"):
                read(data)
    with pytest.raises(ImageError, match="wrong checksum of the chunk b'IDAT'"):
        check_picture(make_png(2, 8, is_damaged=True), decode_all=True)
    pixels = bytearray(whole)
    pixels[whole.index(b"IDAT") + 30] ^= 255
    for data in (whole[:-60], bytes(pixels)):
        with pytest.raises(ImageError):
            decode(data)


def test_an_animated_png_gives_its_first_picture() -> None:
    file = io.BytesIO()
    frames = [PillowImage.fromarray(np.full((9, 8, 3), value, np.uint8)) for value in (10, 200)]
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    assert check_picture(file.getvalue(), decode_all=True) == (9, 8)
    np.testing.assert_array_equal(decode(file.getvalue()), np.full((9, 8, 3), 10))


def without_palette(depth: int, transparency: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", 8, 6, depth, 3, 0, 0, 0)
    parts = chunk(b"IHDR", head) + transparency + chunk(b"IDAT", zlib.compress(rows(8, 6, 3, depth)))
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


@pytest.mark.parametrize("transparency", [b"", b"\0", b"\0\x80"], ids=["opaque", "one colour", "two colours"])
@pytest.mark.parametrize("depth", [1, 8])
def test_a_palette_png_without_a_palette_has_pillows_pixels(depth: int, transparency: bytes) -> None:
    data = without_palette(depth, chunk(b"tRNS", transparency) if transparency else b"")
    with PillowImage.open(io.BytesIO(data)) as picture:
        # With transparency Pillow's convert("RGB") ends in an AssertionError.
        expected = np.asarray(picture.convert("RGBA" if transparency else "RGB"))[:, :, :3]
    assert check_picture(data, decode_all=True) == (6, 8)
    np.testing.assert_array_equal(decode(data), expected)
    np.testing.assert_array_equal(decode(data, alpha=True)[:, :, :3], expected)


@pytest.mark.parametrize("error", [AssertionError, KeyError, AttributeError, OverflowError, RuntimeError])
def test_what_pillow_did_not_expect_is_an_image_error(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error("not expected")

    data = make_png(2, 8)
    for name in ("_open", "load_end"):
        with monkeypatch.context() as patch:
            patch.setattr(PngImagePlugin.PngImageFile, name, fail)
            with pytest.raises(ImageError, match="not expected"):
                decode(data)


def test_a_png_of_16_bits_without_its_end_is_read_silently(capfd: pytest.CaptureFixture[str]) -> None:
    data = make_png(2, 16)
    np.testing.assert_array_equal(decode(data[:-12]), decode(data))
    assert capfd.readouterr().err == ""
