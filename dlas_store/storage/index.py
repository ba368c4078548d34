"""The index of a store: one sealed file that locates every image and patch, so that opening a store reads no shard."""

from __future__ import annotations

import operator
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dlas_store.errors import DamagedError, ForeignShardError
from dlas_store.sources.base import Layout
from dlas_store.storage.records import Key, Kind
from dlas_store.storage.sealed_file import RowType, SealedFile, Table, check_fields
from dlas_store.storage.shard import (
    IMAGE_ROW,
    PATCH_ROW,
    Shard,
    ShardEntries,
    ShardHeader,
    scan_shard,
    shard_file_name,
    shift_column,
)

INDEX_FILE = "index.lmdb"

NAME_ROW = RowType("names", np.dtype([("hash", "<u8"), ("image", "<u4")]))
ROW_TYPES = (IMAGE_ROW, PATCH_ROW, NAME_ROW)

RESTORE_HINT = "restore it from a copy, or run dlas-store salvage, which copies all undamaged images to a new store"


class ImageRow(NamedTuple):
    """Location of an image's values. Offsets and lengths are those of payloads in the shard's file, in bytes."""

    metadata_offset: int
    reference_offset: int
    first_patch: int
    metadata_length: int
    reference_length: int
    shard: int


class PatchRow(NamedTuple):
    """Location of a patch. Offset and length are those of the payload in the shard's file, in bytes."""

    offset: int
    patch_id: int
    length: int
    image: int
    shard: int


class ShardEntry(NamedTuple):
    """A shard's entry in the index.

    Attributes:
        number: number of the shard, which gives its file name.
        shard_id: the id in the shard's trailer, 16 bytes.
        size: exact size of the shard's file in bytes.
        first_image: number of the shard's first image in the store.
        first_image_id: id of that image in the shard's keys.
        images: number of images.
        patches: number of patches.
        payload_bytes: bytes of all patches and references.
        commit: number of the import or append that wrote the shard.
    """

    number: int
    shard_id: bytes
    size: int
    first_image: int
    first_image_id: int
    images: int
    patches: int
    payload_bytes: int
    commit: int


