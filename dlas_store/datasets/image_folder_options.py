"""The options of mode imagefolder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from dlas_store.datasets.corruptions import Corruptions
from dlas_store.datasets.least_size import check_least_side
from dlas_store.datasets.options import check_lq_size
from dlas_store.datasets.planes import Planes
from dlas_store.options import ConfigOptions

Alternative = Literal["next", "tile"]
"""``next``: the picture of the next number. ``tile``: another picture of the same folder, drawn at random."""

_MEANS_AND_DEVIATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "stylegan2_norm": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Of red, green and blue; ImageNet's are those of torchvision's models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFolderOptions:
    """How a picture becomes an item; sides are in pixels.

    Attributes:
        center_crop: side of the square that is cut from the middle first; None cuts nothing.
        flip: flip left to right with a probability of one half.
        force_square: cut the largest square from the middle.
        jitter: how far colours are changed, 0 to 1; 0 leaves them.
        target_size: side that HQ is resized to; None leaves it.
        scale: HQ side over LQ side.
        force_multiple: what the sides of LQ divide by.
        skip_lq: make no LQ.
        corruptions: what makes LQ worse.
        corrupt_before_downsize: corrupt a copy of HQ that LQ is made from, in place of LQ.
        downsize_before: by how much to bring that copy down first; divides ``scale``.
        normalization: mean and standard deviation of red, green and blue to normalize by; None leaves [0, 1].
        rgb_n1_to_1: map x to 2x - 1, after the normalization.
        alternative: which second picture comes with each; None for none.
        constants: what is added to each item.
    """

    center_crop: int | None
    flip: bool
    force_square: bool
    jitter: float
    target_size: int | None
    scale: int
    force_multiple: int
    skip_lq: bool
    corruptions: Corruptions
    corrupt_before_downsize: bool
    downsize_before: int
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None
    rgb_n1_to_1: bool
    alternative: Alternative | None
    constants: Mapping[str, torch.Tensor]

    @property
    def is_plain(self) -> bool:
        """Whether an item is its picture, cut, flipped and resized, and nothing else."""
        return not (self.jitters or self.alternative or self.corruptions.is_active)

    @property
    def jitters(self) -> bool:
        """Whether colours are changed by one level or more."""
        return 255 * self.jitter > 1

    def cut_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of what is cut from a picture."""
        if self.center_crop is not None:
            return self.center_crop, self.center_crop
        return (min(size), min(size)) if self.force_square else size

    def resized(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return what height and width are resized to; the width follows the height, as in DL-Art-School."""
        target = self.target_size
        return size if target is None or target == size[0] else (target, target)

    def to_multiple(self, size: tuple[int, ...], path: str) -> tuple[int, ...]:
        """Return height and width of HQ for those that a picture was resized to.

        Raises:
            ImageError: they are below the multiple; the message has the picture's path.
        """
        multiple = self.force_multiple * self.scale
        check_least_side(path, size, multiple, reason="force_multiple times scale")
        return tuple(side - side % multiple for side in size)

    def map_values(self, planes: Planes, out: Planes | None = None) -> Planes:
        """Return planes (3, h, w) in [0, 1] normalized and mapped, written to ``out`` where that is given."""
        if self.normalization:
            mean, deviation = (np.array(values, np.float32)[:, None, None] for values in self.normalization)
            planes = np.divide(np.subtract(planes, mean, out=out), deviation, out=out)
        if self.rgb_n1_to_1:
            planes = np.subtract(np.multiply(planes, 2, out=out), 1, out=out)
        return planes


def read_image_folder_options(options: ConfigOptions) -> ImageFolderOptions:
    """Check the options, but for those that say where the data and its labels are.

    Raises:
        ConfigError: one is missing or of a wrong value, or two contradict each other.
    """
    checked = ImageFolderOptions(
        center_crop=_optional_size(options, "center_crop_hq_sz"),
        flip=not options.flag("disable_flip", False),
        force_square=options.flag("force_square", True),
        jitter=options.number("all_image_color_jitter", 0, minimum=0, maximum=1),
        target_size=_optional_size(options, "target_size"),
        scale=options.integer("scale", minimum=1),
        force_multiple=options.integer("force_multiple", 1, minimum=1),
        skip_lq=options.flag("skip_lq", False),
        corruptions=Corruptions.read(options),
        corrupt_before_downsize=options.flag("corrupt_before_downsize", False),
        downsize_before=options.integer("corrupt_before_downsize_factor", 1, minimum=1),
        normalization=_read_normalization(options),
        rgb_n1_to_1=options.flag("rgb_n1_to_1", False),
        alternative=_read_alternative(options),
        constants=_read_constants(options),
    )
    if checked.target_size is not None:
        check_lq_size(
            options, target_size=checked.target_size, scale=checked.scale, force_multiple=checked.force_multiple
        )
    if checked.corrupt_before_downsize and checked.scale % checked.downsize_before:
        raise options.error(
            f"corrupt_before_downsize_factor must divide scale, got {checked.downsize_before} and scale {checked.scale}"
        )
    return checked


def _optional_size(options: ConfigOptions, key: str) -> int | None:
    return options.integer(key, minimum=1) if options.has(key) else None


def _read_normalization(options: ConfigOptions) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if not options.has("normalize"):
        return None
    return _MEANS_AND_DEVIATIONS[options.choice("normalize", None, tuple(_MEANS_AND_DEVIATIONS))]


def _read_alternative(options: ConfigOptions) -> Alternative | None:
    following, tile = (options.flag(key, False) for key in ("fetch_alt_image", "fetch_alt_tiled_image"))
    if following and tile:
        raise options.error("fetch_alt_image and fetch_alt_tiled_image are both true; leave one out")
    return "next" if following else "tile" if tile else None


def _read_constants(options: ConfigOptions) -> dict[str, torch.Tensor]:
    constants: dict[str, torch.Tensor] = {}
    for key, value in options.mapping("fixed_parameters", {}).items():
        try:
            constants[key] = torch.tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise options.error(f"fixed_parameters: {key} must be a number or lists of them, got {value!r}") from error
    return constants
