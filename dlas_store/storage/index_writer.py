"""Writer of an index, in memory that does not grow with the number of patches."""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlas_store.atomic import remove_file
from dlas_store.lmdb_reader import iter_entries
from dlas_store.sources.base import Layout
from dlas_store.storage.index import NAME_ROW, ROW_TYPES, Index, ShardEntry, shard_entry
from dlas_store.storage.lmdb_writer import LmdbWriter
from dlas_store.storage.sealed_file import Table, TableWriter, map_file, seal
from dlas_store.storage.shard import ShardEntries, ShardHeader, shift_column

_CHUNKS_PER_WRITE = 4
_ROWS_PER_SLICE = 1 << 12


class IndexWriter:
    """Writes an index under a temporary name, from the entries of its shards in order.

    The writer keeps 8 bytes per image for the hash of its name, 16 more during finish(), and some MiB of rows.

    Args:
        path: the temporary name.
        store_id: id of the store, 16 bytes.
        layout: layout of the store.
        generation: number of times that the store's index was replaced.
    """

    def __init__(self, path: Path, *, store_id: bytes, layout: Layout, generation: int) -> None:
        remove_file(path)
        self._path = path
        self._body: dict[str, Any] = {
            "kind": "index",
            "store_id": store_id,
            "layout": layout,
            "generation": generation,
            "table_id": secrets.token_bytes(16),
        }
        self._tables = {row.name: TableWriter(row, table_id=self._body["table_id"]) for row in ROW_TYPES}
        self._chunk_counts = dict.fromkeys(self._tables, 0)
        self._shards: list[ShardEntry] = []
        self._name_hashes = array("Q")
        self._buffered: list[tuple[bytes, bytes]] = []
        self._lmdb = LmdbWriter(path)

    def add(self, header: ShardHeader, entries: ShardEntries, *, size: int) -> None:
        """Add a shard. Its images and patches are numbered after those of earlier shards.

        Args:
            header: the shard's header.
            entries: the shard's entries.
            size: size of the shard's file in bytes.

        Raises:
            WriteError: the disk refused a write.
        """
        first_image, first_patch = self._tables["images"].count, self._tables["patches"].count
        self._shards.append(shard_entry(header, size=size, first_image=first_image))
        self._name_hashes.frombytes(entries.name_hashes.tobytes())
        for rows in _slices(entries.images):
            self._extend("images", shift_column(rows, "first_patch", first_patch))
        for rows in _slices(entries.patches):
            self._extend("patches", shift_column(rows, "image", first_image))

    def add_index(self, index: Index) -> None:
        """Add all shards of an index that was opened from a file. This call must precede every add()."""
        assert isinstance(index.images, Table)
        assert isinstance(index.patches, Table)
        assert isinstance(index.names, Table)
        for rows in index.images.arrays():
            self._extend("images", rows)
        for rows in index.patches.arrays():
            self._extend("patches", rows)
        hashes = np.empty(len(index.names), np.uint64)
        for rows in index.names.arrays():
            hashes[rows["image"]] = rows["hash"]
        self._name_hashes.frombytes(hashes.tobytes())
        self._shards.extend(index.shards.values())

    def close(self) -> None:
        """Close the file. Without an earlier finish(), the file is unusable."""
        self._lmdb.close()

    def finish(self) -> None:
        """Write the table of names, close the file, append its trailer and sync the file."""
        hashes = np.frombuffer(self._name_hashes, np.uint64)
        order = np.argsort(hashes, kind="stable")
        for numbers in _slices(order):
            names = np.empty(len(numbers), NAME_ROW.dtype)
            names["image"], names["hash"] = numbers, hashes[numbers]
            self._extend("names", names)
        for name, table in self._tables.items():
            self._put(name, table.finish())
        self._lmdb.write(self._buffered)
        self._lmdb.close()
        seal(
            self._path,
            self._body
            | {
                "shards": [entry._asdict() for entry in self._shards],
                "counts": {name: table.count for name, table in self._tables.items()},
                "chunks": _chunk_offsets(self._path),
            },
        )

    def _extend(self, name: str, rows: NDArray[np.void]) -> None:
        self._put(name, self._tables[name].extend(rows))

    def _put(self, name: str, chunks: Iterator[bytes]) -> None:
        for chunk in chunks:
            self._buffered.append((_chunk_key(name, self._chunk_counts[name]), chunk))
            self._chunk_counts[name] += 1
            if len(self._buffered) == _CHUNKS_PER_WRITE:
                self._lmdb.write(self._buffered)
                self._buffered = []


def _slices(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield slices of at most _ROWS_PER_SLICE rows, so that arrays computed from a slice stay small."""
    for start in range(0, len(rows), _ROWS_PER_SLICE):
        yield rows[start : start + _ROWS_PER_SLICE]


def _chunk_key(name: str, number: int) -> bytes:
    return b"%s/%08d" % (name.encode(), number)


def _chunk_offsets(path: Path) -> dict[str, bytes]:
    """Return table name -> offsets of the table's chunks in a finished LMDB file, as packed little-endian u64."""
    offsets: dict[str, list[int]] = {row_type.name: [] for row_type in ROW_TYPES}
    for entry in iter_entries(map_file(path)):
        offsets[entry.key.decode().partition("/")[0]].append(entry.offset)
    return {name: np.array(chunk_offsets, "<u8").tobytes() for name, chunk_offsets in offsets.items()}
