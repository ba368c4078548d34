"""A shard: an LMDB file of complete images, written once, sealed, and then only read."""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dlas_store.errors import DamagedError, NotASourceError
from dlas_store.lmdb_reader import Entry, iter_entries
from dlas_store.sources.base import Image, Layout
from dlas_store.storage.records import CHECKSUM, Key, Kind, decode_image, unpack_key, value_checksum
from dlas_store.storage.sealed_file import RowType, SealedFile, check_fields

IMAGE_ROW = RowType(
    "images",
    np.dtype(
        [
            ("metadata_offset", "<u8"),
            ("reference_offset", "<u8"),  # 0: no reference
            ("first_patch", "<u8"),
            ("metadata_length", "<u4"),
            ("reference_length", "<u4"),
            ("shard", "<u4"),
        ]
    ),
)
PATCH_ROW = RowType(
    "patches",
    np.dtype([("offset", "<u8"), ("patch_id", "<u8"), ("length", "<u4"), ("image", "<u4"), ("shard", "<u4")]),
)

_UNRELEASED_BYTES = 32 << 20
"""The scan releases a shard's pages after reading this many bytes, so that they do not add up in memory."""


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
    """A sealed shard, mapped read-only.

    Args:
        path: path of the shard's file.

    Attributes:
        path: path of the shard's file.
        data: the mapped file.
        header: the fields of the trailer.

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
            raise DamagedError(
                f"{path}: the trailer lacks fields or has unknown ones ({error}); restore it from a copy"
            ) from error
        check_fields(path, asdict(self.header))

    @cached_property
    def view(self) -> memoryview:
        """The mapped file as a memoryview, for slices without a copy."""
        return memoryview(self.data)

    def prefetch(self, offset: int, length: int) -> None:
        """Prefetch bytes of the file: the kernel starts to read them, and this call does not wait.

        Args:
            offset: first byte.
            length: number of bytes.
        """
        if hasattr(mmap, "MADV_WILLNEED"):
            start = offset - offset % mmap.PAGESIZE
            self.data.madvise(mmap.MADV_WILLNEED, start, offset + length - start)

    def release_pages(self) -> None:
        """Release the mapped pages that were read; the system counts them as memory of this process."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.data.madvise(mmap.MADV_DONTNEED)

    def values(self) -> Iterator[tuple[Key, Entry]]:
        """Yield each key and the entry of its payload, in key order, from the pages of the LMDB tree.

        The payload is the value without its checksum.

        Raises:
            DamagedError: the tree is damaged, or a key is not one of a shard.
        """
        try:
            for entry in iter_entries(self.data):
                yield unpack_key(entry.key), _payload_of(entry)
        except DamagedError as error:
            raise DamagedError(f"{self.path}: {error}; restore the file from a copy") from error


class ShardEntries(NamedTuple):
    """The entries of a shard as index rows. Image and patch numbers count from the shard's first image and patch.

    Attributes:
        images: rows of IMAGE_ROW, one per image.
        patches: rows of PATCH_ROW, one per patch, in item order.
        name_hashes: uint64 (images,), name_hash() of each image's name.
    """

    images: NDArray[np.void]
    patches: NDArray[np.void]
    name_hashes: NDArray[np.uint64]


def scan_shard(shard: Shard, *, check_values: bool = False) -> ShardEntries:
    """Return the index rows of all values, from a scan of the shard's LMDB tree.

    Args:
        shard: the shard.
        check_values: also check the checksum of every patch and reference; metadata is always checked.

    Raises:
        DamagedError: keys, metadata and counts disagree, or a checksum does not match.
    """
    image_entries: list[tuple[Key, Entry]] = []
    builder = _EntriesBuilder(shard)
    unreleased_bytes = 0
    for key, entry in shard.values():
        if check_values:
            view_payload(shard.view, entry.key, entry.offset, entry.length, shard.path)
            unreleased_bytes += entry.length
        if unreleased_bytes >= _UNRELEASED_BYTES:
            shard.release_pages()
            unreleased_bytes = 0
        if image_entries and image_entries[0][0].image_id != key.image_id:
            builder.add(image_entries)
            image_entries = []
        image_entries.append((key, entry))
    if image_entries:
        builder.add(image_entries)
    return builder.finish()


def read_payload(data: mmap.mmap, key: bytes, offset: int, length: int, path: Path) -> bytes:
    """Return a copy of a payload, after a check of its checksum against its key.

    Args:
        data: the mapped shard.
        key: key of the value, 17 bytes.
        offset: first byte of the payload.
        length: bytes of the payload.
        path: path of the shard, for the error message.

    Raises:
        DamagedError: the bytes at that offset were not stored under that key.
    """
    with memoryview(data) as view, view_payload(view, key, offset, length, path) as payload:
        return bytes(payload)


