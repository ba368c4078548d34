"""The pictures of a dataset: every patch of any source, in path order.

Pictures that are too small for what a dataset cuts from them, found before training where sizes are known.

What the datasets of pictures have in common.

Which other picture goes with one: the next frame of its video, or another tile of its image.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from dlas_store.config import ConfigOptions
from dlas_store.datasets.concat import WeightedPatches, data_key, image_path, open_weighted
from dlas_store.errors import ImageError, NameNotFoundError
from dlas_store.loading.dataset import ItemDataset
from dlas_store.sampling.rng import SampleKey, SampleRng
from dlas_store.sources.base import Source, relative_path
from dlas_store.sources.concat import member_at, members


class Pictures:
    """The patches of sources, each a picture of its own, and each source repeated by its weight; see WeightedPatches.

    Folders come in path order, and so do the patches of a chunked store: by the path that each had in its folder. A
    store of pictures keeps the order in which they were imported, path order within one import.

    Picklable, and usable after a fork and from several threads, as its sources are.

    Attributes:
        source: the sources that give pictures, each once, as one.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[int]) -> None:
        """Number the pictures of an epoch; the same source may be given several times, weights count from 0."""
        self._patches = WeightedPatches(sources, weights)
        self.source = self._patches.source
        self._order = _PathOrder.of(self.source) if len(self) else None

    @property
    def sources(self) -> list[Source]:
        """The sources that give pictures, each once."""
        return list(members(self.source))

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        return len(self._patches)

    def patch_at(self, index: int) -> int:
        """Return the index in the source of an item's picture.

        Args:
            index: of the item, 0 <= index < len(self).

        Raises:
            PatchIndexError: the index is outside of that.
        """
        patch = self._patches.patch_at(index)
        return patch if self._order is None else self._order.patch_at(patch)

    @property
    def unweighted_count(self) -> int:
        """The number of pictures of all sources, each taken once."""
        return self._patches.unweighted_count

    def unweighted(self, index: int) -> int:
        """Return the number of an item's picture among those of all sources, each taken once; see patch_at."""
        return self._patches.unweighted(index)


class _PathOrder:
    """The patches of a source, each member's in path order, where that is not the order of its images."""

    def __init__(self, source: Source, images: NDArray[np.int64]) -> None:
        firsts = np.fromiter(map(source.first_patch, range(source.image_count + 1)), np.int64, source.image_count + 1)
        self._firsts = firsts[images]
        self._ends = np.cumsum(np.diff(firsts)[images])

    @classmethod
    def of(cls, source: Source) -> _PathOrder | None:
        """Return the order of a source, None where it is the source's own."""
        if all(member.layout == "pictures" for member in members(source)):
            return None
        images: list[int] = []
        for member in members(source):
            first = len(images)
            images += (first + number for number in _images_by_path(member))
        return None if images == list(range(len(images))) else cls(source, np.array(images))

    def patch_at(self, position: int) -> int:
        """Return the index in the source of the patch at a position, 0 <= position < len(source)."""
        rank = int(np.searchsorted(self._ends, position, side="right"))
        before = int(self._ends[rank - 1]) if rank else 0
        return int(self._firsts[rank]) + position - before


def _images_by_path(source: Source) -> Sequence[int]:
    """Return the images of a source that joins no others, in the path order of their patches."""
    if source.layout == "pictures":
        return range(source.image_count)
    # "a/1.jpg" comes after "a-b/1.jpg", though "a" comes before "a-b".
    folders = [source.image_name(number) + "/" for number in range(source.image_count)]
    return sorted(range(len(folders)), key=folders.__getitem__)


def open_pictures(options: ConfigOptions, *, key: str = "paths", weights_key: str | None = "weights") -> Pictures:
    """Open what an option (or ``dataroot``) and its weights name.

    Raises:
        ConfigError: neither or both are given, a path does not exist, the weights do not fit, or all are 0.
        StoreError: a path holds nothing to read, or what is damaged.
    """
    sources, weights = open_weighted(options, layout="pictures", key=key, weights_key=weights_key)
    pictures = Pictures(sources, weights)
    if not len(pictures):
        named = ", ".join(str(source.path) for source in sources)
        raise options.error(f"no pictures in {data_key(options, key)}: {named}")
    return pictures


def path_below(source: Source, index: int) -> str:
    """Return the path of a patch below the root of the source that holds it, "/" between its parts."""
    source, index = member_at(source, index)
    number, position = source.locate(index)
    image = source.image(number)
    return relative_path(source.layout, image.name, image.files[position])


def find_path(source: Source, path: str) -> int:
    """Return the index of the patch at a path below the root of a source.

    Raises:
        NameNotFoundError: there is none.
    """
    if source.layout == "pictures":
        return source.first_patch(source.find_image(path))
    image, _, file = path.rpartition("/")
    return source.find(image, file)


