"""Sources of a dataset: opened as its options say, joined to one source, and repeated by their weights."""

from __future__ import annotations

import operator
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
from dlas_store.opening import COPY_ADVICE, address_of, open_source
from dlas_store.sources.archives import expand_range
from dlas_store.sources.base import Layout, Source
from dlas_store.sources.concat import concat, members
from dlas_store.sources.layouts import ChunkedFolder
from dlas_store.storage.index import INDEX_FILE
from dlas_store.storage.store import Store

_FOLDERS_IN_WARNING = 5


class WeightedPatches:
    """The patches of an epoch, source by source; each source is repeated by its weight.

    Items of a dataset are numbered in this order. A repetition costs no memory. Datasets read patches from ``source``.
    Its indices differ from the items' indices: ``source`` holds each source once, and also the patches that
    ``ignore_first`` skips.

    The numbering can be pickled, and used after a fork and from several threads, as the sources can.

    Attributes:
        source: the sources that give patches, each once, joined to one.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[int], *, ignore_first: int = 0) -> None:
        """Number the patches of an epoch.

        Args:
            sources: the sources in order; a source may come several times.
            weights: number of repetitions of each source, from 0.
            ignore_first: number of patches to skip at the start of every image.
        """
        self._ignore_first = ignore_first
        self._counts_before = [_counts_before(source, ignore_first) for source in sources] if ignore_first else []
        if ignore_first:
            self._lengths = [int(counts[-1]) for counts in self._counts_before]
        else:
            self._lengths = [len(source) for source in sources]
        item_counts = [length * weight for length, weight in zip(self._lengths, weights, strict=True)]
        self._ends = list(accumulate(item_counts))  # end of each source's items
        used_sources = [source for source, count in zip(sources, item_counts, strict=True) if count]
        self.source = concat(used_sources)
        self._sources = list(sources)
        joined_sources = members(self.source)
        start_of = dict(zip(joined_sources, accumulate(map(len, joined_sources), initial=0), strict=False))
        self._starts = [start_of.get(source, 0) for source in sources]  # start of each source in self.source
        self._period = self._find_period(used_sources, weights)

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        return self._ends[-1] if self._ends else 0

    def patch_at(self, index: int) -> int:
        """Return the index of an item's patch in ``source``.

        Args:
            index: index of the item, 0 <= index < len(self).

        Raises:
            PatchIndexError: the index is out of that range.
        """
        entry, position = self._locate(index)
        if self._ignore_first:
            counts = self._counts_before[entry]
            number = int(np.searchsorted(counts, position, side="right")) - 1
            first = self._sources[entry].first_patch(number) + self._ignore_first
            position += first - int(counts[number])
        return self._starts[entry] + position

    def patches_at(self, indices: Sequence[int]) -> list[int]:
        """Return the indices of one or more items' patches in ``source``; see patch_at."""
        period = self._period
        if period is None or min(indices) < 0 or max(indices) >= len(self):
            return list(map(self.patch_at, indices))
        return [index % period for index in indices]

    @property
    def unweighted_count(self) -> int:
        """The number of patches if every source came once."""
        return sum(self._lengths)

    def unweighted(self, index: int) -> int:
        """Return the index that an item's patch would have if every source came once.

        Args:
            index: index of the item, 0 <= index < len(self).

        Raises:
            PatchIndexError: the index is out of that range.
        """
        entry, position = self._locate(index)
        return sum(self._lengths[:entry]) + position

    def _find_period(self, used_sources: Sequence[Source], weights: Sequence[int]) -> int | None:
        """Return the number p for which the patch of every item is ``index % p``, None if there is no such number."""
        distinct = list(members(self.source))
        if not distinct or self._ignore_first or list(used_sources) != distinct:
            return None
        return len(self.source) if len(distinct) == 1 or max(weights) <= 1 else None

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the position of an item's source in the list of sources, and the position of its patch in that source.

        Patches that ``ignore_first`` skips do not count.
        """
        index = operator.index(index)
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
    """Open the sources of a dataset's ``paths`` (or ``dataroot``), with its ``weights`` and ``ignore_first``.

    Raises:
        ConfigError: both or neither of ``paths`` and ``dataroot`` are given, a path does not exist, the weights do not
            fit the paths, or no patch remains.
        StoreError: a path holds no data, or damaged data.
    """
    sources, weights = open_weighted(options, layout=layout)
    patches = WeightedPatches(sources, weights, ignore_first=options.integer("ignore_first", 0, minimum=0))
    if not len(patches):
        paths = ", ".join(str(source.path) for source in sources)
        hint = "" if any(weights) else "; all weights are 0, so set one of them to 1"
        raise options.error(f"no patches in {data_key(options, 'paths')}: {paths}{hint}")
    for source in dict.fromkeys(sources):
        if isinstance(source, ChunkedFolder) and (folders := source.skipped_patches()):
            named = ", ".join(folders[:_FOLDERS_IN_WARNING]) + (", ..." if len(folders) > _FOLDERS_IN_WARNING else "")
            options.warn(
                f"{source.path}: the patches in {len(folders)} folders are left out, because they lie deeper than "
                f"IMAGE/FILE: {named}; move them into the folder of their image",
                stacklevel=5,
            )
    return patches


def open_weighted(
    options: ConfigOptions, *, layout: Layout | None, key: str = "paths", weights_key: str | None = "weights"
) -> tuple[list[Source], list[int]]:
    """Open the sources that an option (or ``dataroot``) names, each distinct path once.

    Args:
        options: options of the dataset.
        layout: layout of the sources; see open_source.
        key: option that names one or more paths, or holds open sources.
        weights_key: option that names each path's number of repetitions, 1 by default; None if the dataset has no
            weights.

    Returns:
        The sources, and the weight of each, from 0.

    Raises:
        ConfigError: both or neither of ``key`` and ``dataroot`` are given, a path does not exist, or the weights do not
            fit the paths.
        StoreError: a path holds no data, or damaged data.
    """
    key = data_key(options, key)
    sources = open_paths(options, layout=layout, key=key)
    weights = [1] * len(sources)
    if weights_key is not None:
        weights = options.integers(weights_key, weights, minimum=0)
        if len(weights) != len(sources):
            raise options.error(f"{weights_key} must be one for each of {key}: {len(sources)}, got {len(weights)}")
        if key != "dataroot" and weights[0] > 1 and not isinstance(options.opt[key], list | tuple):
            options.warn(
                f"{weights_key} repeats the only path {weights[0]} times, and DL-Art-School ignores {weights_key} "
                f"beside a path that stands in no list; write {key} as a list of one path, or remove {weights_key}",
                stacklevel=5,
            )
    return sources, weights


def open_paths(options: ConfigOptions, *, layout: Layout | None, key: str) -> list[Source]:
    """Open the paths that an option names, each distinct path once.

    A program may give open sources in place of paths, also of a class of its own. These sources stay open.

    Raises:
        ConfigError: the option is missing, a path does not exist, or an open source has another layout.
        StoreError: a path holds no data, or damaged data.
    """
    paths: list[Path | Source] = options.paths_or_objects(Source, key)
    for path in paths:
        if isinstance(path, Path) and not path.exists() and not expand_range(path):
            if address := address_of(path):
                raise options.error(f"{key} names {address}, and only local files are read; {COPY_ADVICE}")
            raise options.error(f"{key} names '{path}', which does not exist")
    source_of = {path: _open(options, key, path, layout) for path in dict.fromkeys(paths)}
    return [source_of[path] for path in paths]


def _open(options: ConfigOptions, key: str, path: Path | Source, layout: Layout | None) -> Source:
    """Open a path, or return an open source; an error names the dataset and the option."""
    if isinstance(path, Source):
        if layout == "chunked" and path.layout != "chunked":
            raise options.error(f"{key}: {path.path} is a source of whole pictures; give a chunked one")
        return path
    try:
        return open_cached(path, layout=layout)
    except StoreError as error:
        raise type(error)(str(options.error(f"{key}: {error}"))) from error


def data_key(options: ConfigOptions, key: str) -> str:
    """Return the option that names the data: ``dataroot`` if given, else the mode's own option ``key``.

    Raises:
        ConfigError: both options are given.
    """
    if not options.has("dataroot"):
        return key
    if options.has(key):
        raise options.error(f"{key} and dataroot are both given; leave one out")
    return "dataroot"


def open_cached(path: Path, *, layout: Layout | None) -> Source:
    """Open a source as open_source does; a store that is open in this process is returned again.

    A store stays open as long as anything refers to it, so nobody closes it. A folder is always opened anew: its
    listing may be out of date, and only a new listing shows that.

    Raises:
        NotASourceError: the path holds no data, or data in another layout.
        StoreError: a store is damaged, or of a later version.
    """
    key = _store_key(path, layout)
    open_store = _open_stores.get(key) if key else None
    if open_store is not None:
        return open_store
    source = open_source(path, layout)
    if key is not None and isinstance(source, Store):
        _open_stores[key] = source
    return source


class _StoreKey(NamedTuple):
    """Identity of an open store. An append replaces the index file, so that the store gets another key."""

    path: Path
    layout: Layout | None
    device: int
    inode: int
    modified: int


_open_stores: WeakValueDictionary[_StoreKey, Store] = WeakValueDictionary()


def _store_key(path: Path, layout: Layout | None) -> _StoreKey | None:
    """Return the key of the store at a path, None if no index of a store is there."""
    try:
        file = path / INDEX_FILE if path.is_dir() else path
        status = file.stat()
    except OSError:
        return None
    absolute = Path(os.path.abspath(path))  # noqa: PTH100
    return _StoreKey(absolute, layout, status.st_dev, status.st_ino, status.st_mtime_ns)


def _counts_before(source: Source, ignored: int) -> NDArray[np.int64]:
    """Return the number of patches before each image, and at the end the number of all: int64 (image_count + 1,).

    The first ``ignored`` patches of each image do not count.
    """
    first_patches = map(source.first_patch, range(source.image_count + 1))
    firsts = np.fromiter(first_patches, np.int64, source.image_count + 1)
    counts = np.maximum(np.diff(firsts) - ignored, 0)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
