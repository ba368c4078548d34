"""Modes: the options that each mode is measured with, and the number of pictures of an item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SCALE = 4


@dataclass(frozen=True, kw_only=True)
class Mode:
    """A mode of a config; its key in MODES is the name of its example config.

    Attributes:
        name: the mode's name in a config.
        path_key: the option that names the data.
        pictures: number of patches or pictures that an item decodes, without references.
        batch: items a batch by default.
        chunked: whether the mode reads a chunked folder as well as the store made of the folder.
        raw: whether a device can make HQ and LQ in the mode.
    """

    name: str
    path_key: str = "paths"
    pictures: int = 1
    batch: int = 16
    chunked: bool = False
    raw: bool = False


FRAMES = 3

MODES: Mapping[str, Mode] = {
    "pixels": Mode(name="pixels", batch=64, chunked=True),
    "single_image": Mode(name="single_image_extensible", chunked=True, raw=True),
    "multi_frame": Mode(name="multi_frame_extensible", pictures=FRAMES, chunked=True, raw=True),
    "paired_frame": Mode(name="paired_frame", pictures=2, chunked=True, raw=True),
    "imagefolder": Mode(name="imagefolder"),
    "stylegan2": Mode(name="stylegan2", path_key="path"),
    "multiscale": Mode(name="multiscale"),
    "fullimage": Mode(name="fullimage", path_key="dataroot_GT"),
    "torch_dataset": Mode(name="torch_dataset"),
    "combined": Mode(name="combined", pictures=2),
}


def dataset_options(mode: str, path: str, *, side: int) -> dict[str, Any]:
    """Return the options of a dataset.

    Args:
        mode: one of MODES.
        path: path of the data.
        side: side of the data's patches, in pixels.
    """
    patches = {"target_size": side, "scale": SCALE, "need_ref": True, "strict": True}
    options_of_mode: dict[str, dict[str, Any]] = {
        "pixels": {},
        "single_image": patches,
        "multi_frame": patches | {"num_frames": FRAMES},
        "paired_frame": patches,
        "imagefolder": {"target_size": side, "scale": SCALE},
        "stylegan2": {"target_size": side, "aug_prob": 0.5},
        "multiscale": {"hq_tile_size": side // 4, "num_scales": 3, "scale": 2},
        "fullimage": {
            "target_size": side // 2,
            "min_tile_size": side * 3 // 4,
            "scale": SCALE,
            "use_flip": True,
            "use_rot": True,
        },
        "torch_dataset": {"image_size": side},
    }
    seeded = {"mode": MODES[mode].name, "phase": "train", "seed": 0}
    if mode == "combined":
        members = {"default": "single_image", "other": "imagefolder"}
        return seeded | {
            name: dataset_options(member, path, side=side) | {"scale": SCALE} for name, member in members.items()
        }
    return seeded | {MODES[mode].path_key: path} | options_of_mode[mode]
