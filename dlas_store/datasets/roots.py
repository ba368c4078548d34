"""Where a dataset's patches come from: several sources as one, each repeated by its weight."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlas_store.aligned_memory import Pixels
from dlas_store.datasets.shared_stores import open_shared
from dlas_store.errors import PatchIndexError, StoreError
from dlas_store.options import ConfigOptions
from dlas_store.source import Layout, Source


class Roots:
    """Sources one after another, each as often as its weight says, at no memory for a repetition.

    Picklable, and usable after a fork and from several threads, as its sources are.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[int], *, ignore_first: int = 0) -> None:
        """Join sources.

        Args:
            sources: may hold the same source several times.
            weights: how often each source is repeated, from 0.
            ignore_first: how many patches to leave out at the start of every image.
        """
        self._sources = list(sources)
        self._ignore_first = ignore_first
        self._kept = [_kept_before(source, ignore_first) for source in sources] if ignore_first else []
        kept_counts = (int(kept[-1]) for kept in self._kept)
        self._lengths = list(kept_counts) if ignore_first else [len(source) for source in sources]
        repeated = (length * weight for length, weight in zip(self._lengths, weights, strict=True))
        self._ends = list(accumulate(repeated))

    @property
    def sources(self) -> list[Source]:
        """The sources that give patches, each once."""
        starts = [0, *self._ends]
        given = (source for number, source in enumerate(self._sources) if starts[number] < starts[number + 1])
        return list({id(source): source for source in given}.values())

    def __len__(self) -> int:
        """Return the number of patches in an epoch."""
        return self._ends[-1] if self._ends else 0

    def locate(self, index: int) -> tuple[Source, int]:
        """Return the source of a patch and its index there.

        Args:
            index: 0 <= index < len(self).

        Raises:
            PatchIndexError: the index is outside of that.
        """
        root, position = self._place(index)
        source = self._sources[root]
        if not self._ignore_first:
            return source, position
        kept = self._kept[root]
        number = int(np.searchsorted(kept, position, side="right")) - 1
        return source, source.first_patch(number) + self._ignore_first + position - int(kept[number])

    def locate_all(self, indices: Sequence[int]) -> list[tuple[Source, int]]:
        """Return what locate() does for each of some patches, one or more."""
        if len(self._sources) > 1 or self._ignore_first or min(indices) < 0 or max(indices) >= len(self):
            return list(map(self.locate, indices))
        source, length = self._sources[0], self._lengths[0]
        return [(source, index % length) for index in indices]

    def will_need(self, indices: Sequence[int], /) -> None:
        """Let the system fetch patches from the disk, without waiting for it; a hint."""
        announce(map(self.locate, indices))

    @property
    def unweighted_count(self) -> int:
        """The number of patches of all sources, each taken once."""
        return sum(self._lengths)

    def unweighted(self, index: int) -> int:
        """Return the number of a patch among those of all sources, each taken once.

        Args:
            index: 0 <= index < len(self).

        Raises:
            PatchIndexError: the index is outside of that.
        """
        root, position = self._place(index)
        return sum(self._lengths[:root]) + position

    def _place(self, index: int) -> tuple[int, int]:
        """Return which source a patch is of, and its number among those that the source gives."""
        if not 0 <= index < len(self):
            raise PatchIndexError(f"no item {index}: the dataset has {len(self)}")
        root = bisect_right(self._ends, index)
        start = self._ends[root - 1] if root else 0
        return root, (index - start) % self._lengths[root]


def reading_order(patches: Sequence[tuple[Source, int]]) -> list[int]:
    """Return the positions of patches of sources in the order in which they lie there."""
    keys: list[int] | list[tuple[int, int]] = [patch for _, patch in patches]
    if len({source for source, _ in patches}) > 1:
        keys = [(id(source), patch) for source, patch in patches]
    return sorted(range(len(keys)), key=keys.__getitem__)


