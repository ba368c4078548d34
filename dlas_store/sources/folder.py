"""FolderSource, the base class of sources that read a folder: it lists images and reads their files."""

from __future__ import annotations

import operator
import os
import threading
from abc import abstractmethod
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dlas_store.errors import ClosedError, DamagedError, ImageError, NameNotFoundError, NotASourceError, PatchIndexError
from dlas_store.images.decode import IMAGE_ENDINGS, LARGE_FILE_BYTES, MAX_PIXELS, Decoder, check_large_file
from dlas_store.images.memory import BoundedCache
from dlas_store.sources.base import REFERENCE_FILE, Center, Image, Layout, Listing, Source, relative_path
from dlas_store.sources.walk import EXTRA_FILE, ExtraFields, FolderWalk, SkippedPath

_CACHED_IMAGES = 64
_ENDINGS = tuple(IMAGE_ENDINGS)
_JPEG_ENDINGS = frozenset({".jfif", ".jif", ".jfi", ".jpe"})
_UNREAD_ENDINGS = _JPEG_ENDINGS | {
    ".arw", ".avif", ".cr2", ".cr3", ".dng", ".exr", ".gif", ".hdr", ".heic", ".heif", ".ico", ".j2k", ".jp2", ".jxl",
    ".nef", ".orf", ".pbm", ".pcx", ".pgm", ".pnm", ".psd", ".qoi", ".raf", ".raw", ".rw2", ".svg", ".tga", ".tif",
    ".tiff",
}  # fmt: skip
"""Endings of pictures that are not read, each named in the reason why such a file is skipped."""


class ImageFiles(NamedTuple):
    """The names of one image's files.

    Attributes:
        name: name of the image.
        files: file names of the patches, sorted by code point.
        has_reference: whether the image has a ref.jpg.
        has_centers: whether the image has a centers.pt.
    """

    name: str
    files: Sequence[str]
    has_reference: bool
    has_centers: bool


