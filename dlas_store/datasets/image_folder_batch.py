"""Mode imagefolder: options, crop and flip of a picture, and a builder that writes batches into their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch

from dlas_store.config import ConfigOptions, check_lq_size
from dlas_store.datasets.decoding import Frames, decode_groups
from dlas_store.datasets.image_folder_labels import Box
from dlas_store.datasets.pictures import check_min_side
from dlas_store.errors import StoreError
from dlas_store.images.memory import Pixels
from dlas_store.loading.batch import Allocate, MakeItem, check_one_size
from dlas_store.loading.buffers import ScratchPool
from dlas_store.sampling.rng import SampleKey, SampleRng
from dlas_store.transforms.corruptions import Corruptions
from dlas_store.transforms.resize import Chw, loops_for, write_pair

CENTER_CROP = "center_crop_hq_sz"
"""Name of the option that crops a picture around its centre."""

Alternative = Literal["next", "tile"]
"""Kind of the second picture of an item: ``next`` is the picture of the next number, ``tile`` another picture of the
same folder, drawn at random."""

_MEANS_AND_DEVIATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "stylegan2_norm": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation of red, green and blue; torchvision's models are trained with ImageNet's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFolderOptions:
    """Options that make an item of a picture; sides are in pixels.

    Attributes:
        center_crop: side of the square around the centre to which a picture is cropped first; None does not crop.
        flip: flip left to right with a probability of one half.
        force_square: crop to the largest square around the centre.
        jitter: maximum change of colours, 0 to 1; 0 does not change them.
        target_size: side to which HQ is resized; None does not resize.
        scale: HQ side over LQ side.
        force_multiple: divisor of the sides of LQ; HQ is cropped to fit.
        skip_lq: make no LQ.
        corruptions: the corruptions of LQ.
        corrupt_before_downsize: corrupt a copy of HQ and make LQ from it, in place of corrupting LQ.
        downsize_before: factor by which the copy of HQ is reduced before its corruption; divides ``scale``.
        normalization: mean and standard deviation of red, green and blue to normalize by; None keeps [0, 1].
        rgb_n1_to_1: map x to 2x - 1, after the normalization.
        alternative: kind of the second picture of each item; None for items of one picture.
        constants: tensors that are added to each item.
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
        """Whether an item is its picture cropped, flipped and resized, and nothing else."""
        return not (self.jitters or self.alternative or self.corruptions.is_active)

    @property
    def jitters(self) -> bool:
        """Whether colours are changed by one level or more."""
        return 255 * self.jitter > 1

    def crop_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width to which a picture of a (height, width) is cropped."""
        if self.center_crop is not None:
            return self.center_crop, self.center_crop
        return (min(size), min(size)) if self.force_square else size

    def resized(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the height and width to which a picture of a (height, width) is resized.

        Only the height decides whether to resize, as in DL-Art-School.
        """
        target = self.target_size
        return size if target is None or target == size[0] else (target, target)

    def to_multiple(self, size: tuple[int, ...], path: str) -> tuple[int, ...]:
        """Return the height and width of HQ, cropped from a resized picture so that LQ divides by ``force_multiple``.

        Args:
            size: height and width of the resized picture.
            path: path of the picture, for the error message.

        Raises:
            ImageError: the height or width is below ``force_multiple`` times ``scale``.
        """
        multiple = self.force_multiple * self.scale
        check_min_side(path, size, multiple, reason="force_multiple times scale")
        return tuple(side - side % multiple for side in size)

    def map_values(self, chw: Chw, out: Chw | None = None) -> Chw:
        """Return an array (3, h, w) in [0, 1] normalized and mapped: in ``out`` if given, else in a new array.

        Without normalization and mapping, the argument is returned.
        """
        if self.normalization:
            mean, deviation = (np.array(values, np.float32)[:, None, None] for values in self.normalization)
            chw = np.divide(np.subtract(chw, mean, out=out), deviation, out=out)
        if self.rgb_n1_to_1:
            chw = np.subtract(np.multiply(chw, 2, out=out), 1, out=out)
        return chw