def read_all_into(patches: Sequence[tuple[Source, int]], outs: list[Pixels]) -> list[Pixels]:
    """Decode patches of sources, each into its array; see Source.read_all_into."""
    pixels: list[Pixels] = []
    for _, group in groupby(patches, key=lambda place: id(place[0])):
        (source, first), *others = group
        indices = [first, *(patch for _, patch in others)]
        pixels += source.read_all_into(indices, outs[len(pixels) : len(pixels) + len(indices)])
    return pixels


def announce(patches: Iterable[tuple[Source, int]]) -> None:
    """Let the system fetch patches of sources from the disk; see Source.will_need."""
    by_source: dict[int, tuple[Source, list[int]]] = {}
    for source, patch in patches:
        by_source.setdefault(id(source), (source, []))[1].append(patch)
    for source, indices in by_source.values():
        source.will_need(indices)


def image_path(source: Source, index: int) -> str:
    """Return the path of the image that a patch belongs to."""
    return f"{source.path}/{source.image_name(source.locate(index)[0])}"


def open_roots(options: ConfigOptions, *, layout: Layout | None) -> Roots:
    """Open what ``paths`` (or ``dataroot``) and ``weights`` name, without the ``ignore_first`` patches of each image.

    Raises:
        ConfigError: neither or both are given, a path does not exist, the weights do not fit, or no patch is left.
        StoreError: a path holds nothing to read, or what is damaged.
    """
    sources, weights = open_weighted(options, layout=layout)
    roots = Roots(sources, weights, ignore_first=options.integer("ignore_first", 0, minimum=0))
    if not len(roots):
        raise options.error(f"no patches in {data_key(options, 'paths')}: {', '.join(str(s.path) for s in sources)}")
    return roots


def open_weighted(
    options: ConfigOptions, *, layout: Layout | None, key: str = "paths", weights_key: str | None = "weights"
) -> tuple[list[Source], list[int]]:
    """Open what an option (or ``dataroot``) names, a path named twice only once.

    Args:
        options: of the dataset.
        layout: see open_source.
        key: names one path or more.
        weights_key: names how often each is repeated, 1 by default; None where the dataset has no weights.

    Returns:
        The sources, and for each its weight from 0.

    Raises:
        ConfigError: neither or both are given, a path does not exist, or the weights do not fit.
        StoreError: a path holds nothing to read, or what is damaged.
    """
    key = data_key(options, key)
    paths = options.paths(key)
    weights = [1] * len(paths)
    if weights_key is not None:
        weights = options.integers(weights_key, weights, minimum=0)
        if len(weights) != len(paths):
            raise options.error(f"{weights_key} must be one for each of {key}: {len(paths)}, got {len(weights)}")
    return open_paths(options, layout=layout, key=key), weights


def open_paths(options: ConfigOptions, *, layout: Layout | None, key: str) -> list[Source]:
    """Open the paths that an option names, a path named twice only once.

    Raises:
        ConfigError: the option is missing, or a path does not exist.
        StoreError: a path holds nothing to read, or what is damaged.
    """
    paths = options.paths(key)
    for path in paths:
        if not path.exists():
            raise options.error(f"{key} names '{path}', which does not exist")
    opened = {path: _open(options, key, path, layout) for path in dict.fromkeys(paths)}
    return [opened[path] for path in paths]


def _open(options: ConfigOptions, key: str, path: Path, layout: Layout | None) -> Source:
    try:
        return open_shared(path, layout=layout)
    except StoreError as error:
        raise type(error)(str(options.error(f"{key}: {error}"))) from error


def data_key(options: ConfigOptions, key: str) -> str:
    """Return which option names the data, a mode's own or ``dataroot``.

    Raises:
        ConfigError: both are given.
    """
    if not options.has("dataroot"):
        return key
    if options.has(key):
        raise options.error(f"{key} and dataroot are both given; leave one out")
    return "dataroot"


def _kept_before(source: Source, ignored: int) -> NDArray[np.int64]:
    """Return how many patches are kept in the images before each, int64 (image_count + 1,), ``ignored`` left out."""
    firsts = np.fromiter(map(source.first_patch, range(source.image_count + 1)), np.int64, source.image_count + 1)
    kept = np.maximum(np.diff(firsts) - ignored, 0)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