def check_min_sides(options: ConfigOptions, sources: Iterable[Source], side: int, *, reason: str) -> None:
    """Check the pictures of all sources that know their sizes, which stores do and folders do not.

    It reads the metadata of every image: 8 us for each of a store of pictures, measured.

    Args:
        options: of the dataset.
        sources: what it reads.
        side: pixels that both sides of a picture must have.
        reason: what asks for them.

    Raises:
        ConfigError: a picture is smaller; it is named.
    """
    if side <= 1:
        return
    for source in sources:
        for number in range(source.image_count):
            image = source.image(number)
            if image.heights is None or image.widths is None:
                break
            small = np.flatnonzero(np.minimum(image.heights, image.widths) < side)
            if len(small):
                patch = int(small[0])
                path = source.patch_path(source.first_patch(number) + patch)
                size = int(image.heights[patch]), int(image.widths[patch])
                raise options.error(f"{_too_small(path, size, side, reason)}, or set on_error to skip")


def check_min_side(path: str, size: tuple[int, ...], side: int, *, reason: str) -> None:
    """Check the height and width of one picture.

    Raises:
        ImageError: one is below ``side``.
    """
    if min(size) < side:
        raise ImageError(_too_small(path, size, side, reason))


def _too_small(path: str, size: tuple[int, ...], side: int, reason: str) -> str:
    height, width = size
    return f"{path}: {width} x {height} pixels are too few for {reason}, which needs {side} x {side}; leave it out"


class PictureDataset(ItemDataset):
    """A dataset with an item for every picture; whoever derives from it opens them."""

    _pictures: Pictures

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        return len(self._pictures)

    def image_of(self, index: int) -> str:
        """Return the path of the image that an item belongs to."""
        return image_path(self._pictures.source, self._patch_at(index))

    def prefetch(self, draws: Sequence[SampleKey]) -> None:
        """Let the system fetch the pictures, not what else an item may take; see ItemDataset."""
        self._pictures.source.prefetch([self._patch_at(draw.index) for draw in draws])

    def _patch_at(self, index: int) -> int:
        """Return the index of an item's picture in the source of pictures.

        Raises:
            PatchIndexError: the index is not in 0 .. len(self) - 1.
        """
        return self._pictures.patch_at(index)


_NUMBERED = re.compile(r"(?P<before>.*)(?P<number>[0-9]{8})(?P<ending>\.[^./]*)", re.ASCII | re.DOTALL)


def next_name(path: str) -> str | None:
    """Return the path whose 8-digit number at the end is the next one, None where there is no such number.

    >>> next_name("a/video.webm_00000478.jpg")
    'a/video.webm_00000479.jpg'
    >>> next_name("a/478.jpg"), next_name("99999999.jpg")
    (None, None)
    """
    found = _NUMBERED.fullmatch(path)
    number = int(found["number"]) + 1 if found else 10**8
    return f"{found['before']}{number:08d}{found['ending']}" if found and number < 10**8 else None


def find_next(source: Source, index: int) -> int | None:
    """Return the patch of the next number in the same folder, None where there is none.

    Args:
        source: of the patch.
        index: of the patch in it.
    """
    name = next_name(path_below(source, index))
    if name is None:
        return None
    try:
        return find_path(source, name)
    except NameNotFoundError:
        return None


class Siblings:
    """Which patches of a source lie in the same folder, at 16 bytes a patch; in a chunked source at none."""

    def __init__(self, source: Source) -> None:
        """Read all names of a source of pictures."""
        self._source = source
        if source.layout == "pictures":
            numbers: dict[str, int] = {}
            names = map(source.image_name, range(source.image_count))
            folders = (numbers.setdefault(name.rpartition("/")[0], len(numbers)) for name in names)
            self._folders = np.fromiter(folders, np.int64, source.image_count)
            self._members = np.argsort(self._folders, kind="stable")
            self._starts = np.searchsorted(self._folders[self._members], np.arange(len(numbers) + 1))

    def draw(self, index: int, random: SampleRng) -> int | None:
        """Return the index of another patch of a patch's folder, each as likely, None where it is alone."""
        members = self._members_with(index)
        if len(members) == 1:
            return None
        drawn = int(random.generator.integers(len(members) - 1))
        return int(members[drawn + (drawn >= bisect_left(members, index))])

    def _members_with(self, index: int) -> range | NDArray[np.int64]:
        """Return the patches of a patch's folder, in ascending order."""
        if self._source.layout == "chunked":
            number, _ = self._source.locate(index)
            return range(self._source.first_patch(number), self._source.first_patch(number + 1))
        folder = self._folders[index]
        return self._members[self._starts[folder] : self._starts[folder + 1]]
