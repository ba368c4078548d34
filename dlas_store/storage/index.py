"""The key index of a store: all that opening it needs, in one sealed file."""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dlas_store.errors import DamagedError
from dlas_store.sources.base import Layout
from dlas_store.storage.records import Key, Kind
from dlas_store.storage.sealed_file import RowType, SealedFile, Table, check_fields
from dlas_store.storage.shard import IMAGE_ROW, PATCH_ROW, Shard, ShardEntries, ShardHeader, scan_shard, shifted

INDEX_FILE = "index.lmdb"

NAME_ROW = RowType("names", np.dtype([("hash", "<u8"), ("image", "<u4")]))
ROW_TYPES = (IMAGE_ROW, PATCH_ROW, NAME_ROW)


class ImageRow(NamedTuple):
    """Where an image's values lie; offsets and lengths in bytes of the payload in its shard."""

    metadata_offset: int
    reference_offset: int
    first_patch: int
    metadata_length: int
    reference_length: int
    shard: int


class PatchRow(NamedTuple):
    """Where a patch lies; offset and length in bytes of the payload in its shard."""

    offset: int
    patch_id: int
    length: int
    image: int
    shard: int


class ShardEntry(NamedTuple):
    """A shard as the index knows it.

    Attributes:
        number: its number, which gives its file name.
        shard_id: what the file must say of itself.
        size: exact bytes of the file.
        first_image: number of its first image in the store.
        first_image_id: id of that image in the shard's keys.
        images: number of images.
        patches: number of patches.
        payload_bytes: bytes of all patches and references.
        commit: number of the import or append that wrote it.
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
        place: the file it was read from.
        store_id: 16 bytes.
        layout: that of the store.
        generation: how often the index was replaced.
        shards: the shard table, by shard number.
        images: rows of ImageRow.
        patches: rows of PatchRow.
        names: rows of (hash of the name, image number), sorted.
    """

    def __init__(
        self,
        *,
        place: Path,
        store_id: bytes,
        layout: Layout,
        generation: int,
        shards: dict[int, ShardEntry],
        images: Sequence[Any],
        patches: Sequence[Any],
        names: Sequence[Any],
    ) -> None:
        self.place = place
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
                    place=str(path),
                )
                for row_type in ROW_TYPES
            }
            common = ("store_id", "layout", "generation", "table_id")
            check_fields(path, {key: body[key] for key in common})
            entries = [ShardEntry(**entry) for entry in body["shards"]]
            _check_entries(path, entries, body["counts"])
        except DamagedError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedError(f"{path}: the trailer lacks fields or has unknown ones ({error!r})") from error
        return cls(
            place=path,
            store_id=body["store_id"],
            layout=body["layout"],
            generation=body["generation"],
            shards={entry.number: entry for entry in entries},
            **tables,
        )

    @classmethod
    def of_shard(cls, shard: Shard) -> Index:
        """Return an index of a single shard, made by walking through it."""
        header = shard.header
        directory = scan_shard(shard)
        order = np.argsort(directory.name_hashes, kind="stable")
        return cls(
            place=shard.path,
            store_id=header.store_id,
            layout=header.layout,
            generation=0,
            shards={header.number: shard_entry(header, size=len(shard.data), first_image=0)},
            images=directory.images.tolist(),
            patches=directory.patches.tolist(),
            names=list(zip(directory.name_hashes[order].tolist(), order.tolist(), strict=True)),
        )

    @property
    def tables(self) -> list[Table]:
        """The tables that lie in a file; none for an index of a single shard."""
        return [table for table in (self.images, self.patches, self.names) if isinstance(table, Table)]

    def agrees_with(self, header: ShardHeader, directory: ShardEntries) -> bool:
        """Return whether the rows of a shard are those that a walk through it gave."""
        entry = self.shards[header.number]
        first, end = entry.first_image, entry.first_image + entry.images
        if (len(directory.images), len(directory.patches)) != (entry.images, entry.patches):
            return False
        first_patch = self._image_row(first).first_patch if entry.images else 0
        if first_patch + entry.patches > len(self.patches):
            return False
        own_images = [self.images[number] for number in range(first, end)]
        own_patches = [self.patches[number] for number in range(first_patch, first_patch + entry.patches)]
        images = shifted(directory.images, "first_patch", first_patch)
        patches = shifted(directory.patches, "image", first)
        return bool(own_images == images.tolist() and own_patches == patches.tolist())

    def places(self, number: int) -> Iterator[tuple[Key, int, int]]:
        """Yield the key, payload offset and length of every value of an image, in key order.

        Raises:
            DamagedError: a damaged block of the index, or rows that contradict each other.
        """
        row = self._image_row(number)
        entry = self.shards.get(row.shard)
        end = self._image_row(number + 1).first_patch if number + 1 < len(self.images) else len(self.patches)
        if entry is None or not row.first_patch <= end <= len(self.patches):
            raise DamagedError(f"{self.place}: image {number} has rows that cannot be; run dlas-store reindex")
        image_id = number - entry.first_image + entry.first_image_id
        yield Key(image_id, Kind.METADATA, 0), row.metadata_offset, row.metadata_length
        if row.reference_offset:
            yield Key(image_id, Kind.REFERENCE, 0), row.reference_offset, row.reference_length
        patches = [PatchRow._make(self.patches[index]) for index in range(row.first_patch, end)]
        for patch in sorted(patches, key=operator.attrgetter("patch_id")):
            yield Key(image_id, Kind.PATCH, patch.patch_id), patch.offset, patch.length

    def _image_row(self, number: int) -> ImageRow:
        return ImageRow._make(self.images[number])

    def images_named(self, name_hash: int) -> Iterator[int]:
        """Yield the numbers of the images whose names have a hash."""
        for row in range(bisect_left(self.names, (name_hash, 0)), len(self.names)):
            found_hash, image = self.names[row]
            if found_hash != name_hash:
                return
            yield image


def _check_entries(path: Path, entries: Sequence[ShardEntry], counts: dict[str, int]) -> None:
    """Check that the shard table is sound and covers the rows of the other tables."""
    images = 0
    numbers = set()
    for entry in entries:
        check_fields(path, entry._asdict())
        if entry.images and entry.number in numbers:
            raise DamagedError(f"{path}: names shard {entry.number} twice")
        numbers.add(entry.number)
        if entry.first_image != images:
            raise DamagedError(f"{path}: the shard table has a gap before image {entry.first_image}")
        images += entry.images
    patches = sum(entry.patches for entry in entries)
    if (images, patches, images) != (counts["images"], counts["patches"], counts["names"]):
        raise DamagedError(f"{path}: the shard table does not cover the other tables")


def shard_entry(header: ShardHeader, *, size: int, first_image: int) -> ShardEntry:
    """Return the entry of a sealed shard in the shard table."""
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
