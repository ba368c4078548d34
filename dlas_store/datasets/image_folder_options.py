"""The options of mode imagefolder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from dlas_store.datasets.corruptions import Corruptions
from dlas_store.datasets.options import Options, check_lq_size

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


def read_image_folder_options(options: Options) -> ImageFolderOptions:
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


def _optional_size(options: Options, key: str) -> int | None:
    return options.integer(key, minimum=1) if options.has(key) else None


def _read_normalization(options: Options) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if not options.has("normalize"):
        return None
    return _MEANS_AND_DEVIATIONS[options.choice("normalize", None, tuple(_MEANS_AND_DEVIATIONS))]


def _read_alternative(options: Options) -> Alternative | None:
    following, tile = (options.flag(key, False) for key in ("fetch_alt_image", "fetch_alt_tiled_image"))
    if following and tile:
        raise options.error("fetch_alt_image and fetch_alt_tiled_image are both true; leave one out")
    return "next" if following else "tile" if tile else None


def _read_constants(options: Options) -> dict[str, torch.Tensor]:
    constants: dict[str, torch.Tensor] = {}
    for key, value in options.mapping("fixed_parameters", {}).items():
        try:
            constants[key] = torch.tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise options.error(f"fixed_parameters: {key} must be a number or lists of them, got {value!r}") from error
    return constants
