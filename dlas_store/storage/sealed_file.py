"""Sealed LMDB files: a trailer that is checked at opening, and tables whose blocks are checked at their first read.

The trailer follows LMDB's pages and describes the file. LMDB ignores bytes after its last page, so every LMDB tool
still reads the file.

A table holds rows of fixed size, which are read in place from the mapped file. A block of a table has 4,096 bytes: as
many whole rows as fit before the last eight bytes, zeros, and the XXH3-64 checksum of rows and zeros, seeded by table
and block number. The checksum shows a flipped bit, or a block in the place of another, at the block's first read, so
that opening reads no block. A chunk is 64 blocks and one LMDB value.
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
from dlas_store.lmdb_reader import is_lmdb, read_meta
from dlas_store.sources.base import Layout

FORMAT_VERSION = 1

BLOCK_BYTES = 4096
BLOCKS_PER_CHUNK = 64

_MAGIC = b"dlasseal"
_FOOTER = struct.Struct("<8sIIQ")  # magic, format version, body bytes, bytes of LMDB's pages
_CHECKSUM = struct.Struct("<Q")
_FOOTER_SIZE = _FOOTER.size + _CHECKSUM.size
_MAX_BODY_BYTES = 1 << 28
_ROW_BYTES_PER_BLOCK = BLOCK_BYTES - 8
_IDS = frozenset({"store_id", "shard_id", "table_id"})
_ID_BYTES = 16
_NUMBER_LIMIT = 1 << 63
"""Exclusive limit of a trailer's numbers. The sum of two such numbers still fits the 64 bits of a key."""

_SHARD_LIMIT = 1 << 32
"""Exclusive limit of a shard's number. Rows of the index store the number in 32 bits."""


class SealedFile:
    """A sealed file, mapped read-only.

    The map needs no lock and survives a fork. The system releases it with its last slice.

    Attributes:
        path: path of the file.
        data: all bytes of the file.
        lmdb_size: size of LMDB's pages in bytes.
        body: the trailer's fields.
    """

    def __init__(self, path: Path, kind: Literal["shard", "index"]) -> None:
        """Map a file and check its trailer.

        Raises:
            NotASourceError: the file does not exist or is not one of a store.
            DamagedError: the file is empty, truncated or changed, or is of the other kind.
            FormatVersionError: a later version wrote the file.
        """
        self.path = path
        self.data = map_file(path)
        body, self.lmdb_size = _read_trailer(path, self.data)
        if body.get("kind") != kind:
            raise DamagedError(f"{path}: is not a store's {kind} but its {body.get('kind')}; was it renamed?")
        self.body: dict[str, Any] = body


def map_file(path: Path) -> mmap.mmap:
    """Map all bytes of a file read-only.

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
    """Append the trailer to a finished LMDB file and sync the file.

    Args:
        path: path of the file.
        body: fields of the trailer.

    Returns:
        The file's size in bytes.

    Raises:
        DamagedError: the LMDB file is truncated.
        WriteError: the disk refused a write.
    """
    data = map_file(path)
    lmdb_size = read_meta(data).file_size
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
    """Check the type and range of a trailer's fields: ids, the layout, and non-negative integers otherwise.

    Raises:
        DamagedError: a field has a wrong type or is out of range.
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


class RowType(NamedTuple):
    """A table's name and the layout of its rows (little-endian, unaligned)."""

    name: str
    dtype: np.dtype[np.void]

    @property
    def rows_per_block(self) -> int:
        """Number of rows in a full block."""
        return _ROW_BYTES_PER_BLOCK // self.dtype.itemsize


class MappedRows(NamedTuple):
    """Raw location of a table's rows, for the C reader.

    Attributes:
        data: the mapped file.
        chunk_offsets: uint64 (chunks,), offset of each chunk in the file, in bytes.
        checked: one byte per block, non-zero after the block's checksum was verified; the table keeps updating these
            bytes. Rows of a block whose byte is 0 must not be read.
        rows: number of rows.
    """

    data: mmap.mmap
    chunk_offsets: NDArray[np.uint64]
    checked: bytearray
    rows: int


