"""Several sources one after another, as one source."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path

from dlas_store.errors import NameNotFoundError, PatchIndexError
from dlas_store.images.decode import as_batch
from dlas_store.images.memory import Pixels
from dlas_store.sources.base import Image, Layout, Listing, Source


class ConcatSource(Source):
    """Sources joined in order: the patches and images of each are numbered behind those of the sources before it.

    Each method asks the source that holds the patch or image, so that paths and errors name that source. Of all sources
    at once:

    * ``path``, ``decoder`` and ``max_pixels`` are those of the first source; source_path() says which one an image is
      in, and each source decodes by its own options.
    * ``layout`` is ``pictures`` where all sources have that layout, else ``chunked``.
    * ``find_image`` and ``find`` ask the sources in order, and return the first match; they never find an image whose
      name an earlier source has, too.
    * ``close`` closes all sources.

    Attributes:
        sources: the sources, in order.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        """Join sources, which stay open for as long as this one is used."""
        self.sources = tuple(sources)
        for source in self.sources[:1]:
            self.decoder, self.max_pixels = source.decoder, source.max_pixels
        self._starts = [0, *accumulate(map(len, self.sources))]
        self._first_images = [0, *accumulate(source.image_count for source in self.sources)]

    @property
    def path(self) -> Path:
        """The path of the first source."""
        return self.sources[0].path

    @property
    def layout(self) -> Layout:
        """The layout of all sources, ``chunked`` where they differ."""
        return "chunked" if "chunked" in [source.layout for source in self.sources] else "pictures"

    @property
    def image_count(self) -> int:
        """Number of images of all sources."""
        return sum(source.image_count for source in self.sources)

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def member_at(self, index: int) -> tuple[Source, int]:
        """Return the source that holds a patch, and the patch's index there.

        Raises:
            PatchIndexError: the index is not in 0 .. len(self) - 1.
        """
        number = self._member_number(index)
        return self.sources[number], index - self._starts[number]

    def member_of_image(self, number: int) -> tuple[Source, int]:
        """Return the source that holds an image, and the image's number there.

        Raises:
            PatchIndexError: the number is not in 0 .. image_count - 1.
        """
        member = bisect_right(self._first_images, number) - 1
        if not 0 <= member < len(self.sources):
            raise PatchIndexError(f"image {number} is not in 0 .. {self._first_images[-1] - 1}: of {self._names()}")
        return self.sources[member], number - self._first_images[member]

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of a patch."""
        source, index = self.member_at(index)
        return source.read(index)

    def view(self, index: int) -> bytes | memoryview:
        """Return the encoded bytes of a patch; see Source."""
        source, index = self.member_at(index)
        return source.view(index)

    def prefetch(self, indices: Sequence[int], /) -> None:
        """Let the system fetch patches and references; see Source."""
        of_member: dict[int, list[int]] = {}
        for index in indices:
            number = self._member_number(index)
            of_member.setdefault(number, []).append(index - self._starts[number])
        for number, source in enumerate(self.sources):
            source.prefetch(of_member.get(number, ()))

    def header_size(self, index: int) -> tuple[int, int]:
        """Return the height and width in pixels that a patch claims to have."""
        source, index = self.member_at(index)
        return source.header_size(index)

    def decode_into(self, index: int, out: Pixels) -> Pixels:
        """Decode a patch into an array, where it has exactly that size; see Source."""
        source, index = self.member_at(index)
        return source.decode_into(index, out)

    def decode_many_into(self, indices: list[int], outs: list[Pixels]) -> list[Pixels]:
        """Decode patches, each into its array; consecutive ones of a source in one call. See Source."""
        if len(indices) != len(outs):
            longer = "indices" if len(indices) > len(outs) else "arrays"
            raise ValueError(f"{len(indices)} indices for {len(outs)} arrays: the {longer} are longer")
        pixels: list[Pixels] = []
        while len(pixels) < len(indices):
            first = len(pixels)
            number = self._member_number(indices[first])
            start, end = self._starts[number : number + 2]
            stop = first + 1
            while stop < len(indices) and start <= indices[stop] < end:
                stop += 1
            members = [index - start for index in indices[first:stop]]
            pixels += self.sources[number].decode_many_into(members, outs[first:stop])
        return pixels

    def read_pixels(self, indices: Sequence[int], *, alpha: bool = False) -> Pixels | list[Pixels]:
        """Decode patches; see Source."""
        places = [self.member_at(index) for index in indices]
        if len({id(source) for source, _ in places}) == 1:
            return places[0][0].read_pixels([index for _, index in places], alpha=alpha)
        return as_batch([source.read_pixels([index], alpha=alpha)[0] for source, index in places])

    def locate(self, index: int) -> tuple[int, int]:
        """Return (image number, position of the patch in its image)."""
        number = self._member_number(index)
        image, position = self.sources[number].locate(index - self._starts[number])
        return image + self._first_images[number], position

    def first_patch(self, number: int) -> int:
        """Return the index of an image's first patch; ``first_patch(image_count)`` is ``len(source)``."""
        if number == self._first_images[-1]:
            return len(self)
        member = bisect_right(self._first_images, number) - 1
        source, number = self.member_of_image(number)
        return self._starts[member] + source.first_patch(number)

    def path_at(self, number: int, position: int) -> str:
        """Return the path of a patch by where locate() says that it is."""
        source, number = self.member_of_image(number)
        return source.path_at(number, position)

    def source_path(self, number: int) -> Path:
        """Return the path of the source that holds an image."""
        source, number = self.member_of_image(number)
        return source.source_path(number)

    def image_name(self, number: int) -> str:
        """Return the name of an image, which images of other sources may have as well."""
        source, number = self.member_of_image(number)
        return source.image_name(number)

    def image(self, number: int) -> Image:
        """Return what is known of an image."""
        source, number = self.member_of_image(number)
        return source.image(number)

    def image_without_centers(self, number: int) -> Image:
        """Return what is known of an image but its centres; see Source."""
        source, number = self.member_of_image(number)
        return source.image_without_centers(number)

    def read_reference(self, number: int) -> bytes | None:
        """Return the encoded bytes of an image's reference, None without one."""
        source, number = self.member_of_image(number)
        return source.read_reference(number)

    def find_image(self, name: str) -> int:
        """Return the number of the first image of that name, or raise NameNotFoundError."""
        for source, first in zip(self.sources, self._first_images, strict=False):
            try:
                return first + source.find_image(name)
            except NameNotFoundError:
                continue
        raise NameNotFoundError(f"no image {name!r} in {self._names()}")

    def find(self, image: str, file: str) -> int:
        """Return the index of the first patch of that image and file name, or raise NameNotFoundError."""
        for source, start in zip(self.sources, self._starts, strict=False):
            try:
                return start + source.find(image, file)
            except NameNotFoundError:
                continue
        raise NameNotFoundError(f"no patch {file!r} of image {image!r} in {self._names()}")

    def listings(self) -> Iterator[Listing]:
        """Yield the files of every image in order, holding no more than one image's."""
        return chain.from_iterable(source.listings() for source in self.sources)

    def close(self) -> None:
        """Close all sources."""
        for source in self.sources:
            source.close()

    def _member_number(self, index: int) -> int:
        number = bisect_right(self._starts, index) - 1
        if not 0 <= number < len(self.sources):
            raise PatchIndexError(f"patch {index} is not in 0 .. {self._starts[-1] - 1}: of {self._names()}")
        return number

    def _names(self) -> str:
        return ", ".join(str(source.path) for source in self.sources)


def concat(sources: Sequence[Source]) -> Source:
    """Return sources as one: joined in order, each once, or the only one itself, which then costs no detour."""
    distinct = list(dict.fromkeys(sources))
    return distinct[0] if len(distinct) == 1 else ConcatSource(distinct)


def members(source: Source) -> tuple[Source, ...]:
    """Return the sources that a source joins; itself where it joins none."""
    return source.sources if isinstance(source, ConcatSource) else (source,)


def member_at(source: Source, index: int) -> tuple[Source, int]:
    """Return which of its members() holds a patch of a source, and the patch's index there."""
    return source.member_at(index) if isinstance(source, ConcatSource) else (source, index)
