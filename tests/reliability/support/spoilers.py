"""Spoilers: changes of trailers, rows, tree pages and metadata of a store, with valid checksums."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgpack
from xxhash import xxh3_64_intdigest

from dlas_store.storage.index import INDEX_FILE, ROW_TYPES
from dlas_store.storage.records import encode_value, pack_key
from dlas_store.storage.sealed_file import BLOCK_BYTES, SealedFile
from dlas_store.storage.shard import Shard
from tests.reliability.support.mutations import mutated
from tests.support.small_stores import shards_of

FOOTER = struct.Struct("<8sIIQ")

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2, 255, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
    *(1.5, float("nan"), "", "chunked", "pictures", "x" * 300, "../..", b"", b"\0" * 16, b"\xff" * 16, b"x" * 7),
    *([], [[]] * 50, {}, {"a": 1}, {1: 2}, [None] * 1000, ["<u1", b""], ["<u8", b"\xff" * 16], ["|O", b"12345678"]),
    *(["<i8", b"1234567"], ["<u1"], msgpack.ExtType(5, b"x"), msgpack.Timestamp(1)),
)
"""Values that are wrong for most fields."""


def packed(body: object) -> bytes:
    data: bytes = msgpack.packb(body, use_bin_type=True)
    return data


def sealed(pages: bytes, body: bytes) -> bytes:
    """Return the bytes of a sealed file: pages, and a trailer with a valid checksum."""
    footer = FOOTER.pack(b"dlasseal", 1, len(body), len(pages))
    return pages + body + footer + struct.pack("<Q", xxh3_64_intdigest(body, xxh3_64_intdigest(footer)))


def parts(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Return the pages and the trailer's fields of a sealed file."""
    file = SealedFile(path, "index" if path.name == INDEX_FILE else "shard")
    return file.data[: file.lmdb_size], file.body


