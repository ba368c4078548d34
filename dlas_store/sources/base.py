"""Source, the contract that every kind of data keeps, and the values that its methods return."""

from __future__ import annotations

import pickle
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from dlas_store.errors import ClosedError, ImageError, NameNotFoundError, StoreError
from dlas_store.images.decode import MAX_PIXELS, Decoder, as_batch, decode, decode_batch, decode_into, image_size
from dlas_store.images.memory import Pixels, as_indices
from dlas_store.sources.walk import SkippedPath

Layout = Literal["chunked", "pictures"]
"""``chunked``: an image is a group of patches. ``pictures``: an image is one picture, its only patch."""

REFERENCE_FILE = "ref.jpg"
CENTERS_FILE = "centers.pt"

FIRST_UNNUMBERED_ID = 1 << 63
"""Patch ids from this one up belong to files whose names are no numbers, or repeat the number of another file."""

_NUMBER = re.compile(r"([0-9]{1,19})\.[^.]*", re.ASCII)


class Center(NamedTuple):
    """The centre of a patch in its image, and the patch's width, in pixels of the reference."""

    row: int
    col: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """The names and metadata of one image.

    Attributes:
        name: name of the image's folder in the layout ``chunked``, path of the picture below the root in ``pictures``.
        files: file names of the patches, sorted by code point.
        centers: number in a patch's file name -> centre, as in centers.pt, which may have numbers without a patch and
            lack numbers of patches. None if the image has no centers.pt.
        has_reference: whether the image has a reference.
        patch_ids: ids of the patches in the keys of a store, uint64 (len(files),). None outside a store.
        heights: heights of the patches in pixels, uint32 (len(files),). None if only opening the files would tell them.
        widths: widths of the patches, like ``heights``.
        extra: other fields of the image, such as labels or the size of its photo. The values have JSON types.
    """

    name: str
    files: tuple[str, ...]
    centers: Mapping[int, Center] | None
    has_reference: bool
    patch_ids: NDArray[np.uint64] | None = None
    heights: NDArray[np.uint32] | None = None
    widths: NDArray[np.uint32] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def center_of(self, position: int) -> Center | None:
        """Return the centre of the patch at a position in ``files``, None for a patch without a centre."""
        number = file_number(self.files[position])
        return None if self.centers is None or number is None else self.centers.get(number)


@lru_cache(4096)  # patches of many images have the same names
def file_number(file: str) -> int | None:
    """Return the number that is a patch's file name, None if the name is no number below 2^63.

    >>> file_number("00000012.jpg"), file_number("12.png"), file_number("a12.jpg")
    (12, 12, None)
    """
    match = _NUMBER.fullmatch(file)
    number = int(match[1]) if match else FIRST_UNNUMBERED_ID
    return number if number < FIRST_UNNUMBERED_ID else None


class Listing(NamedTuple):
    """The names and sizes of one image's files.

    Attributes:
        name: name of the image.
        files: file names of the patches, sorted by code point.
        sizes: bytes of each patch, int64 (len(files),).
        reference_size: bytes of the reference, None without one.
    """

    name: str
    files: tuple[str, ...]
    sizes: NDArray[np.int64]
    reference_size: int | None

    @property
    def total_bytes(self) -> int:
        """Bytes of all patches and the reference."""
        return int(self.sizes.sum()) + (self.reference_size or 0)


