"""Chunks of a PNG: checksums, the chunks that determine the pixels, and a check that no row is missing."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from dlas_store.errors import ImageError

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB`\x82"

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Colour type -> values of a pixel."""

_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row, first column, and steps to the next row and column, of each pass of an interlaced PNG."""

_HEADERS = (b"IHDR", b"PLTE")
_ESSENTIAL = (*_HEADERS, b"tRNS", b"IDAT", b"IEND")
"""Kinds of chunks that determine the pixels."""

_INFLATED_BYTES = 1 << 20
"""Bytes of rows that are inflated at a time."""


class _Chunk(NamedTuple):
    kind: bytes
    data: memoryview
    checksum: bytes

    @property
    def right_checksum(self) -> bytes:
        return struct.pack(">I", zlib.crc32(self.data, zlib.crc32(self.kind)))

    @property
    def is_intact(self) -> bool:
        return self.checksum == self.right_checksum

    @property
    def is_critical(self) -> bool:
        return not self.kind[0] & 0x20


def is_png_of_16_bits(data: bytes) -> bool:
    """Return whether bytes are a PNG with 16 bits a channel."""
    return data.startswith(PNG_START) and data[24:25] == b"\x10"


def essential_chunks(data: bytes) -> bytes:
    """Return a PNG without the chunks that do not determine its pixels.

    A wrong checksum of transparency, an ancillary chunk, is corrected. Checksums of pixels are left as they are.

    Raises:
        ImageError: a chunk is truncated, or the header or the palette has a wrong checksum.
    """
    parts: list[bytes | memoryview] = [PNG_START]
    for chunk in _chunks(data):
        if chunk.kind in _HEADERS and not chunk.is_intact:
            raise _wrong_checksum(chunk)
        if chunk.kind in _ESSENTIAL:
            checksum = chunk.right_checksum if chunk.kind == b"tRNS" else chunk.checksum
            parts += [struct.pack(">I", len(chunk.data)), chunk.kind, chunk.data, checksum]
    return b"".join(parts)


def check_png(data: bytes) -> None:
    """Check the checksums of a PNG's critical chunks, and that the PNG has all of its rows.

    Pillow leaves missing rows black, and does not check the checksums of pixels.

    Raises:
        ImageError: a row is missing, or a critical chunk is truncated, damaged or missing.
    """
    pixels = []
    header = None
    for chunk in _chunks(data):
        if chunk.is_critical and not chunk.is_intact:
            raise _wrong_checksum(chunk)
        if chunk.kind == b"IHDR":
            header = chunk.data
        elif chunk.kind == b"IDAT":
            pixels.append(chunk.data)
    if header is None or len(header) != 13:
        raise ImageError("damaged PNG (it has no header)")
    missing = _row_bytes(header) - _inflated_bytes(pixels, _row_bytes(header))
    if missing > 0:
        raise ImageError(f"damaged PNG (the last {missing} bytes of its rows are missing)")


def _wrong_checksum(chunk: _Chunk) -> ImageError:
    return ImageError(f"damaged PNG (wrong checksum of the chunk {chunk.kind!r})")


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """Yield the chunks up to the end chunk, or to the end of the data."""
    view = memoryview(data)
    start = len(PNG_START)
    while start < len(data):
        head = data[start : start + 8]
        if len(head) < 8:
            raise ImageError("truncated PNG (a chunk has no header)")
        length, kind = struct.unpack(">I4s", head)
        end = start + 8 + length
        if end + 4 > len(data):
            raise ImageError(f"truncated or damaged PNG (the chunk {kind!r} ends beyond the file)")
        yield _Chunk(kind, view[start + 8 : end], data[end : end + 4])
        if kind == b"IEND":
            return
        start = end + 4


def _row_bytes(header: memoryview) -> int:
    """Return the bytes of all rows, each with the byte that names its filter."""
    width, height, depth, colours, _, _, interlace = struct.unpack(">IIBBBBB", header)
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    total = 0
    for first_row, first_col, row_step, col_step in passes:
        rows = -(-(height - first_row) // row_step)
        cols = -(-(width - first_col) // col_step)
        if rows > 0 and cols > 0:
            total += rows * (1 + -(-cols * depth * _CHANNELS.get(colours, 1) // 8))
    return total


def _inflated_bytes(pixels: list[memoryview], enough: int) -> int:
    """Return how many bytes the pixels' chunks inflate to, at most a little more than ``enough``."""
    inflater = zlib.decompressobj()
    pieces: list[bytes | memoryview] = [*pixels, b""]
    count = 0
    try:
        for piece in pieces:
            rest = piece
            while count < enough and (rows := inflater.decompress(rest, _INFLATED_BYTES)):
                count += len(rows)
                rest = bytes(inflater.unconsumed_tail)
    except zlib.error as error:
        raise ImageError(f"damaged PNG ({error})") from error
    return count