class Index:
    """The index of a store, or of a single shard.

    Attributes:
        path: path of the index file, or of the single shard.
        store_id: id of the store, 16 bytes.
        layout: layout of the store.
        generation: number of times that the index was replaced.
        shards: shard number -> entry of the shard.
        images: one row per image, with the fields of ImageRow.
        patches: one row per patch, with the fields of PatchRow.
        names: one row (hash of the name, image number) per image, sorted.
    """

    def __init__(
        self,
        *,
        path: Path,
        store_id: bytes,
        layout: Layout,
        generation: int,
        shards: dict[int, ShardEntry],
        images: Sequence[Any],
        patches: Sequence[Any],
        names: Sequence[Any],
    ) -> None:
        self.path = path
        self.store_id = store_id
        self.layout: Layout = layout
        self.generation = generation
        self.shards = shards
        self.images = images
        self.patches = patches
        self.names = names

    @classmethod
    def open(cls, path: Path) -> Index:
        """Open an index file.

        Raises:
            NotASourceError, DamagedError, FormatVersionError: see SealedFile.
        """
        file = SealedFile(path, "index")
        body = file.body
        try:
            tables = {
                row_type.name: Table(
                    row_type,
                    table_id=body["table_id"],
                    data=file.data,
                    chunk_offsets=np.frombuffer(body["chunks"][row_type.name], "<u8").tolist(),
                    count=body["counts"][row_type.name],
                    path=str(path),
                )
                for row_type in ROW_TYPES
            }
            checked_keys = ("store_id", "layout", "generation", "table_id")
            check_fields(path, {key: body[key] for key in checked_keys})
            entries = [ShardEntry(**entry) for entry in body["shards"]]
            _check_entries(path, entries, body["counts"])
        except DamagedError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedError(
                f"{path}: the trailer lacks fields or has unknown ones ({error!r}); restore it from a copy"
            ) from error
        return cls(
            path=path,
            store_id=body["store_id"],
            layout=body["layout"],
            generation=body["generation"],
            shards={entry.number: entry for entry in entries},
            **tables,
        )

    @classmethod
    def of_shard(cls, shard: Shard) -> Index:
        """Return the index of a single shard, built from a scan of the shard.

        Raises:
            DamagedError: see scan_shard.
        """
        header = shard.header
        rows = scan_shard(shard)
        order = np.argsort(rows.name_hashes, kind="stable")
        return cls(
            path=shard.path,
            store_id=header.store_id,
            layout=header.layout,
            generation=0,
            shards={header.number: shard_entry(header, size=len(shard.data), first_image=0)},
            images=rows.images.tolist(),
            patches=rows.patches.tolist(),
            names=list(zip(rows.name_hashes[order].tolist(), order.tolist(), strict=True)),
        )

    @property
    def tables(self) -> list[Table]:
        """The tables in the index file; empty for an index of a single shard."""
        return [table for table in (self.images, self.patches, self.names) if isinstance(table, Table)]

    def check_sizes(self, folder: Path) -> None:
        """Check that each shard file in a store's folder has the size in the index.

        Raises:
            DamagedError: a shard is missing or has another size.
        """
        for entry in self.shards.values():
            file = f"{folder}/{shard_file_name(entry.number)}"  # a Path is slow, and a store may have many shards
            try:
                size = os.stat(file).st_size  # noqa: PTH116
            except OSError as error:
                advice = RESTORE_HINT if isinstance(error, FileNotFoundError) else "the store may be sound"
                raise DamagedError(
                    f"{file}: cannot be opened ({error.strerror}), but {INDEX_FILE} names it; {advice}"
                ) from error
            _check_size(file, size, entry)

    def check_shard(self, shard: Shard, entry: ShardEntry) -> None:
        """Check that a shard is the one that an entry of this index describes.

        Raises:
            ForeignShardError: it is another shard.
            DamagedError: the shard has another size or other counts than the entry.
        """
        header = shard.header
        if header.shard_id != entry.shard_id or header.store_id != self.store_id:
            owner = "this store" if header.store_id == self.store_id else "another store"
            raise ForeignShardError(
                f"{shard.path}: is shard {header.number} of {owner}, not the one that {self.path.name} names; "
                f"{RESTORE_HINT}"
            )
        _check_size(shard.path, len(shard.data), entry)
        if shard_entry(header, size=entry.size, first_image=entry.first_image) != entry:
            raise DamagedError(f"{shard.path}: says otherwise of itself than {self.path.name}; run dlas-store reindex")

    def agrees_with(self, header: ShardHeader, scanned: ShardEntries) -> bool:
        """Return whether this index has the same rows for a shard as a scan of the shard.

        Args:
            header: header of the shard.
            scanned: rows from scan_shard.

        Raises:
            DamagedError: a block of the index is damaged.
        """
        entry = self.shards[header.number]
        if (len(scanned.images), len(scanned.patches)) != (entry.images, entry.patches):
            return False
        first_image = entry.first_image
        first_patch = self._image_row(first_image).first_patch if entry.images else 0
        if first_patch + entry.patches > len(self.patches):
            return False
        images = [self.images[number] for number in range(first_image, first_image + entry.images)]
        patches = [self.patches[index] for index in range(first_patch, first_patch + entry.patches)]
        scanned_images = shift_column(scanned.images, "first_patch", first_patch)
        scanned_patches = shift_column(scanned.patches, "image", first_image)
        return bool(images == scanned_images.tolist() and patches == scanned_patches.tolist())

    def values_of(self, number: int) -> Iterator[tuple[Key, int, int]]:
        """Yield the key, payload offset and payload length of every value of an image, in key order.

        Raises:
            DamagedError: a block of the index is damaged, or rows contradict each other.
        """
        row = self._image_row(number)
        entry = self.shards.get(row.shard)
        end = self._image_row(number + 1).first_patch if number + 1 < len(self.images) else len(self.patches)
        if entry is None or not row.first_patch <= end <= len(self.patches):
            raise DamagedError(f"{self.path}: image {number} has rows that cannot be; run dlas-store reindex")
        image_id = number - entry.first_image + entry.first_image_id
        yield Key(image_id, Kind.METADATA, 0), row.metadata_offset, row.metadata_length
        if row.reference_offset:
            yield Key(image_id, Kind.REFERENCE, 0), row.reference_offset, row.reference_length
        patches = [PatchRow._make(self.patches[index]) for index in range(row.first_patch, end)]
        for patch in sorted(patches, key=operator.attrgetter("patch_id")):
            yield Key(image_id, Kind.PATCH, patch.patch_id), patch.offset, patch.length

    def images_named(self, name_hash: int) -> Iterator[int]:
        """Yield the numbers of the images whose names have a hash."""
        for row in range(bisect_left(self.names, (name_hash, 0)), len(self.names)):
            row_hash, image = self.names[row]
            if row_hash != name_hash:
                return
            yield image

    def _image_row(self, number: int) -> ImageRow:
        return ImageRow._make(self.images[number])


def shard_entry(header: ShardHeader, *, size: int, first_image: int) -> ShardEntry:
    """Return the index entry of a sealed shard.

    Args:
        header: the shard's header.
        size: size of the shard's file in bytes.
        first_image: number of the shard's first image in the store.
    """
    return ShardEntry(
        number=header.number,
        shard_id=header.shard_id,
        size=size,
        first_image=first_image,
        first_image_id=header.first_image,
        images=header.images,
        patches=header.patches,
        payload_bytes=header.payload_bytes,
        commit=header.commit,
    )


def _check_size(file: Path | str, size: int, entry: ShardEntry) -> None:
    if size != entry.size:
        raise DamagedError(f"{file}: has {size} bytes where {INDEX_FILE} names {entry.size}; {RESTORE_HINT}")


def _check_entries(path: Path, entries: Sequence[ShardEntry], counts: dict[str, int]) -> None:
    """Check that the shards' entries are valid and together cover the rows of all tables."""
    images = 0
    numbers = set()
    for entry in entries:
        check_fields(path, entry._asdict())
        if entry.images and entry.number in numbers:
            raise DamagedError(f"{path}: names shard {entry.number} twice; restore it from a copy")
        numbers.add(entry.number)
        if entry.first_image != images:
            raise DamagedError(
                f"{path}: the shard table has a gap before image {entry.first_image}; restore it from a copy"
            )
        images += entry.images
    patches = sum(entry.patches for entry in entries)
    if (images, patches, images) != (counts["images"], counts["patches"], counts["names"]):
        raise DamagedError(f"{path}: the shard table does not cover the other tables; restore it from a copy")
