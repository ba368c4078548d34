"""RecordSource, the base class of sources whose pictures lie inside other files, such as archives and databases."""

from __future__ import annotations

import os
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from posixpath import basename
from typing import Any

import msgpack
import numpy as np

from dlas_store.errors import ClosedError, DamagedError, NameNotFoundError, NotASourceError, PatchIndexError
from dlas_store.images.decode import MAX_PIXELS, Decoder
from dlas_store.sources.base import Image, Layout, Listing, Source
from dlas_store.sources.centers import read_centers
from dlas_store.sources.containers import (
    CENTERS,
    MAX_FIELD_BYTES,
    MAX_RECORD_BYTES,
    PATCH,
    REFERENCE,
    Container,
    FindImages,
    Record,
    RecordImage,
    parse_field,
)
from dlas_store.sources.folder import Names


class RecordSource(Source):
    """A source whose patches are records of a container; Source documents the methods.

    The first call that needs an index or a name lists the container and keeps the place of every record.

    Args:
        container: the files.
        find_images: says which records are images.
        layout: layout of the images; None takes the layout that the records show.
        images: the images to read, sorted by name, if ``layout`` is given; None reads all that ``find_images`` finds.
        decoder: decoder of JPEG.
        max_pixels: height times width above which a patch is refused.
    """

    def __init__(
        self,
        container: Container,
        find_images: FindImages,
        *,
        layout: Layout | None = None,
        images: Sequence[RecordImage] | None = None,
        decoder: Decoder = "simplejpeg",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._container = container
        self._find_images = find_images
        self._layout = layout
        self._images = images
        self.decoder = decoder
        self.max_pixels = max_pixels
        self._is_closed = False
        self._index: _RecordIndex | None = None
        # A lock for each process, because a lock that a thread holds during a fork stays locked in the child.
        self._locks: dict[int, threading.Lock] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        options: dict[str, Any] = {"layout": self._layout, "decoder": self.decoder, "max_pixels": self.max_pixels}
        open_with_options = partial(type(self), images=self._images, **options)
        return open_with_options, (self._container, self._find_images)

    @property
    def path(self) -> Path:
        """The file or folder of the container."""
        return self._container.path

    @property
    def layout(self) -> Layout:
        """The way in which the source groups patches into images."""
        return self._load_index().layout

    @property
    def image_count(self) -> int:
        """Number of images."""
        return len(self._load_index().names)

    def __len__(self) -> int:
        return self._load_index().first_patches[-1]

    def read(self, index: int) -> bytes:
        """Return the bytes of a patch's record."""
        return bytes(self.view(index))

    def view(self, index: int) -> bytes | memoryview:
        """Return the bytes of a patch's record, without a copy if the container is mapped; see Source.view."""
        number, position = self.locate(index)
        record = self._load_index().patch(number, position)
        return self._read(record, self.path_at(number, position))

    def locate(self, index: int) -> tuple[int, int]:
        """Return (image number, position of the patch in its image)."""
        first_patches = self._load_index().first_patches
        if not 0 <= index < first_patches[-1]:
            raise PatchIndexError(f"{self.path}: patch {index} of {first_patches[-1]}")
        number = bisect_right(first_patches, index) - 1
        return number, index - first_patches[number]

    def first_patch(self, number: int) -> int:
        """Return the index of an image's first patch; ``first_patch(image_count)`` is ``len(source)``."""
        index = self._load_index()
        if not 0 <= number <= len(index.names):
            raise PatchIndexError(f"{self.path}: image {number} of {len(index.names)}")
        return index.first_patches[number]

    def image_name(self, number: int) -> str:
        """Return the name of an image."""
        return self._indexed(number).names[number]

    def image(self, number: int) -> Image:
        """Return the names and metadata of an image; fields are read from their records."""
        return self._image(number, with_centers=True)

    def image_without_centers(self, number: int) -> Image:
        """Return an image with ``centers`` None, without reading its centres."""
        return self._image(number, with_centers=False)

    def read_reference(self, number: int) -> bytes | None:
        """Return the bytes of an image's reference, None without one."""
        image = self._indexed(number).image(number)
        for record in image.records.get(REFERENCE, ()):
            return bytes(self._read(record, f"{self.path}/{record.path}"))
        return None

    def find_image(self, name: str) -> int:
        """Return the number of the image with a name, or raise NameNotFoundError."""
        names = self._load_index().names
        number = names.find_sorted(name, 0, len(names))
        if number is None:
            raise NameNotFoundError(f"{self.path}: no image {name!r}")
        return number

    def subset(self, names: Sequence[str]) -> RecordSource:
        """Return a source of the named images, which knows their records and lists no container."""
        index = self._load_index()
        images = [index.image(self.find_image(name)) for name in sorted(names)]
        return type(self)(
            self._container,
            self._find_images,
            layout=index.layout,
            images=images,
            decoder=self.decoder,
            max_pixels=self.max_pixels,
        )

    def listings(self) -> Iterator[Listing]:
        """Yield the listing of every image in order."""
        index = self._load_index()
        for number in range(len(index.names)):
            image = index.image(number)
            patches = image.records[PATCH]
            files = tuple(basename(record.path) for record in patches)
            sizes = np.array([record.size for record in patches], np.int64)
            reference_size = next((record.size for record in image.records.get(REFERENCE, ())), None)
            yield Listing(image.name, files, sizes, reference_size)

    def close(self) -> None:
        """Release the container's files and the memory of the records."""
        self._is_closed = True
        self._index = None
        self._container.close()

    def _image(self, number: int, *, with_centers: bool) -> Image:
        image = self._indexed(number).image(number)
        extra = dict(image.extra)
        centers = None
        for role, records in image.records.items():
            for record in records:
                if role == CENTERS and with_centers:
                    centers = read_centers(bytes(self._read_small(record)))
                elif role not in (PATCH, REFERENCE, CENTERS):
                    extra[role] = self._field(record)
        return Image(
            name=image.name,
            files=tuple(basename(record.path) for record in image.records[PATCH]),
            centers=centers,
            has_reference=REFERENCE in image.records,
            extra=extra,
        )

    def _field(self, record: Record) -> Any:
        try:
            return parse_field(record.path, bytes(self._read_small(record)))
        except ValueError as error:
            raise DamagedError(f"{self.path}/{record.path}: {error}; mend or remove the file") from error

    def _read_small(self, record: Record) -> bytes | memoryview:
        path = f"{self.path}/{record.path}"
        if record.size > MAX_FIELD_BYTES:
            raise DamagedError(f"{path}: has {record.size} bytes, more than the {MAX_FIELD_BYTES} of a field")
        return self._read(record, path)

    def _read(self, record: Record, path: str) -> bytes | memoryview:
        if record.size > MAX_RECORD_BYTES:
            raise DamagedError(f"{path}: has {record.size} bytes, more than the {MAX_RECORD_BYTES} of a picture")
        try:
            return self._container.read(record)
        except DamagedError as error:
            raise DamagedError(f"{path}: {error}") from error

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError(f"{self.path}: the source is closed")

    def _indexed(self, number: int) -> _RecordIndex:
        """Return the index, after a check that it has an image of a number."""
        index = self._load_index()
        if not 0 <= number < len(index.names):
            raise PatchIndexError(f"{self.path}: image {number} of {len(index.names)}")
        return index

    def _load_index(self) -> _RecordIndex:
        """Return the places of all records; the first call lists the container, once for all threads."""
        self._check_open()
        index = self._index
        if index is None:
            with self._locks.setdefault(os.getpid(), threading.Lock()):
                index = self._index = self._index or self._make_index()
        return index

    def _make_index(self) -> _RecordIndex:
        if self._images is None:
            layout, images = self._find_images(self._container, self._layout)
        else:
            assert self._layout is not None
            layout, images = self._layout, iter(self._images)
        index = _RecordIndex(layout)
        for image in images:
            if len(index.names) and index.names[len(index.names) - 1] >= image.name:
                raise DamagedError(f"{self.path}: holds two pictures called {image.name!r}; pack it again with one")
            index.add(image)
        self.skipped = self._container.skipped
        return index


class _RecordIndex:
    """The places of all records, in arrays: some 50 bytes a record beyond its path.

    Attributes:
        layout: layout of the images.
        names: names of the images.
        first_patches: index of each image's first patch, then the number of patches.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.names = Names()
        self.first_patches = array("Q", [0])
        self._first_records = array("Q", [0])
        self._paths = Names()
        self._numbers = array("Q")  # part, offset, size, packed size and checksum of each record
        self._roles = array("H")
        self._role_names: list[str] = [PATCH]
        self._extras: dict[int, bytes] = {}

    def add(self, image: RecordImage) -> None:
        """Add an image whose name comes after those of the images before it."""
        if image.extra:
            self._extras[len(self.names)] = msgpack.packb(image.extra)
        self.names.append(image.name)
        self.first_patches.append(self.first_patches[-1] + len(image.records[PATCH]))
        for role in sorted(image.records, key=PATCH.__ne__):  # the patches come first
            if role not in self._role_names:
                self._role_names.append(role)
            for record in image.records[role]:
                self._paths.append(record.path)
                self._numbers.extend(record[1:])
                self._roles.append(self._role_names.index(role))
        self._first_records.append(len(self._roles))

    def patch(self, number: int, position: int) -> Record:
        """Return the record of a patch."""
        return self._record(self._first_records[number] + position)

    def image(self, number: int) -> RecordImage:
        """Return the records of an image."""
        records: dict[str, list[Record]] = {}
        for position in range(self._first_records[number], self._first_records[number + 1]):
            records.setdefault(self._role_names[self._roles[position]], []).append(self._record(position))
        packed = self._extras.get(number)
        return RecordImage(self.names[number], records, {} if packed is None else msgpack.unpackb(packed))

    def _record(self, position: int) -> Record:
        return Record(self._paths[position], *self._numbers[5 * position : 5 * position + 5])


def check_not_empty(source: RecordSource) -> RecordSource:
    """Return the source if it holds an image.

    Raises:
        NotASourceError: it holds none.
    """
    if source.image_count:
        return source
    raise NotASourceError(f"{source.path}: holds no pictures")
