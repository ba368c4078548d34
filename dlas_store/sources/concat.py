"""ConcatSource, several sources joined into one."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path

from dlas_store.errors import NameNotFoundError, PatchIndexError
from dlas_store.images.decode import as_batch
from dlas_store.images.memory import Pixels, as_indices
from dlas_store.sources.base import Image, Layout, Listing, Source


class ConcatSource(Source):
    """Several sources, the members, as one source whose patches and images are those of each member in turn.

    A method for one patch or image asks the member that holds the patch or image, so that paths and errors name that
    member. These attributes and methods concern all members:

    * ``path``, ``decoder`` and ``max_pixels`` are the values of the first member. source_path() returns the path of the
      member that holds an image. Each member decodes by its own options.
    * ``layout`` is ``pictures`` if all members have that layout, else ``chunked``.
    * ``find_image`` and ``find`` ask the members in order and return the first match. If two members have an image of
      one name, ``find_image`` never returns the later image.
    * ``close`` closes all members.

    Attributes:
        sources: the members, in order.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        """Join open sources; closing the joined source closes them."""
        self.sources = tuple(sources)
        if self.sources:
            self.decoder, self.max_pixels = self.sources[0].decoder, self.sources[0].max_pixels
        self._starts = [0, *accumulate(map(len, self.sources))]
        self._first_images = [0, *accumulate(source.image_count for source in self.sources)]

    @property
    def path(self) -> Path:
        """The path of the first member."""
        return self.sources[0].path

    @property
    def layout(self) -> Layout:
        """The layout of all members, ``chunked`` if their layouts differ."""
        return "chunked" if "chunked" in [source.layout for source in self.sources] else "pictures"

    @property
    def image_count(self) -> int:
        """Number of images of all members."""
        # Not ``_first_images[-1]``: a closed member must raise ClosedError here and in __len__.
        return sum(source.image_count for source in self.sources)

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def member_at(self, index: int) -> tuple[Source, int]:
        """Return the member that holds a patch, and the patch's index in that member.

        Raises:
            PatchIndexError: the index is not in 0 .. len(self) - 1.
        """
        index = operator.index(index)
        member = self._member_number(index)
        return self.sources[member], index - self._starts[member]

    def member_of_image(self, number: int) -> tuple[Source, int]:
        """Return the member that holds an image, and the image's number in that member.

        Raises:
            PatchIndexError: the number is not in 0 .. image_count - 1.
        """
        number = operator.index(number)
        member = bisect_right(self._first_images, number) - 1
        if not 0 <= member < len(self.sources):
            raise PatchIndexError(f"image {number} is not in 0 .. {self._first_images[-1] - 1}: of {self._paths()}")
        return self.sources[member], number - self._first_images[member]

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of a patch."""
        source, index = self.member_at(index)
        return source.read(index)

    def view(self, index: int) -> bytes | memoryview:
        """Return the encoded bytes of a patch; see Source.view."""
        source, index = self.member_at(index)
        return source.view(index)

    def prefetch(self, indices: Sequence[int], /) -> None:
        """Let the system read patches and references from the disk; see Source.prefetch."""
        indices_of: dict[int, list[int]] = {}
        for index in as_indices(indices):
            member = self._member_number(index)
            indices_of.setdefault(member, []).append(index - self._starts[member])
        for member, source in enumerate(self.sources):
            source.prefetch(indices_of.get(member, ()))

    def header_size(self, index: int) -> tuple[int, int]:
        """Return the height and width in pixels in a patch's header."""
        source, index = self.member_at(index)
        return source.header_size(index)

    def decode_into(self, index: int, out: Pixels) -> Pixels:
        """Decode a patch into an array of its size; see Source.decode_into."""
        source, index = self.member_at(index)
        return source.decode_into(index, out)

    def decode_many_into(self, indices: list[int], outs: list[Pixels]) -> list[Pixels]:
        """Decode patches, each into its array, with one call for successive patches of one member; see Source."""
        if len(indices) != len(outs):
            longer_list = "indices" if len(indices) > len(outs) else "arrays"
            raise ValueError(f"{len(indices)} indices for {len(outs)} arrays: the {longer_list} are longer")
        indices = as_indices(indices)
        pixels: list[Pixels] = []
        while len(pixels) < len(indices):
            first = len(pixels)
            member = self._member_number(indices[first])
            start, end = self._starts[member : member + 2]
            stop = first + 1
            while stop < len(indices) and start <= indices[stop] < end:
                stop += 1
            member_indices = [index - start for index in indices[first:stop]]
            pixels += self.sources[member].decode_many_into(member_indices, outs[first:stop])
        return pixels

    def read_pixels(self, indices: Sequence[int], *, alpha: bool = False) -> Pixels | list[Pixels]:
        """Decode patches into new arrays; see Source.read_pixels."""
        places = [self.member_at(index) for index in as_indices(indices)]
        if len({id(source) for source, _ in places}) == 1:
            return places[0][0].read_pixels([index for _, index in places], alpha=alpha)
        return as_batch([source.read_pixels([index], alpha=alpha)[0] for source, index in places])

    def locate(self, index: int) -> tuple[int, int]:
        """Return (image number, position of the patch in its image)."""
        index = operator.index(index)
        member = self._member_number(index)
        number, position = self.sources[member].locate(index - self._starts[member])
        return number + self._first_images[member], position

    def first_patch(self, number: int) -> int:
        """Return the index of an image's first patch; ``first_patch(image_count)`` is ``len(source)``."""
        if number == self._first_images[-1]:
            return len(self)
        member = bisect_right(self._first_images, number) - 1
        source, number = self.member_of_image(number)
        return self._starts[member] + source.first_patch(number)

    def path_at(self, number: int, position: int) -> str:
        """Return the path of the patch at a position in an image."""
        source, number = self.member_of_image(number)
        return source.path_at(number, position)

    def source_path(self, number: int) -> Path:
        """Return the path of the member that holds an image."""
        source, number = self.member_of_image(number)
        return source.source_path(number)

    def image_name(self, number: int) -> str:
        """Return the name of an image; images of several members may have the same name."""
        source, number = self.member_of_image(number)
        return source.image_name(number)

    def image(self, number: int) -> Image:
        """Return the names and metadata of an image."""
        source, number = self.member_of_image(number)
        return source.image(number)

    def image_without_centers(self, number: int) -> Image:
        """Return an image with ``centers`` None; see Source.image_without_centers."""
        source, number = self.member_of_image(number)
        return source.image_without_centers(number)

    def read_reference(self, number: int) -> bytes | None:
        """Return the encoded bytes of an image's reference, None without one."""
        source, number = self.member_of_image(number)
        return source.read_reference(number)

    def find_image(self, name: str) -> int:
        """Return the number of the first image with a name, or raise NameNotFoundError."""
        for source, first in zip(self.sources, self._first_images, strict=False):
            try:
                return first + source.find_image(name)
            except NameNotFoundError:
                continue
        raise NameNotFoundError(f"no image {name!r} in {self._paths()}")

    def find(self, image: str, file: str) -> int:
        """Return the index of the first patch with an image and file name, or raise NameNotFoundError."""
        for source, start in zip(self.sources, self._starts, strict=False):
            try:
                return start + source.find(image, file)
            except NameNotFoundError:
                continue
        raise NameNotFoundError(f"no patch {file!r} of image {image!r} in {self._paths()}")

    def listings(self) -> Iterator[Listing]:
        """Yield the listing of every image in order, and hold one listing at a time."""
        return chain.from_iterable(source.listings() for source in self.sources)

    def close(self) -> None:
        """Close all members."""
        for source in self.sources:
            source.close()

    def _member_number(self, index: int) -> int:
        member = bisect_right(self._starts, index) - 1
        if not 0 <= member < len(self.sources):
            raise PatchIndexError(f"patch {index} is not in 0 .. {self._starts[-1] - 1}: of {self._paths()}")
        return member

    def _contents(self) -> str:
        return f"{len(self.sources)} sources, {', '.join(map(repr, self.sources))}"

    def _paths(self) -> str:
        return ", ".join(str(source.path) for source in self.sources)


def concat(sources: Sequence[Source]) -> Source:
    """Return the distinct sources joined in order; a single source is returned itself, because joining slows reads."""
    distinct_sources = list(dict.fromkeys(sources))
    return distinct_sources[0] if len(distinct_sources) == 1 else ConcatSource(distinct_sources)


def members(source: Source) -> tuple[Source, ...]:
    """Return the members of a ConcatSource; any other source is its only member."""
    return source.sources if isinstance(source, ConcatSource) else (source,)


def member_at(source: Source, index: int) -> tuple[Source, int]:
    """Return the member of a source that holds a patch, and the patch's index in that member; see members()."""
    return source.member_at(index) if isinstance(source, ConcatSource) else (source, index)
