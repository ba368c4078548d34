"""Modes multi_frame_extensible and paired_frame: items of several patches, at one position of several images."""

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
"""Number of characters at the end of an image's name that count the frames of its clip. The name's start is the clip's
name."""

_SIDE_MARKER = re.compile(r"(.*)_(left|right)", re.DOTALL)
"""Name of the pair, and side of the image. The match is greedy, so that the last marker of a name counts:
``a_left_b_right0`` is the right image of ``a_left_b``."""


class MultiFrameDataset(PatchDataset):
    """Windows of ``num_frames`` consecutive frames of a clip. An item holds the patch at one position in each frame.

    The window ends at the item's own frame; near the start of the clip it is the clip's first ``num_frames`` frames.

    An item has the keys of a SingleImageDataset's item. Its tensors have a leading dimension for the frames;
    ``GT_path`` is the path of the patch of the window's last frame; there is no ``LQ_path``. There are as many items as
    patches. The dataset may be used from several threads and after a fork, and be pickled.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        """Open the data that the options name, and find its clips.

        Args:
            opt: options of the dataset: ``num_frames``, and the options of SingleImageDataset.

        Raises:
            ConfigError: an option is missing or has a wrong value, the name of an image has no frame counter, a clip
                has fewer than ``num_frames`` frames, or the frames of a clip differ in their number of patches.
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
        number, position = source.locate(self._patches.patch_at(index))
        frames = self._clips.window(number, self._num_frames)
        return [source.first_patch(int(frame)) + position for frame in frames]


class PairedFrameDataset(PatchDataset):
    """Pairs of a left and a right image. An item holds the patch at one position in both.

    The names of a pair's images are ``X_left...`` and ``X_right...``.

    An item has the keys of a SingleImageDataset's item. Its tensors have a leading dimension for left and right;
    ``GT_path`` is the path of the right image's patch; there is no ``LQ_path``. There are as many items as patches, so
    that each pair comes twice: for its left and for its right image. The dataset may be used from several threads
    and after a fork, and be pickled.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        """Open the data that the options name, and find its pairs.

        Args:
            opt: options of the dataset: the options of SingleImageDataset.

        Raises:
            ConfigError: an option is missing or has a wrong value, an image has no partner or several, or the images of
                a pair differ in their number of patches.
            StoreError: a path holds no chunked images.
        """
        options = ConfigOptions.of_dataset(opt, mode="paired_frame")
        super().__init__(options, has_frame_axis=True)
        pairs_of_sources = [_find_pairs(source, options) for source in members(self.source)]
        firsts = accumulate(map(len, pairs_of_sources), initial=0)
        self._pairs = np.concatenate([pairs + first for pairs, first in zip(pairs_of_sources, firsts, strict=False)])
        options.warn_of_unknown()

    def patches_of(self, index: int) -> Sequence[int]:
        """Return the patch of the left image and the patch of the right image."""
        source = self.source
        number, position = source.locate(self._patches.patch_at(index))
        return [source.first_patch(int(image)) + position for image in self._pairs[number]]


@dataclass(frozen=True, slots=True, eq=False)
class _Clips:
    """The clips of a source, at 24 bytes an image.

    Attributes:
        order: image numbers, clip by clip, and frame by frame within a clip, int64 (image_count,).
        places: position of each image in ``order``, int64 (image_count,).
        starts: position in ``order`` of the first frame of each image's clip, int64 (image_count,).
    """

    order: NDArray[np.int64]
    places: NDArray[np.int64]
    starts: NDArray[np.int64]

    def window(self, number: int, length: int) -> NDArray[np.int64]:
        """Return the image numbers of the ``length`` frames up to an image, or of the first frames of its clip."""
        first = max(int(self.places[number]) - length + 1, int(self.starts[number]))
        return self.order[first : first + length]


def _join(clips_of_sources: Sequence[_Clips]) -> _Clips:
    """Return the clips of several sources with the image numbers of the sources' ConcatSource."""
    firsts = accumulate((len(clips.order) for clips in clips_of_sources), initial=0)
    shifted_clips = [
        (clips.order + first, clips.places + first, clips.starts + first)
        for clips, first in zip(clips_of_sources, firsts, strict=False)
    ]
    return _Clips(*map(np.concatenate, zip(*shifted_clips, strict=True)))


