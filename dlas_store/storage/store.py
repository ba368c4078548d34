"""A store as a source: bytes are slices of mapped shards at the places its index names."""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from simplejpeg import decode_jpeg

from dlas_store.errors import (
    ClosedError,
    DamagedError,
    ForeignShardError,
    ImageError,
    NameNotFoundError,
    NotASourceError,
    PatchIndexError,
)
from dlas_store.images.decode import MAX_PIXELS, Decoder
from dlas_store.images.libjpeg import PatchReader, find_libjpeg
from dlas_store.images.memory import BoundedCache, Pixels
from dlas_store.sources.base import Image, Layout, Listing, Source, relative_path
from dlas_store.storage.index import INDEX_FILE, ImageRow, Index, PatchRow, ShardEntry, shard_entry
from dlas_store.storage.records import Kind, pack_key
from dlas_store.storage.sealed_file import Table
from dlas_store.storage.shard import (
    Shard,
    has_shards,
    name_hash,
    read_image,
    read_payload,
    shard_file_name,
    view_payload,
)

_OPEN_SHARDS = 512
"""Maps held at once; each costs a file descriptor, of which a process usually has 1,024."""

_CACHED_IMAGES = 1024

_VERIFY = "run dlas-store verify, which lists all that is damaged"
_RESTORE = "restore it from a copy, or run dlas-store reindex to go on without its images"


class _OpenShard(NamedTuple):
    shard: Shard
    image_id_offset: int
    """What to add to an image number to get the id in the shard's keys."""


