"""Sealed LMDB files: the trailer and the blocks of tables show damage, and every LMDB tool still reads the file."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import lmdb
import msgpack
import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from dlas_store.errors import DamagedError, FormatVersionError, NotASourceError, StoreError
from dlas_store.storage.lmdb_writer import LmdbWriter
from dlas_store.storage.sealed_file import (
    BLOCK_BYTES,
    BLOCKS_PER_CHUNK,
    FORMAT_VERSION,
    RowType,
    SealedFile,
    Table,
    TableWriter,
    map_file,
    seal,
)
from tests.support.sample_data import Array
from tests.support.small_stores import flip

VALUES = [(b"%04d" % number, b"v" * (number * 100)) for number in range(60)]
BODY = {"kind": "shard", "id": b"\x00\xff", "name": "é", "number": 1 << 40}
FOOTER = struct.Struct("<8sIIQ")


def write_lmdb(path: Path) -> Path:
    writer = LmdbWriter(path)
    writer.write(VALUES)
    writer.close()
    return path


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    path = write_lmdb(tmp_path / "file.lmdb")
    assert seal(path, BODY) == path.stat().st_size
    return path


def trailer(body: bytes, lmdb_size: int, *, version: int = FORMAT_VERSION, magic: bytes = b"dlasseal") -> bytes:
    footer = FOOTER.pack(magic, version, len(body), lmdb_size)
    return body + footer + struct.pack("<Q", xxh3_64_intdigest(body, xxh3_64_intdigest(footer)))


def lmdb_size_of(path: Path) -> int:
    return int(FOOTER.unpack(path.read_bytes()[-32:-8])[3])


def test_a_trailer_says_what_it_was_given(sealed: Path) -> None:
    file = SealedFile(sealed, "shard")
    assert file.body == BODY
    assert file.path == sealed
    assert file.data[:] == sealed.read_bytes()


def test_the_bytes_of_a_trailer_never_change(sealed: Path) -> None:
    data = sealed.read_bytes()
    size = lmdb_size_of(sealed)
    assert data[size:] == trailer(msgpack.packb(BODY), size)
    assert FORMAT_VERSION == 1


def test_a_sealed_file_stays_one_for_every_lmdb_tool(sealed: Path) -> None:
    before = sealed.read_bytes()
    with (
        lmdb.open(str(sealed), subdir=False, readonly=True, lock=False, lib_version=0) as environment,
        environment.begin() as transaction,
    ):
        assert list(transaction.cursor()) == VALUES
    assert os.listdir(sealed.parent) == [sealed.name]  # noqa: PTH208 - names only
    assert sealed.read_bytes() == before


@pytest.mark.parametrize("kind", ["shard", "index"])
def test_a_file_of_the_other_kind_is_an_error(sealed: Path, kind: str) -> None:
    seal(sealed, BODY | {"kind": "index" if kind == "shard" else "shard"})
    with pytest.raises(DamagedError, match=f"file.lmdb: is not a store's {kind}"):
        SealedFile(sealed, kind)  # type: ignore[arg-type]


def test_sealing_again_replaces_the_trailer(sealed: Path) -> None:
    size = seal(sealed, {"kind": "shard"})
    assert size == sealed.stat().st_size
    assert SealedFile(sealed, "shard").body == {"kind": "shard"}


def test_a_cut_file_is_an_error_at_every_size(sealed: Path) -> None:
    data = sealed.read_bytes()
    size = lmdb_size_of(sealed)
    for end in [*range(0, size, 4096), 1, 151, 152, 4095, *range(size - 3, len(data))]:
        sealed.write_bytes(data[:end])
        with pytest.raises((DamagedError, NotASourceError), match=r"file\.lmdb: .*"):
            SealedFile(sealed, "shard")
        if end >= 152:
            with pytest.raises(DamagedError):
                SealedFile(sealed, "shard")


@pytest.mark.parametrize("more", [b"\0", b"x" * 32, b"\0" * 4096])
def test_an_extended_file_is_an_error(sealed: Path, more: bytes) -> None:
    with sealed.open("ab") as file:
        file.write(more)
    with pytest.raises(DamagedError, match=r"file\.lmdb"):
        SealedFile(sealed, "shard")


@pytest.mark.parametrize("change", [-4096, -1, 1, 4096])
def test_a_trailer_behind_fewer_or_more_pages_is_an_error(sealed: Path, change: int) -> None:
    data, size = sealed.read_bytes(), lmdb_size_of(sealed)
    sealed.write_bytes((data[:size] + bytes(4096))[: size + change] + data[size:])
    with pytest.raises(DamagedError, match="not the size it was sealed with"):
        SealedFile(sealed, "shard")


def test_every_flipped_bit_of_the_trailer_is_found(sealed: Path) -> None:
    for position in range(lmdb_size_of(sealed), sealed.stat().st_size):
        for bit in range(8):
            flip(sealed, position, bit)
            with pytest.raises(StoreError):
                SealedFile(sealed, "shard")
            flip(sealed, position, bit)
    assert SealedFile(sealed, "shard").body == BODY


def test_a_file_of_a_later_version_is_its_own_error(sealed: Path) -> None:
    data, size = sealed.read_bytes(), lmdb_size_of(sealed)
    sealed.write_bytes(data[:size] + trailer(b"\xc1 what later versions write", size, version=FORMAT_VERSION + 1))
    with pytest.raises(FormatVersionError, match=r"file\.lmdb: .*version 2.*upgrade"):
        SealedFile(sealed, "shard")


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x81", msgpack.packb([1]), msgpack.packb(None), msgpack.packb({1: 2}), b"\xd4\x01x"],
    ids=["nothing", "no msgpack", "half a map", "list", "nil", "integer keys", "extension"],
)
def test_a_trailer_that_is_no_map_of_fields_is_damaged(sealed: Path, body: bytes) -> None:
    data, size = sealed.read_bytes(), lmdb_size_of(sealed)
    sealed.write_bytes(data[:size] + trailer(body, size))
    with pytest.raises(DamagedError, match=r"file\.lmdb"):
        SealedFile(sealed, "shard")


def test_a_foreign_lmdb_file_is_told_from_a_foreign_file(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="without the trailer"):
        SealedFile(write_lmdb(tmp_path / "other.lmdb"), "shard")
    (tmp_path / "text.lmdb").write_text("not LMDB " * 100)
    with pytest.raises(NotASourceError, match=r"text\.lmdb: is not a file of a dlas_store store"):
        SealedFile(tmp_path / "text.lmdb", "shard")


def test_what_cannot_be_mapped_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(NotASourceError, match=r"missing\.lmdb: cannot be opened"):
        map_file(tmp_path / "missing.lmdb")
    (tmp_path / "empty.lmdb").touch()
    with pytest.raises(DamagedError, match=r"empty\.lmdb: is empty"):
        map_file(tmp_path / "empty.lmdb")
    (tmp_path / "folder.lmdb").mkdir()
    with pytest.raises(NotASourceError, match=r"folder\.lmdb"):
        map_file(tmp_path / "folder.lmdb")


def test_a_file_that_the_engine_did_not_finish_is_not_sealed(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "file.lmdb")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 4096)
    with pytest.raises(DamagedError, match="cut short"):
        seal(path, BODY)


def test_a_map_outlives_the_file_name(sealed: Path) -> None:
    file = SealedFile(sealed, "shard")
    data = sealed.read_bytes()
    sealed.unlink()
    assert file.data[:] == data


ROW = RowType("rows", np.dtype([("number", "<u8"), ("half", "<u4")]))
ROWS_PER_BLOCK = ROW.rows_per_block
ROWS_PER_CHUNK = ROWS_PER_BLOCK * BLOCKS_PER_CHUNK
TABLE_ID = b"0123456789abcdef"


def rows(count: int) -> Array:
    array = np.empty(count, ROW.dtype)
    array["number"] = np.arange(count, dtype=np.uint64) * 7 + (1 << 60)
    array["half"] = np.arange(count) // 2
    return array


def encode_table(content: Array, splits: Sequence[int]) -> list[bytes]:
    """Return the chunks of a writer that gets the rows in several calls, split at these rows."""
    writer = TableWriter(ROW, table_id=TABLE_ID)
    chunks = []
    for start, stop in zip([0, *splits], [*splits, len(content)], strict=True):
        chunks += list(writer.extend(content[start:stop]))
    chunks += list(writer.finish())
    assert writer.count == len(content)
    return chunks


def lay_out(chunks: Sequence[bytes], *, gap: int = 13) -> tuple[mmap.mmap, list[int]]:
    """Return a map of the chunks with gaps around them, as in LMDB, and the offsets of the chunks."""
    data = mmap.mmap(-1, sum(map(len, chunks)) + gap * (len(chunks) + 1))
    offsets = []
    offset = gap
    for chunk in chunks:
        data[offset : offset + len(chunk)] = chunk
        offsets.append(offset)
        offset += len(chunk) + gap
    return data, offsets


def open_table(
    data: mmap.mmap, offsets: Sequence[int], count: int, *, row_type: RowType = ROW, table_id: bytes = TABLE_ID
) -> Table:
    return Table(row_type, table_id=table_id, data=data, chunk_offsets=offsets, count=count, path="here/index.lmdb")


def check_all(table: Table) -> list[str]:
    return list(table.damaged_blocks())


COUNTS = [
    0,
    1,
    ROWS_PER_BLOCK - 1,
    ROWS_PER_BLOCK,
    ROWS_PER_BLOCK + 1,
    3 * ROWS_PER_BLOCK,
    ROWS_PER_CHUNK - 1,
    ROWS_PER_CHUNK,
    ROWS_PER_CHUNK + 1,
    2 * ROWS_PER_CHUNK + ROWS_PER_BLOCK,
]


@pytest.mark.parametrize("splits", [[], [1, 2, 500, 5000]], ids=["at once", "in parts"])
@pytest.mark.parametrize("count", COUNTS)
def test_rows_come_back(count: int, splits: list[int]) -> None:
    content = rows(count)
    chunks = encode_table(content, [split for split in splits if split < count])
    assert [len(chunk) for chunk in chunks[:-1]] == [BLOCK_BYTES * BLOCKS_PER_CHUNK] * (len(chunks) - 1)
    table = open_table(*lay_out(chunks), count)
    assert len(table) == count
    edges = {0, 1, ROWS_PER_BLOCK - 1, ROWS_PER_BLOCK, ROWS_PER_CHUNK - 1, ROWS_PER_CHUNK, count // 2, count - 1}
    for row in edges & set(range(count)):
        assert table[row] == content[row].item()
    assert np.array_equal(np.concatenate([rows(0), *table.arrays()]), content)
    assert check_all(table) == []


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 1), (ROWS_PER_BLOCK - 1, ROWS_PER_BLOCK + 1), (5, 5), (ROWS_PER_CHUNK - 3, ROWS_PER_CHUNK + 3)],
)
def test_a_range_of_rows_comes_as_arrays(start: int, stop: int) -> None:
    content = rows(ROWS_PER_CHUNK + 10)
    table = open_table(*lay_out(encode_table(content, [])), len(content))
    assert np.array_equal(np.concatenate([rows(0), *table.arrays(start, stop)]), content[start:stop])


def test_a_table_is_a_sequence_of_its_rows_and_nothing_more() -> None:
    content = rows(ROWS_PER_BLOCK + 3)
    table = open_table(*lay_out(encode_table(content, [])), len(content))
    assert list(table) == content.tolist()
    with pytest.raises(IndexError):
        table[len(content)]


def test_the_bytes_of_a_block_never_change() -> None:
    (chunk,) = encode_table(rows(2), [])
    content = rows(2).tobytes().ljust(BLOCK_BYTES - 8, b"\0")
    seed = xxh3_64_intdigest(TABLE_ID + b":rows:0")
    assert chunk == content + xxh3_64_intdigest(content, seed).to_bytes(8, "little")


@pytest.fixture(scope="module")
def three_blocks() -> tuple[bytes, int]:
    count = 2 * ROWS_PER_BLOCK + 7
    (chunk,) = encode_table(rows(count), [])
    return chunk, count


def test_a_flipped_bit_anywhere_is_found(three_blocks: tuple[bytes, int]) -> None:
    chunk, count = three_blocks
    data, offsets = lay_out([chunk])
    for position in range(len(chunk)):
        offset = offsets[0] + position
        data[offset] ^= 1 << position % 8
        with pytest.raises(DamagedError, match=f"block {position // BLOCK_BYTES} of rows"):
            open_table(data, offsets, count)[position // BLOCK_BYTES * ROWS_PER_BLOCK]
        data[offset] ^= 1 << position % 8


def test_damage_is_found_when_the_block_is_touched_and_each_time(three_blocks: tuple[bytes, int]) -> None:
    chunk, count = three_blocks
    data, offsets = lay_out([chunk])
    data[offsets[0] + BLOCK_BYTES] ^= 1
    table = open_table(data, offsets, count)
    assert table[0] == rows(1)[0].item()
    assert table[2 * ROWS_PER_BLOCK] == rows(count)[2 * ROWS_PER_BLOCK].item()
    for _ in range(2):
        with pytest.raises(DamagedError, match=r"here/index\.lmdb: block 1 of rows.*dlas-store reindex"):
            table[ROWS_PER_BLOCK + 1]
    with pytest.raises(DamagedError):
        list(table.arrays())
    assert len(check_all(table)) == 1


def swapped_blocks(chunks: list[bytes]) -> list[bytes]:
    chunk = chunks[0]
    return [chunk[BLOCK_BYTES : 2 * BLOCK_BYTES] + chunk[:BLOCK_BYTES] + chunk[2 * BLOCK_BYTES :], *chunks[1:]]


def swapped_chunks(chunks: list[bytes]) -> list[bytes]:
    return [chunks[1], chunks[0], *chunks[2:]]


@pytest.mark.parametrize(
    ("swap", "damaged"), [(swapped_blocks, 2), (swapped_chunks, 2 * BLOCKS_PER_CHUNK)], ids=["blocks", "chunks"]
)
def test_a_block_in_the_place_of_another_is_found(swap: object, damaged: int) -> None:
    count = 2 * ROWS_PER_CHUNK
    data, offsets = lay_out(swap(encode_table(rows(count), [])))  # type: ignore[operator]
    assert len(check_all(open_table(data, offsets, count))) == damaged


@pytest.mark.parametrize(
    "other",
    [{"table_id": b"another id......"}, {"row_type": RowType("other", ROW.dtype)}],
    ids=["of another index", "of another table"],
)
def test_a_block_of_another_table_is_found(three_blocks: tuple[bytes, int], other: dict[str, object]) -> None:
    chunk, count = three_blocks
    data, offsets = lay_out([chunk])
    assert len(check_all(open_table(data, offsets, count, **other))) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("offsets", "count", "message"),
    [
        ([], 1, "0 chunks do not hold the 1 rows"),
        ([0, 0], 1, "2 chunks do not hold the 1 rows"),
        ([0], 0, "1 chunks do not hold the 0 rows"),
        ([0], ROWS_PER_CHUNK + 1, "1 chunks do not hold"),
        ([1], ROWS_PER_BLOCK + 1, "beyond the end of the file"),
        ([1 << 60], 1, "beyond the end of the file"),
        ([0, 0], ROWS_PER_CHUNK + 1, "beyond the end of the file"),
    ],
)
def test_places_that_cannot_be_are_an_error_when_opened(offsets: list[int], count: int, message: str) -> None:
    with pytest.raises(DamagedError, match=message):
        open_table(mmap.mmap(-1, 2 * BLOCK_BYTES), offsets, count)


def test_rows_of_arrays_are_views_that_outlive_the_table(three_blocks: tuple[bytes, int]) -> None:
    def views() -> Iterator[Array]:
        chunk, count = three_blocks
        yield from open_table(*lay_out([chunk]), count).arrays()

    assert np.array_equal(np.concatenate(list(views())), rows(three_blocks[1]))
