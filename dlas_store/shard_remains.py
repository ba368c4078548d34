"""What can still be read of a shard's file, whatever of it is damaged or cut off."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from dlas_store.errors import DamagedError
from dlas_store.index import Index, ShardEntry
from dlas_store.keys import CHECKSUM, Kind, pack_key, unpack_key
from dlas_store.lmdb_pages import scan
from dlas_store.metadata import decode_image
from dlas_store.sealed_file import map_file
from dlas_store.shard import read_payload
from dlas_store.source import REFERENCE_FILE, Image

_COLUMNS = 5  # image id, kind, patch id, offset, length


class ShardRemains:
    """Finds values in the file of a shard by its tree pages that are whole, and by the rows of an index.

    Every value is checked against its key, so that a place that is wrong or out of date is passed over. Holds 40 bytes
    for each place.

    Args:
        path: the file; its trailer and tree need not be whole.
        index: where values lie as well; None without one.
        entry: the shard's entry in that index.

    Raises:
        NotASourceError: no such file, or one that may not be read.
        DamagedError: an empty one.
    """

    def __init__(self, path: Path, *, index: Index | None = None, entry: ShardEntry | None = None) -> None:
        self.path = path
        self._data = map_file(path)
        places = array("Q")
        if index is not None and entry is not None:
            _add_index_places(places, index, entry)
        for found in scan(self._data):
            with suppress(DamagedError):
                key = unpack_key(found.key)
                if found.length >= CHECKSUM.size:
                    places.extend((*key, found.offset + CHECKSUM.size, found.length - CHECKSUM.size))
        table = np.frombuffer(places, np.uint64).reshape(-1, _COLUMNS)
        self._places = table[np.argsort(table[:, 0], kind="stable")]
        self._read_of = -1
        self._places_of: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def image_ids(self) -> list[int]:
        """Return the ids of all images that a value was found of, whole or not."""
        ids: list[int] = np.unique(self._places[:, 0]).tolist()
        return ids

    def image(self, image_id: int) -> Image:
        """Return what is known of an image.

        Raises:
            DamagedError: its metadata is damaged or not found.
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
            DamagedError: it is damaged or not found.
        """
        key = pack_key(image_id, kind, patch_id)
        candidates = self._candidates(image_id).get((kind, patch_id), ())
        for offset, length in candidates:
            with suppress(DamagedError):
                return read_payload(self._data, key, offset, length, self.path)
        raise DamagedError("is damaged" if candidates else "is not found")

    def check(self, image_id: int) -> Image:
        """Return what is known of an image after reading all of it.

        Raises:
            DamagedError: some of it is damaged or not found; says what.
        """
        image = self.image(image_id)
        for name, kind, patch_id in _values_of(image):
            try:
                self.read(image_id, kind, patch_id)
            except DamagedError as error:
                raise DamagedError(f"{name} {error}") from error
        return image

    def _candidates(self, image_id: int) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """Return the places that were found for each value of an image, those of the index first."""
        if self._read_of != image_id:
            wanted = np.uint64(image_id)
            first, end = (np.searchsorted(self._places[:, 0], wanted, side) for side in ("left", "right"))
            self._places_of = {}
            for _, kind, patch_id, offset, length in self._places[first:end].tolist():
                known = self._places_of.setdefault((kind, patch_id), [])
                if (offset, length) not in known:
                    known.append((offset, length))
            self._read_of = image_id
        return self._places_of


def _values_of(image: Image) -> Iterator[tuple[str, Kind, int]]:
    """Yield the file, kind and patch id of the values that an image has beside its metadata."""
    assert image.patch_ids is not None
    if image.has_reference:
        yield REFERENCE_FILE, Kind.REFERENCE, 0
    for file, patch_id in zip(image.files, image.patch_ids.tolist(), strict=True):
        yield file, Kind.PATCH, patch_id


def _add_index_places(places: array[int], index: Index, entry: ShardEntry) -> None:
    for number in range(entry.first_image, entry.first_image + entry.images):
        with suppress(DamagedError):  # a damaged block of the index; the tree has the same
            for key, offset, length in index.places(number):
                places.extend((*key, offset, length))
