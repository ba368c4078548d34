"""FolderSource, the base of sources that read a folder: its list of images, and the files of each."""

from __future__ import annotations

import os
import threading
from abc import abstractmethod
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dlas_store.errors import ClosedError, DamagedError, NameNotFoundError, NotASourceError, PatchIndexError
from dlas_store.images.decode import IMAGE_ENDINGS, MAX_PIXELS, Decoder
from dlas_store.images.memory import BoundedCache
from dlas_store.sources.base import REFERENCE_FILE, Center, Image, Layout, Listing, Source, relative_path
from dlas_store.sources.walk import EXTRA_FILE, ExtraFields, FolderWalk, SkippedPath


class Names:
    """A growing list of names, kept as one UTF-8 string: some 8 bytes a name beyond its own.

    A list of str costs five times as much, and a forked process copies it page by page as it counts references.

    >>> names = Names()
    >>> for name in ("a", "b", "é"):
    ...     names.append(name)
    >>> names[2], len(names), names.find_sorted("b", 0, 3), names.find_sorted("c", 0, 3)
    ('é', 3, 1, None)
    """

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends = array("Q", [0])

    def append(self, name: str) -> None:
        """Add a name at the end."""
        self._text += name.encode()
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._ends) - 1

    def __getitem__(self, position: int) -> str:
        """Return the name at 0 <= position < len(self)."""
        return self._text[self._ends[position] : self._ends[position + 1]].decode()

    def find_sorted(self, name: str, start: int, stop: int) -> int | None:
        """Return the position of a name among those from start up to stop, which are sorted by code point."""
        position = bisect_left(self, name, start, stop)
        return position if position < stop and self[position] == name else None


_CACHED_IMAGES = 64
_ENDINGS = tuple(IMAGE_ENDINGS)


class FoundImage(NamedTuple):
    """An image as a walk finds it: names only."""

    name: str
    files: Sequence[str]
    has_reference: bool
    has_centers: bool


