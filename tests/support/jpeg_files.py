"""JPEGs of any sampling factors, colours and marker segments, written by hand."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from tests.support.sample_data import Array

Coding = Literal["baseline", "progressive", "lossless"]
Factors = Sequence[tuple[int, int]]

_CODE_LENGTH = 8
"""Bits of every code: codes of one length need no table of an encoder."""

_DC_SYMBOLS = list(range(12))
_AC_SYMBOLS = [run << 4 | size for run in range(16) for size in range(1, 11)] + [0x00, 0xF0]

_ZIGZAG = sorted(range(64), key=lambda at: (at // 8 + at % 8, (at // 8 if (at // 8 + at % 8) % 2 else at % 8)))

_COSINES = np.array(
    [[np.cos((2 * x + 1) * u * np.pi / 16) * (np.sqrt(1 / 8) if u == 0 else 0.5) for x in range(8)] for u in range(8)]
)


def segment(marker: int, content: bytes) -> bytes:
    """Return a marker segment."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def adobe(transform: int) -> bytes:
    """Return Adobe's segment, which names the colour transform."""
    return segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform))


JFIF = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")


def write_jpeg(
    planes: Sequence[Array],
    factors: Factors,
    *,
    coding: Coding = "baseline",
    ids: Sequence[int] | bytes = (1, 2, 3, 4),
    head: bytes = b"",
    restart_interval: int = 0,
    quantization: int = 4,
) -> bytes:
    """Return a JPEG, with standard codes of one length.

    Args:
        planes: a plane for each component, uint8 (H, W), all of full size; each is sampled down by its factors.
        factors: sampling factors (across, down) of each component.
        coding: coding of the scans; lossless needs factors 1 x 1.
        ids: ids of the components.
        head: segments behind the start marker.
        restart_interval: MCUs between restart markers, 0 for none.
        quantization: divisor of every coefficient.
    """
    height, width = planes[0].shape
    frame = {"baseline": 0xC1, "progressive": 0xC2, "lossless": 0xC3}[coding]
    components = b"".join(bytes([i, across << 4 | down, 0]) for i, (across, down) in zip(ids, factors, strict=False))
    parts = [b"\xff\xd8", head]
    if coding != "lossless":
        parts.append(segment(0xDB, bytes([0]) + bytes([quantization] * 64)))
    parts.append(segment(frame, struct.pack(">BHHB", 8, height, width, len(planes)) + components))
    parts += [_table(0, _DC_SYMBOLS), _table(0x10, _AC_SYMBOLS)]
    if restart_interval:
        parts.append(segment(0xDD, struct.pack(">H", restart_interval)))
    ids = list(ids)[: len(planes)]
    if coding == "lossless":
        rows = [_scan(ids, 1, 0, 0), _restarts(_lossless(planes), restart_interval)]
        return b"".join([*parts, *rows, b"\xff\xd9"])
    blocks = _Blocks(planes, factors, quantization)
    if coding == "baseline":
        parts += [_scan(ids, 0, 63, 0), _restarts(blocks.mcus(range(64)), restart_interval)]
    else:
        parts += [_scan(ids, 0, 0, 0), _restarts(blocks.mcus(range(1)), restart_interval)]
        for number, component in enumerate(ids):
            for band in (range(1, 6), range(6, 64)):
                scan = blocks.alone(number, band)
                parts += [_scan([component], band[0], band[-1], 0), _restarts(scan, restart_interval)]
    return b"".join([*parts, b"\xff\xd9"])


