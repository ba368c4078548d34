"""A shard: complete images in one LMDB file that is written once, sealed, and then only read."""

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
    """The fields of a shard's trailer.

    Attributes:
        store_id: 16 random bytes, the same in all shards of a store.
        shard_id: 16 random bytes of this shard.
        number: number of the shard in its store, from 0.
        layout: layout of the store.
        commit: number of the import or append that wrote the shard, from 0.
        commit_first: number of the first shard of that commit.
        commit_shards: number of shards of that commit.
        first_image: id of the shard's first image; the ids of its images are consecutive.
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
        path: path of its file.

    Attributes:
        path: path of its file.
        data: the mapped file.
        header: the fields of its trailer.

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
        """The mapped file as a memoryview, for slices without a copy."""
        return memoryview(self.data)

    def will_need(self, offset: int, length: int) -> None:
        """Prefetch bytes of the file: the kernel starts to read them, and this call does not wait.

        Args:
            offset: first byte.
            length: number of bytes.
        """
        if hasattr(mmap, "MADV_WILLNEED"):
            start = offset - offset % mmap.PAGESIZE
            self.data.madvise(mmap.MADV_WILLNEED, start, offset + length - start)

    def release_pages(self) -> None:
        """Release the pages read so far; until then they count as memory of this process."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.data.madvise(mmap.MADV_DONTNEED)

    def values(self) -> Iterator[tuple[Key, Entry]]:
        """Yield each key in order, with the entry of its payload, from the tree's pages.

        The payload is the value without its checksum.

        Raises:
            DamagedError: the tree is damaged, or a key is no key of a shard.
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
    """Return a copy of a payload, after a check of its checksum against its key.

    Args:
        data: the mapped shard.
        key: key of the value.
        offset: first byte of the payload.
        length: bytes of the payload.
        path: path of the shard, for the error.

    Raises:
        DamagedError: the bytes at that offset were not stored under that key.
    """
    with memoryview(data) as view, view_payload(view, key, offset, length, path) as payload:
        return bytes(payload)


def view_payload(data: memoryview, key: bytes, offset: int, length: int, path: Path) -> memoryview:
    """Return a view of a payload, after the check of read_payload."""
    payload = data[offset : offset + length]
    start = offset - CHECKSUM.size
    is_inside = start >= 0 and offset + length <= len(data)
    if not is_inside or CHECKSUM.unpack_from(data, start)[0] != value_checksum(key, payload):
        raise DamagedError(f"{path}: the checksum of the {length} bytes at {offset} does not match")
    return payload


def read_image(data: mmap.mmap, key: bytes, offset: int, length: int, path: Path) -> Image:
    """Return the image that a metadata record describes, after the check of read_payload."""
    record = read_payload(data, key, offset, length, path)
    try:
        return decode_image(record)
    except DamagedError as error:
        raise DamagedError(f"{path}: {error}") from error


def name_hash(name: str) -> int:
    """Return the hash by which the index looks up an image's name."""
    return xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))


def has_shards(folder: Path) -> bool:
    """Return whether a folder holds a file with a shard's name."""
    try:
        with os.scandir(folder) as entries:  # glob would hold an object a file, and there may be millions
            return any(entry.name.startswith("shard-") and entry.name.endswith(".lmdb") for entry in entries)
    except OSError as error:
        raise NotASourceError(f"{folder}: cannot be listed ({error.strerror})") from error


def shard_file_name(number: int) -> str:
    """Return the file name of a shard.

    >>> shard_file_name(3)
    'shard-00003.lmdb'
    """
    return f"shard-{number:05d}.lmdb"