class Table(Sequence[tuple[Any, ...]]):
    """A table in a mapped file, as a sequence of rows.

    Args:
        row_type: name of the table and layout of its rows.
        table_id: id that, with table name and block number, seeds the blocks' checksums; 16 bytes.
        data: the mapped file.
        chunk_offsets: offset of each chunk in the file, in bytes.
        count: number of rows.
        path: path of the file, for error messages.

    Raises:
        DamagedError: the number of chunks does not fit the number of rows, or a chunk lies outside the file.
    """

    def __init__(
        self,
        row_type: RowType,
        *,
        table_id: bytes,
        data: mmap.mmap,
        chunk_offsets: Sequence[int],
        count: int,
        path: str,
    ) -> None:
        self._row_type = row_type
        self._table_id = table_id
        self._data = data
        self._chunk_offsets = chunk_offsets
        self._count = count
        self._path = path
        self._rows_per_block = row_type.rows_per_block
        self._row_bytes = row_type.dtype.itemsize
        self._unpack = _row_struct(row_type.dtype).unpack_from
        blocks = -(-count // self._rows_per_block)
        chunk_ends = [offset + BLOCK_BYTES * BLOCKS_PER_CHUNK for offset in chunk_offsets]
        if len(chunk_ends) != -(-blocks // BLOCKS_PER_CHUNK):
            raise DamagedError(
                f"{path}: {len(chunk_ends)} chunks do not hold the {count} rows of {row_type.name}; "
                "restore it from a copy"
            )
        if chunk_ends:  # the last chunk may hold fewer blocks
            chunk_ends[-1] -= BLOCK_BYTES * (len(chunk_ends) * BLOCKS_PER_CHUNK - blocks)
        if any(end > len(data) for end in chunk_ends):
            raise DamagedError(f"{path}: {row_type.name} reaches beyond the end of the file; restore it from a copy")
        self._checked = bytearray(blocks)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        """Return a row as a tuple of ints, 0 <= index < len(self).

        Raises:
            IndexError: the index is out of range.
            DamagedError: the row's block is damaged.
        """
        if not 0 <= index < self._count:
            raise IndexError(index)
        block, row = divmod(index, self._rows_per_block)
        start = self._chunk_offsets[block // BLOCKS_PER_CHUNK] + block % BLOCKS_PER_CHUNK * BLOCK_BYTES
        if not self._checked[block]:
            self._check(block, start)
        return self._unpack(self._data, start + row * self._row_bytes)

    @property
    def mapped(self) -> MappedRows:
        """Raw location of the rows."""
        return MappedRows(self._data, np.array(self._chunk_offsets, np.uint64), self._checked, self._count)

    def arrays(self, start: int = 0, stop: int | None = None) -> Iterator[NDArray[np.void]]:
        """Yield the rows start .. stop - 1 as structured arrays, one block at a time.

        Raises:
            DamagedError: a block is damaged.
        """
        stop = self._count if stop is None else stop
        while start < stop:
            self[start]  # reading a row checks its block
            block, row = divmod(start, self._rows_per_block)
            count = min(self._rows_per_block - row, stop - start)
            block_start = self._chunk_offsets[block // BLOCKS_PER_CHUNK] + block % BLOCKS_PER_CHUNK * BLOCK_BYTES
            yield np.frombuffer(self._data, self._row_type.dtype, count, block_start + row * self._row_bytes)
            start += count

    def damaged_blocks(self) -> Iterator[str]:
        """Check all blocks and yield an error message for each damaged block."""
        for first_row in range(0, self._count, self._rows_per_block):
            try:
                self[first_row]
            except DamagedError as error:
                yield str(error)

    def _check(self, block: int, start: int) -> None:
        content = self._data[start : start + _ROW_BYTES_PER_BLOCK]
        checksum = int.from_bytes(self._data[start + _ROW_BYTES_PER_BLOCK : start + BLOCK_BYTES], "little")
        if checksum != xxh3_64_intdigest(content, _seed(self._row_type, self._table_id, block)):
            raise DamagedError(
                f"{self._path}: block {block} of {self._row_type.name} is damaged; "
                "run dlas-store reindex, which rebuilds it from the shards"
            )
        self._checked[block] = 1


class TableWriter:
    """Encodes rows as blocks, and joins blocks to chunks.

    Args:
        row_type: name of the table and layout of its rows.
        table_id: see Table.

    Attributes:
        count: number of rows so far.
    """

    def __init__(self, row_type: RowType, *, table_id: bytes) -> None:
        self._row_type = row_type
        self._table_id = table_id
        self._buffer = bytearray()
        self._blocks: list[bytes] = []
        self._block_count = 0
        self.count = 0

    def extend(self, rows: NDArray[np.void]) -> Iterator[bytes]:
        """Add rows and yield the chunks that are full."""
        self._buffer += rows.tobytes()
        self.count += len(rows)
        block_bytes = self._row_type.rows_per_block * self._row_type.dtype.itemsize
        full_blocks_end = len(self._buffer) // block_bytes * block_bytes
        for start in range(0, full_blocks_end, block_bytes):
            yield from self._add_block(bytes(self._buffer[start : start + block_bytes]))
        del self._buffer[:full_blocks_end]

    def finish(self) -> Iterator[bytes]:
        """Yield the last chunk, if any."""
        if self._buffer:
            yield from self._add_block(bytes(self._buffer))
        if self._blocks:
            yield b"".join(self._blocks)

    def _add_block(self, rows: bytes) -> Iterator[bytes]:
        content = rows.ljust(_ROW_BYTES_PER_BLOCK, b"\0")
        checksum = xxh3_64_intdigest(content, _seed(self._row_type, self._table_id, self._block_count))
        self._blocks.append(content + checksum.to_bytes(8, "little"))
        self._block_count += 1
        if len(self._blocks) == BLOCKS_PER_CHUNK:
            yield b"".join(self._blocks)
            self._blocks.clear()


def _read_trailer(path: Path, data: mmap.mmap) -> tuple[dict[str, Any], int]:
    start = len(data) - _FOOTER_SIZE
    if start < 0 or data[start : start + len(_MAGIC)] != _MAGIC:
        if not is_lmdb(data):
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
    if version > FORMAT_VERSION:  # checked after the checksum, so that a flipped bit does not look like a later version
        raise FormatVersionError(
            f"{path}: has format version {version}, but this version reads up to {FORMAT_VERSION}; upgrade dlas-store"
        )
    try:
        fields = msgpack.unpackb(body, raw=False)
    except (ValueError, MemoryError, msgpack.UnpackException) as error:
        raise DamagedError(f"{path}: the trailer cannot be read ({error!r}); restore it from a copy") from error
    if not isinstance(fields, dict):
        raise DamagedError(f"{path}: the trailer is not a map of fields; restore it from a copy")
    return fields, lmdb_size


def _checksum(body: bytes, footer: bytes) -> int:
    return xxh3_64_intdigest(body, xxh3_64_intdigest(footer))


def _row_struct(dtype: np.dtype[np.void]) -> struct.Struct:
    codes = {"<u8": "Q", "<u4": "I"}
    return struct.Struct("<" + "".join(codes[dtype[name].str] for name in dtype.names or ()))


def _seed(row_type: RowType, table_id: bytes, block: int) -> int:
    """Return the seed that binds a block's checksum to its table and number."""
    return xxh3_64_intdigest(b"%s:%s:%d" % (table_id, row_type.name.encode(), block))
