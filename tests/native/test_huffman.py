"""Huffman decoder: its pixels equal those of libjpeg-turbo, which decodes scans that violate the standard."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Sequence

import numpy as np
import pytest
import simplejpeg
from PIL import Image, _imaging

pytest.importorskip("dlas_store._native.patch_reader", reason="installed without a C compiler")

from dlas_store._native.patch_reader import Libjpeg
from dlas_store.images.libjpeg import VARIABLE, find_libjpeg
from tests.conftest import Runs
from tests.support.sample_data import DATA, Array, noise
from tests.support.source_contract import jpeg

pytestmark = pytest.mark.skipif(find_libjpeg() is None, reason="Pillow's libjpeg-turbo cannot be called")

FILE = os.environ.get(VARIABLE) or _imaging.__file__

PHOTO = np.asarray(Image.open(DATA / "camera.png").convert("RGB"))[100:260, 80:260].copy()

END, ZEROS = 0x00, 0xF0

Code = dict[int, str]
"""Symbol -> bits of its code."""

Block = Sequence[int]
"""64 coefficients in zigzag order; the first coefficient is the difference from that of the block before."""


def decode(data: bytes) -> tuple[Array | None, int]:
    """Return the pixels, None after a warning or error, and the number of scans decoded in C."""
    library = Libjpeg(FILE)
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    out = np.zeros((height, width, 3), np.uint8)
    return (out if library.decode(data, out) else None), library.scans


def check_decoded(data: bytes) -> int:
    """Check that both decoders return the same pixels or both fail; return the number of scans decoded in C."""
    pixels, scans = decode(data)
    try:
        expected = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        assert pixels is None
        assert scans == 0
    else:
        assert pixels is not None
        assert np.array_equal(pixels, expected)
    return scans


# ------------------------------------------------------------------------------------------------- JPEGs made by hand


def make_code(lengths: dict[int, int]) -> Code:
    """Return the code that a JPEG's table defines by the lengths of its symbols' codes."""
    code, before, result = 0, 0, {}
    for symbol, length in sorted(lengths.items(), key=lambda item: item[1]):
        code <<= length - before
        result[symbol] = f"{code:0{length}b}"
        code, before = code + 1, length
    return result


def random_code(generator: random.Random, symbols: Sequence[int], *, longest: int = 16) -> Code:
    """Return a code of random lengths; the code of all ones stays unused, as the standard requires."""
    lengths = [1]  # depths of a tree's leaves, one more than symbols
    while len(lengths) < len(symbols) + 1:
        index = generator.choice([index for index, length in enumerate(lengths) if length < longest])
        lengths[index] += 1
        lengths.append(lengths[index])
        if len(lengths) == 2:
            continue
    lengths.sort()
    return make_code(dict(zip(generator.sample(list(symbols), len(symbols)), lengths[:-1], strict=True)))


def table_segment(number: int, code: Code) -> bytes:
    ordered = sorted(code, key=lambda symbol: (len(code[symbol]), code[symbol]))
    counts = [sum(len(bits) == length for bits in code.values()) for length in range(1, 17)]
    return struct.pack(">BBHB", 0xFF, 0xC4, 19 + len(code), number) + bytes(counts) + bytes(ordered)


def value_bits(value: int) -> str:
    length = abs(value).bit_length()
    return f"{value if value > 0 else value + (1 << length) - 1:0{length}b}" if length else ""


def code_block(block: Block, dc: Code, ac: Code) -> str:
    bits = dc[abs(block[0]).bit_length()] + value_bits(block[0])
    last = max((at for at in range(64) if block[at]), default=0)
    zeros = 0
    for value in block[1 : last + 1]:
        if value == 0:
            zeros += 1
            continue
        bits += ac[ZEROS] * (zeros // 16) + ac[zeros % 16 << 4 | abs(value).bit_length()] + value_bits(value)
        zeros = 0
    return bits if last == 63 else bits + ac[END]


def stuffed(bits: str, *, padding: str = "1") -> bytes:
    bits += padding * (-len(bits) % 8)
    return int(f"1{bits}", 2).to_bytes(len(bits) // 8 + 1, "big")[1:].replace(b"\xff", b"\xff\0")


def jpeg_of(
    scan: bytes, blocks: tuple[int, int], codes: Sequence[tuple[Code, Code]], end: bytes = b"\xff\xd9"
) -> bytes:
    """Return a JPEG of some blocks down and across: 4:4:4 for three codes, grey for one."""
    count = len(codes)
    return b"".join(
        [
            b"\xff\xd8\xff\xdb\0\x43\0" + bytes([1] * 64),
            struct.pack(">BBHBHHB", 0xFF, 0xC1, 8 + 3 * count, 8, blocks[0] * 8, blocks[1] * 8, count),
            *(bytes([number + 1, 0x11, 0]) for number in range(count)),
            *(table_segment(number, dc) for number, (dc, _) in enumerate(codes)),
            *(table_segment(0x10 | number, ac) for number, (_, ac) in enumerate(codes)),
            struct.pack(">BBHB", 0xFF, 0xDA, 6 + 2 * count, count),
            *(bytes([number + 1, number << 4 | number]) for number in range(count)),
            b"\0\x3f\0",
            scan,
            end,
        ]
    )


DC = random_code(random.Random(1), range(12))
AC = random_code(random.Random(2), [END, ZEROS, *(run << 4 | size for run in range(16) for size in range(1, 11))])
ALL_AC = [END, ZEROS, *(run << 4 | size for run in range(16) for size in range(1, 16))]


def grey(blocks: Sequence[Block], dc: Code = DC, ac: Code = AC) -> bytes:
    return jpeg_of(stuffed("".join(code_block(block, dc, ac) for block in blocks)), (1, len(blocks)), [(dc, ac)])


# -------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("quality", [1, 10, 50, 90, 95, 100])
@pytest.mark.parametrize("sampling", ["444", "422", "440", "420", "411", "Gray"])
def test_pictures_of_every_sampling_and_quality(sampling: str, quality: int) -> None:
    for pixels in (PHOTO, noise(37, 51), np.zeros((8, 9, 3), np.uint8), np.full((65, 1, 3), 255, np.uint8)):
        picture = np.ascontiguousarray(pixels[:, :, :1]) if sampling == "Gray" else pixels
        data = simplejpeg.encode_jpeg(picture, quality, "GRAY" if sampling == "Gray" else "RGB", sampling)
        assert check_decoded(data) == 1


@pytest.mark.parametrize("quality", [5, 60, 98])
def test_pictures_with_codes_of_their_own(quality: int) -> None:
    for pixels in (PHOTO, noise(24, 40)):
        assert check_decoded(jpeg(pixels, quality=quality, optimize=True)) == 1


def test_pictures_one_after_another_with_other_codes() -> None:
    """A decoder reuses the tables of the previous picture if the next picture has the same tables."""
    library = Libjpeg(FILE)
    pictures = [jpeg(PHOTO, quality=quality, optimize=optimize) for quality in (20, 95) for optimize in (False, True)]
    for data in [*pictures, *reversed(pictures)]:
        out = np.zeros_like(PHOTO)
        assert library.decode(data, out)
        assert np.array_equal(out, simplejpeg.decode_jpeg(data))
    assert library.scans == 2 * len(pictures)


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"restart_marker_blocks": 3}], ids=["progressive", "restarts"]
)
def test_scans_of_other_kinds_are_the_librarys(options: dict[str, int]) -> None:
    assert check_decoded(jpeg(PHOTO, **options)) == 0


def test_runs_of_zeros_and_blocks_up_to_the_last_coefficient() -> None:
    for at in range(1, 64):
        for value in (1, -1, 3, -1023):
            block = [0] * 64
            block[at] = value
            assert check_decoded(grey([block, [5] + [0] * 63, block])) == 1
            block[63] = -7
            assert check_decoded(grey([block, block])) == 1
    assert check_decoded(grey([[1] * 64, [-2] * 64])) == 1


def test_every_symbol_without_a_value_ends_a_block() -> None:
    for symbol in range(END, ZEROS, 0x10):
        ac = make_code({symbol: 2, 0x01: 1})
        scan = (DC[1] + "1" + ac[1] + "1" + ac[symbol] + DC[0] + ac[symbol]) * 3
        assert check_decoded(jpeg_of(stuffed(scan), (2, 3), [(DC, ac)])) == 1


def test_values_of_every_length() -> None:
    sizes = range(16)
    generator = random.Random(0)
    dc, ac = random_code(generator, sizes), random_code(generator, ALL_AC)
    for size in sizes:
        for value in {(1 << size) - 1, -(1 << size) + 1, 1 << size >> 1, -(1 << size >> 1)}:
            block = [value] + [0] * 63
            block[generator.randrange(1, 64)] = value
            assert check_decoded(grey([block, block, [0] * 64], dc, ac)) == 1


def test_codes_of_every_length() -> None:
    """Each code is the longest of its table; values fit into the bits of one lookup or not."""
    for longest in range(8, 17):
        for size in (1, 3, 8, 10):
            lengths = {END: 2, ZEROS: 3, size: longest}
            lengths |= {0x11 + at: at for at in range(4, longest) if 0x11 + at != size}
            ac = make_code(lengths)
            block = [0] * 64
            block[1] = (1 << size) - 1
            block[18] = block[1]  # 16 zeros before it
            dc = make_code({0: 1, 2: 2, 7: longest})
            for difference in (0, 3, -64, 127):
                assert check_decoded(grey([[difference, *block[1:]]] * 3, dc, ac)) == 1


def random_block(generator: random.Random, largest: int) -> list[int]:
    density = generator.choice([0.02, 0.2, 0.8, 1.0])
    sizes = [generator.randrange(1, largest + 1) if generator.random() < density else 0 for _ in range(64)]
    return [generator.choice([-1, 1]) * generator.randrange(1 << size >> 1, 1 << size) if size else 0 for size in sizes]


def random_picture(generator: random.Random) -> tuple[str, tuple[int, int], list[tuple[Code, Code]]]:
    """Return the bits of a scan, its number of blocks, and its codes."""
    largest = generator.choice([2, 5, 10])
    shape = generator.randrange(1, 4), generator.randrange(1, 5)
    symbols = [END, ZEROS, *(run << 4 | size for run in range(16) for size in range(1, largest + 1))]
    codes = [
        (random_code(generator, range(largest + 1)), random_code(generator, symbols))
        for _ in range(generator.choice([1, 3]))
    ]
    blocks = [
        code_block(random_block(generator, largest), dc, ac) for _ in range(shape[0] * shape[1]) for dc, ac in codes
    ]
    return "".join(blocks), shape, codes


def test_random_coefficients_in_random_codes(runs: Runs) -> None:
    for number in runs(small=150, full=200_000):
        bits, shape, codes = random_picture(random.Random(number))
        assert check_decoded(jpeg_of(stuffed(bits), shape, codes)) == 1, f"run {number}"


def changed_bits(bits: str, generator: random.Random) -> str:
    at = generator.randrange(len(bits))
    kind = generator.randrange(4)
    if kind == 0:
        return bits[:at] + ("1" if bits[at] == "0" else "0") + bits[at + 1 :]
    if kind == 1:
        return bits[:at] + bits[at + generator.randrange(1, 40) :]
    if kind == 2:
        return bits[:at] + f"{generator.getrandbits(64):064b}" + bits[at:]
    return f"{generator.getrandbits(len(bits)):0{len(bits)}b}"


def test_changed_bits_are_decoded_as_by_the_library_or_not_at_all(runs: Runs) -> None:
    """The changes leave bits that begin no code, blocks of more than 64 coefficients, or too few or too many bits."""
    scans = []
    for number in runs(small=400, full=400_000):
        generator = random.Random(number)
        bits, shape, codes = random_picture(generator)
        data = jpeg_of(stuffed(changed_bits(bits, generator), padding=generator.choice("01")), shape, codes)
        scans.append(check_decoded(data))
    assert 0 < sum(scans) < len(scans)


def test_large_pictures_between_small_ones() -> None:
    """The decoder frees the buffer of a large picture afterwards."""
    library = Libjpeg(FILE)
    small, large = noise(16, 16), noise(1024, 1200)
    for pixels in (small, large, small, large, large, small):
        data, out = simplejpeg.encode_jpeg(pixels, 98), np.zeros_like(pixels)
        assert len(data) > 1 << 20 or pixels is small
        assert library.decode(data, out)
        assert np.array_equal(out, simplejpeg.decode_jpeg(data))
    assert library.scans == 6


@pytest.mark.parametrize("beyond", [AC[0xF1] + "1", AC[ZEROS]], ids=["value", "zeros"])
def test_more_than_64_coefficients_are_the_librarys(beyond: str) -> None:
    scan = DC[0] + (AC[ZEROS] + AC[0x11] + "1") * 3 + beyond + DC[0] + AC[END]
    data = jpeg_of(stuffed(scan), (1, 2), [(DC, AC)])
    assert check_decoded(data) == 0
    assert decode(data)[0] is not None


@pytest.mark.parametrize(
    ("end", "is_decoded_in_c"),
    [
        (b"\xff\xd9", True),
        (b"\xff\xd9 and more", True),
        (b"\xff\xff\xd9", False),  # a fill byte
        (b"", False),
        (b"\xff", False),
        (b"\xff\xd0\xff\xd9", False),  # a restart marker
        (b"\0\xff\xd9", False),  # a byte too many
        (b"\0\0\0\0\0\0\0\0\0\0\xff\xd9", False),
    ],
)
def test_what_stands_behind_a_scan(end: bytes, is_decoded_in_c: bool) -> None:
    scan = stuffed("".join(code_block([3] * 64, DC, AC) for _ in range(6)))
    assert check_decoded(jpeg_of(scan, (2, 3), [(DC, AC)], end)) == int(is_decoded_in_c)


def test_no_byte_behind_a_short_scan_is_read() -> None:
    """A block of the longest codes and values begins at the last byte."""
    ac = make_code({END: 1, ZEROS: 2, **dict.fromkeys(range(1, 16), 16)})
    bits = code_block([0] + [(1 << 15) - 1] * 63, DC, ac)
    for count in range(1, 80):
        data = jpeg_of(stuffed((DC[0] + "0") * count + bits[: count * 7]), (1, count + 1), [(DC, ac)])
        assert check_decoded(data) == 0
