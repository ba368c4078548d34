"""Mode multi_frame_extensible: the same patch of consecutive frames of a clip.

Mode paired_frame: the same patch of a stereo pair's left and right image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlas_store.config import ConfigOptions
from dlas_store.datasets.single_image import PatchDataset
from dlas_store.sources.base import Source
from dlas_store.sources.concat import members

COUNTER_LENGTH = 12
"""Characters at the end of an image's name that count its clip's frames; what stands before them names the clip."""


class MultiFrameDataset(PatchDataset):
    """The patch at one position of ``num_frames`` consecutive frames of a clip, in order.

    The window ends at the item's own frame; near the clip's start it is the clip's first ``num_frames`` frames.

    An item has the keys of SingleImageDataset's, its tensors with a leading dimension for the frames, but for the
    paths: ``GT_path`` is that of the window's last frame, and there is no ``LQ_path``. There are as many items as
    patches. The dataset may be used from several threads, after a fork, and pickled.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        """Open the data that the options name, and find its clips.

        Args:
            opt: options of the dataset: ``num_frames``, and those of SingleImageDataset.

        Raises:
            ConfigError: an option is missing or of a wrong value, an image's name has no frame counter, a clip has
                fewer than ``num_frames`` frames, or frames of different patch counts.
            StoreError: a path holds no chunked images.
        """
        options = ConfigOptions.of_dataset(opt, mode="multi_frame_extensible")
        super().__init__(options, has_frame_axis=True)
        self._num_frames = options.integer("num_frames", minimum=1)
        self._clips = _join([_find_clips(source, self._num_frames, options) for source in members(self.source)])
        options.warn_of_unknown()

    def patches_of(self, index: int) -> Sequence[int]:
        """Return the patch of each frame of the window."""
        source = self.source
        number, position = source.locate(self._items.patch_at(index))
        frames = self._clips.window(number, self._num_frames)
        return [source.first_patch(int(frame)) + position for frame in frames]


@dataclass(frozen=True, slots=True, eq=False)
class _Clips:
    """The clips of a source, at 24 bytes an image.

    Attributes:
        order: image numbers, clip by clip and within one frame by frame, int64 (image_count,).
        places: where each image stands in ``order``, int64 (image_count,).
        starts: where the first frame of each image's clip stands in ``order``, int64 (image_count,).
    """

    order: NDArray[np.int64]
    places: NDArray[np.int64]
    starts: NDArray[np.int64]

    def window(self, number: int, length: int) -> NDArray[np.int64]:
        """Return the image numbers of the frames up to an image, its clip's first ones where there are too few."""
        first = max(int(self.places[number]) - length + 1, int(self.starts[number]))
        return self.order[first : first + length]


def _join(clips: Sequence[_Clips]) -> _Clips:
    """Return the clips of several sources as those of their ConcatSource."""
    firsts = accumulate((len(each.order) for each in clips), initial=0)
    shifted = [
        (each.order + first, each.places + first, each.starts + first)
        for each, first in zip(clips, firsts, strict=False)
    ]
    return _Clips(*map(np.concatenate, zip(*shifted, strict=True)))


def _find_clips(source: Source, num_frames: int, options: ConfigOptions) -> _Clips:
    names = [source.image_name(number) for number in range(source.image_count)]
    for name in names:
        if len(name) < COUNTER_LENGTH:
            raise options.error(f"{source.path}: image {name} has no frame counter of {COUNTER_LENGTH} characters")

    def split(number: int) -> tuple[str, str]:
        return names[number][:-COUNTER_LENGTH], names[number][-COUNTER_LENGTH:]

    # Images that were appended to a store stand behind the others, so a clip's frames need not be neighbours.
    order = np.array(sorted(range(len(names)), key=split), np.int64)
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    starts = np.empty_like(order)
    for clip, numbers in groupby(order.tolist(), lambda number: split(number)[0]):
        frames = list(numbers)
        _check_clip(source, clip, frames, num_frames, options)
        starts[frames] = places[frames[0]]
    return _Clips(order, places, starts)


def _check_clip(source: Source, clip: str, frames: list[int], num_frames: int, options: ConfigOptions) -> None:
    if len(frames) < num_frames:
        found = f"{len(frames)} for num_frames {num_frames}"
        raise options.error(f"{source.path}: clip {clip!r} has too few frames, {found}")
    counts = {source.first_patch(frame + 1) - source.first_patch(frame): frame for frame in frames}
    if len(counts) > 1:
        found = ", ".join(f"{source.image_name(frame)} has {count}" for count, frame in sorted(counts.items())[:2])
        raise options.error(f"{source.path}: the frames of clip {clip!r} differ in their number of patches: {found}")


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
        super().__init__(options, has_frame_axis=True)
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
