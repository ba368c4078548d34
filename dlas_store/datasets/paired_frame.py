"""Mode paired_frame: the same patch of a stereo pair's left and right image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlas_store.concat_source import members
from dlas_store.datasets.patch_dataset import PatchDataset
from dlas_store.options import ConfigOptions
from dlas_store.source import Source

_NAME = re.compile(r"(.*)_(left|right)", re.DOTALL)
"""Greedy, so that the last marker of a name counts: ``a_left_b_right0`` is the right of ``a_left_b``."""


class PairedFrameDataset(PatchDataset):
    """The patch at one position of a left and a right image; ``X_left...`` and ``X_right...`` are a pair.

    An item has the keys of SingleImageDataset's, its tensors with a leading dimension for left and right, but for the
    paths: ``GT_path`` is the right one's, and there is no ``LQ_path``. There are as many items as patches, so each pair
    comes once for either side. The dataset may be used from several threads, after a fork, and pickled.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        """Open the data that the options name, and find its pairs.

        Args:
            opt: options of the dataset: those of SingleImageDataset.

        Raises:
            ConfigError: an option is missing or of a wrong value, an image has no partner or more than one, or one of
                another patch count.
            StoreError: a path holds no chunked images.
        """
        options = ConfigOptions.of_dataset(opt, mode="paired_frame")
        super().__init__(options, framed=True)
        pairs = [_find_pairs(source, options) for source in members(self.source)]
        firsts = accumulate(map(len, pairs), initial=0)
        self._pairs = np.concatenate([each + first for each, first in zip(pairs, firsts, strict=False)])
        options.warn_of_unknown()

    def patches_of(self, index: int) -> Sequence[int]:
        """Return the patch of the left and of the right image."""
        source = self.source
        number, position = source.locate(self._items.patch_at(index))
        return [source.first_patch(int(side)) + position for side in self._pairs[number]]


class _View(NamedTuple):
    """What an image's name says: which pair it belongs to, and as which side, left or right."""

    pair: str
    side: str


def _find_pairs(source: Source, options: ConfigOptions) -> NDArray[np.int64]:
    """Return the image numbers of the left and the right of each image's pair, int64 (image_count, 2)."""
    numbers: dict[_View, int] = {}
    for number in range(source.image_count):
        view = _read_name(source, number, options)
        other = numbers.setdefault(view, number)
        if other != number:
            names = f"{source.image_name(other)} and {source.image_name(number)}"
            raise options.error(f"{source.path}: images {names} are both the {view.side} of {view.pair!r}")
    pairs = np.empty((source.image_count, 2), np.int64)
    for view, number in numbers.items():
        left, right = (numbers.get(_View(view.pair, side)) for side in ("left", "right"))
        if left is None or right is None:
            name, missing = source.image_name(number), "right" if right is None else "left"
            raise options.error(f"{source.path}: image {name} has no partner, the {missing} of {view.pair!r}")
        _check_counts(source, left, right, options)
        pairs[number] = left, right
    return pairs


def _read_name(source: Source, number: int, options: ConfigOptions) -> _View:
    name = source.image_name(number)
    match = _NAME.match(name)
    if match is None:
        raise options.error(f"{source.path}: image {name} has no partner, for its name has neither _left nor _right")
    return _View(match[1], match[2])


def _check_counts(source: Source, left: int, right: int, options: ConfigOptions) -> None:
    counts = [source.first_patch(side + 1) - source.first_patch(side) for side in (left, right)]
    if counts[0] != counts[1]:
        names = f"{source.image_name(left)} and {source.image_name(right)}"
        raise options.error(f"{source.path}: images {names} are a pair, but have {counts[0]} and {counts[1]} patches")
