"""Mode imagefolder: a whole picture an item, with or without another one and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from dlas_store.datasets.alternatives import Siblings, find_next
from dlas_store.datasets.draws import ItemRandom
from dlas_store.datasets.effects import jitter_color
from dlas_store.datasets.image_folder_options import read_image_folder_options
from dlas_store.datasets.item_dataset import ItemDataset
from dlas_store.datasets.least_size import check_least_side, check_least_sides
from dlas_store.datasets.options import Options
from dlas_store.datasets.patch_labels import Box, PatchLabels, draw_boxes
from dlas_store.datasets.pictures import open_pictures, path_below
from dlas_store.datasets.planes import Planes, area_resize, pack, to_planes
from dlas_store.datasets.roots import image_path
from dlas_store.source import Pixels, Source

_CENTER_CROP = "center_crop_hq_sz"


class ImageFolderDataset(ItemDataset):
    """Pictures at any depth of folders, ``ref.jpg`` left out; of a chunked store every patch.

    An item is a dict; h and w are the sides of HQ, s is ``scale``:

    * ``hq`` float32 (3, h, w): RGB in [0, 1], or as ``normalize`` and ``rgb_n1_to_1`` say; ``lq`` float32
      (3, h/s, w/s) likewise;
    * ``alt_hq`` and ``alt_lq``, likewise, of the other picture, with ``fetch_alt_image`` or ``fetch_alt_tiled_image``:
      of the picture itself where there is none; ``has_alt`` bool: whether there is one;
    * ``corruption_entropy`` float32 (n,): the strengths of the fixed corruptions in [0, 1], LQ's and then the
      alternative's;
    * ``labels`` int64 (1, h, w), ``labels_mask`` float32 (1, h, w) and ``label_strings``, with a ``labeler``: the
      index of the label of each labelled pixel, 1 at these and 0 elsewhere, and the name of each index;
    * ``HQ_path`` and ``LQ_path`` str: the picture's path;
    * a tensor for each of ``fixed_parameters``.

    With ``skip_lq`` there are no ``lq``, ``alt_lq`` and ``corruption_entropy``. The dataset may be used from several
    threads, after a fork, and pickled.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        """Open the data that the options name.

        Args:
            opt: options of the dataset: ``paths`` or ``dataroot``, ``weights``, ``labeler``, and those of
                ImageFolderOptions.

        Raises:
            ConfigError: an option is missing or of a wrong value, two contradict each other, labels do not fit the
                pictures, or a picture of a store is smaller than ``center_crop_hq_sz`` (without ``on_error: skip`` and
                ``labeler``; folders do not know their sizes).
            StoreError: a path holds no pictures.
        """
        options = Options(opt, mode="imagefolder")
        super().__init__(options)
        self._opt = read_image_folder_options(options)
        self._pictures = open_pictures(options)
        sources = self._pictures.sources
        self._labelled = PatchLabels(options.section("labeler"), sources) if options.has("labeler") else None
        self._siblings = {source: Siblings(source) for source in sources if self._opt.alternative == "tile"}
        if self._opt.center_crop is not None and self._labelled is None and not self.skips_bad:
            check_least_sides(options, sources, self._opt.center_crop, reason=_CENTER_CROP)
        options.warn_of_unknown()

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        if self._labelled is None:
            return len(self._pictures)
        weight = len(self._pictures) // len(self._labelled.source)
        return len(self._labelled.patches) * weight

    def image_of(self, index: int) -> str:
        """Return the path of the image that an item belongs to."""
        return image_path(*self._locate(index))

    def make_item(self, index: int, random: ItemRandom) -> dict[str, Any]:
        """Return an item.

        Args:
            index: 0 <= index < len(self).
            random: where its random choices come from.

        Raises:
            PatchIndexError: the index is outside of that.
            ImageError: a picture cannot be decoded, or is too small for the options.
            StoreError: a picture cannot be read.
        """
        source, patch = self._locate(index)
        path = source.patch_path(patch)
        picture = self._read(source, patch, random)
        planes = to_planes(picture.pixels)
        if 255 * self._opt.jitter > 1:
            planes = jitter_color(planes, self._opt.jitter, random.generator)
        frames = [self._make_hq(planes, path)]
        item = {"hq": self._pack(frames[0]), "HQ_path": path, "LQ_path": path, "has_alt": False}
        if self._opt.alternative:
            other = self._find_alternative(source, patch, random)
            frames.append(frames[0].copy() if other is None else self._make_other_hq(source, other))
            item |= {"alt_hq": self._pack(frames[1]), "has_alt": other is not None}
        if not self._opt.skip_lq:
            lqs, strengths = self._make_lqs(frames, random)
            item |= zip(("lq", "alt_lq"), map(self._pack, lqs), strict=False)
            item["corruption_entropy"] = torch.tensor(strengths, dtype=torch.float32)
        if self._labelled is not None:
            boxes = [box.resized(picture.size, self._resized(picture.size)) for box in picture.boxes]
            item["labels"], item["labels_mask"] = draw_boxes(boxes, frames[0].shape[1:])
            item["label_strings"] = dict(self._labelled.names)
        return item | {key: constant.clone() for key, constant in self._opt.constants.items()}

    def _locate(self, index: int) -> tuple[Source, int]:
        if self._labelled is None:
            return self._pictures.locate(index)
        return self._labelled.source, self._labelled.patches[index % len(self._labelled.patches)]

    def _read(self, source: Source, patch: int, random: ItemRandom) -> _Picture:
        """Return a picture with its boxes, cut and flipped."""
        pixels = source.read_pixels([patch])[0]
        height, width = pixels.shape[:2]
        boxes = [] if self._labelled is None else self._labelled.boxes_of(path_below(source, patch))
        picture = _Picture(pixels, [box.cut(0, 0, (height, width)) for box in boxes])
        side = self._opt.center_crop
        if side is not None:
            check_least_side(source.patch_path(patch), picture.size, side, reason=_CENTER_CROP)
            picture = picture.cut(height // 2 - side // 2, width // 2 - side // 2, side)
        if self._opt.flip and random.generator.random() < 0.5:
            picture = picture.flipped()
        if self._opt.force_square:
            height, width = picture.size
            side = min(height, width)
            picture = picture.cut((height - side) // 2, (width - side) // 2, side)
        return picture

    def _find_alternative(self, source: Source, patch: int, random: ItemRandom) -> int | None:
        if self._opt.alternative == "tile":
            return self._siblings[source].draw(patch, random)
        return find_next(source, patch)

    def _make_other_hq(self, source: Source, patch: int) -> Planes:
        return self._make_hq(to_planes(source.read_pixels([patch])[0]), source.patch_path(patch))

    def _make_hq(self, planes: Planes, path: str) -> Planes:
        size = self._resized(planes.shape[1:])
        if size != planes.shape[1:]:
            planes = area_resize(planes, size, interleaved=self._opt.corruptions.is_active)
        multiple = self._opt.force_multiple * self._opt.scale
        check_least_side(path, size, multiple, reason="force_multiple times scale")
        height, width = (side - side % multiple for side in size)
        return planes[:, :height, :width]

    def _resized(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return what height and width are resized to; the width follows the height, as in DL-Art-School."""
        target = self._opt.target_size
        return size if target is None or target == size[0] else (target, target)

    def _make_lqs(self, frames: Sequence[Planes], random: ItemRandom) -> tuple[list[Planes], list[float]]:
        opt = self._opt
        if not opt.corrupt_before_downsize:
            return opt.corruptions.apply([self._reduced(frame, opt.scale) for frame in frames], random)
        frames = [self._reduced(frame, opt.downsize_before) for frame in frames]
        frames, strengths = opt.corruptions.apply(frames, random)
        return [self._reduced(frame, opt.scale // opt.downsize_before) for frame in frames], strengths

    def _reduced(self, planes: Planes, factor: int) -> Planes:
        height, width = planes.shape[1:]
        size = (height // factor, width // factor)
        return area_resize(planes, size, interleaved=self._opt.corruptions.is_active)

    def _pack(self, planes: Planes) -> torch.Tensor:
        if self._opt.normalization:
            mean, deviation = (np.array(values, np.float32)[:, None, None] for values in self._opt.normalization)
            planes = (planes - mean) / deviation
        return pack(planes * 2 - 1 if self._opt.rgb_n1_to_1 else planes)


class _Picture(NamedTuple):
    """Pixels, uint8 (H, W, 3), and the labelled boxes in them."""

    pixels: Pixels
    boxes: Sequence[Box]

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]

    def cut(self, top: int, left: int, side: int) -> _Picture:
        pixels = self.pixels[top : top + side, left : left + side]
        return _Picture(pixels, [box.cut(top, left, (side, side)) for box in self.boxes])

    def flipped(self) -> _Picture:
        width = self.size[1]
        # OpenCV takes a fortieth of the time of copying a reversed view.
        mirrored = np.asarray(cv2.flip(self.pixels, 1), np.uint8)
        return _Picture(mirrored, [box.flipped(width) for box in self.boxes])
