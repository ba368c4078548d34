"""Where the pictures of a dataset come from: every patch of any source, in path order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dlas_store.datasets.roots import Roots, data_key, open_weighted
from dlas_store.options import ConfigOptions
from dlas_store.source import Source, relative_path


class Pictures:
    """The patches of sources, each a picture of its own, and each source repeated by its weight.

    Folders come in path order, and so do the patches of a chunked store: by the path that each had in its folder. A
    store of pictures keeps the order in which they were imported, path order within one import.

    Picklable, and usable after a fork and from several threads, as its sources are.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[int]) -> None:
        """Join sources, which may hold the same one several times; weights count from 0."""
        self._roots = Roots(sources, weights)
        orders = ((source, _PathOrder.of(source)) for source in dict.fromkeys(sources))
        self._orders = {source: order for source, order in orders if order}

    @property
    def sources(self) -> list[Source]:
        """The sources that give pictures, each once."""
        return self._roots.sources

    def __len__(self) -> int:
        """Return the number of pictures in an epoch."""
        return len(self._roots)

    def locate(self, index: int) -> tuple[Source, int]:
        """Return the source of a picture and its patch index there.

        Args:
            index: 0 <= index < len(self).

        Raises:
            PatchIndexError: the index is outside of that.
        """
        source, position = self._roots.locate(index)
        order = self._orders.get(source)
        return source, position if order is None else order.patch_at(position)

    @property
    def unweighted_count(self) -> int:
        """The number of pictures of all sources, each taken once."""
        return self._roots.unweighted_count

    def unweighted(self, index: int) -> int:
        """Return the number of a picture among those of all sources, each taken once; see locate."""
        return self._roots.unweighted(index)


class _PathOrder:
    """The patches of a chunked source in path order, where that is not the order of its images."""

    def __init__(self, source: Source, images: NDArray[np.int64]) -> None:
        firsts = np.fromiter(map(source.first_patch, range(source.image_count + 1)), np.int64, source.image_count + 1)
        self._firsts = firsts[images]
        self._ends = np.cumsum(np.diff(firsts)[images])

    @classmethod
    def of(cls, source: Source) -> _PathOrder | None:
        """Return the order of a source, None where it is the source's own."""
        if source.layout == "pictures":
            return None
        # "a/1.jpg" comes after "a-b/1.jpg", though "a" comes before "a-b".
        folders = [source.image_name(number) + "/" for number in range(source.image_count)]
        images = sorted(range(len(folders)), key=folders.__getitem__)
        return None if images == list(range(len(folders))) else cls(source, np.array(images))

    def patch_at(self, position: int) -> int:
        """Return the index in the source of the patch at a position, 0 <= position < len(source)."""
        rank = int(np.searchsorted(self._ends, position, side="right"))
        before = int(self._ends[rank - 1]) if rank else 0
        return int(self._firsts[rank]) + position - before


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
    """Return the path of a patch below the root of its source, "/" between its parts."""
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
