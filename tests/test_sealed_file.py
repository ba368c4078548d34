"""Sealed LMDB files: the trailer detects damage, and every LMDB tool still reads the file."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import lmdb
import msgpack
import pytest
from small_stores import flip
from xxhash import xxh3_64_intdigest

from dlas_store.errors import DamagedError, FormatVersionError, NotASourceError, StoreError
from dlas_store.lmdb_writer import LmdbWriter
from dlas_store.sealed_file import FORMAT_VERSION, SealedFile, map_file, seal

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