class FolderSource(Source):
    """A source whose patches are files; Source documents the methods.

    Opening lists no files. The first call that needs an index or a name (``len``, ``read``, ``find``) lists the folder
    and keeps all names. ``listings`` walks the folder anew each time and keeps no name.

    A subclass says which files are images.

    Args:
        path: the folder.
        images: names of the images to read; None reads all.
        decoder: decoder of JPEG.
        max_pixels: height times width above which a patch is refused.
        include_hidden: read hidden files and folders, too; see is_hidden of sources.walk.

    Attributes:
        include_hidden: as above.
        skipped: paths that the latest walk skipped, with the reasons; complete when the walk has ended.

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
        include_hidden: bool = False,
    ) -> None:
        self._path = Path(path).absolute()  # the program may change its working directory
        self.skipped: list[SkippedPath] = []
        self._images = None if images is None else tuple(sorted(images))
        self.decoder: Decoder = decoder
        self.max_pixels = max_pixels
        self.include_hidden = include_hidden
        self._is_closed = False
        self._index: _FolderIndex | None = None
        # A lock for each process, because a lock that a thread holds during a fork stays locked in the child.
        self._locks: dict[int, threading.Lock] = {}
        self._cached_images: BoundedCache[int, Image] = BoundedCache(_CACHED_IMAGES)
        if not os.path.isdir(self.path):  # noqa: PTH112 - Path.is_dir raises PermissionError
            raise NotASourceError(f"{self.path}: not a folder")

    def __reduce__(self) -> tuple[Any, ...]:
        return self._opener(self._images), (self._path,)

    def _opener(self, images: Sequence[str] | None) -> Callable[[Path], FolderSource]:
        """Return a function that opens a folder with the options of this source."""
        return partial(
            type(self),
            images=images,
            decoder=self.decoder,
            max_pixels=self.max_pixels,
            include_hidden=self.include_hidden,
        )

    @abstractmethod
    def _find_images(self, walk: FolderWalk, images: tuple[str, ...] | None) -> Iterator[ImageFiles]:
        """Yield the files of all images, or of the named ones, in order; record skipped paths in the walk."""

    @abstractmethod
    def _reason_of(self, path: str) -> str | None:
        """Return the reason to leave out the file at a path below the folder, None for a file that is taken."""

    @abstractmethod
    def _read_centers(self, image: str) -> dict[int, Center]:
        """Return the centres of an image that has a centers.pt."""

    @property
    def path(self) -> Path:
        """The folder."""
        return self._path

    @property
    def image_count(self) -> int:
        """Number of images."""
        return len(self._load_index().images)

    def __len__(self) -> int:
        return len(self._load_index().files)

    def read(self, index: int) -> bytes:
        """Return the bytes of a patch's file."""
        return self._read_file(self.patch_path(index))

    def locate(self, index: int) -> tuple[int, int]:
        """Return (image number, position of the patch in its image)."""
        index = operator.index(index)
        first_patches = self._load_index().first_patches
        if not 0 <= index < first_patches[-1]:
            raise PatchIndexError(f"{self.path}: patch {index} of {first_patches[-1]}")
        number = bisect_right(first_patches, index) - 1
        return number, index - first_patches[number]

    def first_patch(self, number: int) -> int:
        """Return the index of an image's first patch; ``first_patch(image_count)`` is ``len(source)``."""
        index = self._load_index()
        if not 0 <= number <= len(index.images):
            raise PatchIndexError(f"{self.path}: image {number} of {len(index.images)}")
        return index.first_patches[number]

    def path_at(self, number: int, position: int) -> str:
        """Return the path of the file at a position in an image."""
        number, position = operator.index(number), operator.index(position)
        index = self._load_index()
        file = index.files[index.first_patches[number] + position]
        return f"{self._path}/{relative_path(self.layout, index.images[number], file)}"

    def image_name(self, number: int) -> str:
        """Return the name of an image."""
        return self._load_index().images[self._check_image_number(number)]

    def image(self, number: int) -> Image:
        """Return the names and metadata of an image; some images are cached."""
        return self._cached_images.get(self._check_image_number(number), self._read_image)

    def image_without_centers(self, number: int) -> Image:
        """Return an image with ``centers`` None, without reading its centers.pt."""
        return self._read_image(self._check_image_number(number), centers=False)

    def subset(self, names: Sequence[str]) -> FolderSource:
        """Return a source of the named images, which lists no other image."""
        self._check_open()
        return self._opener(names)(self._path)

    def read_reference(self, number: int) -> bytes | None:
        """Return the bytes of an image's ref.jpg, None without one."""
        number = self._check_image_number(number)
        index = self._load_index()
        if not index.has_reference[number]:
            return None
        return self._read_file(f"{self.path}/{index.images[number]}/{REFERENCE_FILE}")

    def find_image(self, name: str) -> int:
        """Return the number of the image with a name, or raise NameNotFoundError."""
        images = self._load_index().images
        number = images.find_sorted(name, 0, len(images))
        if number is None:
            raise NameNotFoundError(f"{self.path}: no image {name!r}")
        return number

    def find(self, image: str, file: str) -> int:
        """Return the index of a patch by image and file name, or raise NameNotFoundError."""
        index = self._load_index()
        number = self.find_image(image)
        patch = index.files.find_sorted(file, index.first_patches[number], index.first_patches[number + 1])
        if patch is None:
            raise NameNotFoundError(f"{self.path}: no patch {file!r} in image {image!r}")
        return patch

    def listings(self) -> Iterator[Listing]:
        """Yield the listing of every image in order, from a new walk over the folder."""
        self._check_open()
        root = str(self.path)
        for image in self._walk():
            paths = (f"{root}/{relative_path(self.layout, image.name, file)}" for file in image.files)
            sizes = np.fromiter(map(_size, paths), np.int64, len(image.files))
            reference_size = _size(f"{root}/{image.name}/{REFERENCE_FILE}") if image.has_reference else None
            yield Listing(image.name, tuple(image.files), sizes, reference_size)

    def close(self) -> None:
        """Free the memory of the names."""
        self._is_closed = True
        self._index = None
        self._cached_images.clear()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError(f"{self.path}: the source is closed")

    def _contents(self) -> str:
        return super()._contents() if self._index is not None or self._is_closed else "not listed yet"

    def _check_image_number(self, number: int) -> int:
        if not 0 <= number < self.image_count:
            raise PatchIndexError(f"{self.path}: image {number} of {self.image_count}")
        return operator.index(number)

    def _load_index(self) -> _FolderIndex:
        """Return the names of all files; the first call lists the folder, once for all threads."""
        self._check_open()
        index = self._index
        if index is None:
            with self._locks.setdefault(os.getpid(), threading.Lock()):
                index = self._index = self._index or self._make_index()
        return index

    def _make_index(self) -> _FolderIndex:
        index = _FolderIndex(ExtraFields(self.path, images=self._images))
        for image in self._walk(index.extra_fields):
            index.add(image)
        return index

    def _walk(self, extra_fields: ExtraFields | None = None) -> Iterator[ImageFiles]:
        """Yield the files of every image, and fill ``skipped``."""
        if extra_fields is None:
            extra_fields = ExtraFields(self.path, images=self._images)
        walk = FolderWalk(self.path, include_hidden=self.include_hidden, reason_of=self._reason_of)
        self.skipped = walk.skipped
        names_without_image = set(extra_fields.images)
        for image in self._find_images(walk, self._images):
            names_without_image.discard(image.name)
            yield image
        walk.finish()
        if extra_fields.is_foreign:
            walk.skip([EXTRA_FILE], "of Hugging Face's datasets, whose fields are not read")
        missing_images = (f"{EXTRA_FILE}: {name}" for name in sorted(names_without_image))
        walk.skip(missing_images, "fields of an image that is not there")

    def _read_image(self, number: int, *, centers: bool = True) -> Image:
        index = self._load_index()
        name = index.images[number]
        patches = range(index.first_patches[number], index.first_patches[number + 1])
        return Image(
            name=name,
            files=tuple(index.files[patch] for patch in patches),
            centers=self._read_centers(name) if centers and index.has_centers[number] else None,
            has_reference=bool(index.has_reference[number]),
            extra=index.extra_fields.of(name),
        )

    def _read_file(self, path: str) -> bytes:
        # A Path object would double the time of reading a small file.
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123
                size = os.fstat(file.fileno()).st_size
                if size > LARGE_FILE_BYTES:
                    check_large_file(file, size, max_pixels=self.max_pixels)
                return file.read()
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error
        except OSError as error:
            raise _unreadable(path, error) from error