def places(fields: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) for every key of every container in nested fields."""
    items = fields.items() if isinstance(fields, dict) else enumerate(fields) if isinstance(fields, list) else ()
    for key, value in list(items):
        yield fields, key
        yield from places(value)


def spoil(fields: dict[str, Any], rng: random.Random) -> None:
    """Change, remove or add one to three fields, at any depth."""
    for _ in range(rng.randint(1, 3)):
        inside, key = rng.choice(list(places(fields)))
        match rng.randrange(6):
            case 0:
                del inside[key]
            case 1 if isinstance(inside, dict):
                inside["unknown"] = deepcopy(rng.choice(VALUES))
            case 2 if isinstance(inside[key], int):
                # Stay within the integers of msgpack.
                inside[key] = max(-(1 << 63), min(inside[key] + rng.choice((-1, 1, 5, -1000, 1 << 20)), (1 << 64) - 1))
            case 3 if isinstance(inside[key], bytes):
                inside[key] = mutated(inside[key], rng)
            case _:
                inside[key] = deepcopy(rng.choice(VALUES))
        if not fields:
            return


def spoil_trailer(store: Path, rng: random.Random) -> None:
    """Put wrong fields, or bytes that are not msgpack, into the trailer of a file."""
    path = rng.choice([store / INDEX_FILE, *shards_of(store)])
    pages, body = parts(path)
    if rng.random() < 0.7:
        spoil(body, rng)
        data = packed(body)
    else:
        data = mutated(packed(body), rng)
    path.write_bytes(sealed(pages, data))


def spoil_rows(store: Path, rng: random.Random) -> None:
    """Change rows of a table of the index, and update the checksum of their block."""
    path = store / INDEX_FILE
    _, body = parts(path)
    row_type = rng.choice(ROW_TYPES)
    (start,) = struct.unpack_from("<Q", body["chunks"][row_type.name])
    data = bytearray(path.read_bytes())
    size = row_type.dtype.itemsize
    for _ in range(rng.randint(1, 3)):
        row = start + size * rng.randrange(body["counts"][row_type.name])
        name = rng.choice(row_type.dtype.names or ())
        kind, offset = (row_type.dtype.fields or {})[name][:2]
        code = "<Q" if kind.itemsize == 8 else "<I"
        (value,) = struct.unpack_from(code, data, row + offset)
        value = rng.choice((0, 1, 2, value + 1, value - 1, 1 << 31, len(data), len(data) - 1, (1 << 64) - 1, 1 << 63))
        struct.pack_into(code, data, row + offset, value % (1 << 8 * kind.itemsize))
    _update_first_block(data, body, row_type.name)
    path.write_bytes(data)


def spoil_pages(store: Path, rng: random.Random) -> None:
    """Change bytes in the tree pages of a file, which have no checksum."""
    path = rng.choice([store / INDEX_FILE, *shards_of(store)])
    data = bytearray(path.read_bytes())
    pages, _ = parts(path)
    trees = [0, 4096] + [
        start for start in range(8192, len(pages), 4096) if struct.unpack_from("<H", data, start + 10)[0] in (1, 2)
    ]
    for _ in range(rng.randint(1, 4)):
        at = rng.choice(trees) + rng.choice((rng.randrange(4096), rng.randrange(160)))
        data[at : at + 1] = bytes([rng.choice((0, 1, 2, 4, 16, 255, rng.randrange(256)))])
    path.write_bytes(data)


def spoil_metadata(store: Path, rng: random.Random) -> None:
    """Change the metadata record of an image in place, and update its checksum."""
    path = rng.choice(shards_of(store))
    data = bytearray(path.read_bytes())
    records = [(key, entry) for key, entry in Shard(path).values() if key.kind == 0]
    key, entry = rng.choice(records)
    record = bytes(data[entry.offset : entry.offset + entry.length])
    if rng.random() < 0.5:
        fields = msgpack.unpackb(record)
        spoil(fields, rng)
        changed = packed(fields)
    else:
        changed = mutated(record, rng)
    if len(changed) > len(record):
        changed = changed[: len(record)]
    changed = (
        changed + b"\xc0" * (len(record) - len(changed)) if rng.random() < 0.3 else changed.ljust(len(record), b"\0")
    )
    value = encode_value(pack_key(*key), changed)  # type: ignore[arg-type]
    data[entry.offset - 8 : entry.offset + entry.length] = value
    path.write_bytes(data)


def rewrite_row(store: Path, table: str, row: int, column: str, value: int) -> None:
    """Set a number in the first block of a table, and update the block's checksum."""
    path = store / INDEX_FILE
    _, body = parts(path)
    row_type = next(row_type for row_type in ROW_TYPES if row_type.name == table)
    (start,) = struct.unpack_from("<Q", body["chunks"][table])
    kind, offset = (row_type.dtype.fields or {})[column][:2]
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q" if kind.itemsize == 8 else "<I", data, start + row * row_type.dtype.itemsize + offset, value)
    _update_first_block(data, body, table)
    path.write_bytes(data)


def _update_first_block(data: bytearray, body: dict[str, Any], table: str) -> None:
    """Update the checksum of a table's first block in the bytes of an index."""
    (start,) = struct.unpack_from("<Q", body["chunks"][table])
    seed = xxh3_64_intdigest(b"%s:%s:0" % (body["table_id"], table.encode()))
    checksum = xxh3_64_intdigest(bytes(data[start : start + BLOCK_BYTES - 8]), seed)
    struct.pack_into("<Q", data, start + BLOCK_BYTES - 8, checksum)


def resealed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the trailer of a file in place, and update the trailer's checksum."""
    pages, body = parts(path)
    change(body)
    path.write_bytes(sealed(pages, packed(body)))


SPOILERS: list[Callable[[Path, random.Random], None]] = [spoil_trailer, spoil_rows, spoil_pages, spoil_metadata]
"""Functions that change a store at random."""
