"""Recovery of values from a shard's file that is damaged or truncated."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from dlas_store.errors import DamagedError
from dlas_store.lmdb_reader import iter_intact_entries
from dlas_store.sources.base import REFERENCE_FILE, Image
from dlas_store.storage.index import Index, ShardEntry
from dlas_store.storage.records import CHECKSUM, Kind, decode_image, pack_key, unpack_key
from dlas_store.storage.sealed_file import map_file
from dlas_store.storage.shard import read_payload

_CANDIDATE_COLUMNS = 5  # image id, kind, patch id, payload offset, payload length


class DamagedShard:
    """A shard's file, read through the intact pages of its LMDB tree and the rows of an index.

    Tree and index give candidate offsets. A read checks each candidate against the value's key, so it skips a wrong or
    stale offset. The object keeps 40 bytes per candidate.

    Args:
        path: path of the file, whose trailer and tree may be damaged.
        index: index that gives more candidates, or None.
        entry: the shard's entry in that index, or None.

    Raises:
        NotASourceError: the file does not exist or may not be read.
        DamagedError: the file is empty.
    """

    def __init__(self, path: Path, *, index: Index | None = None, entry: ShardEntry | None = None) -> None:
        self.path = path
        self._data = map_file(path)
        candidates = array("Q")
        if index is not None and entry is not None:
            _add_index_candidates(candidates, index, entry)
        for value in iter_intact_entries(self._data):
            with suppress(DamagedError):
                key = unpack_key(value.key)
                if value.length >= CHECKSUM.size:
                    candidates.extend((*key, value.offset + CHECKSUM.size, value.length - CHECKSUM.size))
        table = np.frombuffer(candidates, np.uint64).reshape(-1, _CANDIDATE_COLUMNS)
        self._table = table[np.argsort(table[:, 0], kind="stable")]
        self._cached_image = -1
        self._candidates_of_cached_image: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def image_ids(self) -> list[int]:
        """Return the ids of all images with at least one candidate value, intact or not."""
        ids: list[int] = np.unique(self._table[:, 0]).tolist()
        return ids

    def image(self, image_id: int) -> Image:
        """Return the metadata of an image.

        Raises:
            DamagedError: the metadata is damaged, not found, or lists no patches.
        """
        try:
            image = decode_image(self.read(image_id, Kind.METADATA))
        except DamagedError as error:
            raise DamagedError(f"its metadata {error}") from error
        if not image.files:
            raise DamagedError("it has no patches")
        return image

    def read(self, image_id: int, kind: Kind, patch_id: int = 0) -> bytes:
        """Return the payload of a value.

        Raises:
            DamagedError: the value is damaged or not found.
        """
        key = pack_key(image_id, kind, patch_id)
        candidates = self._candidates(image_id).get((kind, patch_id), ())
        for offset, length in candidates:
            with suppress(DamagedError):
                return read_payload(self._data, key, offset, length, self.path)
        raise DamagedError("is damaged" if candidates else "is not found")

    def check(self, image_id: int) -> Image:
        """Return the metadata of an image, after a check of all its values.

        Raises:
            DamagedError: a value is damaged or not found; the message names it.
        """
        image = self.image(image_id)
        for name, kind, patch_id in _values_of(image):
            try:
                self.read(image_id, kind, patch_id)
            except DamagedError as error:
                raise DamagedError(f"{name} {error}") from error
        return image

    def _candidates(self, image_id: int) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """Return (kind, patch id) -> candidate (offset, length) pairs of an image, those of the index first."""
        if self._cached_image != image_id:
            ids = self._table[:, 0]
            first, end = (np.searchsorted(ids, np.uint64(image_id), side) for side in ("left", "right"))
            self._candidates_of_cached_image = {}
            for _, kind, patch_id, offset, length in self._table[first:end].tolist():
                candidates = self._candidates_of_cached_image.setdefault((kind, patch_id), [])
                if (offset, length) not in candidates:
                    candidates.append((offset, length))
            self._cached_image = image_id
        return self._candidates_of_cached_image


def _values_of(image: Image) -> Iterator[tuple[str, Kind, int]]:
    """Yield the file name, kind and patch id of each patch and the reference of an image."""
    assert image.patch_ids is not None
    if image.has_reference:
        yield REFERENCE_FILE, Kind.REFERENCE, 0
    for file, patch_id in zip(image.files, image.patch_ids.tolist(), strict=True):
        yield file, Kind.PATCH, patch_id


def _add_index_candidates(candidates: array[int], index: Index, entry: ShardEntry) -> None:
    for number in range(entry.first_image, entry.first_image + entry.images):
        with suppress(DamagedError):  # a block of the index is damaged; the tree has the same offsets
            for key, offset, length in index.values_of(number):
                candidates.extend((*key, offset, length))
