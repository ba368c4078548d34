"""Mode stylegan2: the middle square of a picture, or a random crop, as both HQ and LQ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from dlas_store.config import ConfigOptions
from dlas_store.datasets.pictures import PictureDataset, open_pictures
from dlas_store.sampling.rng import SampleRng
from dlas_store.transforms.crops import random_resized_crop
from dlas_store.transforms.resize import to_chw_float, to_tensor

_CROP_AREAS = (0.5, 1.0)
_CROP_RATIOS = (0.98, 1.02)


class Stylegan2Dataset(PictureDataset):
    """Pictures at any depth of folders, except ``ref.jpg``; of a chunked store every patch.

    An item is a dict; t is ``target_size``:

    * ``hq`` and ``lq``, two tensors with the same values: float32 (3, t, t), RGB in [0, 1]; with ``transparent``
      (4, t, t) RGBA, with alpha 1 if a picture has no alpha;
    * ``GT_path`` str: the picture's path.

    The dataset may be used from several threads and after a fork, and be pickled.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        """Open the data that the options name.

        Args:
            opt: options of the dataset: ``path`` or ``dataroot``, ``target_size``, ``aug_prob`` (the probability of a
                random crop) and ``transparent`` (false).

        Raises:
            ConfigError: an option is missing or has a wrong value.
            StoreError: a path holds no pictures.
        """
        options = ConfigOptions.of_dataset(opt, mode="stylegan2")
        super().__init__(options)
        self._target_size = options.integer("target_size", minimum=1)
        self._crop_probability = options.number("aug_prob", minimum=0, maximum=1)
        self._transparent = options.flag("transparent", False)
        self._pictures = open_pictures(options, key="path", weights_key=None)
        options.warn_of_unknown()

    def make_item(self, index: int, random: SampleRng) -> dict[str, Any]:
        """Return an item.

        Args:
            index: 0 <= index < len(self).
            random: the item's random numbers.

        Raises:
            PatchIndexError: the index is out of range.
            StoreError: the picture cannot be read.
        """
        source, patch = self._pictures.source, self._patch_at(index)
        pixels = source.read_pixels([patch], alpha=self._transparent)[0]
        square = self._crop(self._resize(PillowImage.fromarray(pixels)), random)
        hq = to_tensor(to_chw_float(np.asarray(square)))
        return {"hq": hq, "lq": hq.clone(), "GT_path": source.patch_path(patch)}

    def _resize(self, picture: PillowImage.Image) -> PillowImage.Image:
        """Return a picture resized so that its shorter side has ``target_size`` pixels."""
        shorter = min(picture.size)
        width, height = (self._target_size * side // shorter for side in picture.size)
        return _resized(picture, (width, height))

    def _crop(self, picture: PillowImage.Image, random: SampleRng) -> PillowImage.Image:
        """Return a random crop resized to ``target_size``, or the middle square; ``aug_prob`` decides how often."""
        side = self._target_size
        if random.generator.random() < self._crop_probability:
            size = (picture.height, picture.width)
            crop = random_resized_crop(size, areas=_CROP_AREAS, ratios=_CROP_RATIOS, generator=random.generator)
            box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
            return _resized(picture.crop(box), (side, side))
        left, top = (round((length - side) / 2) for length in picture.size)
        return picture.crop((left, top, left + side, top + side))


def _resized(picture: PillowImage.Image, size: tuple[int, int]) -> PillowImage.Image:
    """Return a picture resized bilinearly; Pillow antialiases, and weighs colours by alpha."""
    return picture if picture.size == size else picture.resize(size, PillowImage.Resampling.BILINEAR)
