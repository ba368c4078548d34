"""The pictures of a dataset: every patch of any source, in path order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dlas_store.concat_source import member_at, members
from dlas_store.datasets.roots import WeightedPatches, data_key, open_weighted
from dlas_store.options import ConfigOptions
from dlas_store.source import Source, relative_path


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
