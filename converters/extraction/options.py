"""Options of an extraction: read by DL-Art-School's names, and checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast

from dlas_store.config import ConfigOptions

Subsampling = Literal["4:2:0", "4:2:2", "4:4:4"]

FLAGS = {
    "crop_sz": "--crop-size",
    "step": "--step",
    "thres_sz": "--threshold",
    "resize_final_img": "--resize",
    "only_resize": "--only-resize",
    "vertical_split": "--vertical-split",
    "mask_path": "--masks",
    "exclusions": "--exclude",
    "input_image_max_size_before_being_halved": "--halve-above",
    "min_size": "--min-size",
    "compression_level": "--quality",
    "subsampling": "--subsampling",
    "greyscale": "--greyscale",
    "ignore_exif": "--ignore-exif",
    "fast_decode": "--fast-decode",
    "n_thread": "--workers",
}
"""DL-Art-School's name of an option -> its flag."""

PATH_OPTIONS = ("input_folder", "save_folder", "dest")
"""DL-Art-School's options that the command ignores, because its arguments PHOTOS and DST replace them."""

MAX_TILE_SIDE = 65_500
"""Maximum side in pixels that libjpeg can encode."""

_CROP_SIZES = [256, 512]
_OWNER = "extract"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractOptions:
    """Options of an extraction; a rerun must have the same, because every option changes the patches.

    Attributes:
        crop_sizes: sides of the crops, in pixels of the photo (after halving, if it is halved).
        steps: distance from one crop to the next, for each crop size, in the same pixels.
        threshold: if more pixels than this remain at the end of a row or column, a last crop ends there.
        tile_sizes: for each crop size, side in pixels of the tiles; crops are resized to it by area averaging.
        tile_dimension: side in pixels of the reference, and of the tile of only_resize.
        only_resize: make one tile of each square, without crops.
        vertical_split: each photo is a stereo pair, side by side, and becomes two images.
        masks: folder of masks that choose the tiles to keep; None keeps all tiles.
        exclusions: for each crop size, terms; a photo with a term in its path below the folder gets no crops of that
            size.
        halve_above: photos whose longer side is above this many pixels are halved.
        min_size: minimum pixels of a photo's shorter side, after halving and before a split.
        quality: quality of the JPEGs, 1 to 100.
        subsampling: chroma subsampling of the JPEGs.
        convert_greyscale: accept greyscale photos, whose tiles become RGB; otherwise they are skipped.
        ignore_exif: do not rotate photos as EXIF says.
        fast_decode: decode JPEGs at 1/2, 1/4 or 1/8 of their size where the tiles need no more; changes pixels a
            little.
    """

    crop_sizes: tuple[int, ...] = (256, 512)
    steps: tuple[int, ...] = (128, 256)
    threshold: int = 128
    tile_sizes: tuple[int, ...] = (256, 256)
    tile_dimension: int = 256
    only_resize: bool = False
    vertical_split: bool = False
    masks: Path | None = None
    exclusions: tuple[tuple[str, ...], ...] = ((), ())
    halve_above: int = 5500
    min_size: int = 512
    quality: int = 95
    subsampling: Subsampling = "4:2:0"
    convert_greyscale: bool = False
    ignore_exif: bool = False
    fast_decode: bool = False

    @classmethod
    def read(cls, opt: Mapping[str, Any], *, exclude: Sequence[str] | None = None) -> Self:
        """Read options by DL-Art-School's names.

        Args:
            opt: the options; null values count as absent. PATH_OPTIONS and ``n_thread`` are ignored.
            exclude: terms that replace the option ``exclusions``, each ``TERM`` or ``SIZE:TERM``.

        Raises:
            ConfigError: an option is unknown or invalid; the message says which, what it may be, and what it is.
        """
        reader = ConfigOptions(
            opt,
            owner=_OWNER,
            known=(*PATH_OPTIONS, "n_thread"),
            labels={key: f"{key} ({flag})" for key, flag in FLAGS.items()},
        )
        crops = reader.integers("crop_sz", _CROP_SIZES, minimum=1)
        if not crops:
            raise reader.error("crop_sz (--crop-size) must be one or more sizes, got none")
        resize = reader.numbers("resize_final_img") if reader.has("resize_final_img") else None
        # By default, every tile has the first crop's size. The factor crops[0] / crop can, as a float, miss it by one.
        tile_sizes = [crops[0]] * len(crops)
        if resize is not None:
            tile_sizes = [int(crop * factor) for crop, factor in _pairs(reader, "resize_final_img", crops, resize)]
        if min(tile_sizes) < 1 or max(tile_sizes) > MAX_TILE_SIDE:
            raise reader.error(
                f"resize_final_img (--resize) must bring crop sizes {crops} to 1 to {MAX_TILE_SIDE} pixels, got "
                f"{tile_sizes}"
            )
        steps = reader.integers("step", [max(1, crop // 2) for crop in crops], minimum=1)
        options = cls(
            crop_sizes=tuple(crops),
            steps=tuple(step for _, step in _pairs(reader, "step", crops, steps)),
            threshold=reader.integer("thres_sz", 128, minimum=1),
            tile_sizes=tuple(tile_sizes),
            tile_dimension=tile_sizes[0],
            only_resize=reader.flag("only_resize", default=False),
            vertical_split=reader.flag("vertical_split", default=False),
            masks=_read_masks(reader),
            exclusions=_parse_terms(reader, exclude, crops) if exclude else _read_exclusions(reader, opt, crops),
            halve_above=reader.integer("input_image_max_size_before_being_halved", 5500, minimum=1),
            min_size=reader.integer("min_size", max(crops), minimum=1),
            quality=reader.integer("compression_level", 95, minimum=1, maximum=100),
            subsampling=cast(Subsampling, reader.choice("subsampling", "4:2:0", ("4:2:0", "4:2:2", "4:4:4"))),
            convert_greyscale=reader.choice("greyscale", "skip", ("skip", "convert")) == "convert",
            ignore_exif=reader.flag("ignore_exif", default=False),
            fast_decode=reader.flag("fast_decode", default=False),
        )
        reader.has("exclusions")  # marks the option as known if exclude replaced it
        for key, _ in reader.unknown():
            near = difflib.get_close_matches(key, [*FLAGS, "use_masking", *PATH_OPTIONS], 1, cutoff=0)
            raise reader.error(f"unknown option '{key}'; the nearest known one is '{near[0]}'")
        return options

    @property
    def fingerprint(self) -> str:
        """All options as text; a rerun must have the same text."""
        return repr(sorted(asdict(self).items()))

    @property
    def by_flag(self) -> dict[str, str]:
        """All options as texts, by their flags."""
        numbers = {
            "--crop-size": self.crop_sizes,
            "--step": self.steps,
            "--resize": [tile / crop for tile, crop in zip(self.tile_sizes, self.crop_sizes, strict=True)],
        }
        texts = {flag: ",".join(f"{number:g}" for number in values) for flag, values in numbers.items()}
        others = {
            "--threshold": self.threshold,
            "--only-resize": self.only_resize,
            "--vertical-split": self.vertical_split,
            "--masks": self.masks,
            "--exclude": [list(terms) for terms in self.exclusions],
            "--halve-above": self.halve_above,
            "--min-size": self.min_size,
            "--quality": self.quality,
            "--subsampling": self.subsampling,
            "--greyscale": "convert" if self.convert_greyscale else "skip",
            "--ignore-exif": self.ignore_exif,
            "--fast-decode": self.fast_decode,
        }
        return texts | {flag: _text(value) for flag, value in others.items()}

    def crop_indices(self, path: str) -> list[int]:
        """Return the indices of the crop sizes that a photo is split into; only_resize needs at least one.

        Args:
            path: the photo's path below the folder.
        """
        return [index for index, terms in enumerate(self.exclusions) if not any(term in path for term in terms)]


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)


def _pairs(reader: ConfigOptions, key: str, crops: Sequence[int], values: Sequence[Any]) -> list[tuple[int, Any]]:
    """Return each crop size with its value of an option that has one value per crop size."""
    if len(values) != len(crops):
        raise reader.error(
            f"{key} ({FLAGS[key]}) must be of the length of crop_sz, {len(crops)} for {list(crops)}, got "
            f"{len(values)}: {list(values)}"
        )
    return list(zip(crops, values, strict=True))


def _read_masks(reader: ConfigOptions) -> Path | None:
    masks = reader.paths("mask_path") if reader.has("mask_path") else []
    if not reader.flag("use_masking", default=False):
        return None
    if len(masks) != 1:
        raise reader.error(f"mask_path (--masks) must be one folder where use_masking is true, got {len(masks)}")
    if not masks[0].is_dir():
        raise reader.error(f"mask_path (--masks) must be a folder of masks, got {str(masks[0])!r}")
    return masks[0]


def _read_exclusions(
    reader: ConfigOptions, opt: Mapping[str, Any], crops: Sequence[int]
) -> tuple[tuple[str, ...], ...]:
    value = opt["exclusions"] if reader.has("exclusions") else []
    if value == []:
        return ((),) * len(crops)
    if not isinstance(value, list | tuple):
        raise reader.error(f"exclusions (--exclude) must be a list of terms for each crop size, got {value!r}")
    exclusions = []
    for _, item in _pairs(reader, "exclusions", crops, value):
        terms = [] if item is None else item if isinstance(item, list | tuple) else [item]
        if not all(isinstance(term, str) and term for term in terms):
            raise reader.error(f"exclusions (--exclude) must be a list of terms for each crop size, got {value!r}")
        exclusions.append(tuple(terms))
    return tuple(exclusions)


def _parse_terms(reader: ConfigOptions, terms: Sequence[str], crops: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Return the terms of --exclude for each crop size; ``256:night`` applies to one size, ``night`` to all."""
    terms_of: dict[int, list[str]] = {crop: [] for crop in crops}
    for text in terms:
        size, colon, term = text.partition(":")
        has_size = bool(colon) and size.isascii() and size.isdigit()
        if has_size and int(size) not in terms_of:
            raise reader.error(f"exclusions (--exclude) must name one of the crop sizes {list(crops)}, got {text!r}")
        if not (term if has_size else text):
            raise reader.error(f"exclusions (--exclude) must be a term that paths may have in them, got {text!r}")
        for crop in {int(size)} if has_size else set(crops):
            terms_of[crop].append(term if has_size else text)
    return tuple(tuple(terms_of[crop]) for crop in crops)


def workers_of(opt: Mapping[str, Any]) -> int | None:
    """Return the number of worker processes in the options, None if they have none.

    Raises:
        ConfigError: the number is not a whole number from 0.
    """
    reader = ConfigOptions(opt, owner=_OWNER, labels={"n_thread": f"n_thread ({FLAGS['n_thread']})"})
    return reader.integer("n_thread", minimum=0) if reader.has("n_thread") else None