def read_image_folder_options(options: ConfigOptions) -> ImageFolderOptions:
    """Read and check the options, except the paths of pictures and labels.

    Raises:
        ConfigError: an option is missing or has a wrong value, or two options contradict each other.
    """
    item_options = ImageFolderOptions(
        center_crop=_optional_size(options, CENTER_CROP),
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
    scale, target_size, factor = item_options.scale, item_options.target_size, item_options.downsize_before
    if target_size is not None:
        check_lq_size(options, target_size=target_size, scale=scale, force_multiple=item_options.force_multiple)
    if item_options.corrupt_before_downsize and scale % factor:
        raise options.error(f"corrupt_before_downsize_factor must divide scale, got {factor} and scale {scale}")
    return item_options


class Picture(NamedTuple):
    """A picture's pixels, uint8 (H, W, 3), and its labelled boxes."""

    pixels: Pixels
    boxes: Sequence[Box] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def crop(self, top: int, left: int, side: int) -> Picture:
        """Return a square of the picture; its pixels are a view."""
        pixels = self.pixels[top : top + side, left : left + side]
        return Picture(pixels, [box.crop(top, left, (side, side)) for box in self.boxes])

    def flipped(self) -> Picture:
        """Return the picture flipped left to right."""
        width = self.size[1]
        # OpenCV takes a fortieth of the time of copying a reversed view.
        pixels = np.asarray(cv2.flip(self.pixels, 1), np.uint8)
        return Picture(pixels, [box.flipped(width) for box in self.boxes])


def crop_and_flip(picture: Picture, path: str, opt: ImageFolderOptions, random: SampleRng) -> Picture:
    """Crop a picture around its centre, flip it at random, and crop it to a square, each only if its option asks.

    Args:
        picture: the decoded picture.
        path: path of the picture, for the error message.
        opt: the options of the mode.
        random: the item's random numbers.

    Raises:
        ImageError: the picture is smaller than the centre crop.
    """
    height, width = picture.size
    side = opt.center_crop
    if side is not None:
        check_min_side(path, picture.size, side, reason=CENTER_CROP)
        picture = picture.crop(height // 2 - side // 2, width // 2 - side // 2, side)
    if opt.flip and random.coin():
        picture = picture.flipped()
    if opt.force_square and picture.pixels.shape[0] != picture.pixels.shape[1]:
        height, width = picture.size
        side = min(height, width)
        picture = picture.crop((height - side) // 2, (width - side) // 2, side)
    return picture


class ImageFolderBatchBuilder:
    """Builder of batches for plain options (see is_plain); ImageFolderDataset describes the tensors."""

    def __init__(
        self,
        keys: Sequence[SampleKey],
        frames: Frames,
        options: ImageFolderOptions,
        scratch: ScratchPool,
        *,
        seed: int,
        allocate: Allocate,
        replace: MakeItem | None,
    ) -> None:
        """Begin a batch.

        Args:
            keys: the sample keys of the items.
            frames: the items' pictures, one an item.
            options: the options that make HQ and LQ of a picture.
            scratch: pool of the arrays that pictures are decoded into.
            seed: seed of the items' random numbers.
            allocate: returns the memory of the batch's tensors.
            replace: makes the replacement of an item that cannot be read; None raises the error.
        """
        self._keys = keys
        self._frames = frames
        self._options = options
        self._scratch = scratch
        self._seed = seed
        self._replace = replace
        self._order = frames.argsort_on_disk()
        self._paths = [""] * len(keys)
        self._size, self._hq_size = self._likely_sizes()
        self._crop_size = options.crop_size(self._size)
        # HQ, and LQ unless it is skipped: (items, 3, h, w).
        self._arrays = [allocate((len(keys), *shape), np.float32) for shape in self._shapes(self._hq_size)]
        self._odd_sized: dict[int, list[Chw]] = {}  # arrays of the items whose HQ has not the likely size
        is_multiple = options.resized(self._crop_size) == self._hq_size
        self._c_loops = loops_for(self._crop_size, *(array[0] for array in self._arrays)) if is_multiple else None

    def __len__(self) -> int:
        return len(self._keys)

    def fill(self, start: int, stop: int) -> None:
        """Make the items at positions start to stop - 1 of the reading order; see BatchBuilder."""
        for items, pictures in decode_groups(
            self._frames, self._order[start:stop], self._size, self._scratch, self._replace_item
        ):
            self._write(items, pictures)

    def finish(self) -> dict[str, Any]:
        """Return the batch; see BatchBuilder.

        Raises:
            StoreError: HQ differs in size between items.
        """
        if self._odd_sized:
            self._stack_again()
        count = len(self._keys)
        hq, *lq = map(torch.from_numpy, self._arrays)
        batch = {
            "hq": hq,
            "HQ_path": self._paths,
            "LQ_path": list(self._paths),
            "has_alt": torch.zeros(count, dtype=torch.bool),
        }
        if lq:
            batch |= {"lq": lq[0], "corruption_entropy": torch.zeros(count, 0)}
        constants = self._options.constants.items()
        return batch | {key: torch.stack([constant] * count) for key, constant in constants}

    def _likely_sizes(self) -> tuple[tuple[int, int], tuple[int, ...]]:
        """Return the (height, width) of the first picture that is readable and large enough, and of its HQ."""
        opt = self._options
        for patch in self._frames.patches:
            with suppress(StoreError):  # fill() raises the error, or replaces the item
                size = self._frames.source.header_size(patch)
                return size, opt.to_multiple(opt.resized(opt.crop_size(size)), "")
        min_side = opt.force_multiple * opt.scale
        return (min_side, min_side), (min_side, min_side)

    def _replace_item(self, item: int, error: StoreError) -> None:
        """Copy another item into the batch in place of an item that cannot be read, or raise the error."""
        if self._replace is None:
            raise error
        replacement = self._replace(self._keys[item])
        self._paths[item] = replacement["HQ_path"]
        for key, out in zip(("hq", "lq"), self._outs(item, replacement["hq"].shape[1:]), strict=False):
            out[...] = replacement[key].numpy()

    def _write(self, items: Sequence[int], pictures: Sequence[Pixels]) -> None:
        """Write decoded items; all items whose crop has the likely size take one call of C."""
        opt, (source, patches, _) = self._options, self._frames
        arrays: list[Chw] = []
        c_items: list[tuple[Pixels, *tuple[Chw, ...]]] = []
        for item, pixels in zip(items, pictures, strict=True):
            try:
                path = self._paths[item] = source.patch_path(patches[item])
                crop = crop_and_flip(Picture(pixels), path, opt, SampleRng(self._seed, self._keys[item])).pixels
                crop = np.ascontiguousarray(crop)
                if self._c_loops is not None and crop.shape[:2] == self._crop_size:
                    outs = self._outs(item, self._hq_size)
                    c_items.append((crop, *outs))
                else:
                    size = opt.resized(crop.shape[:2])
                    outs = self._outs(item, opt.to_multiple(size, path))
                    write_pair(crop, size, *outs)
            except StoreError as error:
                self._replace_item(item, error)
            else:
                arrays += outs
        if c_items and self._c_loops is not None:
            self._c_loops.write_patches(tuple(c_items), ())
        for chw in arrays:
            opt.map_values(chw, out=chw)

    def _outs(self, item: int, hq_size: tuple[int, ...]) -> list[Chw]:
        """Return the arrays for an item's HQ and, unless skipped, LQ: rows of the batch if HQ has the likely size.

        Arrays of another size are new, and finish() looks at them.
        """
        if hq_size == self._hq_size:
            self._odd_sized.pop(item, None)
            return [array[item] for array in self._arrays]
        outs = self._odd_sized[item] = [np.empty(shape, np.float32) for shape in self._shapes(hq_size)]
        return outs

    def _shapes(self, hq_size: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the shapes of an item's arrays: HQ, and LQ unless it is skipped."""
        scales = [1] if self._options.skip_lq else [1, self._options.scale]
        return [(3, *(side // scale for side in hq_size)) for scale in scales]

    def _stack_again(self) -> None:
        """Stack all items into new arrays: they may have one size after all, though not the likely one.

        Raises:
            StoreError: HQ differs in size between items.
        """
        rows = [self._odd_sized.get(item, [array[item] for array in self._arrays]) for item in range(len(self))]
        sizes = [hq.shape[1:] for hq, *_ in rows]
        advice = "set target_size, needs_collate to pad them, or batch_size to 1"
        check_one_size(self._paths.__getitem__, sizes, advice=advice)
        self._arrays = [np.stack(arrays) for arrays in zip(*rows, strict=True)]


def _optional_size(options: ConfigOptions, key: str) -> int | None:
    return options.integer(key, minimum=1) if options.has(key) else None


def _read_normalization(options: ConfigOptions) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if not options.has("normalize"):
        return None
    return _MEANS_AND_DEVIATIONS[options.choice("normalize", None, tuple(_MEANS_AND_DEVIATIONS))]


def _read_alternative(options: ConfigOptions) -> Alternative | None:
    fetch_next, fetch_tile = (options.flag(key, False) for key in ("fetch_alt_image", "fetch_alt_tiled_image"))
    if fetch_next and fetch_tile:
        raise options.error("fetch_alt_image and fetch_alt_tiled_image are both true; set only one of them")
    return "next" if fetch_next else "tile" if fetch_tile else None


def _read_constants(options: ConfigOptions) -> dict[str, torch.Tensor]:
    constants: dict[str, torch.Tensor] = {}
    for key, value in options.mapping("fixed_parameters", {}).items():
        try:
            constants[key] = torch.tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise options.error(f"fixed_parameters: {key} must be a number or lists of them, got {value!r}") from error
    return constants
