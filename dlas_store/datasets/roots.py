"""Where a dataset's patches come from: several sources as one, each repeated by its weight."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlas_store.datasets.options import Options
from dlas_store.errors import PatchIndexError
from dlas_store.opening import open_source
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
        if not 0 <= index < len(self):
            raise PatchIndexError(f"no item {index}: the dataset has {len(self)}")
        root = bisect_right(self._ends, index)
        start = self._ends[root - 1] if root else 0
        position = (index - start) % self._lengths[root]
        source = self._sources[root]
        if not self._ignore_first:
            return source, position
        kept = self._kept[root]
        number = int(np.searchsorted(kept, position, side="right")) - 1
        return source, source.first_patch(number) + self._ignore_first + position - int(kept[number])


def open_roots(options: Options, *, layout: Layout) -> Roots:
    """Open what ``paths`` (or ``dataroot``) and ``weights`` name, a path named twice only once.

    Raises:
        ConfigError: neither or both are given, a path does not exist, the weights do not fit, or no patch is left.
        StoreError: a path holds nothing to read, or what is damaged.
    """
    if options.has("paths") and options.has("dataroot"):
        raise options.error("paths and dataroot are both given; leave one out")
    key = "dataroot" if options.has("dataroot") else "paths"
    paths = options.paths(key)
    weights = options.integers("weights", [1] * len(paths), minimum=0)
    ignore_first = options.integer("ignore_first", 0, minimum=0)
    if len(weights) != len(paths):
        raise options.error(f"weights must be one for each of {key}: {len(paths)}, got {len(weights)}")
    for path in paths:
        if not path.exists():
            raise options.error(f"{key} names '{path}', which does not exist")
    opened: dict[Path, Source] = {path: open_source(path, layout=layout) for path in dict.fromkeys(paths)}
    roots = Roots([opened[path] for path in paths], weights, ignore_first=ignore_first)
    if not len(roots):
        raise options.error(f"no patches in {key}: {', '.join(map(str, paths))}")
    return roots


def _kept_before(source: Source, ignored: int) -> NDArray[np.int64]:
    """Return how many patches are kept in the images before each, int64 (image_count + 1,), ``ignored`` left out."""
    firsts = np.fromiter(map(source.first_patch, range(source.image_count + 1)), np.int64, source.image_count + 1)
    kept = np.maximum(np.diff(firsts) - ignored, 0)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