class Store(Source):
    """A store folder or a single shard, as a Source.

    Opening maps the index and looks at the sizes of the shards; a shard is mapped when it is first read from. Nothing
    is locked or written, so read-only media are fine, and an append by another process goes unnoticed: an open store
    stays as it was. What a program maps must not be cut short under it: the system then ends the program (SIGBUS).
    """

    def __init__(
        self,
        path: Path,
        *,
        decoder: Decoder = "simplejpeg",
        max_pixels: int = MAX_PIXELS,
        check_shards: bool = True,
    ) -> None:
        """Open a store.

        Args:
            path: the store's folder, its index.lmdb, or a shard file.
            decoder: see pixels.decode.
            max_pixels: see pixels.decode.
            check_shards: look now whether every shard is there in its size, not only when it is first read from.

        Raises:
            NotASourceError: no store.
            DamagedError: an index that is damaged, or names shards that are missing or of another size.
            FormatVersionError: written by a later version.
        """
        self.decoder: Decoder = decoder
        self.max_pixels = max_pixels
        self._path = path.parent if path.name == INDEX_FILE else path
        self._prefix = f"{self._path}/"
        self._index: Index | None = _open_index(self._path)
        self._layout = self._index.layout
        if check_shards and self._path.is_dir():
            _check_sizes(self._path, self._index)
        self._shards: BoundedCache[int, _OpenShard] = BoundedCache(_OPEN_SHARDS)
        self._images: BoundedCache[int, Image] = BoundedCache(_CACHED_IMAGES)
        self._ranges: BoundedCache[int, tuple[int, int]] = BoundedCache(_CACHED_IMAGES)
        self._reader = self._make_reader(self._index)

    @property
    def path(self) -> Path:
        """The store's folder, or the shard file."""
        return self._path

    @property
    def layout(self) -> Layout:
        """How the store groups patches into images."""
        self._check_open()
        return self._layout

    @property
    def index(self) -> Index:
        """The store's index.

        Raises:
            ClosedError: the store was closed.
        """
        return self._check_open()

    @property
    def image_count(self) -> int:
        """Number of images."""
        return len(self.index.images)

    def __len__(self) -> int:
        """Return the number of patches."""
        return len(self.index.patches)

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of a patch, checked against its checksum."""
        return bytes(self.view(index))

    def view(self, index: int) -> memoryview:
        """Return the encoded bytes of a patch in the map, checked against their checksum."""
        # For every patch of every batch: without the names of PatchRow, which take as long to give as a row to read.
        offset, patch_id, length, image, shard_number = self._patch_values(index)
        shard, image_id_offset = self._shards.peek(shard_number) or self._shard(shard_number)
        try:
            key = pack_key(image + image_id_offset, Kind.PATCH, patch_id)
            return view_payload(shard.view, key, offset, length, shard.path)
        except DamagedError as error:
            raise DamagedError(f"{error} ({self._label_patch(index)}); {_VERIFY}") from error

    def prefetch(self, indices: Sequence[int], /) -> None:
        """Ask the system to read patches and the references of their images; see Source.prefetch."""
        places = set()
        for index in indices:
            offset, _, length, number, shard_number = self._patch_values(index)
            places.add((shard_number, offset, length))
            image = self._image_row(number)
            if image.reference_offset:
                places.add((image.shard, image.reference_offset, image.reference_length))
        for shard_number, offset, length in sorted(places):
            self.shard(shard_number).prefetch(offset, length)

    def header_size(self, index: int) -> tuple[int, int]:
        """Return the height and width that a patch claims to have; see Source.header_size."""
        reader = self._reader  # another thread may close the store
        size = None if reader is None else reader.claimed_size(index)
        return size or super().header_size(index)

    def decode_into(self, index: int, out: Pixels) -> Pixels:
        """Decode a patch; see Source.decode_into."""
        reader = self._reader  # another thread may close the store
        if reader is not None and reader.read_into(index, out):
            return out
        return super().decode_into(index, out)

    def decode_many_into(self, indices: list[int], outs: list[Pixels]) -> list[Pixels]:
        """Decode patches, each into its array; see Source.decode_many_into."""
        reader = self._reader  # another thread may close the store
        done = 0 if reader is None else reader.read_all_into(indices, outs)
        if done == len(indices) == len(outs):
            return outs
        # What is not as it should be; the reader is asked about each of the others once more, at next to no cost.
        rest = zip(indices[done:], outs[done:], strict=True)
        return [*outs[:done], *(self.decode_into(index, out) for index, out in rest)]

    def locate(self, index: int) -> tuple[int, int]:
        """Return (image number, position of the patch in its image)."""
        _, _, _, image, _ = self._patch_values(index)
        first, end = self._ranges.peek(image) or self._ranges.get(image, self._read_range)
        index = operator.index(index)
        if not first <= index < end:
            raise DamagedError(f"{self.index.place}: patch {index} is none of image {image}; run dlas-store reindex")
        return image, index - first

    def first_patch(self, number: int) -> int:
        """Return the index of an image's first patch; that of image_count is the number of patches."""
        return len(self) if number == self.image_count else self._image_row(number).first_patch

    def path_at(self, number: int, position: int) -> str:
        """Return the path of a patch by where it is; see Source.path_at."""
        image = self._images.peek(number) or self.image(number)
        return self._prefix + relative_path(self._layout, image.name, image.files[position])

    def image(self, number: int) -> Image:
        """Return what is known of an image."""
        return self._images.get(number, self._read_image)

    def read_reference(self, number: int) -> bytes | None:
        """Return the encoded bytes of an image's reference, None without one."""
        row = self._image_row(number)
        if not row.reference_offset:
            return None
        shard, image_id_offset = self._shard(row.shard)
        key = pack_key(number + image_id_offset, Kind.REFERENCE)
        try:
            return read_payload(shard.data, key, row.reference_offset, row.reference_length, shard.path)
        except DamagedError as error:
            raise DamagedError(f"{error} (ref.jpg of {self._label(number)}); {_VERIFY}") from error

    def find_image(self, name: str) -> int:
        """Return the number of the image of that name."""
        for number in self.index.images_named(name_hash(name)):
            if self.image(number).name == name:
                return number
        raise NameNotFoundError(f"{self._path}: holds no image {name!r}")

    def listings(self) -> Iterator[Listing]:
        """Yield the files of every image in order, holding no more than one image's."""
        for number in range(self.image_count):
            image = self._read_image(number)
            sizes = self.patch_sizes(number)
            row = self._image_row(number)
            yield Listing(image.name, image.files, sizes, row.reference_length if row.reference_offset else None)

    def patch_sizes(self, number: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return the bytes of each patch of an image, int64."""
        patches = range(*self._read_range(number))
        lengths = (PatchRow._make(self._patch_values(index)).length for index in patches)
        return np.fromiter(lengths, np.int64, len(patches))

    def patch_count(self, number: int) -> int:
        """Return the number of patches of an image."""
        first, end = self._read_range(number)
        return end - first

    def payload_bytes(self, number: int) -> int:
        """Return the bytes of all patches and the reference of an image."""
        return int(self.patch_sizes(number).sum()) + self._image_row(number).reference_length

    def close(self) -> None:
        """Let go of all maps."""
        self._index = self._reader = None
        self._shards.clear()  # the reader has its very dict
        self._images.clear()
        self._ranges.clear()

    def __getstate__(self) -> dict[str, Any]:
        index = self.index
        return {
            "path": self._path,
            "decoder": self.decoder,
            "max_pixels": self.max_pixels,
            "store_id": index.store_id,
            "patches": len(index.patches),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        Store.__init__(self, state["path"], decoder=state["decoder"], max_pixels=state["max_pixels"])
        if self.index.store_id != state["store_id"] or len(self) < state["patches"]:
            raise DamagedError(f"{self._path}: was replaced by another store since it was opened; open it again")

    def _make_reader(self, index: Index) -> PatchReader | None:
        """Return what reads patches that are as they should be; None where there is nothing faster than Python."""
        rows = index.patches
        if PatchReader is None or self.decoder != "simplejpeg" or not isinstance(rows, Table):
            return None
        max_pixels = int(min(self.max_pixels, sys.maxsize))
        return PatchReader(*rows.mapped, self._shards.entries, decode_jpeg, max_pixels, find_libjpeg)

    def _image_error(self, index: int, error: ImageError) -> ImageError:
        return ImageError(f"{self._path}: {self._label_patch(index)}: {error}")

    def _label(self, number: int) -> str:
        """Return what an error message calls an image whose name may be damaged too."""
        try:
            return f"image {self.image(number).name!r}"
        except DamagedError:
            return f"image {number}"

    def _label_patch(self, index: int) -> str:
        number, position = self.locate(index)
        try:
            file = self.image(number).files[position]
        except DamagedError:
            file = f"number {position}"
        return f"patch {index}, {file} of {self._label(number)}"

    def _read_image(self, number: int) -> Image:
        row = self._image_row(number)
        shard, image_id_offset = self._shard(row.shard)
        key = pack_key(number + image_id_offset, Kind.METADATA)
        try:
            image = read_image(shard.data, key, row.metadata_offset, row.metadata_length, shard.path)
        except DamagedError as error:
            raise DamagedError(f"{error} (metadata of image {number}); {_VERIFY}") from error
        if len(image.files) != self.patch_count(number):
            raise DamagedError(f"{self.index.place}: names other patches of image {number} than it has; {_VERIFY}")
        return image

    def _read_range(self, number: int) -> tuple[int, int]:
        """Return the index of an image's first patch, and that behind its last."""
        first, end = self.first_patch(number), self.first_patch(number + 1)
        if not first <= end <= len(self):
            raise DamagedError(f"{self.index.place}: image {number} has rows that cannot be; run dlas-store reindex")
        return first, end

    def _check_open(self) -> Index:
        if self._index is None:
            raise ClosedError(f"{self._path}: the store was closed; open it again with open_source")
        return self._index

    def _patch_values(self, index: int) -> tuple[int, int, int, int, int]:
        """Return what PatchRow names."""
        reader = self._reader
        if reader is not None and (found := reader.row(index)) is not None:
            return found
        rows = self._check_open().patches
        index = operator.index(index)  # numpy's narrow integers would overflow below
        if not 0 <= index < len(rows):
            raise PatchIndexError(f"{self._path}: patch {index} is not in 0 .. {len(rows) - 1}")
        values: tuple[int, int, int, int, int] = rows[index]
        return values

    def _image_row(self, number: int) -> ImageRow:
        rows = self.index.images
        number = operator.index(number)
        if not 0 <= number < len(rows):
            raise PatchIndexError(f"{self._path}: image {number} is not in 0 .. {len(rows) - 1}")
        return ImageRow._make(rows[number])

    def shard(self, number: int) -> Shard:
        """Return a shard, opened and checked to be the one that the index means."""
        return self._shard(number).shard

    def has_reference(self, number: int) -> bool:
        """Return whether an image has a reference."""
        return self._image_row(number).reference_offset != 0

    def _shard(self, number: int) -> _OpenShard:
        return self._shards.get(number, self._open_shard)

    def _open_shard(self, number: int) -> _OpenShard:
        entry = self.index.shards.get(number)
        if entry is None:
            raise DamagedError(f"{self.index.place}: names no shard {number}; run dlas-store reindex")
        path = self._path if self._path.is_file() else self._path / shard_file_name(number)
        try:
            shard = Shard(path)
        except (DamagedError, NotASourceError) as error:
            kind = DamagedError if path.exists() else NotASourceError
            raise kind(f"{error}; {_RESTORE}") from error
        _check_shard(shard, entry, self.index)
        return _OpenShard(shard, entry.first_image_id - entry.first_image)


def _open_index(path: Path) -> Index:
    if path.is_file():
        return Index.of_shard(Shard(path))
    if not (path / INDEX_FILE).is_file():
        if path.is_dir() and has_shards(path):
            if path.suffix == ".partial":
                raise NotASourceError(f"{path}: is an import that did not end; run the same import again")
            raise NotASourceError(f"{path}: has shards but no {INDEX_FILE}; run dlas-store reindex {path}")
        reason = f"is no store, it has no {INDEX_FILE}" if path.exists() else "does not exist"
        raise NotASourceError(f"{path}: {reason}")
    try:
        return Index.open(path / INDEX_FILE)
    except (DamagedError, NotASourceError) as error:
        raise DamagedError(f"{error}; or run dlas-store reindex {path}, which rebuilds it from the shards") from error


def _check_sizes(folder: Path, index: Index) -> None:
    for entry in index.shards.values():
        file = f"{folder}/{shard_file_name(entry.number)}"  # a store may have many; Path is slow
        try:
            size = os.stat(file).st_size  # noqa: PTH116
        except OSError as error:
            raise DamagedError(
                f"{file}: cannot be opened ({error.strerror}), but {INDEX_FILE} names it; {_RESTORE}"
            ) from error
        _check_size(file, size, entry)


def _check_size(file: Path | str, size: int, entry: ShardEntry) -> None:
    if size != entry.size:
        raise DamagedError(f"{file}: has {size} bytes where {INDEX_FILE} names {entry.size}; {_RESTORE}")


def _check_shard(shard: Shard, entry: ShardEntry, index: Index) -> None:
    """Check that a file is the shard that the index means."""
    header = shard.header
    if header.shard_id != entry.shard_id or header.store_id != index.store_id:
        whose = "this store" if header.store_id == index.store_id else "another store"
        raise ForeignShardError(
            f"{shard.path}: is shard {header.number} of {whose}, not the one that {index.place.name} names; {_RESTORE}"
        )
    _check_size(shard.path, len(shard.data), entry)
    if shard_entry(header, size=entry.size, first_image=entry.first_image) != entry:
        raise DamagedError(f"{shard.path}: says otherwise of itself than {index.place.name}; run dlas-store reindex")