class Source(ABC):
    """A collection of images, each a group of encoded patches.

    Numbers: a patch has an index 0 <= index < len(source), an image a number 0 <= number < image_count. The patches of
    image n are ``first_patch(n) <= index < first_patch(n + 1)``, sorted by file name (by code point). A source chooses
    the order of its images; in the layout ``pictures`` datasets expect them sorted by name. Any other number, also a
    negative one, raises PatchIndexError. No two images have the same name: an import refuses a source that has two.

    Determinism: while a source is open, an index gives the same bytes, even if another process appends to a store.
    Threads: several threads may call every method at once. Fork: an open source works in a forked child; since files
    share their position with it, a source reads with os.pread or maps files. Pickle: a pickle holds the path and
    options, and unpickling opens the source; a source with open files defines ``__reduce__``.

    Errors: unreadable data raises a StoreError that names the image and the file, and is never replaced. An import can
    skip a file only if the error is a DamagedError or an ImageError. After ``close()`` every other call raises
    ClosedError; a subclass may raise it in ``image_count`` alone if each of its other methods uses that.

    A subclass implements the twelve abstract members below. All other methods follow from them; a subclass overrides
    the methods that it can do faster. Here is a whole source, whose images are pictures in a dict of name -> bytes:

    >>> from dlas_store.errors import ClosedError, PatchIndexError
    >>> class Pictures(Source):
    ...     path = Path("pictures")  # begins the paths in messages and items
    ...     layout = "pictures"
    ...     def __init__(self, data):
    ...         self.names, self.data = sorted(data), data
    ...     @property
    ...     def image_count(self):
    ...         if self.data is None:
    ...             raise ClosedError(f"{self.path}: the source is closed")
    ...         return len(self.names)
    ...     def __len__(self):
    ...         return self.image_count
    ...     def locate(self, index):  # an image has one patch, at position 0
    ...         if not 0 <= index < len(self):
    ...             raise PatchIndexError(f"{self.path}: patch {index} of {len(self)}")
    ...         return index, 0
    ...     def first_patch(self, number):
    ...         return number if number == self.image_count else self.locate(number)[0]
    ...     def image(self, number):
    ...         name = self.names[self.locate(number)[0]]
    ...         return Image(name, (name.rpartition("/")[2],), centers=None, has_reference=False)
    ...     def find_image(self, name):
    ...         if self.image_count and name in self.data:
    ...             return self.names.index(name)
    ...         raise NameNotFoundError(f"{self.path}: no image {name!r}")
    ...     def read(self, index):
    ...         return self.data[self.names[self.locate(index)[0]]]
    ...     def read_reference(self, number):
    ...         self.locate(number)  # an unknown number is an error; a known image has no reference
    ...     def listings(self):
    ...         for number in range(self.image_count):
    ...             sizes = np.array([len(self.read(number))])
    ...             yield Listing(self.image_name(number), self.image(number).files, sizes, reference_size=None)
    ...     def close(self):
    ...         self.data = None
    >>> with Pictures({"cat.ppm": b"P6 2 1 255 " + bytes(range(6))}) as source:
    ...     source.read_pixels([0]).tolist(), source.find("cat.ppm", "cat.ppm"), source.patch_path(0)
    ([[[[0, 1, 2], [3, 4, 5]]]], 0, 'pictures/cat.ppm')

    Attributes:
        decoder: decoder of JPEG, see images.decode; it does not change.
        max_pixels: height times width above which a patch is refused; it does not change.
        skipped: paths that belong to no image, with the reasons; complete when listings() has ended.
    """

    decoder: Decoder = "simplejpeg"
    max_pixels: int = MAX_PIXELS
    skipped: Sequence[SkippedPath] = ()

    @property
    @abstractmethod
    def path(self) -> Path:
        """The folder or file that was opened."""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """The way in which the source groups patches into images."""

    @property
    @abstractmethod
    def image_count(self) -> int:
        """Number of images."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of patches."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Return the encoded bytes of a patch, exactly those of the original file."""

    @abstractmethod
    def locate(self, index: int) -> tuple[int, int]:
        """Return (number of the patch's image, position of the patch in ``Image.files``)."""

    @abstractmethod
    def first_patch(self, number: int) -> int:
        """Return the index of an image's first patch; ``first_patch(image_count)`` is ``len(source)``."""

    @abstractmethod
    def image(self, number: int) -> Image:
        """Return the names and metadata of an image."""

    @abstractmethod
    def read_reference(self, number: int) -> bytes | None:
        """Return the encoded bytes of an image's reference, None without one."""

    @abstractmethod
    def find_image(self, name: str) -> int:
        """Return the number of the image with a name, or raise NameNotFoundError."""

    @abstractmethod
    def listings(self) -> Iterator[Listing]:
        """Yield the listing of every image in order, and hold one listing at a time."""

    @abstractmethod
    def close(self) -> None:
        """Release files and maps. Closing twice is fine; any other use of a closed source raises ClosedError."""

    def view(self, index: int) -> bytes | memoryview:
        """Return the encoded bytes of a patch; a mapped source returns a view into its map, without a copy.

        The map stays as long as a view of it exists, also after close().
        """
        return self.read(index)

    def prefetch(self, indices: Sequence[int], /) -> None:  # noqa: ARG002
        """Let the system read patches and their images' references from the disk, and do not wait: a hint.

        By default nothing is prefetched, because opening files for a prefetch would cost as much as reading them.
        """
        self._check_open()

    def header_size(self, index: int) -> tuple[int, int]:
        """Return the height and width in pixels in a patch's header."""
        try:
            return image_size(self.read(index), max_pixels=self.max_pixels)
        except ImageError as error:
            raise self._image_error(index, error) from error

    def decode_into(self, index: int, out: Pixels) -> Pixels:
        """Decode a patch into an array if the patch has exactly the size of the array.

        Args:
            index: index of the patch.
            out: uint8 (H, W, 3), contiguous. Its content is undefined if another array is returned.

        Returns:
            RGB pixels: ``out``, or a new array if the patch has another size.
        """
        try:
            return decode_into(self.view(index), out, max_pixels=self.max_pixels, decoder=self.decoder)
        except ImageError as error:
            raise self._image_error(index, error) from error

    def decode_many_into(self, indices: list[int], outs: list[Pixels]) -> list[Pixels]:
        """Decode patches, each into its array, and return what decode_into() returns for each.

        Args:
            indices: indices of the patches; ascending order is the fastest to read.
            outs: one array for each index, as in decode_into(). Their content is undefined after an error.
        """
        return [self.decode_into(index, out) for index, out in zip(indices, outs, strict=True)]

    def read_pixels(self, indices: Sequence[int], *, alpha: bool = False) -> Pixels | list[Pixels]:
        """Decode patches into new arrays, which belong to the caller.

        Args:
            indices: patch indices, in any order; an index may occur several times. A single index is a TypeError.
            alpha: return the alpha channel too (255 if a patch has none).

        Returns:
            RGB (RGBA with ``alpha``) uint8 in the order of ``indices``: one array (n, H, W, 3 or 4) if all patches have
            one size, else a list of arrays (H, W, 3 or 4).
        """
        indices = as_indices(indices)
        if alpha:
            return as_batch([self._decode(index, alpha=True) for index in indices])
        return decode_batch(indices, self._decode, self.decode_into)

    def patch_path(self, index: int) -> str:
        """Return the path of a patch: ROOT/IMAGE/FILE in the layout ``chunked``, ROOT/IMAGE in ``pictures``."""
        return self.path_at(*self.locate(index))

    def path_at(self, number: int, position: int) -> str:
        """Return the path of the patch at a position in an image; locate() returns both numbers."""
        image = self.image(number)
        return f"{self.path}/{relative_path(self.layout, image.name, image.files[position])}"

    def source_path(self, number: int) -> Path:  # noqa: ARG002
        """Return the path of the source that holds an image: ``path``, unless this source joins several."""
        return self.path

    def image_name(self, number: int) -> str:
        """Return the name of an image."""
        return self.image(number).name

    def find(self, image: str, file: str) -> int:
        """Return the index of a patch by image and file name, or raise NameNotFoundError."""
        number = self.find_image(image)
        files = self.image(number).files
        if file not in files:
            raise NameNotFoundError(f"{self.path}: image {image!r} holds no patch {file!r}")
        return self.first_patch(number) + files.index(file)

    def image_without_centers(self, number: int) -> Image:
        """Return an image with ``centers`` None; a folder can do so even if image() raises CentersError."""
        return replace(self.image(number), centers=None)

    def subset(self, names: Sequence[str]) -> Source:  # noqa: ARG002
        """Return a source with at least the named images, to be pickled for a process that needs no others.

        By default the source itself is returned. A source of files returns a source of the named images only, so that
        the other process does not list all files again.
        """
        self._check_open()
        return self

    def __getitem__(self, index: int) -> Pixels:
        """Return the RGB pixels of a patch, a new array uint8 (H, W, 3)."""
        return self.read_pixels([index])[0]

    def __iter__(self) -> Iterator[Pixels]:
        """Yield the RGB pixels of every patch in order, each a new array uint8 (H, W, 3)."""
        return map(self.__getitem__, range(len(self)))

    def __repr__(self) -> str:
        """Return the source's class, its path, and its contents as far as they are known without a search."""
        try:
            contents = self._contents()
        except StoreError as error:
            contents = "closed" if isinstance(error, ClosedError) else "cannot be read"
        return f"<{type(self).__name__} {self.path}: {contents}>"

    def __enter__(self) -> Self:
        """Return the source itself; leaving the block closes it."""
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the source."""
        self.close()

    def _contents(self) -> str:
        images, patches = self.image_count, len(self)
        return f"{images} image{'s' * (images != 1)}, {patches} patch{'es' * (patches != 1)}, layout {self.layout}"

    def _check_open(self) -> object:
        """Raise ClosedError if the source is closed, as ``len`` of a closed source does."""
        return len(self)

    def _decode(self, index: int, *, alpha: bool = False) -> Pixels:
        try:
            return decode(self.read(index), alpha=alpha, max_pixels=self.max_pixels, decoder=self.decoder)
        except ImageError as error:
            raise self._image_error(index, error) from error

    def _image_error(self, index: int, error: ImageError) -> ImageError:
        """Return an error that also names the patch whose bytes are no picture."""
        return ImageError(f"{self.patch_path(index)}: {error}")


class PickledSubset(NamedTuple):
    """A pickled source, and the names of the images that a job in another process reads from it.

    The source is pickled to bytes at once, and the job unpickles the bytes. If the process pool unpickled the source
    with the job, a source that cannot be opened would end the worker instead of failing the job.

    Attributes:
        names: names of the images.
        pickled: pickle of a source with at least these images.
    """

    names: list[str]
    pickled: bytes

    @classmethod
    def of(cls, source: Source, names: list[str]) -> Self:
        """Return the named images of an open source."""
        return cls(names, pickle.dumps(source.subset(names)))

    def open(self) -> Source:
        """Open the source with the options that the pickled source had."""
        source: Source = pickle.loads(self.pickled)  # noqa: S301 - bytes that of() wrote
        return source


def relative_path(layout: Layout, image: str, file: str) -> str:
    """Return the path of a patch below the root of its source."""
    return f"{image}/{file}" if layout == "chunked" else image