def view_payload(data: memoryview, key: bytes, offset: int, length: int, path: Path) -> memoryview:
    """Return a view of a payload, after the check that read_payload makes."""
    payload = data[offset : offset + length]
    start = offset - CHECKSUM.size
    is_inside = start >= 0 and offset + length <= len(data)
    if not is_inside or CHECKSUM.unpack_from(data, start)[0] != value_checksum(key, payload):
        raise DamagedError(f"{path}: the checksum of the {length} bytes at {offset} does not match")
    return payload


def read_image(data: mmap.mmap, key: bytes, offset: int, length: int, path: Path) -> Image:
    """Return the image that a metadata record describes, after the check that read_payload makes."""
    record = read_payload(data, key, offset, length, path)
    try:
        return decode_image(record)
    except DamagedError as error:
        raise DamagedError(f"{path}: {error}") from error


def name_hash(name: str) -> int:
    """Return the hash of an image's name, by which the index finds the image."""
    return xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))


def has_shards(folder: Path) -> bool:
    """Return whether a folder holds a file with a shard's name."""
    try:
        with os.scandir(folder) as entries:  # glob would keep an object per file, and a folder may hold millions
            return any(
                entry.name.startswith("shard-")
                and entry.name.endswith(".lmdb")
                and not entry.is_dir(follow_symlinks=False)
                for entry in entries
            )
    except OSError as error:
        raise NotASourceError(f"{folder}: cannot be listed ({error.strerror})") from error


def shard_file_name(number: int) -> str:
    """Return the file name of a shard.

    >>> shard_file_name(3)
    'shard-00003.lmdb'
    """
    return f"shard-{number:05d}.lmdb"


def shift_column(rows: NDArray[np.void], column: str, offset: int) -> NDArray[np.void]:
    """Return a copy of rows with an offset added to one column."""
    rows = rows.copy()
    rows[column] += offset
    return rows


def _payload_of(value: Entry) -> Entry:
    if value.length < CHECKSUM.size:
        raise DamagedError(f"the value of key {value.key.hex()} is too short")
    return Entry(value.key, value.offset + CHECKSUM.size, value.length - CHECKSUM.size)


class _EntriesBuilder:
    """Builds the index rows of a shard, one image at a time."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._images = bytearray()
        self._patches = bytearray()
        self._hashes = array("Q")

    def add(self, entries: Sequence[tuple[Key, Entry]]) -> None:
        """Add the rows of one image.

        Args:
            entries: key and payload entry of each value of the image, in key order.
        """
        header = self._shard.header
        number = len(self._hashes)
        image_id = header.first_image + number
        metadata = _first_of_kind(entries, Kind.METADATA)
        reference = _first_of_kind(entries, Kind.REFERENCE)
        if entries[0][0].image_id != image_id or metadata is None:
            raise self._damaged(f"image {image_id} or its metadata is missing")
        image = read_image(self._shard.data, metadata.key, metadata.offset, metadata.length, self._shard.path)
        patches = entries[1 if reference is None else 2 :]
        stored_patches = np.array([(key.patch_id, entry.offset, entry.length) for key, entry in patches], np.uint64)
        stored_patches = stored_patches.reshape(-1, 3)
        ids = image.patch_ids
        assert ids is not None
        order = np.argsort(ids)
        if not np.array_equal(ids[order], stored_patches[:, 0]) or image.has_reference != (reference is not None):
            raise self._damaged(f"the values of image {image.name!r} are not those its metadata names")
        rows = np.zeros(len(ids), PATCH_ROW.dtype)
        rows["patch_id"] = ids
        rows["offset"][order] = stored_patches[:, 1]
        rows["length"][order] = stored_patches[:, 2]
        rows["image"] = number
        rows["shard"] = header.number
        first_patch = len(self._patches) // PATCH_ROW.dtype.itemsize
        _, reference_offset, reference_length = reference or Entry(b"", 0, 0)
        row = (metadata.offset, reference_offset, first_patch, metadata.length, reference_length, header.number)
        self._images += np.array(row, IMAGE_ROW.dtype).tobytes()
        self._patches += rows.tobytes()
        self._hashes.append(name_hash(image.name))

    def finish(self) -> ShardEntries:
        """Return the rows of all images, after a check of their number against the trailer."""
        header = self._shard.header
        images = np.frombuffer(self._images, IMAGE_ROW.dtype)
        patches = np.frombuffer(self._patches, PATCH_ROW.dtype)
        if (len(images), len(patches)) != (header.images, header.patches):
            raise self._damaged(
                f"{len(images)} images and {len(patches)} patches are not the {header.images} and {header.patches} "
                "that the trailer counts"
            )
        return ShardEntries(images, patches, np.array(self._hashes, np.uint64))

    def _damaged(self, message: str) -> DamagedError:
        return DamagedError(f"{self._shard.path}: {message}; restore the file from a copy")


def _first_of_kind(entries: Sequence[tuple[Key, Entry]], kind: Kind) -> Entry | None:
    """Return the entry of an image's metadata or reference, one of the first two in key order."""
    return next((entry for key, entry in entries[:2] if key.kind == kind), None)