class _Blocks:
    """Quantised coefficients of all components."""

    def __init__(self, planes: Sequence[Array], factors: Factors, quantization: int) -> None:
        self._factors = factors
        height, width = planes[0].shape
        across, down = max(a for a, _ in factors), max(d for _, d in factors)
        self._mcus = -(-height // (8 * down)), -(-width // (8 * across))
        self._blocks, self._own = [], []
        for plane, (a, d) in zip(planes, factors, strict=True):
            rows, cols = self._mcus[0] * 8 * d, self._mcus[1] * 8 * a
            at_rows = np.minimum(np.arange(rows) * down // d, height - 1)
            at_cols = np.minimum(np.arange(cols) * across // a, width - 1)
            sampled = plane[at_rows][:, at_cols].astype(float) - 128
            blocks = sampled.reshape(rows // 8, 8, cols // 8, 8).swapaxes(1, 2)
            coefficients = np.rint(_COSINES @ blocks @ _COSINES.T / quantization).astype(int)
            self._blocks.append(coefficients.reshape(rows // 8, cols // 8, 64)[:, :, _ZIGZAG])
            self._own.append((_ceil_divide(height * d, 8 * down), _ceil_divide(width * a, 8 * across)))

    def mcus(self, band: range) -> list[Callable[[list[int]], str]]:
        """Return a function for each MCU of all components, which codes it and updates the predictions."""
        if len(self._blocks) == 1:
            return self.alone(0, band)

        def mcu(row: int, col: int) -> Callable[[list[int]], str]:
            def code(predictions: list[int]) -> str:
                return "".join(
                    _code_block(self._blocks[number][row * d + y, col * a + x], band, predictions, number)
                    for number, (a, d) in enumerate(self._factors)
                    for y in range(d)
                    for x in range(a)
                )

            return code

        return [mcu(row, col) for row in range(self._mcus[0]) for col in range(self._mcus[1])]

    def alone(self, number: int, band: range) -> list[Callable[[list[int]], str]]:
        """Return such functions for the blocks of one component."""
        rows, cols = self._own[number]
        blocks = [self._blocks[number][row, col] for row in range(rows) for col in range(cols)]
        return [lambda predictions, block=block: _code_block(block, band, predictions, number) for block in blocks]


def _ceil_divide(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _code_block(block: Array, band: range, predictions: list[int], number: int) -> str:
    bits, zeros = "", 0
    if band[0] == 0:
        difference = int(block[0]) - predictions[number]
        predictions[number] = int(block[0])
        bits += _code(_DC_SYMBOLS, abs(difference).bit_length()) + _value(difference)
    for at in range(max(1, band[0]), band[-1] + 1):
        value = int(block[at])
        if value == 0:
            zeros += 1
            continue
        bits += _code(_AC_SYMBOLS, 0xF0) * (zeros // 16)
        bits += _code(_AC_SYMBOLS, zeros % 16 << 4 | abs(value).bit_length()) + _value(value)
        zeros = 0
    return bits + (_code(_AC_SYMBOLS, 0) if zeros else "")


def _lossless(planes: Sequence[Array]) -> list[Callable[[list[int]], str]]:
    """Return a function for each pixel, predicted by the one to its left; without restarts."""
    stacked = np.stack(planes, -1).astype(int)
    left = np.empty_like(stacked)
    left[:, 1:] = stacked[:, :-1]
    left[1:, 0] = stacked[:-1, 0]
    left[0, 0] = 128
    differences = (stacked - left).reshape(-1, len(planes))

    def pixel(values: Array) -> Callable[[list[int]], str]:
        bits = "".join(_code(_DC_SYMBOLS, abs(int(value)).bit_length()) + _value(int(value)) for value in values)
        return lambda _: bits

    return [pixel(values) for values in differences]


def _restarts(mcus: list[Callable[[list[int]], str]], interval: int) -> bytes:
    parts = []
    for start in range(0, len(mcus), interval or len(mcus)):
        predictions = [0] * 4
        parts.append(_stuffed("".join(code(predictions) for code in mcus[start : start + (interval or len(mcus))])))
    return b"".join(
        part + (bytes([0xFF, 0xD0 + number % 8]) if number < len(parts) - 1 else b"")
        for number, part in enumerate(parts)
    )


def _scan(ids: Sequence[int], first: int, last: int, approximation: int) -> bytes:
    components = b"".join(bytes([component, 0]) for component in ids)
    return segment(0xDA, bytes([len(ids)]) + components + bytes([first, last, approximation]))


def _table(number: int, symbols: Sequence[int]) -> bytes:
    counts = [len(symbols) if length == _CODE_LENGTH else 0 for length in range(1, 17)]
    return segment(0xC4, bytes([number, *counts, *symbols]))


def _code(symbols: Sequence[int], symbol: int) -> str:
    return f"{symbols.index(symbol):0{_CODE_LENGTH}b}"


def _value(value: int) -> str:
    size = abs(value).bit_length()
    return f"{value if value > 0 else value + (1 << size) - 1:0{size}b}" if size else ""


def _stuffed(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0") if bits else b""
