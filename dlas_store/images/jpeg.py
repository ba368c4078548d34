"""Segments of a JPEG, and surplus bytes between them."""

from __future__ import annotations

import re

JPEG_START = b"\xff\xd8\xff"
JPEG_END = b"\xff\xd9"

_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
_MARKER_BEHIND_SCAN = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)

_ZEROS = re.compile(rb"(?<!\x00)\x00++(?=\xff+[\xd0-\xd7]|\Z)", re.DOTALL)
"""Zeros at the end of a scan or of a restart interval, whose data seldom end in zeros."""

_END, _START_OF_SCAN = 0xD9, 0xDA
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xDA)})
"""Markers that no segment follows."""


def without_surplus_bytes(data: bytes, *, zeros: bool = False) -> bytes:
    """Return a JPEG without the bytes between its segments, which decoders skip.

    Bytes behind the data of a scan stay: only a decoder can tell where these data end.

    Args:
        data: the bytes of a JPEG file.
        zeros: leave out the zeros at the end of each scan and each restart interval too; a few may belong to the data.
    """
    parts = [data[:2]]
    position = 2
    pattern = _MARKER
    while match := pattern.search(data, position):
        if pattern is _MARKER_BEHIND_SCAN:
            scan = data[position : match.start()]
            parts.append(_ZEROS.sub(_stuffing, scan) if zeros else scan)
        marker = data[match.start(1)]
        start = match.end()
        # Decoders take a length of 0 or 1 for 2, the bytes of the length itself.
        length = 0 if marker in _WITHOUT_LENGTH else max(2, int.from_bytes(data[start : start + 2], "big"))
        position = start + length
        parts.append(b"\xff" + data[match.start(1) : position])
        pattern = _MARKER_BEHIND_SCAN if marker == _START_OF_SCAN else _MARKER
        if marker == _END:
            return b"".join(parts)
    return b"".join([*parts, data[position:]])


def _stuffing(match: re.Match[bytes]) -> bytes:
    """Return the zero behind a byte 0xFF of a scan, which is no filling."""
    return b"\0" if match.string[max(0, match.start() - 1) : match.start()] == b"\xff" else b""
