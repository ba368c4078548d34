"""ArrayPictures, a source of labelled pictures in an array, as MNIST and CIFAR are published."""

from __future__ import annotations

import io
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from dlas_store.errors import ClosedError, NameNotFoundError, PatchIndexError
from dlas_store.images.decode import as_batch
from dlas_store.images.memory import Pixels, as_indices
from dlas_store.images.pillow import to_rgb
from dlas_store.sources.base import Image, Layout, Listing, Source


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LabelledPictures:
    """Pictures of one size, with their labels.

    Attributes:
        split: split of the dataset (``train`` or ``test``), the first part of every image name.
        pixels: uint8, (n, H, W) grey or (n, H, W, 3) RGB.
        labels: field of Image.extra -> label of each picture, int64 (n,).
        class_names: field of Image.extra -> class names, indexed by label; a field without known names is absent.
    """

    split: str
    pixels: NDArray[np.uint8]
    labels: Mapping[str, NDArray[np.int64]]
    class_names: Mapping[str, Sequence[str]]

    def fields_of(self, number: int) -> dict[str, Any]:
        """Return the labels of a picture and its class names (``label_name`` for ``label``), for Image.extra."""
        fields: dict[str, Any] = {}
        for name, labels in self.labels.items():
            label = int(labels[number])
            fields[name] = label
            names = self.class_names.get(name, ())
            if label < len(names):
                fields[f"{name}_name"] = names[label]
        return fields


class ArrayPictures(Source):
    """A source whose images ``SPLIT/NNNNNN.png`` are the pictures of one array; Source documents the methods.

    The first use loads all pictures and keeps them in memory. ``read`` encodes a picture as PNG; one version of Pillow
    always encodes a picture to the same bytes.

    Args:
        path: folder of the published files.
        load: function that loads the pictures; it must be picklable.
    """

    layout: Layout = "pictures"

    def __init__(self, path: Path, load: Callable[[], LabelledPictures]) -> None:
        self._path = path
        self.load = load
        self._cached_pictures: LabelledPictures | None = None
        self._is_closed = False

    def __reduce__(self) -> tuple[type[ArrayPictures], tuple[Path, Callable[[], LabelledPictures]]]:
        return ArrayPictures, (self.path, self.load)

    @property
    def path(self) -> Path:
        """The folder of the published files."""
        return self._path

    @property
    def image_count(self) -> int:
        """Number of images."""
        return len(self._pictures().pixels)

    def __len__(self) -> int:
        """Return the number of patches."""
        return self.image_count

    def read(self, index: int) -> bytes:
        """Return a picture as PNG."""
        encoded = io.BytesIO()
        PillowImage.fromarray(self._pixels(index)).save(encoded, "PNG")
        return encoded.getvalue()

    def header_size(self, index: int) -> tuple[int, int]:
        """Return the height and width of a picture in pixels."""
        height, width = self._pixels(index).shape[:2]
        return height, width

    def decode_into(self, index: int, out: Pixels) -> Pixels:
        """Copy a picture into an array of its size; see Source.decode_into."""
        pixels = to_rgb(self._pixels(index), alpha=False)
        if pixels.shape != out.shape:
            return pixels.copy()
        out[...] = pixels
        return out

    def read_pixels(self, indices: Sequence[int], *, alpha: bool = False) -> Pixels | list[Pixels]:
        """Return the pixels of pictures; see Source.read_pixels."""
        # The result is a copy: as_batch stacks pictures of one size, and all pictures have one size.
        return as_batch([to_rgb(self._pixels(index), alpha=alpha) for index in as_indices(indices)])

    def locate(self, index: int) -> tuple[int, int]:
        """Return (image number, 0), because an image has one patch."""
        return self._check(index), 0

    def first_patch(self, number: int) -> int:
        """Return the number itself: an image and its only patch have the same number."""
        return self.image_count if number == self.image_count else self._check(number)

    def path_at(self, number: int, position: int) -> str:
        """Return the path that a picture would have as a file below ``path``."""
        return f"{self.path}/{self.image_name(self._check(number) + position)}"

    def image_name(self, number: int) -> str:
        """Return the name of an image."""
        return f"{self._pictures().split}/{_file_name(self._check(number))}"

    def image(self, number: int) -> Image:
        """Return the name, size, labels and class names of a picture."""
        number = self._check(number)
        height, width = self._pixels(number).shape[:2]
        return Image(
            name=self.image_name(number),
            files=(_file_name(number),),
            centers=None,
            has_reference=False,
            heights=np.array([height], np.uint32),
            widths=np.array([width], np.uint32),
            extra=self._pictures().fields_of(number),
        )

    def read_reference(self, number: int) -> None:
        """Return None, because the pictures have no references."""
        self._check(number)

    def find_image(self, name: str) -> int:
        """Return the number of the image with a name, or raise NameNotFoundError."""
        split, _, file = name.rpartition("/")
        digits = file.removesuffix(".png")
        number = int(digits) if digits.isascii() and digits.isdigit() else self.image_count
        if split == self._pictures().split and number < self.image_count and file == _file_name(number):
            return number
        raise NameNotFoundError(f"{self.path}: no image {name!r}")

    def listings(self) -> Iterator[Listing]:
        """Yield the listing of every image in order; each picture is encoded to learn its size."""
        for number in range(self.image_count):
            yield Listing(self.image_name(number), (_file_name(number),), np.array([len(self.read(number))]), None)

    def close(self) -> None:
        """Free the memory of the pictures."""
        self._is_closed = True
        self._cached_pictures = None

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError(f"{self.path}: the source is closed")

    def _pictures(self) -> LabelledPictures:
        pictures = self._cached_pictures
        if pictures is None:
            self._check_open()
            pictures = self._cached_pictures = self.load()
        return pictures

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = self._pictures().pixels[self._check(index)]
        return pixels

    def _check(self, number: int) -> int:
        if not 0 <= number < self.image_count:
            raise PatchIndexError(f"{self.path}: picture {number} of {self.image_count}")
        return operator.index(number)

    def _contents(self) -> str:
        return super()._contents() if self._cached_pictures is not None or self._is_closed else "not read yet"


def _file_name(number: int) -> str:
    # Six digits keep the publisher's order in an exported folder: no dataset has a million pictures.
    return f"{number:06d}.png"