def reason_of_ending(file: str) -> str:
    """Return the reason to skip a file whose ending is not read.

    >>> reason_of_ending("a/1.JFIF"), reason_of_ending("1.avif"), reason_of_ending("notes.txt")
    ('pictures .jfif are not read, rename them to .jpg', 'pictures .avif are not read, convert them', 'unknown file')
    """
    ending = os.path.splitext(file)[1].lower()  # noqa: PTH122
    if ending not in _UNREAD_ENDINGS:
        return "unknown file"
    return f"pictures {ending} are not read, {'rename them to .jpg' if ending in _JPEG_ENDINGS else 'convert them'}"


def is_picture(file: str) -> bool:
    """Return whether the ending of a file name is that of a picture, in lower or upper case.

    >>> is_picture("a/1.JPG"), is_picture("1.jpg.partial")
    (True, False)
    """
    return file.lower().endswith(_ENDINGS)


class Names:
    """A growing list of names in one UTF-8 string; a name costs 8 bytes beyond its own.

    A list of str takes five times the memory. A forked process would also copy the pages of such a list, because a read
    of a str changes its reference count.

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
        """Return the position of a name in start <= position < stop, where names are sorted by code point, or None."""
        position = bisect_left(self, name, start, stop)
        return position if position < stop and self[position] == name else None


class _FolderIndex:
    """The names of a folder's images and patches, by number and index."""

    def __init__(self, extra_fields: ExtraFields) -> None:
        self.extra_fields = extra_fields
        self.images = Names()
        self.files = Names()
        self.first_patches = array("Q", [0])
        self.has_reference = bytearray()
        self.has_centers = bytearray()

    def add(self, image: ImageFiles) -> None:
        self.images.append(image.name)
        for file in image.files:
            self.files.append(file)
        self.first_patches.append(len(self.files))
        self.has_reference.append(image.has_reference)
        self.has_centers.append(image.has_centers)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - a Path object is slow, as in _read_file
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> DamagedError:
    return DamagedError(f"{path}: cannot be read ({error.strerror}), though it was listed")