def _find_clips(source: Source, num_frames: int, options: ConfigOptions) -> _Clips:
    """Group the images of a source into clips by their names.

    Raises:
        ConfigError: a name has no frame counter, or a clip is refused by _check_clip().
    """
    names = [source.image_name(number) for number in range(source.image_count)]
    for name in names:
        if len(name) < COUNTER_LENGTH:
            raise options.error(f"{source.path}: image {name} has no frame counter of {COUNTER_LENGTH} characters")

    def clip_and_counter(number: int) -> tuple[str, str]:
        return names[number][:-COUNTER_LENGTH], names[number][-COUNTER_LENGTH:]

    # An append puts new images behind all earlier images, so the frames of a clip need not be neighbours.
    order = np.array(sorted(range(len(names)), key=clip_and_counter), np.int64)
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    starts = np.empty_like(order)
    for clip, numbers in groupby(order.tolist(), lambda number: clip_and_counter(number)[0]):
        frames = list(numbers)
        _check_clip(source, clip, frames, num_frames, options)
        starts[frames] = places[frames[0]]
    return _Clips(order, places, starts)


def _check_clip(source: Source, clip: str, frames: list[int], num_frames: int, options: ConfigOptions) -> None:
    """Check a clip, whose frames are image numbers.

    Raises:
        ConfigError: the clip has fewer than ``num_frames`` frames, or its frames differ in their number of patches.
    """
    if len(frames) < num_frames:
        frame_count = f"{len(frames)} for num_frames {num_frames}"
        raise options.error(f"{source.path}: clip {clip!r} has too few frames, {frame_count}")
    frame_with = {_patch_count(source, frame): frame for frame in frames}
    if len(frame_with) > 1:
        examples = sorted(frame_with.items())[:2]
        counts = ", ".join(f"{source.image_name(frame)} has {count}" for count, frame in examples)
        raise options.error(f"{source.path}: the frames of clip {clip!r} differ in their number of patches: {counts}")


class _View(NamedTuple):
    """The pair that an image belongs to, and the image's side in the pair: left or right."""

    pair: str
    side: str


def _find_pairs(source: Source, options: ConfigOptions) -> NDArray[np.int64]:
    """Return the image numbers of the left and the right image of each image's pair, int64 (image_count, 2).

    Raises:
        ConfigError: an image has no partner or several, or the images of a pair differ in their number of patches.
    """
    number_of: dict[_View, int] = {}
    for number in range(source.image_count):
        view = _view_of(source, number, options)
        first = number_of.setdefault(view, number)
        if first != number:
            names = f"{source.image_name(first)} and {source.image_name(number)}"
            raise options.error(f"{source.path}: images {names} are both the {view.side} of {view.pair!r}")
    pairs = np.empty((source.image_count, 2), np.int64)
    for view, number in number_of.items():
        left, right = (number_of.get(_View(view.pair, side)) for side in ("left", "right"))
        if left is None or right is None:
            name, missing_side = source.image_name(number), "right" if right is None else "left"
            raise options.error(f"{source.path}: image {name} has no partner, the {missing_side} of {view.pair!r}")
        _check_counts(source, left, right, options)
        pairs[number] = left, right
    return pairs


def _view_of(source: Source, number: int, options: ConfigOptions) -> _View:
    """Read an image's pair and side from its name.

    Raises:
        ConfigError: the name has no marker of a side.
    """
    name = source.image_name(number)
    match = _SIDE_MARKER.match(name)
    if match is None:
        raise options.error(f"{source.path}: image {name} has no partner, for its name has neither _left nor _right")
    return _View(match[1], match[2])


def _check_counts(source: Source, left: int, right: int, options: ConfigOptions) -> None:
    """Raise ConfigError if two images, given by their numbers, differ in their number of patches."""
    left_count, right_count = _patch_count(source, left), _patch_count(source, right)
    if left_count != right_count:
        names = f"{source.image_name(left)} and {source.image_name(right)}"
        raise options.error(
            f"{source.path}: images {names} are a pair, but have {left_count} and {right_count} patches"
        )


def _patch_count(source: Source, number: int) -> int:
    """Return the number of patches of an image."""
    return source.first_patch(number + 1) - source.first_patch(number)