class FolderSource(Source):
    """A source whose patches are files; see Source for what its methods promise.

    Opening lists nothing. What needs all names (numbers, ``len``, ``find``) lists the folder once and keeps the names;
    ``listings`` walks it anew and keeps none.

    Args:
        path: the folder.
        images: take only these images; None takes all.
        decoder: what decodes JPEG.
        max_pixels: height times width above which a patch is refused.

    Attributes:
        left_out: what the latest walk left out, and why; complete once the walk is over.

    Raises:
        NotASourceError: the path is no folder.
    """

    layout: Layout

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        images: Sequence[str] | None = None,
        decoder: Decoder = "simplejpeg",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._path = Path(path)
        self.skipped: list[SkippedPath] = []
        self._images = None if images is None else tuple(sorted(images))
        self.decoder: Decoder = decoder
        self.max_pixels = max_pixels
        self._closed = False
        self._index: _Index | None = None
        # A lock for each process: one that another thread holds during a fork stays locked in the child.
        self._locks: dict[int, threading.Lock] = {}
        self._cached_images: BoundedCache[int, Image] = BoundedCache(_CACHED_IMAGES)
        if not self.path.is_dir():
            raise NotASourceError(f"{self.path}: not a folder")

    def __reduce__(self) -> tuple[Any, ...]:
        options = partial(type(self), images=self._images, decoder=self.decoder, max_pixels=self.max_pixels)
        return options, (self.path,)

    @abstractmethod
    def _find_images(self, walk: FolderWalk, images: tuple[str, ...] | None) -> Iterator[FoundImage]:
        """Yield the images of the folder in order, or those named; note in the walk what is left out."""

    @abstractmethod
    def _read_centers(self, image: str) -> dict[int, Center]:
        """Return the centres of an image that has some."""

    @property
    def path(self) -> Path:
        """The folder."""
        return self._path

    @property
    def image_count(self) -> int:
        """Number of images."""
        return len(self._listed().images)

    def __len__(self) -> int:
        return len(self._listed().files)

    def read(self, index: int) -> bytes:
        """Return the bytes of a patch's file."""
        return self._read_file(self.patch_path(index))

    def locate(self, index: int) -> tuple[int, int]:
        """Return (image number, position of the patch in its image)."""
        first = self._listed().first
        if not 0 <= index < first[-1]:
            raise PatchIndexError(f"{self.path}: patch {index} of {first[-1]}")
        number = bisect_right(first, index) - 1
        return number, index - first[number]

    def first_patch(self, number: int) -> int:
        """Return the index of an image's first patch, the number of patches for image_count."""
        index = self._listed()
        if not 0 <= number <= len(index.images):
            raise PatchIndexError(f"{self.path}: image {number} of {len(index.images)}")
        return index.first[number]

    def path_at(self, number: int, position: int) -> str:
        """Return the path of a patch's file by where it is; see Source.path_at."""
        listed = self._listed()
        file = listed.files[listed.first[number] + position]
        return f"{self._path}/{relative_path(self.layout, listed.images[number], file)}"

    def image_name(self, number: int) -> str:
        """Return the name of an image."""
        self._check_image_number(number)
        return self._listed().images[number]

    def image(self, number: int) -> Image:
        """Return what is known of an image; the latest are kept."""
        self._check_image_number(number)
        return self._cached_images.get(number, self._read_image)

    def image_without_centers(self, number: int) -> Image:
        """Return what is known of an image whose centers.pt cannot be read."""
        self._check_image_number(number)
        return self._read_image(number, centers=False)

    def subset(self, names: Sequence[str]) -> FolderSource:
        """Return a source of these images, which lists no others."""
        self._check_open()
        return type(self)(self._path, images=names, decoder=self.decoder, max_pixels=self.max_pixels)

    def read_reference(self, number: int) -> bytes | None:
        """Return the bytes of an image's ref.jpg, None without one."""
        self._check_image_number(number)
        index = self._listed()
        if not index.has_reference[number]:
            return None
        return self._read_file(f"{self.path}/{index.images[number]}/{REFERENCE_FILE}")

    def find_image(self, name: str) -> int:
        """Return the number of the image of that name, or raise NameNotFoundError."""
        images = self._listed().images
        number = images.find_sorted(name, 0, len(images))
        if number is None:
            raise NameNotFoundError(f"{self.path}: no image {name!r}")
        return number

    def find(self, image: str, file: str) -> int:
        """Return the index of a patch by image and file name, or raise NameNotFoundError."""
        index = self._listed()
        number = self.find_image(image)
        found = index.files.find_sorted(file, index.first[number], index.first[number + 1])
        if found is None:
            raise NameNotFoundError(f"{self.path}: no patch {file!r} in image {image!r}")
        return found

    def listings(self) -> Iterator[Listing]:
        """Yield the files of every image in order."""
        self._check_open()
        root = str(self.path)
        for found in self._walk():
            paths = (f"{root}/{relative_path(self.layout, found.name, file)}" for file in found.files)
            sizes = np.fromiter(map(_size, paths), np.int64, len(found.files))
            reference = _size(f"{root}/{found.name}/{REFERENCE_FILE}") if found.has_reference else None
            yield Listing(found.name, tuple(found.files), sizes, reference)

    def close(self) -> None:
        """Forget what was listed."""
        self._closed = True
        self._index = None
        self._cached_images.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self.path}: the source is closed")

    def _check_image_number(self, number: int) -> None:
        if not 0 <= number < self.image_count:
            raise PatchIndexError(f"{self.path}: image {number} of {self.image_count}")

    def _listed(self) -> _Index:
        self._check_open()
        index = self._index
        if index is None:
            with self._locks.setdefault(os.getpid(), threading.Lock()):
                index = self._index = self._index or self._list()
        return index

    def _list(self) -> _Index:
        index = _Index(ExtraFields(self.path, images=self._images))
        for found in self._walk(index.extras):
            index.add(found)
        return index

    def _walk(self, extras: ExtraFields | None = None) -> Iterator[FoundImage]:
        """Yield the images, and fill left_out with what else there is."""
        if extras is None:
            extras = ExtraFields(self.path, images=self._images)
        walk = FolderWalk(self.path)
        self.skipped = walk.skipped
        without_image = set(extras.images)
        for found in self._find_images(walk, self._images):
            without_image.discard(found.name)
            yield found
        walk.finish()
        walk.skip((f"{EXTRA_FILE}: {name}" for name in sorted(without_image)), "fields of an image that is not there")

    def _read_image(self, number: int, *, centers: bool = True) -> Image:
        index = self._listed()
        name = index.images[number]
        files = tuple(index.files[patch] for patch in range(index.first[number], index.first[number + 1]))
        return Image(
            name=name,
            files=files,
            centers=self._read_centers(name) if centers and index.has_centers[number] else None,
            has_reference=bool(index.has_reference[number]),
            extra=index.extras.of(name),
        )

    def _read_file(self, path: str) -> bytes:
        # Path objects would double the time of reading a small file.
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123
                return file.read()
        except OSError as error:
            raise _unreadable(path, error) from error


class _Index:
    """The names of a folder's images and patches: what numbers stand for."""

    def __init__(self, extras: ExtraFields) -> None:
        self.extras = extras
        self.images = Names()
        self.files = Names()
        self.first = array("Q", [0])
        self.has_reference = bytearray()
        self.has_centers = bytearray()

    def add(self, found: FoundImage) -> None:
        self.images.append(found.name)
        for file in found.files:
            self.files.append(file)
        self.first.append(len(self.files))
        self.has_reference.append(found.has_reference)
        self.has_centers.append(found.has_centers)


def is_picture(file: str) -> bool:
    """Tell from its ending whether a file is a picture.

    >>> is_picture("a/1.JPG"), is_picture("1.jpg.partial")
    (True, False)
    """
    return file.lower().endswith(_ENDINGS)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - as for reading
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> DamagedError:
    return DamagedError(f"{path}: cannot be read ({error.strerror}), though it was listed")
