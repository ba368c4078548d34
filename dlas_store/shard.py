"""A shard: whole images in one LMDB file, written once, sealed, and then only read."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dlas_store.errors import DamagedError
from dlas_store.keys import CHECKSUM, Key, Kind, encode_value, pack_key, unpack_key, value_checksum
from dlas_store.lmdb_pages import Entry, walk
from dlas_store.lmdb_writer import BATCH_BYTES, LmdbWriter
from dlas_store.metadata import Image, PatchIds, decode_image, encode_image
from dlas_store.pixels import Size
from dlas_store.sealed_file import SealedFile, seal
from dlas_store.source import Layout
from dlas_store.tables import RowType

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


_BYTES_A_VALUE = 256
"""What a value that waits takes beside its payload: key, checksum and Python objects."""


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


class Directory(NamedTuple):
    """Where the values of a shard lie: rows for the index, counted from the shard's own first image and patch."""

    images: NDArray[np.void]
    patches: NDArray[np.void]
    name_hashes: NDArray[np.uint64]

    def rebased(self, *, first_image: int, first_patch: int) -> tuple[NDArray[np.void], NDArray[np.void]]:
        """Return the rows of images and patches, counted from a store's first."""
        images, patches = self.images.copy(), self.patches.copy()
        images["first_patch"] += first_patch
        patches["image"] += first_image
        return images, patches


class ShardWriter:
    """Writes one shard under a temporary name.

    A thread writes one batch while the next is gathered, so memory is that of two or three batches.

    Args:
        path: the temporary name; its folder must exist.
        header: what the shard says of itself; the counts are filled in by seal().
    """

    def __init__(self, path: Path, header: ShardHeader) -> None:
        self._path = path
        self._header = header
        self._images = 0
        self._patches = 0
        self._payload_bytes = 0
        self._waiting: list[tuple[bytes, bytes]] = []
        self._waiting_bytes = 0
        path.unlink(missing_ok=True)
        self._lmdb = LmdbWriter(path)
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._begin_image()

    def _begin_image(self) -> None:
        self._image_id = self._header.first_image + self._images
        self._assign_id = PatchIds()
        self._patch_ids: list[int] = []
        self._files: list[str] = []
        self._sizes: list[Size] = []

    def add_patch(self, file: str, data: bytes, size: Size) -> None:
        """Add the next patch of the image that is being written.

        Args:
            file: its file name; an image's patches come in order of names.
            data: its encoded bytes.
            size: its pixels.

        Raises:
            WriteError: the disk refused it.
        """
        patch_id = self._assign_id.assign(file)
        self._put(pack_key(self._image_id, Kind.PATCH, patch_id), data)
        self._patch_ids.append(patch_id)
        self._payload_bytes += len(data)
        self._files.append(file)
        self._sizes.append(size)

    def end_image(self, image: Image, reference: bytes | None) -> None:
        """End the image that is being written; one without patches is left out.

        Args:
            image: what is known of it; its files and sizes are those of the patches that were added.
            reference: encoded bytes, None without one.

        Raises:
            WriteError: the disk refused it.
        """
        if not self._files:
            return
        heights, widths = np.array(self._sizes, np.uint32).T
        image = replace(
            image,
            files=tuple(self._files),
            has_reference=reference is not None,
            patch_ids=np.array(self._patch_ids, np.uint64),
            heights=heights,
            widths=widths,
        )
        if reference is not None:
            self._put(pack_key(self._image_id, Kind.REFERENCE), reference)
            self._payload_bytes += len(reference)
        # Last, since it needs all of the image. Batches are sorted, so it comes first on disk where the image fits one.
        self._put(pack_key(self._image_id, Kind.METADATA), encode_image(image))
        self._images += 1
        self._patches += len(self._files)
        self._begin_image()

    def seal(self) -> tuple[ShardHeader, Directory]:
        """Sync the shard, read it back and check every value, and append its trailer."""
        self._flush()
        self._wait_for_write()
        self._lmdb.finish()
        header = replace(self._header, images=self._images, patches=self._patches, payload_bytes=self._payload_bytes)
        seal(self._path, {"kind": "shard"} | asdict(header))
        return header, Shard(self._path).read_directory(check_values=True)

    def _put(self, key: bytes, payload: bytes) -> None:
        self._waiting.append((key, encode_value(key, payload)))
        self._waiting_bytes += len(payload) + _BYTES_A_VALUE
        if self._waiting_bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Hand what waits to the thread that writes, once it is done with the batch before."""
        self._wait_for_write()
        self._writing = self._writer.submit(self._lmdb.write, self._waiting)
        self._waiting = []
        self._waiting_bytes = 0

    def _wait_for_write(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file; without seal() it is of no use."""
        self._writer.shutdown()
        self._lmdb.close()


