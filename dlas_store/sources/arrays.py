"""Labelled pictures that lie in arrays as a source: the classification datasets that are published as a few files."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from dlas_store.errors import ClosedError, NameNotFoundError, PatchIndexError
from dlas_store.images.decode import as_batch
from dlas_store.images.memory import Pixels
from dlas_store.sources.base import Image, Layout, Listing, Source


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LabelledPictures:
    """Pictures of one size, with their labels.

    Attributes:
        split: the part of the dataset that they are, which begins their names.
        pixels: uint8, (n, H, W) grey or (n, H, W, 3) RGB.
        labels: field of Image.extra -> int64 (n,).
        class_names: such a field -> the names that its labels are positions in, where those are known.
    """

    split: str
    pixels: NDArray[np.uint8]
    labels: Mapping[str, NDArray[np.int64]]
    class_names: Mapping[str, Sequence[str]]

    def fields_of(self, number: int) -> dict[str, Any]:
        """Return the labels of a picture, and the names of its classes (``label_name`` for ``label``)."""
        fields: dict[str, Any] = {}
        for name, labels in self.labels.items():
            label = int(labels[number])
            fields[name] = label
            names = self.class_names.get(name, ())
            if label < len(names):
                fields[f"{name}_name"] = names[label]
        return fields


class ArrayPictures(Source):
    """Pictures of an array, each the one patch of an image ``SPLIT/NNNNNN.png``; see Source for what is promised.

    They are loaded when they are first needed, and all are held. ``read`` gives PNG: the same bytes for the same
    picture as long as Pillow stays the same.

    Args:
        path: where they lie.
        load: loads them; picklable.
    """

    layout: Layout = "pictures"

    def __init__(self, path: Path, load: Callable[[], LabelledPictures]) -> None:
        self._path = path
        self.load = load
        self._loaded: LabelledPictures | None = None
        self._closed = False

    def __reduce__(self) -> tuple[type[ArrayPictures], tuple[Path, Callable[[], LabelledPictures]]]:
        return ArrayPictures, (self.path, self.load)

    @property
    def path(self) -> Path:
        """The folder that the files lie in."""
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
        """Return the height and width of a picture; see Source.header_size."""
        height, width = self._pixels(index).shape[:2]
        return height, width

    def decode_into(self, index: int, out: Pixels) -> Pixels:
        """Return a picture in an array; see Source.decode_into."""
        pixels = _to_colour(self._pixels(index), alpha=False)
        if pixels.shape != out.shape:
            return pixels
        out[...] = pixels
        return out

    def read_pixels(self, indices: Sequence[int], *, alpha: bool = False) -> Pixels | list[Pixels]:
        """Return pixels; see Source.read_pixels."""
        return as_batch([_to_colour(self._pixels(index), alpha=alpha) for index in indices])

    def locate(self, index: int) -> tuple[int, int]:
        """Return (image number, 0)."""
        return self._check(index), 0

    def first_patch(self, number: int) -> int:
        """Return the index of an image's patch, which is its number."""
        return number if number == self.image_count else self._check(number)

    def path_at(self, number: int, position: int) -> str:
        """Return the path of a picture by where it is; see Source.path_at."""
        return f"{self.path}/{self.image_name(number + position)}"

    def image_name(self, number: int) -> str:
        """Return the name of an image."""
        return f"{self._pictures().split}/{_file_name(self._check(number))}"

    def image(self, number: int) -> Image:
        """Return what is known of an image."""
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
        """Return None: pictures have no reference."""
        self._check(number)

    def find_image(self, name: str) -> int:
        """Return the number of the image of that name."""
        split, _, file = name.rpartition("/")
        digits = file.removesuffix(".png")
        number = int(digits) if digits.isascii() and digits.isdigit() else self.image_count
        if split == self._pictures().split and number < self.image_count and file == _file_name(number):
            return number
        raise NameNotFoundError(f"{self.path}: no image {name!r}")

    def listings(self) -> Iterator[Listing]:
        """Yield the file of every image in order; each is encoded for its size."""
        for number in range(self.image_count):
            yield Listing(self.image_name(number), (_file_name(number),), np.array([len(self.read(number))]), None)

    def close(self) -> None:
        """Forget the pictures."""
        self._closed = True
        self._loaded = None

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self.path}: the source is closed")

    def _pictures(self) -> LabelledPictures:
        loaded = self._loaded
        if loaded is None:
            self._check_open()
            loaded = self._loaded = self.load()
        return loaded

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = self._pictures().pixels[self._check(index)]
        return pixels

    def _check(self, number: int) -> int:
        if not 0 <= number < self.image_count:
            raise PatchIndexError(f"{self.path}: picture {number} of {self.image_count}")
        return number


def _file_name(number: int) -> str:
    # Six digits keep the publisher's order when the pictures are exported: none of the datasets has a million.
    return f"{number:06d}.png"


def _to_colour(pixels: NDArray[np.uint8], *, alpha: bool) -> Pixels:
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]) if alpha else pixels.copy()
