"""The options of mode imagefolder.

Crop and flip of a picture and its labelled boxes, as mode imagefolder takes them.

A batch of pictures as HQ and LQ, written straight into the tensors that the trainer gets.
"""

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
        check_min_side(path, size, multiple, reason="force_multiple times scale")
        return tuple(side - side % multiple for side in size)

    def map_values(self, planes: Chw, out: Chw | None = None) -> Chw:
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


CENTER_CROP = "center_crop_hq_sz"


class Picture(NamedTuple):
    """A picture's pixels, uint8 (H, W, 3), and the labelled boxes in it."""

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
        # OpenCV takes a fortieth of the time that a copy of a reversed view takes.
        mirrored = np.asarray(cv2.flip(self.pixels, 1), np.uint8)
        return Picture(mirrored, [box.flipped(width) for box in self.boxes])


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


class ImageFolderBatch:
    """Builds a batch of mode imagefolder where the options are plain; ImageFolderDataset describes the tensors."""

    def __init__(
        self,
        draws: Sequence[SampleKey],
        frames: Frames,
        options: ImageFolderOptions,
        memory: ScratchPool,
        *,
        seed: int,
        allocate: Allocate,
        replace: MakeItem | None,
    ) -> None:
        """Begin a batch.

        Args:
            draws: the items asked for.
            frames: their pictures, one an item.
            options: how a picture becomes HQ and LQ.
            memory: what pictures are decoded into.
            seed: of the random numbers.
            allocate: gives the memory of the tensors.
            replace: gives the item in place of one that cannot be read; None lets the error be raised.
        """
        self._draws = draws
        self._frames = frames
        self._options = options
        self._memory = memory
        self._seed = seed
        self._replace = replace
        self._order = frames.argsort_on_disk()
        self._paths = [""] * len(draws)
        self._size, self._hq_size = self._likely_sizes()
        self._cut_size = options.cut_size(self._size)
        # HQ, and where it is wanted LQ: (items, 3, h, w).
        self._planes = [allocate((len(draws), *shape), np.float32) for shape in self._shapes(self._hq_size)]
        self._elsewhere: dict[int, list[Chw]] = {}
        is_whole = options.resized(self._cut_size) == self._hq_size
        self._loops = loops_for(self._cut_size, *(planes[0] for planes in self._planes)) if is_whole else None

    def __len__(self) -> int:
        return len(self._draws)

    def fill(self, start: int, stop: int) -> None:
        """Make a part of the items; see BatchBuilder."""
        for items, pictures in decode_groups(
            self._frames, self._order[start:stop], self._size, self._memory, self._replace_item
        ):
            self._write(items, pictures)

    def finish(self) -> dict[str, Any]:
        """Return the batch; see BatchBuilder.

        Raises:
            StoreError: HQ is not of the same size in all items.
        """
        if self._elsewhere:
            self._gather()
        count = len(self._draws)
        hq, *lq = map(torch.from_numpy, self._planes)
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
        """Return height and width of the first picture that says them and is large enough, and those of its HQ."""
        opt = self._options
        for patch in self._frames.patches:
            with suppress(StoreError):  # to be raised, or replaced, when it is read
                size = self._frames.source.header_size(patch)
                return size, opt.to_multiple(opt.resized(opt.cut_size(size)), "")
        least = opt.force_multiple * opt.scale
        return (least, least), (least, least)

    def _replace_item(self, item: int, error: StoreError) -> None:
        """Take over another item that was made on its own, or raise the error where none is to be."""
        if self._replace is None:
            raise error
        replacement = self._replace(self._draws[item])
        self._paths[item] = replacement["HQ_path"]
        for key, out in zip(("hq", "lq"), self._outs(item, replacement["hq"].shape[1:]), strict=False):
            out[...] = replacement[key].numpy()

    def _write(self, items: Sequence[int], pictures: Sequence[Pixels]) -> None:
        """Write decoded items, those whose part has the likely size with one call of C."""
        opt, (source, patches, _) = self._options, self._frames
        written: list[Chw] = []
        together: list[tuple[Pixels, *tuple[Chw, ...]]] = []
        for item, pixels in zip(items, pictures, strict=True):
            try:
                path = self._paths[item] = source.patch_path(patches[item])
                cut = crop_and_flip(Picture(pixels), path, opt, SampleRng(self._seed, self._draws[item])).pixels
                cut = np.ascontiguousarray(cut)
                if self._loops is not None and cut.shape[:2] == self._cut_size:
                    outs = self._outs(item, self._hq_size)
                    together.append((cut, *outs))
                else:
                    size = opt.resized(cut.shape[:2])
                    outs = self._outs(item, opt.to_multiple(size, path))
                    write_pair(cut, size, *outs)
            except StoreError as error:
                self._replace_item(item, error)
            else:
                written += outs
        if together and self._loops is not None:
            self._loops.write_patches(tuple(together), ())
        for planes in written:
            opt.map_values(planes, out=planes)

    def _outs(self, item: int, hq_size: tuple[int, ...]) -> list[Chw]:
        """Return where HQ of a height and width goes, and where it is wanted LQ: into the batch if they fit there."""
        if hq_size == self._hq_size:
            self._elsewhere.pop(item, None)
            return [planes[item] for planes in self._planes]
        outs = self._elsewhere[item] = [np.empty(shape, np.float32) for shape in self._shapes(hq_size)]
        return outs

    def _shapes(self, hq_size: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the shapes of what an item has: HQ, and where it is wanted LQ."""
        scales = [1] if self._options.skip_lq else [1, self._options.scale]
        return [(3, *(side // scale for side in hq_size)) for scale in scales]

    def _gather(self) -> None:
        """Make the batch of what lies elsewhere, where all of it has the size that the first picture did not claim."""
        rows = [self._elsewhere.get(item, [planes[item] for planes in self._planes]) for item in range(len(self))]
        sizes = [planes[0].shape[1:] for planes in rows]
        advice = "set target_size, needs_collate to pad them, or batch_size to 1"
        check_one_size(self._paths.__getitem__, sizes, advice=advice)
        self._planes = [np.stack(planes) for planes in zip(*rows, strict=True)]
