"""Mode stylegan2: the middle square of a picture, or a random one, as both HQ and LQ."""

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

_AREAS = (0.5, 1.0)
_RATIOS = (0.98, 1.02)


class Stylegan2Dataset(PictureDataset):
    """Pictures at any depth of folders, ``ref.jpg`` left out; of a chunked store every patch.

    An item is a dict, t is ``target_size``:

    * ``hq`` and ``lq``, the same: float32 (3, t, t), RGB in [0, 1]; with ``transparent`` (4, t, t) RGBA, with alpha 1
      where a picture has none;
    * ``GT_path`` str: the picture's path.

    The dataset may be used from several threads, after a fork, and pickled.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        """Open the data that the options name.

        Args:
            opt: options of the dataset: ``path`` or ``dataroot``, ``target_size``, ``aug_prob`` (the probability of a
                random crop) and ``transparent`` (false).

        Raises:
            ConfigError: an option is missing or of a wrong value.
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
            random: where its random choices come from.

        Raises:
            PatchIndexError: the index is outside of that.
            StoreError: the picture cannot be read.
        """
        source, patch = self._pictures.source, self._patch_at(index)
        pixels = source.read_pixels([patch], alpha=self._transparent)[0]
        square = self._cut(self._resize(PillowImage.fromarray(pixels)), random)
        hq = to_tensor(to_chw_float(np.asarray(square)))
        return {"hq": hq, "lq": hq.clone(), "GT_path": source.patch_path(patch)}

    def _resize(self, picture: PillowImage.Image) -> PillowImage.Image:
        """Bring the shorter side to ``target_size``."""
        shorter = min(picture.size)
        width, height = (self._target_size * side // shorter for side in picture.size)
        return _resized(picture, (width, height))

    def _cut(self, picture: PillowImage.Image, random: SampleRng) -> PillowImage.Image:
        side = self._target_size
        if random.generator.random() < self._crop_probability:
            size = (picture.height, picture.width)
            crop = random_resized_crop(size, areas=_AREAS, ratios=_RATIOS, generator=random.generator)
            box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
            return _resized(picture.crop(box), (side, side))
        left, top = (round((length - side) / 2) for length in picture.size)
        return picture.crop((left, top, left + side, top + side))


def _resized(picture: PillowImage.Image, size: tuple[int, int]) -> PillowImage.Image:
    """Resize bilinearly; Pillow does it antialiased, and weighs colours by alpha."""
    return picture if picture.size == size else picture.resize(size, PillowImage.Resampling.BILINEAR)
