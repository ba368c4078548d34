"""Tables of fixed-size rows in checked blocks, read in place from a mapped file.

A block is 4,096 bytes: as many whole rows as fit before its last eight, zeros, and the XXH3-64 checksum of all that,
seeded by table and block number. So a flipped bit, or a block in the place of another, is found when the block is first
touched, and nothing needs to be read before. Blocks lie in chunks of 64, one LMDB value each.

A sealed LMDB file: LMDB's pages, then a trailer that describes the file and is checked when the file is opened.

LMDB ignores bytes after its last page, so every LMDB tool still reads the file.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import msgpack
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dlas_store.errors import DamagedError, FormatVersionError, NotASourceError, write_errors
from dlas_store.sources.base import Layout
from dlas_store.storage import lmdb_reader

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
    lmdb_size = lmdb_reader.read_meta(data).file_size
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
        if not lmdb_reader.is_lmdb(data):
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


BLOCK_BYTES = 4096
BLOCKS_A_CHUNK = 64
_DATA_BYTES = BLOCK_BYTES - 8


class RowType(NamedTuple):
    """A table's name and the layout of its rows (little-endian, unaligned)."""

    name: str
    dtype: np.dtype[np.void]

    @property
    def rows_a_block(self) -> int:
        """Whole rows in a block."""
        return _DATA_BYTES // self.dtype.itemsize


def _row_struct(dtype: np.dtype[np.void]) -> struct.Struct:
    codes = {"<u8": "Q", "<u4": "I"}
    return struct.Struct("<" + "".join(codes[dtype[name].str] for name in dtype.names or ()))


def _seed(row_type: RowType, table_id: bytes, block: int) -> int:
    return xxh3_64_intdigest(b"%s:%s:%d" % (table_id, row_type.name.encode(), block))


class MappedRows(NamedTuple):
    """Where the rows of a table lie, for who reads them without Python.

    Attributes:
        data: the mapped file.
        chunk_offsets: uint64 (chunks,), where each chunk starts in it, bytes.
        checked: a byte for each block, not 0 once its checksum was found right, which the table goes on noting here;
            rows of other blocks must not be read.
        rows: how many there are.
    """

    data: mmap.mmap
    chunk_offsets: NDArray[np.uint64]
    checked: bytearray
    rows: int


class Table(Sequence[tuple[Any, ...]]):
    """A table in a mapped file.

    Args:
        row_type: its layout.
        table_id: what the checksums of its blocks are bound to beside table and number.
        data: the mapped file.
        chunk_offsets: where each chunk starts in it, bytes.
        count: number of rows.
        place: what to name in errors.
    """

    def __init__(
        self,
        row_type: RowType,
        *,
        table_id: bytes,
        data: mmap.mmap,
        chunk_offsets: Sequence[int],
        count: int,
        place: str,
    ) -> None:
        self._row_type = row_type
        self._table_id = table_id
        self._data = data
        self._chunk_offsets = chunk_offsets
        self._count = count
        self._place = place
        self._rows_a_block = row_type.rows_a_block
        self._row_bytes = row_type.dtype.itemsize
        self._unpack = _row_struct(row_type.dtype).unpack_from
        blocks = -(-count // self._rows_a_block)
        ends = [offset + BLOCK_BYTES * BLOCKS_A_CHUNK for offset in chunk_offsets]
        if len(ends) != -(-blocks // BLOCKS_A_CHUNK):
            raise DamagedError(f"{place}: {len(ends)} chunks do not hold the {count} rows of {row_type.name}")
        if ends:
            ends[-1] -= BLOCK_BYTES * (len(ends) * BLOCKS_A_CHUNK - blocks)
        if any(end > len(data) for end in ends):
            raise DamagedError(f"{place}: {row_type.name} reaches beyond the end of the file")
        self._checked = bytearray(blocks)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        """Return a row as a tuple of ints, 0 <= index < len(self)."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        block, row = divmod(index, self._rows_a_block)
        start = self._chunk_offsets[block // BLOCKS_A_CHUNK] + block % BLOCKS_A_CHUNK * BLOCK_BYTES
        if not self._checked[block]:
            self._check(block, start)
        return self._unpack(self._data, start + row * self._row_bytes)

    @property
    def mapped(self) -> MappedRows:
        """Where the rows lie."""
        return MappedRows(self._data, np.array(self._chunk_offsets, np.uint64), self._checked, self._count)

    def arrays(self, start: int = 0, stop: int | None = None) -> Iterator[NDArray[np.void]]:
        """Yield the rows start .. stop - 1 as structured arrays, a block's at a time."""
        stop = self._count if stop is None else stop
        while start < stop:
            self[start]
            block, row = divmod(start, self._rows_a_block)
            place = self._chunk_offsets[block // BLOCKS_A_CHUNK] + block % BLOCKS_A_CHUNK * BLOCK_BYTES
            count = min(self._rows_a_block - row, stop - start)
            yield np.frombuffer(self._data, self._row_type.dtype, count, place + row * self._row_bytes)
            start += count

    def damaged_blocks(self) -> Iterator[str]:
        """Check all blocks and yield a message for each that is damaged."""
        for first_row in range(0, self._count, self._rows_a_block):
            try:
                self[first_row]
            except DamagedError as error:
                yield str(error)

    def _check(self, block: int, start: int) -> None:
        content = self._data[start : start + _DATA_BYTES]
        stored = int.from_bytes(self._data[start + _DATA_BYTES : start + BLOCK_BYTES], "little")
        if stored != xxh3_64_intdigest(content, _seed(self._row_type, self._table_id, block)):
            raise DamagedError(
                f"{self._place}: block {block} of {self._row_type.name} is damaged; "
                "run dlas-store reindex, which rebuilds it from the shards"
            )
        self._checked[block] = 1


class TableWriter:
    """Cuts rows into blocks, and blocks into chunks."""

    def __init__(self, row_type: RowType, *, table_id: bytes) -> None:
        self._row_type = row_type
        self._table_id = table_id
        self._waiting = bytearray()
        self._blocks: list[bytes] = []
        self._block_count = 0
        self.count = 0

    def extend(self, rows: NDArray[np.void]) -> Iterator[bytes]:
        """Add rows and yield the chunks that became full."""
        self._waiting += rows.tobytes()
        self.count += len(rows)
        block_bytes = self._row_type.rows_a_block * self._row_type.dtype.itemsize
        whole = len(self._waiting) // block_bytes * block_bytes
        for start in range(0, whole, block_bytes):
            yield from self._add_block(bytes(self._waiting[start : start + block_bytes]))
        del self._waiting[:whole]

    def finish(self) -> Iterator[bytes]:
        """Yield the last chunk, if any."""
        if self._waiting:
            yield from self._add_block(bytes(self._waiting))
        if self._blocks:
            yield b"".join(self._blocks)

    def _add_block(self, rows: bytes) -> Iterator[bytes]:
        content = rows.ljust(_DATA_BYTES, b"\0")
        checksum = xxh3_64_intdigest(content, _seed(self._row_type, self._table_id, self._block_count))
        self._blocks.append(content + checksum.to_bytes(8, "little"))
        self._block_count += 1
        if len(self._blocks) == BLOCKS_A_CHUNK:
            yield b"".join(self._blocks)
            self._blocks.clear()
