"""A shard: whole images in one LMDB file, written once, sealed, and then only read."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from xxhash import xxh3_64_intdigest

from dlas_store.errors import DamagedError, NotASourceError
from dlas_store.keys import CHECKSUM, Key, unpack_key, value_checksum
from dlas_store.lmdb_pages import Entry, walk
from dlas_store.metadata import decode_image
from dlas_store.sealed_file import SealedFile, check_fields
from dlas_store.source import Image, Layout


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardHeader:
    """What a shard says of itself in its trailer.

    Attributes:
        store_id: 16 random bytes, the same in all of a store.
        shard_id: 16 random bytes of this shard.
        number: its number in the store, from 0.
        layout: that of the store.
        commit: number of the import or append that wrote it, from 0.
        commit_first: number of that commit's first shard.
        commit_shards: how many shards that commit has.
        first_image: id of its first image; ids count up from there.
        images: number of images.
        patches: number of patches.
        payload_bytes: bytes of all patches and references.
    """

    store_id: bytes
    shard_id: bytes
    number: int
    layout: Layout
    commit: int
    commit_first: int
    commit_shards: int
    first_image: int
    images: int = 0
    patches: int = 0
    payload_bytes: int = 0

    @property
    def file_name(self) -> str:
        """The shard's file name in its store."""
        return shard_file_name(self.number)


class Shard:
    """A sealed shard.

    Args:
        path: its file.

    Attributes:
        path: its file.
        data: the whole file, mapped.
        header: what it says of itself.

    Raises:
        NotASourceError, DamagedError, FormatVersionError: see SealedFile.
    """

    def __init__(self, path: Path) -> None:
        file = SealedFile(path, "shard")
        self.path = file.path
        self.data = file.data
        try:
            self.header = ShardHeader(**{key: value for key, value in file.body.items() if key != "kind"})
        except TypeError as error:
            raise DamagedError(f"{path}: the trailer lacks fields or has unknown ones ({error})") from error
        check_fields(path, asdict(self.header))

    @cached_property
    def view(self) -> memoryview:
        """The whole file, mapped, for slices without a copy."""
        return memoryview(self.data)

    def will_need(self, offset: int, length: int) -> None:
        """Let the system read bytes of the file without waiting for them."""
        if hasattr(mmap, "MADV_WILLNEED"):
            start = offset - offset % mmap.PAGESIZE
            self.data.madvise(mmap.MADV_WILLNEED, start, offset + length - start)

    def release_pages(self) -> None:
        """Let the system take back what was read so far, which would count as memory of this process."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.data.madvise(mmap.MADV_DONTNEED)

    def values(self) -> Iterator[tuple[Key, Entry]]:
        """Yield every key in order with the place of its payload, from the tree's pages.

        Raises:
            DamagedError: pages or keys that are not those of a shard.
        """
        try:
            for entry in walk(self.data):
                yield unpack_key(entry.key), _payload_of(entry)
        except DamagedError as error:
            raise DamagedError(f"{self.path}: {error}; restore the file from a copy") from error


def _payload_of(value: Entry) -> Entry:
    if value.length < CHECKSUM.size:
        raise DamagedError(f"the value of key {value.key.hex()} is too short")
    return Entry(value.key, value.offset + CHECKSUM.size, value.length - CHECKSUM.size)


def read_payload(data: mmap.mmap, key: bytes, offset: int, length: int, path: Path) -> bytes:
    """Return a payload after checking it against its key.

    Args:
        data: the mapped shard.
        key: the key whose value is meant.
        offset: where the payload starts, bytes.
        length: its bytes.
        path: the shard, for the error.

    Raises:
        DamagedError: the bytes there are not those that were stored under that key.
    """
    with memoryview(data) as view, view_payload(view, key, offset, length, path) as payload:
        return bytes(payload)


def view_payload(data: memoryview, key: bytes, offset: int, length: int, path: Path) -> memoryview:
    """Return a payload in place, after checking it against its key; see read_payload."""
    payload = data[offset : offset + length]
    start = offset - CHECKSUM.size
    is_inside = start >= 0 and offset + length <= len(data)
    if not is_inside or CHECKSUM.unpack_from(data, start)[0] != value_checksum(key, payload):
        raise DamagedError(f"{path}: the checksum of the {length} bytes at {offset} does not match")
    return payload


def read_image(data: mmap.mmap, key: bytes, offset: int, length: int, path: Path) -> Image:
    """Return the image of a metadata record after checking it against its key; see read_payload."""
    record = read_payload(data, key, offset, length, path)
    try:
        return decode_image(record)
    except DamagedError as error:
        raise DamagedError(f"{path}: {error}") from error


def name_hash(name: str) -> int:
    """Return the hash under which the index finds an image's name."""
    return xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))


def has_shards(folder: Path) -> bool:
    """Return whether a folder holds files named as shards are."""
    try:
        with os.scandir(folder) as entries:  # glob would hold an object for each of what may be millions of files
            return any(entry.name.startswith("shard-") and entry.name.endswith(".lmdb") for entry in entries)
    except OSError as error:
        raise NotASourceError(f"{folder}: cannot be listed ({error.strerror})") from error


def shard_file_name(number: int) -> str:
    """Return the file name of a shard.

    >>> shard_file_name(3)
    'shard-00003.lmdb'
    """
    return f"shard-{number:05d}.lmdb"
