"""The source that reads a store: the index locates each patch, and its bytes are a slice of a mapped shard."""

from __future__ import annotations

import operator
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from simplejpeg import decode_jpeg

from dlas_store.errors import (
    ClosedError,
    DamagedError,
    ImageError,
    NameNotFoundError,
    NotASourceError,
    PatchIndexError,
)
from dlas_store.images.decode import MAX_PIXELS, Decoder
from dlas_store.images.libjpeg import PatchReader, find_libjpeg
from dlas_store.images.memory import BoundedCache, Pixels
from dlas_store.sources.base import Image, Layout, Listing, Source, relative_path
from dlas_store.storage.index import INDEX_FILE, RESTORE_HINT, ImageRow, Index, PatchRow
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
"""Maximum number of mapped shards. Each map costs a file descriptor; a process usually has 1,024."""

_CACHED_IMAGES = 1024

_VERIFY_HINT = (
    "run dlas-store verify, which lists all that is damaged, and dlas-store salvage, which copies all undamaged images "
    "to a new store"
)


class _OpenShard(NamedTuple):
    shard: Shard
    image_id_offset: int
    """Image id in the shard's keys minus image number in the store."""


class Store(Source):
    """A store folder or a single shard, as a Source.

    Opening maps the index and compares the size of each shard file with the index. The first read of a shard maps the
    shard. A store takes no lock and writes nothing, so read-only media are fine. An open store is a snapshot: an append
    by another process does not change it. Shard files must not be truncated while they are mapped: the system ends a
    process that reads a lost page (SIGBUS).
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
            decoder: library that decodes JPEG; see images.decode.
            max_pixels: height times width above which a patch is refused.
            check_shards: compare the sizes of all shards now; else each shard is checked at its first read.

        Raises:
            NotASourceError: the path is not a store.
            DamagedError: the index is damaged, or a shard in it is missing or has another size.
            FormatVersionError: a later version wrote the store.
        """
        self.decoder: Decoder = decoder
        self.max_pixels = max_pixels
        path = path.absolute()  # shards are opened later, and the program may change its working directory
        self._path = path.parent if path.name == INDEX_FILE and not path.is_dir() else path
        self._prefix = f"{self._path}/"
        self._index: Index | None = _open_index(self._path)
        self._layout = self._index.layout
        if check_shards and self._path.is_dir():
            self._index.check_sizes(self._path)
        self._shards: BoundedCache[int, _OpenShard] = BoundedCache(_OPEN_SHARDS)
        self._images: BoundedCache[int, Image] = BoundedCache(_CACHED_IMAGES)
        self._patch_ranges: BoundedCache[int, tuple[int, int]] = BoundedCache(_CACHED_IMAGES)
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
        """Return the encoded bytes of a patch as a view of the mapped shard, checked against their checksum."""
        # This runs for each patch of a batch, and making a PatchRow would take as long as reading the row.
        offset, patch_id, length, image, shard_number = self._patch_values(index)
        shard, image_id_offset = self._shards.peek(shard_number) or self._shard(shard_number)
        try:
            key = pack_key(image + image_id_offset, Kind.PATCH, patch_id)
            return view_payload(shard.view, key, offset, length, shard.path)
        except DamagedError as error:
            raise DamagedError(f"{error} ({self._label_patch(index)}); {_VERIFY_HINT}") from error

    def prefetch(self, indices: Sequence[int], /) -> None:
        """Prefetch patches and the references of their images; see Source.prefetch."""
        ranges = set()
        for index in indices:
            offset, _, length, number, shard_number = self._patch_values(index)
            ranges.add((shard_number, offset, length))
            image = self._image_row(number)
            if image.reference_offset:
                ranges.add((image.shard, image.reference_offset, image.reference_length))
        for shard_number, offset, length in sorted(ranges):
            self.shard(shard_number).prefetch(offset, length)

    def header_size(self, index: int) -> tuple[int, int]:
        """Return the height and width in a patch's image header; see Source.header_size."""
        reader = self._reader  # read once, because another thread may close the store
        size = None if reader is None else reader.claimed_size(index)
        return size or super().header_size(index)

    def decode_into(self, index: int, out: Pixels) -> Pixels:
        """Decode a patch; see Source.decode_into."""
        reader = self._reader  # read once, because another thread may close the store
        if reader is not None and reader.read_into(index, out):
            return out
        return super().decode_into(index, out)

    def decode_many_into(self, indices: list[int], outs: list[Pixels]) -> list[Pixels]:
        """Decode patches, each into its array; see Source.decode_many_into."""
        reader = self._reader  # read once, because another thread may close the store
        decoded = 0 if reader is None else reader.read_all_into(indices, outs)
        if decoded == len(indices) == len(outs):
            return outs
        # The reader stopped at a patch that it cannot decode. Asking it again for each later patch costs little.
        remaining = zip(indices[decoded:], outs[decoded:], strict=True)
        return [*outs[:decoded], *(self.decode_into(index, out) for index, out in remaining)]

    def locate(self, index: int) -> tuple[int, int]:
        """Return (image number, position of the patch in its image)."""
        _, _, _, image, _ = self._patch_values(index)
        first, end = self._patch_ranges.peek(image) or self._patch_ranges.get(image, self._patch_range)
        index = operator.index(index)
        if not first <= index < end:
            raise DamagedError(f"{self.index.path}: patch {index} is none of image {image}; run dlas-store reindex")
        return image, index - first

    def first_patch(self, number: int) -> int:
        """Return the index of an image's first patch; for ``image_count``, return the number of patches."""
        return len(self) if number == self.image_count else self._image_row(number).first_patch

    def path_at(self, number: int, position: int) -> str:
        """Return the path of a patch from its image number and position; see Source.path_at."""
        image = self._images.peek(number) or self.image(number)
        return self._prefix + relative_path(self._layout, image.name, image.files[position])

    def image(self, number: int) -> Image:
        """Return the metadata of an image."""
        return self._images.get(operator.index(number), self._read_image)

    def read_reference(self, number: int) -> bytes | None:
        """Return the encoded bytes of an image's reference, None if it has no reference."""
        number = operator.index(number)
        row = self._image_row(number)
        if not row.reference_offset:
            return None
        shard, image_id_offset = self._shard(row.shard)
        key = pack_key(number + image_id_offset, Kind.REFERENCE)
        try:
            return read_payload(shard.data, key, row.reference_offset, row.reference_length, shard.path)
        except DamagedError as error:
            raise DamagedError(f"{error} (ref.jpg of {self._label(number)}); {_VERIFY_HINT}") from error

    def find_image(self, name: str) -> int:
        """Return the number of the image with a name; see Source.find_image."""
        for number in self.index.images_named(name_hash(name)):
            if self.image(number).name == name:
                return number
        raise NameNotFoundError(f"{self._path}: holds no image {name!r}")

    def listings(self) -> Iterator[Listing]:
        """Yield the files of every image in order, with one image in memory at a time."""
        for number in range(self.image_count):
            image = self._read_image(number)
            sizes = self.patch_sizes(number)
            row = self._image_row(number)
            yield Listing(image.name, image.files, sizes, row.reference_length if row.reference_offset else None)

    def patch_sizes(self, number: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return the size of each patch of an image in bytes, int64 (patches,)."""
        patches = range(*self._patch_range(number))
        lengths = (PatchRow._make(self._patch_values(index)).length for index in patches)
        return np.fromiter(lengths, np.int64, len(patches))

    def patch_count(self, number: int) -> int:
        """Return the number of patches of an image."""
        first, end = self._patch_range(number)
        return end - first

    def payload_bytes(self, number: int) -> int:
        """Return the size of all patches and the reference of an image, in bytes."""
        return int(self.patch_sizes(number).sum()) + self._image_row(number).reference_length

    def has_reference(self, number: int) -> bool:
        """Return whether an image has a reference."""
        return self._image_row(number).reference_offset != 0

    def shard(self, number: int) -> Shard:
        """Return a shard, after a check that its file is the shard in the index."""
        return self._shard(number).shard

    def close(self) -> None:
        """Release all maps; see Source.close."""
        self._index = self._reader = None
        self._shards.clear()  # the reader shares this dict
        self._images.clear()
        self._patch_ranges.clear()

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
        """Return a C reader of undamaged patches, or None if extension, decoder or index do not allow one."""
        rows = index.patches
        if PatchReader is None or self.decoder != "simplejpeg" or not isinstance(rows, Table):
            return None
        max_pixels = int(min(self.max_pixels, sys.maxsize))  # it may be infinite, and C takes an integer
        return PatchReader(*rows.mapped, self._shards.entries, decode_jpeg, max_pixels, find_libjpeg)

    def _image_error(self, index: int, error: ImageError) -> ImageError:
        return ImageError(f"{self._path}: {self._label_patch(index)}: {error}")

    def _label(self, number: int) -> str:
        """Return an image's label for error messages: its name, or its number if the metadata is damaged."""
        try:
            return f"image {self.image(number).name!r}"
        except DamagedError:
            return f"image {number}"

    def _label_patch(self, index: int) -> str:
        """Return a patch's label for error messages: index, file name and image."""
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
            raise DamagedError(f"{error} (metadata of image {number}); {_VERIFY_HINT}") from error
        if len(image.files) != self.patch_count(number):
            raise DamagedError(
                f"{self.index.path}: lists other patches of image {number} than its metadata; {_VERIFY_HINT}"
            )
        return image

    def _patch_range(self, number: int) -> tuple[int, int]:
        """Return the indices of an image's patches as (first, end), end exclusive."""
        number = operator.index(number)  # a narrow integer of NumPy would overflow below
        first, end = self.first_patch(number), self.first_patch(number + 1)
        if not first <= end <= len(self):
            raise DamagedError(f"{self.index.path}: image {number} has rows that cannot be; run dlas-store reindex")
        return first, end

    def _check_open(self) -> Index:
        if self._index is None:
            raise ClosedError(f"{self._path}: the store was closed; open it again with open_source")
        return self._index

    def _patch_values(self, index: int) -> tuple[int, int, int, int, int]:
        """Return the fields of a patch's PatchRow as a plain tuple."""
        reader = self._reader
        if reader is not None and (row := reader.row(index)) is not None:
            return row
        rows = self._check_open().patches
        index = operator.index(index)  # a narrow integer of NumPy would overflow below
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

    def _shard(self, number: int) -> _OpenShard:
        return self._shards.get(number, self._open_shard)

    def _open_shard(self, number: int) -> _OpenShard:
        entry = self.index.shards.get(number)
        if entry is None:
            raise DamagedError(f"{self.index.path}: names no shard {number}; run dlas-store reindex")
        path = self._path if self._path.is_file() else self._path / shard_file_name(number)
        try:
            shard = Shard(path)
        except (DamagedError, NotASourceError) as error:
            if isinstance(error.__cause__, OSError) and path.is_file():
                raise  # the file may not be read, or too many files are open; the store may be sound
            kind = DamagedError if path.exists() else NotASourceError
            raise kind(f"{error}; {RESTORE_HINT}") from error
        self.index.check_shard(shard, entry)
        return _OpenShard(shard, entry.first_image_id - entry.first_image)


def _open_index(path: Path) -> Index:
    """Open the index of a store folder, or build the index of a shard file."""
    if _is_file(path):
        return Index.of_shard(Shard(path))
    if not _is_file(path / INDEX_FILE):
        if not path.exists():
            raise NotASourceError(f"{path}: does not exist")
        if not path.is_dir() or not has_shards(path):
            raise NotASourceError(f"{path} is not a store: it has no {INDEX_FILE}")
        if path.suffix == ".partial":
            raise NotASourceError(f"{path}: is an import that did not end; run the same import again")
        raise NotASourceError(f"{path}: has shards but no {INDEX_FILE}; run dlas-store reindex {path}")
    try:
        return Index.open(path / INDEX_FILE)
    except (DamagedError, NotASourceError) as error:
        if isinstance(error.__cause__, OSError):
            raise  # the index may not be read, or too many files are open; the store may be sound
        raise DamagedError(f"{error}; or run dlas-store reindex {path}, which rebuilds it from the shards") from error


def _is_file(path: Path) -> bool:
    """Return whether a path leads to a file.

    Raises:
        NotASourceError: the path may not be searched, so that it is unknown.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise NotASourceError(f"{path}: cannot be opened ({error.strerror})") from error