class Shard:
    """A sealed shard.

    Args:
        path: its file.

    Raises:
        NotASourceError, DamagedError, FormatVersionError: see SealedFile.
    """

    def __init__(self, path: Path) -> None:
        self._file = SealedFile(path, "shard")
        try:
            self.header = ShardHeader(**{key: value for key, value in self._file.body.items() if key != "kind"})
        except TypeError as error:
            raise DamagedError(f"{path}: the trailer lacks fields or has unknown ones ({error})") from error

    @property
    def path(self) -> Path:
        """The shard's file."""
        return self._file.path

    @property
    def data(self) -> mmap.mmap:
        """The whole file, mapped."""
        return self._file.data

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

    def read_directory(self, *, check_values: bool = False) -> Directory:
        """Return where all values lie, found by a walk through the tree.

        Args:
            check_values: also check every value's checksum (metadata is checked in any case).

        Raises:
            DamagedError: keys, metadata and counts that do not agree, or a wrong checksum.
        """
        entries: list[tuple[Key, Entry]] = []
        builder = _DirectoryBuilder(self)
        for key, entry in self.values():
            if check_values:
                read_payload(self.data, entry.key, entry.offset, entry.length, self.path)
            if entries and entries[0][0].image_id != key.image_id:
                builder.add(entries)
                entries = []
            entries.append((key, entry))
        if entries:
            builder.add(entries)
        return builder.finish()


class _DirectoryBuilder:
    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._images: list[tuple[int, ...]] = []
        self._patches: list[NDArray[np.void]] = []
        self._hashes: list[int] = []
        self._patch_count = 0

    def add(self, entries: Sequence[tuple[Key, Entry]]) -> None:
        """Add the rows of one image's values."""
        header = self._shard.header
        number = len(self._images)
        image_id = header.first_image + number
        metadata = self._entry(entries, Kind.METADATA)
        reference = self._entry(entries, Kind.REFERENCE)
        if entries[0][0].image_id != image_id or metadata is None:
            raise self._damaged(f"image {image_id} or its metadata is missing")
        image = read_image(self._shard.data, metadata.key, metadata.offset, metadata.length, self._shard.path)
        patches = entries[1 if reference is None else 2 :]
        stored = np.array([(key.patch_id, entry.offset, entry.length) for key, entry in patches], np.uint64)
        stored = stored.reshape(-1, 3)
        ids = image.patch_ids
        assert ids is not None
        order = np.argsort(ids)
        if not np.array_equal(ids[order], stored[:, 0]) or image.has_reference != (reference is not None):
            raise self._damaged(f"the values of image {image.name!r} are not those its metadata names")
        rows = np.zeros(len(ids), PATCH_ROW.dtype)
        rows["patch_id"] = ids
        rows["offset"][order] = stored[:, 1]
        rows["length"][order] = stored[:, 2]
        rows["image"] = number
        rows["shard"] = header.number
        self._patches.append(rows)
        _, reference_offset, reference_length = reference or Entry(b"", 0, 0)
        self._images.append(
            (metadata.offset, reference_offset, self._patch_count, metadata.length, reference_length, header.number)
        )
        self._hashes.append(name_hash(image.name))
        self._patch_count += len(ids)

    def finish(self) -> Directory:
        """Return all rows."""
        header = self._shard.header
        if (len(self._images), self._patch_count) != (header.images, header.patches):
            raise self._damaged(
                f"{len(self._images)} images and {self._patch_count} patches are not the {header.images} and "
                f"{header.patches} it was sealed with"
            )
        return Directory(
            np.array(self._images, IMAGE_ROW.dtype),
            np.concatenate([np.empty(0, PATCH_ROW.dtype), *self._patches]),
            np.array(self._hashes, np.uint64),
        )

    @staticmethod
    def _entry(entries: Sequence[tuple[Key, Entry]], kind: Kind) -> Entry | None:
        return next((entry for key, entry in entries[:2] if key.kind == kind), None)

    def _damaged(self, message: str) -> DamagedError:
        return DamagedError(f"{self._shard.path}: {message}; restore the file from a copy")


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
    payload = data[offset : offset + length]
    start = offset - CHECKSUM.size
    if len(payload) != length or start < 0 or CHECKSUM.unpack_from(data, start)[0] != value_checksum(key, payload):
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


def shard_file_name(number: int) -> str:
    """Return the file name of a shard.

    >>> shard_file_name(3)
    'shard-00003.lmdb'
    """
    return f"shard-{number:05d}.lmdb"
