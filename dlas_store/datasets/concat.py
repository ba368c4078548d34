"""The sources of a dataset as one, and its items as their patches, each source repeated by its weight.

One open store for all datasets of a process that read it.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from dlas_store.config import ConfigOptions
from dlas_store.errors import PatchIndexError, StoreError
from dlas_store.opening import open_source
from dlas_store.sources.base import Layout, Source
from dlas_store.sources.concat import concat, members
from dlas_store.storage.index import INDEX_FILE
from dlas_store.storage.store import Store


class _Key(NamedTuple):
    """What tells an open store from any other, and from the same one after an append, which replaces its index."""

    path: Path
    layout: Layout | None
    device: int
    inode: int
    modified: int


_stores: WeakValueDictionary[_Key, Store] = WeakValueDictionary()


def open_cached(path: Path, *, layout: Layout | None) -> Source:
    """Open a source as open_source does; a store that this process holds already is given again.

    A store stays open as long as anything refers to it, so nobody closes it. A folder is opened anew each time: what
    was listed of it before may be out of date, which only another listing shows.

    Raises:
        NotASourceError: the path holds nothing to read, or not in that layout.
        StoreError: a store that is damaged, or of a later version.
    """
    key = _key(path, layout)
    held = _stores.get(key) if key else None
    if held is not None:
        return held
    source = open_source(path, layout)
    if key is not None and isinstance(source, Store):
        _stores[key] = source
    return source


def _key(path: Path, layout: Layout | None) -> _Key | None:
    """Return the key of what may be a store, None for what is none."""
    file = path / INDEX_FILE if path.is_dir() else path
    try:
        status = file.stat()
    except OSError:
        return None
    return _Key(Path(os.path.abspath(path)), layout, status.st_dev, status.st_ino, status.st_mtime_ns)  # noqa: PTH100


class WeightedPatches:
    """The patches of an epoch: those of sources one after another, each source as often as its weight says.

    Items of a dataset are numbered by it. Datasets read from ``source``, whose indices differ from those of items: it
    holds each source once, and the patches that ``ignore_first`` leaves out as well. A repetition costs no memory.

    Picklable, and usable after a fork and from several threads, as its sources are.

    Attributes:
        source: the sources that give patches, each once, as one.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[int], *, ignore_first: int = 0) -> None:
        """Number the patches of an epoch.

        Args:
            sources: may hold the same source several times.
            weights: how often each source is repeated, from 0.
            ignore_first: how many patches to leave out at the start of every image.
        """
        self._ignore_first = ignore_first
        self._kept = [_kept_before(source, ignore_first) for source in sources] if ignore_first else []
        kept_counts = (int(kept[-1]) for kept in self._kept)
        self._lengths = list(kept_counts) if ignore_first else [len(source) for source in sources]
        repeated = [length * weight for length, weight in zip(self._lengths, weights, strict=True)]
        self._ends = list(accumulate(repeated))
        used_sources = [source for source, count in zip(sources, repeated, strict=True) if count]
        self.source = concat(used_sources)
        self._sources = list(sources)
        starts = dict(zip(members(self.source), accumulate(map(len, members(self.source)), initial=0), strict=False))
        self._starts = [starts.get(source, 0) for source in sources]
        self._period = self._find_period(used_sources, weights)

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        return self._ends[-1] if self._ends else 0

    def patch_at(self, index: int) -> int:
        """Return the index in the source of an item's patch.

        Args:
            index: of the item, 0 <= index < len(self).

        Raises:
            PatchIndexError: the index is outside of that.
        """
        entry, position = self._place(index)
        if self._ignore_first:
            kept = self._kept[entry]
            number = int(np.searchsorted(kept, position, side="right")) - 1
            first = self._sources[entry].first_patch(number) + self._ignore_first
            position += first - int(kept[number])
        return self._starts[entry] + position

    def patches_at(self, indices: Sequence[int]) -> list[int]:
        """Return what patch_at() does for each of some items, one or more."""
        period = self._period
        if period is None or min(indices) < 0 or max(indices) >= len(self):
            return list(map(self.patch_at, indices))
        return [index % period for index in indices]

    @property
    def unweighted_count(self) -> int:
        """The number of patches of all sources, each taken once."""
        return sum(self._lengths)

    def unweighted(self, index: int) -> int:
        """Return the number of an item's patch among those of all sources, each taken once.

        Args:
            index: of the item, 0 <= index < len(self).

        Raises:
            PatchIndexError: the index is outside of that.
        """
        entry, position = self._place(index)
        return sum(self._lengths[:entry]) + position

    def _find_period(self, used_sources: Sequence[Source], weights: Sequence[int]) -> int | None:
        """Return the number of patches after which items repeat in the source's own order; None where they do not."""
        distinct = list(members(self.source))
        if not distinct or self._ignore_first or list(used_sources) != distinct:
            return None
        return len(self.source) if len(distinct) == 1 or max(weights) <= 1 else None

    def _place(self, index: int) -> tuple[int, int]:
        """Return which entry of the list of sources an item is of, and its number among the patches of that entry."""
        if not 0 <= index < len(self):
            raise PatchIndexError(f"no item {index}: the dataset has {len(self)}")
        entry = bisect_right(self._ends, index)
        start = self._ends[entry - 1] if entry else 0
        return entry, (index - start) % self._lengths[entry]


def image_path(source: Source, index: int) -> str:
    """Return the path of the image that a patch belongs to."""
    number, _ = source.locate(index)
    return f"{source.source_path(number)}/{source.image_name(number)}"


def open_sources(options: ConfigOptions, *, layout: Layout | None) -> WeightedPatches:
    """Open what ``paths`` (or ``dataroot``) and ``weights`` name, without the ``ignore_first`` patches of each image.

    Raises:
        ConfigError: neither or both are given, a path does not exist, the weights do not fit, or no patch is left.
        StoreError: a path holds nothing to read, or what is damaged.
    """
    sources, weights = open_weighted(options, layout=layout)
    patches = WeightedPatches(sources, weights, ignore_first=options.integer("ignore_first", 0, minimum=0))
    if not len(patches):
        raise options.error(f"no patches in {data_key(options, 'paths')}: {', '.join(str(s.path) for s in sources)}")
    return patches


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
        return open_cached(path, layout=layout)
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
