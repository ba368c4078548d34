"""The index rows of a shard, made by a scan of the entries in the shard's tree."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlas_store.errors import DamagedError
from dlas_store.keys import Key, Kind
from dlas_store.lmdb_pages import Entry
from dlas_store.shard import Shard, name_hash, read_image, view_payload
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


class Directory(NamedTuple):
    """The entries of a shard as rows of the index, with images and patches counted from the shard's first.

    Attributes:
        images: a row an image, of IMAGE_ROW.
        patches: a row a patch, of PATCH_ROW, in item order.
        name_hashes: name_hash() of each image's name.
    """

    images: NDArray[np.void]
    patches: NDArray[np.void]
    name_hashes: NDArray[np.uint64]


_PAGES_HELD_BYTES = 32 << 20
"""The scan releases a shard's pages after reading this many bytes, so that they do not add up in memory."""


def shifted(rows: NDArray[np.void], column: str, by: int) -> NDArray[np.void]:
    """Return a copy of rows with ``by`` added to one column."""
    rows = rows.copy()
    rows[column] += by
    return rows


def read_directory(shard: Shard, *, check_values: bool = False) -> Directory:
    """Return the index rows of all values, from a scan of the shard's tree.

    Args:
        shard: the shard.
        check_values: also check the checksum of every patch and reference; metadata is always checked.

    Raises:
        DamagedError: keys, metadata and counts disagree, or a checksum does not match.
    """
    entries: list[tuple[Key, Entry]] = []
    builder = _DirectoryBuilder(shard)
    bytes_read = 0
    for key, entry in shard.values():
        if check_values:
            view_payload(shard.view, entry.key, entry.offset, entry.length, shard.path)
            bytes_read += entry.length
        if bytes_read >= _PAGES_HELD_BYTES:
            shard.release_pages()
            bytes_read = 0
        if entries and entries[0][0].image_id != key.image_id:
            builder.add(entries)
            entries = []
        entries.append((key, entry))
    if entries:
        builder.add(entries)
    return builder.finish()


class _DirectoryBuilder:
    """Collects the rows of a shard, an image at a time."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._images = bytearray()
        self._patches = bytearray()
        self._hashes = array("Q")

    def add(self, entries: Sequence[tuple[Key, Entry]]) -> None:
        """Add the rows of one image.

        Args:
            entries: key and payload of each of the image's values, in key order.
        """
        header = self._shard.header
        number = len(self._hashes)
        image_id = header.first_image + number
        metadata = self._entry(entries, Kind.METADATA)
        reference = self._entry(entries, Kind.REFERENCE)
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

    def finish(self) -> Directory:
        """Return all rows."""
        header = self._shard.header
        images = np.frombuffer(self._images, IMAGE_ROW.dtype)
        patches = np.frombuffer(self._patches, PATCH_ROW.dtype)
        if (len(images), len(patches)) != (header.images, header.patches):
            raise self._damaged(
                f"{len(images)} images and {len(patches)} patches are not the {header.images} and {header.patches} it "
                "was sealed with"
            )
        return Directory(images, patches, np.array(self._hashes, np.uint64))

    @staticmethod
    def _entry(entries: Sequence[tuple[Key, Entry]], kind: Kind) -> Entry | None:
        return next((entry for key, entry in entries[:2] if key.kind == kind), None)

    def _damaged(self, message: str) -> DamagedError:
        return DamagedError(f"{self._shard.path}: {message}; restore the file from a copy")
