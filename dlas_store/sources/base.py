"""The one storage API: the contract of a source of patches, and the words that its callers share."""

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

from dlas_store.errors import ImageError, NameNotFoundError
from dlas_store.images.decode import MAX_PIXELS, Decoder, as_batch, decode, decode_batch, decode_into, image_size
from dlas_store.images.memory import Pixels

Layout = Literal["chunked", "pictures"]
"""``chunked``: an image is a group of patches. ``pictures``: an image is one whole picture, named by its path."""

REFERENCE_FILE = "ref.jpg"
CENTERS_FILE = "centers.pt"

FIRST_UNNUMBERED_ID = 1 << 63
"""Patch ids from here up belong to files whose name gives none."""

_NUMBER = re.compile(r"([0-9]{1,19})\.[^.]*", re.ASCII)


class Center(NamedTuple):
    """Where a patch lies in its image, in pixels of the reference."""

    row: int
    col: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """What is known of one image.

    Attributes:
        name: folder name in a chunked layout, relative path in one of pictures.
        files: patch file names in item order (by code point).
        centers: number in the file name -> centre, as centers.pt has it (it may name patches that do not exist and
            lack some that do); None where the image has no centers.pt.
        has_reference: whether there is a ref.jpg.
        patch_ids: what a store's keys name the patches by, uint64 (len(files),); None outside of a store.
        heights: pixels, uint32 (len(files),); None where they are not known without opening the files.
        widths: likewise.
        extra: what else is kept of the image (labels, sizes of the photo); JSON types only.
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
        """Return the centre of the patch at a position, None where there is none."""
        number = file_number(self.files[position])
        return None if self.centers is None or number is None else self.centers.get(number)


@lru_cache(4096)  # patches of many images have the same names
def file_number(file: str) -> int | None:
    """Return the number that a patch's file name is, None for a name that is no number below 2^63.

    >>> file_number("00000012.jpg"), file_number("12.png"), file_number("a12.jpg")
    (12, 12, None)
    """
    match = _NUMBER.fullmatch(file)
    number = int(match[1]) if match else FIRST_UNNUMBERED_ID
    return number if number < FIRST_UNNUMBERED_ID else None


class Listing(NamedTuple):
    """The files of one image, without their contents.

    Attributes:
        name: the image's name.
        files: patch file names in item order.
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
    """Anything patches are read from.

    Index domain: patches are numbered 0 <= index < len(source), images 0 <= number < image_count; the patches of
    image n are ``first_patch(n) <= index < first_patch(n + 1)``. Order is that of images, and within one of file
    names by code point. Other numbers, negative ones too, raise PatchIndexError.

    Determinism: the same index gives the same bytes as long as the source is open, also while a store is appended to.

    Threads: every method may be called from several threads at once. Fork: a source opened before a fork works in the
    child. Pickle: a source pickles as its path and options, and is opened again where it is unpickled.

    Errors: what cannot be read raises a StoreError that names the image and the file; nothing is replaced.

    A subclass implements the twelve abstract members. The other methods follow from these; a subclass overrides those
    that it can do faster. Each picture here is an image of one patch:

    >>> from dlas_store.errors import ClosedError, PatchIndexError
    >>> class Pictures(Source):
    ...     path = Path("pictures")
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
    ...     def locate(self, index):
    ...         if not 0 <= index < len(self):
    ...             raise PatchIndexError(f"{self.path}: patch {index} of {len(self)}")
    ...         return index, 0
    ...     def first_patch(self, number):
    ...         return number if number == self.image_count else self.locate(number)[0]
    ...     def image(self, number):
    ...         name = self.names[self.first_patch(number)]
    ...         return Image(name, (name.rpartition("/")[2],), centers=None, has_reference=False)
    ...     def find_image(self, name):
    ...         if self.image_count and name in self.data:
    ...             return self.names.index(name)
    ...         raise NameNotFoundError(f"{self.path}: no image {name!r}")
    ...     def read(self, index):
    ...         return self.data[self.names[self.locate(index)[0]]]
    ...     def read_reference(self, number):
    ...         self.locate(number)
    ...     def listings(self):
    ...         for number in range(self.image_count):
    ...             sizes = np.array([len(self.read(number))])
    ...             yield Listing(self.image_name(number), self.image(number).files, sizes, None)
    ...     def close(self):
    ...         self.data = None
    >>> with Pictures({"cat.ppm": b"P6 2 1 255 " + bytes(range(6))}) as source:
    ...     source.read_pixels([0]).tolist(), source.find("cat.ppm", "cat.ppm"), source.patch_path(0)
    ([[[[0, 1, 2], [3, 4, 5]]]], 0, 'pictures/cat.ppm')

    Attributes:
        decoder: what decodes JPEG; see pixels.decode. Fixed when the source is opened.
        max_pixels: height times width above which a patch is refused. Fixed when the source is opened.
    """

    decoder: Decoder = "simplejpeg"
    max_pixels: int = MAX_PIXELS

    @property
    @abstractmethod
    def path(self) -> Path:
        """The folder or file that was opened."""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """How the source groups patches into images."""

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
        """Return (image number, position of the patch in its image)."""

    @abstractmethod
    def first_patch(self, number: int) -> int:
        """Return the index of an image's first patch; ``first_patch(image_count)`` is ``len(source)``."""

    @abstractmethod
    def image(self, number: int) -> Image:
        """Return what is known of an image."""

    @abstractmethod
    def read_reference(self, number: int) -> bytes | None:
        """Return the encoded bytes of an image's reference, None without one."""

    @abstractmethod
    def find_image(self, name: str) -> int:
        """Return the number of the image of that name, or raise NameNotFoundError."""

    @abstractmethod
    def listings(self) -> Iterator[Listing]:
        """Yield the files of every image in order, holding no more than one image's."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and maps. Closing twice is fine; any other use after it raises ClosedError."""

    def view(self, index: int) -> bytes | memoryview:
        """Return the encoded bytes of a patch, without a copy where the source is mapped.

        What was mapped stays so for as long as a view of it is held, also after close().
        """
        return self.read(index)

    def prefetch(self, indices: Sequence[int], /) -> None:  # noqa: ARG002
        """Let the system fetch patches and references from the disk, without waiting for it; a hint.

        Nothing is fetched where a subclass does not say how: opening files for it would cost as much as reading them.
        """
        self._check_open()

    def header_size(self, index: int) -> tuple[int, int]:
        """Return the height and width in pixels that a patch claims to have."""
        try:
            return image_size(self.read(index), max_pixels=self.max_pixels)
        except ImageError as error:
            raise self._image_error(index, error) from error

    def decode_into(self, index: int, out: Pixels) -> Pixels:
        """Decode a patch into an array, where it has exactly that size.

        Args:
            index: of the patch.
            out: uint8 (H, W, 3), contiguous; its content is undefined where something else is returned.

        Returns:
            RGB: ``out``, or a new array where the patch has another size.
        """
        try:
            return decode_into(self.view(index), out, max_pixels=self.max_pixels, decoder=self.decoder)
        except ImageError as error:
            raise self._image_error(index, error) from error

    def decode_many_into(self, indices: list[int], outs: list[Pixels]) -> list[Pixels]:
        """Decode patches, each into its array; returns what decode_into() does for each.

        Args:
            indices: of the patches; reading is fastest in ascending order.
            outs: as many arrays, as in decode_into(); their content is undefined after an error.
        """
        return [self.decode_into(index, out) for index, out in zip(indices, outs, strict=True)]

    def read_pixels(self, indices: Sequence[int], *, alpha: bool = False) -> Pixels | list[Pixels]:
        """Decode patches.

        Args:
            indices: patch indices, in any order, repeats allowed.
            alpha: keep the alpha channel (255 where a patch has none).

        Returns:
            RGB (RGBA with ``alpha``) uint8, in the order asked for: one array (n, H, W, 3 or 4) when all sizes agree,
            else a list of (H, W, 3 or 4) arrays. The arrays are new and belong to the caller.
        """
        if alpha:
            return as_batch([self._decode(index, alpha=True) for index in indices])
        return decode_batch(indices, self._decode, self.decode_into)

    def patch_path(self, index: int) -> str:
        """Return the path of a patch: ROOT/IMAGE/FILE in a chunked source, ROOT/IMAGE in one of pictures."""
        return self.path_at(*self.locate(index))

    def path_at(self, number: int, position: int) -> str:
        """Return the path of a patch by where locate() says that it is."""
        image = self.image(number)
        return f"{self.path}/{relative_path(self.layout, image.name, image.files[position])}"

    def source_path(self, number: int) -> Path:  # noqa: ARG002
        """Return the path of the source that holds an image: this one's, or that of the one among several."""
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
        """Return what is known of an image but its centres, whose file image() may refuse with a CentersError."""
        return replace(self.image(number), centers=None)

    def subset(self, names: Sequence[str]) -> Source:  # noqa: ARG002
        """Return a source of at least the images of these names, to be pickled for another process.

        A subclass whose opening takes longer the more images there are returns a source of these only.
        """
        self._check_open()
        return self

    def __enter__(self) -> Self:
        """Return self."""
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _check_open(self) -> object:
        """Raise ClosedError where the source was closed, as every use does."""
        return len(self)

    def _decode(self, index: int, *, alpha: bool = False) -> Pixels:
        try:
            return decode(self.read(index), alpha=alpha, max_pixels=self.max_pixels, decoder=self.decoder)
        except ImageError as error:
            raise self._image_error(index, error) from error

    def _image_error(self, index: int, error: ImageError) -> ImageError:
        """Return the error that names the patch whose bytes are no picture."""
        return ImageError(f"{self.patch_path(index)}: {error}")


class PickledSubset(NamedTuple):
    """Images of a source, for a job in another process.

    The source is opened where the job runs, so that a source that cannot be opened is an error of the job; unpickled
    with the job, it would end the worker.

    Attributes:
        names: the images.
        pickled: a source of at least these images.
    """

    names: list[str]
    pickled: bytes

    @classmethod
    def of(cls, source: Source, names: list[str]) -> Self:
        """Return images of an open source."""
        return cls(names, pickle.dumps(source.subset(names)))

    def open(self) -> Source:
        """Open the source, with the options that it had."""
        source: Source = pickle.loads(self.pickled)  # noqa: S301 - of our own making
        return source


def relative_path(layout: Layout, image: str, file: str) -> str:
    """Return a patch's path below the root of its folder."""
    return f"{image}/{file}" if layout == "chunked" else image
