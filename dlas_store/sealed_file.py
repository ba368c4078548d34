"""A sealed LMDB file: LMDB's pages, then a trailer that describes the file and is checked when the file is opened.

LMDB ignores bytes after its last page, so every LMDB tool still reads the file.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import msgpack
from xxhash import xxh3_64_intdigest

from dlas_store import lmdb_pages
from dlas_store.errors import DamagedError, FormatVersionError, NotASourceError, write_errors
from dlas_store.source import Layout

FORMAT_VERSION = 1

_MAGIC = b"dlasseal"
_FOOTER = struct.Struct("<8sIIQ")  # magic, format version, body bytes, bytes of LMDB's pages
_CHECKSUM = struct.Struct("<Q")
_FOOTER_SIZE = _FOOTER.size + _CHECKSUM.size
_MAX_BODY_BYTES = 1 << 28
_IDS = frozenset({"store_id", "shard_id", "table_id"})
_ID_BYTES = 16
_NUMBER_LIMIT = 1 << 63
"""Exclusive limit of a trailer's numbers; the sum of two of them still fits the 64 bits of a key."""

_SHARD_LIMIT = 1 << 32
"""Exclusive limit of a shard's number; rows of the index store it in 32 bits."""


class SealedFile:
    """A sealed file, mapped read-only.

    The map needs no lock, survives a fork, and is released with its last slice.

    Attributes:
        path: path of the file.
        data: all bytes of the file.
        body: the trailer's fields.
    """

    def __init__(self, path: Path, kind: Literal["shard", "index"]) -> None:
        """Map a file and check its trailer.

        Raises:
            NotASourceError: the file does not exist or is no file of a store.
            DamagedError: the file is empty, cut short or changed.
            FormatVersionError: a later version wrote the file.
        """
        self.path = path
        self.data = map_file(path)
        body, self.lmdb_size = _read_trailer(path, self.data)
        if body.get("kind") != kind:
            raise DamagedError(f"{path}: is not a store's {kind} but its {body.get('kind')}; was it renamed?")
        self.body: dict[str, Any] = body


def map_file(path: Path) -> mmap.mmap:
    """Map a whole file read-only.

    Raises:
        NotASourceError: the file does not exist or may not be read.
        DamagedError: the file is empty.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise NotASourceError(f"{path}: cannot be opened ({error.strerror})") from error
    try:
        if os.fstat(descriptor).st_size == 0:
            raise DamagedError(f"{path}: is empty; restore it from a copy")
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise NotASourceError(f"{path}: cannot be mapped ({error.strerror})") from error
    finally:
        os.close(descriptor)


def seal(path: Path, body: Mapping[str, Any]) -> int:
    """Append the trailer to a finished LMDB file, sync it, and return the file's size in bytes."""
    data = map_file(path)
    lmdb_size = lmdb_pages.read_meta(data).file_size
    data.close()
    packed_body = msgpack.packb(dict(body), use_bin_type=True)
    footer = _FOOTER.pack(_MAGIC, FORMAT_VERSION, len(packed_body), lmdb_size)
    with write_errors(path), path.open("r+b") as file:
        file.truncate(lmdb_size)
        file.seek(lmdb_size)
        file.write(packed_body + footer + _CHECKSUM.pack(_checksum(packed_body, footer)))
        file.flush()
        os.fsync(file.fileno())
    return lmdb_size + len(packed_body) + _FOOTER_SIZE


def check_fields(path: Path, fields: Mapping[str, object]) -> None:
    """Check that each field of a trailer fits its name: an id, a layout, else a whole number from 0.

    Raises:
        DamagedError: a field does not fit.
    """
    for key, value in fields.items():
        if key in _IDS:
            is_valid = isinstance(value, bytes) and len(value) == _ID_BYTES
        elif key == "layout":
            is_valid = value in get_args(Layout)
        else:
            is_valid = type(value) is int and 0 <= value < (_SHARD_LIMIT if key == "number" else _NUMBER_LIMIT)
        if not is_valid:
            raise DamagedError(f"{path}: the trailer's {key} cannot be {value!r:.80}; restore it from a copy")


def _read_trailer(path: Path, data: mmap.mmap) -> tuple[dict[str, Any], int]:
    start = len(data) - _FOOTER_SIZE
    if start < 0 or data[start : start + len(_MAGIC)] != _MAGIC:
        if not lmdb_pages.is_lmdb(data):
            raise NotASourceError(f"{path}: is not a file of a dlas_store store")
        raise DamagedError(
            f"{path}: is an LMDB file without the trailer of a dlas_store store: cut short, or written by another "
            "program; restore it from a copy, or import the original images"
        )
    footer = data[start : start + _FOOTER.size]
    _, version, body_size, lmdb_size = _FOOTER.unpack(footer)
    if body_size > _MAX_BODY_BYTES or lmdb_size + body_size != start:
        raise DamagedError(f"{path}: {len(data)} bytes are not the size it was sealed with; restore it from a copy")
    body = data[lmdb_size:start]
    if _CHECKSUM.unpack_from(data, start + _FOOTER.size)[0] != _checksum(body, footer):
        raise DamagedError(f"{path}: the trailer's checksum does not match; restore it from a copy")
    if version > FORMAT_VERSION:  # after the checksum, so that a flipped bit does not look like a later version
        raise FormatVersionError(
            f"{path}: is of format version {version}, this version reads up to {FORMAT_VERSION}; upgrade dlas-store"
        )
    try:
        fields = msgpack.unpackb(body, raw=False)
    except (ValueError, MemoryError, msgpack.UnpackException) as error:
        raise DamagedError(f"{path}: the trailer cannot be read ({error!r}); restore it from a copy") from error
    if not isinstance(fields, dict):
        raise DamagedError(f"{path}: the trailer is no map of fields; restore it from a copy")
    return fields, lmdb_size


def _checksum(body: bytes, footer: bytes) -> int:
    return xxh3_64_intdigest(body, xxh3_64_intdigest(footer))
