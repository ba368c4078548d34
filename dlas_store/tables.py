"""Tables of fixed-size rows in checked blocks, read in place from a mapped file.

A block is 4,096 bytes: as many whole rows as fit before its last eight, zeros, and the XXH3-64 checksum of all that,
seeded by table and block number. So a flipped bit, or a block in the place of another, is found when the block is first
touched, and nothing needs to be read before. Blocks lie in chunks of 64, one LMDB value each.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dlas_store.errors import DamagedError

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
