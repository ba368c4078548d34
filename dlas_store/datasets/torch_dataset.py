"""Mode torch_dataset: labelled pictures for classification, from a store or the files of a published dataset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from dlas_store.config import ConfigOptions
from dlas_store.datasets.pictures import PictureDataset, Pictures, open_pictures, path_below
from dlas_store.errors import MissingMetadataError
from dlas_store.images.memory import Pixels
from dlas_store.sampling.rng import SampleRng
from dlas_store.sources.base import Source
from dlas_store.sources.published import NAMES, SPLITS, open_published
from dlas_store.transforms.crops import random_resized_crop
from dlas_store.transforms.resize import Chw, to_chw_float, to_tensor

_MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
_STDDEV = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)
"""Mean and standard deviation of ImageNet's red, green and blue, by which torchvision's models are trained."""

_CROP_AREAS = (0.08, 1.0)
_CROP_RATIOS = (3 / 4, 4 / 3)
"""Fractions of the area, and width over height, of torchvision's RandomResizedCrop."""


class TorchDataset(PictureDataset):
    """Labelled pictures, cropped to one size, flipped at random, normalized.

    An item is a dict; t is ``image_size``:

    * ``lq`` and ``hq`` float32 (3, t, t): the same tensor, RGB less ImageNet's mean, over ImageNet's standard
      deviation;
    * ``labels`` int; and ``coarse_labels`` int if the picture has one, as pictures of CIFAR-100 do;
    * ``GT_path`` and ``LQ_path`` str: the picture's name, its path below the source.

    The dataset may be used from several threads and after a fork, and be pickled.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        """Open the data that the options name.

        Args:
            opt: options of the dataset: ``paths`` or ``dataroot``, which name stores that
                ``dlas-store import torch:NAME`` made or folders with a metadata.jsonl; or ``dataset``, one of
                published.NAMES, with ``kwargs`` that hold ``root`` and ``train`` or ``split``. Further options are
                ``image_size``, ``random_crop``, ``fixed_len`` and ``offset``.

        Raises:
            ConfigError: an option is missing or has a wrong value, or the source has too few pictures.
            MissingMetadataError: the first picture has no label.
            StoreError: the data cannot be opened.
        """
        options = ConfigOptions.of_dataset(opt, mode="torch_dataset")
        super().__init__(options)
        self._size = options.integer("image_size", minimum=1)
        self._random_crop = options.flag("random_crop", False)
        self._pictures = _open(options)
        self._offset = options.integer("offset", 0, minimum=0)
        self._end = options.integer("fixed_len", len(self._pictures), minimum=1)
        if not self._offset < self._end <= len(self._pictures):
            raise options.error(
                f"offset must be below fixed_len, and that at most {len(self._pictures)}, the number of pictures; "
                f"got {self._offset} and {self._end}"
            )
        _labels(self._pictures.source, self._pictures.patch_at(self._offset))
        options.warn_of_unknown()

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        return self._end - self._offset

    def make_item(self, index: int, random: SampleRng) -> dict[str, Any]:
        """Return an item.

        Args:
            index: 0 <= index < len(self).
            random: the item's random numbers.

        Raises:
            PatchIndexError: the index is out of range.
            MissingMetadataError: the picture has no label.
            StoreError: the picture cannot be read.
        """
        source, patch = self._pictures.source, self._patch_at(index)
        labels = _labels(source, patch)
        pixels = source.read_pixels([patch])[0]
        square = self._crop_at_random(pixels, random.generator) if self._random_crop else self._crop(pixels)
        if random.generator.random() < 0.5:
            square = square[:, ::-1]
        tensor = to_tensor(_normalize(np.ascontiguousarray(square)))
        name = path_below(source, patch)
        return {"lq": tensor, "hq": tensor, **labels, "LQ_path": name, "GT_path": name}

    def _patch_at(self, index: int) -> int:
        return self._pictures.patch_at(index + self._offset)

    def _crop(self, pixels: Pixels) -> Pixels:
        """Resize a picture so that its shorter side has ``image_size`` pixels, and return the square in its middle."""
        height, width = pixels.shape[:2]
        shorter = min(height, width)
        resized = _resize(pixels, int(self._size * height / shorter), int(self._size * width / shorter))
        top, left = (round((side - self._size) / 2) for side in resized.shape[:2])
        return resized[top : top + self._size, left : left + self._size]

    def _crop_at_random(self, pixels: Pixels, generator: np.random.Generator) -> Pixels:
        height, width = pixels.shape[:2]
        crop = random_resized_crop((height, width), areas=_CROP_AREAS, ratios=_CROP_RATIOS, generator=generator)
        cropped = pixels[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        return _resize(np.ascontiguousarray(cropped), self._size, self._size)


def _open(options: ConfigOptions) -> Pictures:
    """Open the stores or folders that the options name, else the files of the published dataset."""
    if options.has("dataset"):
        options.choice("dataset", None, NAMES)
    kwargs = options.section("kwargs") if options.has("kwargs") else None
    if options.has("paths") or options.has("dataroot"):
        return open_pictures(options)
    name = options.choice("dataset", None, NAMES)
    if kwargs is None:
        raise options.error("paths is missing, or dataset with kwargs: {root: ...}")
    root: Path = kwargs.paths("root")[0]
    train = kwargs.flag("train", True)
    split = kwargs.choice("split", "train", SPLITS) if kwargs.has("split") else None
    if kwargs.flag("download", False) and not root.exists():
        raise kwargs.error(f"root '{root}' does not exist, and nothing is downloaded; put the publisher's files there")
    kwargs.warn_of_unknown()
    if split is None and name != "imagefolder":
        split = "train" if train else "test"
    return Pictures([open_published(name, root, split=split)], [1])


def _labels(source: Source, patch: int) -> dict[str, int]:
    """Return the labels of a picture, each under its key of an item.

    Raises:
        MissingMetadataError: the picture has no label.
    """
    image = source.image(source.locate(patch)[0])
    if not isinstance(image.extra.get("label"), int):
        raise MissingMetadataError(
            f"{source.patch_path(patch)}: has no label; import with dlas-store import torch:NAME, or name it in a "
            "metadata.jsonl"
        )
    labels = {"labels": image.extra["label"]}
    if isinstance(image.extra.get("coarse_label"), int):
        labels["coarse_labels"] = image.extra["coarse_label"]
    return labels


def _resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Return uint8 pixels resized as torchvision does: bilinearly, antialiased, to uint8."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(PillowImage.fromarray(pixels).resize((width, height), PillowImage.Resampling.BILINEAR))


def _normalize(pixels: Pixels) -> Chw:
    return (to_chw_float(pixels) - _MEAN) / _STDDEV
