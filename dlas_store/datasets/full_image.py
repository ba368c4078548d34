"""Mode fullimage: whole pictures to validate on, and tiles of pictures to train on.

A tile is a random square of a picture, resized, with blur and noise on LQ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from dlas_store.config import ConfigOptions
from dlas_store.datasets.pairs import check_scale, check_sizes, common_size, open_lq
from dlas_store.datasets.patch_options import rescale_center
from dlas_store.datasets.pictures import PictureDataset, Pictures, check_min_side, check_min_sides, open_pictures
from dlas_store.errors import ImageError
from dlas_store.sampling.rng import SampleRng
from dlas_store.transforms.corruptions import motion_blur
from dlas_store.transforms.crops import Tile, random_tile
from dlas_store.transforms.resize import Chw, matlab_reduce, resize, to_chw_float, to_tensor

_GAUSSIAN_SHARE = 0.4
_MOTION_SHARE = 0.3
"""Probabilities of a Gaussian and of a motion blur of LQ; the remainder is not blurred."""


class FullImageDataset(PictureDataset):
    """Pictures, or in phase train a random square tile of each.

    An item is a dict; s is ``scale``; h and w are the sides of HQ, in phase train ``target_size``, else the picture's:

    * ``hq`` float32 (3, h, w) and ``lq`` float32 (3, h/s, w/s): RGB in [0, 1]; a bicubic reduction or noise makes LQ
      leave that range a little;
    * ``gt_fullsize_ref`` float32 (4, h, w) and ``lq_fullsize_ref`` float32 (4, h/s, w/s): the reference, which is the
      whole picture (in phase train the square that the tile lies in), and as fourth channel the mask of the tile;
    * ``gt_center`` and ``lq_center`` int64 (2,): row and column of the tile's centre in the reference, in pixels;
    * ``HQ_path`` and ``LQ_path`` str: the paths of both pictures, equal without ``dataroot_LQ``.

    LQ is HQ reduced bicubically, or comes from ``dataroot_LQ``, whose pictures are paired with HQ's by their order. The
    pictures of several roots are sorted by their paths as one list, as in DL-Art-School.
    The dataset may be used from several threads and after a fork, and be pickled.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        """Open the data that the options name.

        Args:
            opt: options of the dataset: ``dataroot_GT`` or ``dataroot``, ``dataroot_GT_weights``, ``dataroot_LQ``,
                ``scale``, ``force_multiple``, and in phase train the options of TileOptions.

        Raises:
            ConfigError: an option is missing or has a wrong value, HQ and LQ differ in the number of pictures, or a
                picture of a store is too small or has another size than its pair.
            StoreError: a path holds no pictures.
        """
        options = ConfigOptions.of_dataset(opt, mode="fullimage")
        super().__init__(options)
        self._scale = options.integer("scale", minimum=1)
        self._multiple = options.integer("force_multiple", 1, minimum=1)
        self._tile_options = None
        if opt.get("phase") == "train":
            self._tile_options = read_tile_options(options, scale=self._scale)
        else:
            for field in fields(TileOptions):
                options.has(field.name)  # marks the option as known, though it has no effect
        self._pictures = open_pictures(
            options, key="dataroot_GT", weights_key="dataroot_GT_weights", sorts_roots_as_one=True
        )
        self._lq = open_lq(options, self._pictures)
        self._min_side = _find_min_side(self._tile_options, self._scale, self._multiple)
        if not self.skips_bad:
            check_min_sides(options, self._pictures.sources, self._min_side.side, reason=self._min_side.reason)
            if self._tile_options is None:
                check_sizes(options, self._pictures, self._lq, self._scale)
        options.warn_of_unknown()

    def make_item(self, index: int, random: SampleRng) -> dict[str, Any]:
        """Return an item.

        Args:
            index: 0 <= index < len(self).
            random: the item's random numbers.

        Raises:
            PatchIndexError: the index is out of range.
            ImageError: a picture cannot be decoded or is too small, or the sizes of a pair do not fit.
            StoreError: a picture cannot be read.
        """
        hq_picture = _read(self._pictures, index)
        check_min_side(hq_picture.path, hq_picture.size, self._min_side.side, reason=self._min_side.reason)
        lq_picture = None
        if self._lq:
            lq_pictures = self._lq[int(random.generator.integers(len(self._lq)))]
            lq_picture = _read(lq_pictures, self._pictures.unweighted(index))
        if self._tile_options is None:
            hq, lq = self._make_full_pair(hq_picture, lq_picture)
        else:
            hq, lq = self._make_tile_pair(hq_picture, lq_picture, self._tile_options, random.generator)
        return to_item(hq, lq)

    def _make_full_pair(self, hq_picture: _Picture, lq_picture: _Picture | None) -> tuple[Sample, Sample]:
        """Return whole pictures as HQ and LQ."""
        hq = _as_sample(hq_picture)
        if lq_picture is None:
            lq = self._reduced(hq)
        else:
            check_scale(hq_picture.path, lq_picture.path, hq_picture.size, lq_picture.size, self._scale)
            lq = _as_sample(lq_picture)
            lq = lq._replace(center=rescale_center(hq.center, hq.size, lq.size))
        return self._to_multiple(hq, lq)

    def _make_tile_pair(
        self, hq_picture: _Picture, lq_picture: _Picture | None, opt: TileOptions, generator: np.random.Generator
    ) -> tuple[Sample, Sample]:
        """Return a random tile as HQ and LQ."""
        if lq_picture is None:
            tile = _random_tile(generator, hq_picture.size, opt.min_tile_size, opt)
            hq = crop_tile(hq_picture.chw, hq_picture.path, tile, opt.min_tile_size)
            lq = self._reduced(hq)
        else:
            # The tile is drawn in LQ's pixels, which are the larger ones, so that its edges fit both pictures.
            factor, (height, width) = common_size(hq_picture.path, lq_picture.path, hq_picture.size, lq_picture.size)
            hq_chw = hq_picture.chw[:, : height * factor, : width * factor]
            min_side = min(-(-opt.min_tile_size // factor), height, width)
            tile = _random_tile(generator, (height, width), min_side, opt)
            hq = crop_tile(hq_chw, hq_picture.path, tile.enlarged(factor), opt.min_tile_size)
            lq_chw = lq_picture.chw[:, :height, :width]
            lq = crop_tile(lq_chw, lq_picture.path, tile, opt.min_tile_size // self._scale)
        hq, lq = self._to_multiple(hq, lq)
        lq = resize_sample(lq, opt.target_size // self._scale)
        return resize_sample(hq, opt.target_size), degrade(lq, opt, generator)

    def _reduced(self, hq: Sample) -> Sample:
        """Return a sample reduced by ``scale``: the patch and its reference bicubically, the mask bilinearly."""
        patch = matlab_reduce(hq.patch, self._scale)
        mask = resize(hq.reference[-1:], patch.shape[1:], cv2.INTER_LINEAR)
        reference = np.concatenate([matlab_reduce(hq.reference[:-1], self._scale), mask])
        return Sample(patch, reference, rescale_center(hq.center, hq.size, patch.shape[1:]), hq.path)

    def _to_multiple(self, hq: Sample, lq: Sample) -> tuple[Sample, Sample]:
        """Return both samples, cropped at the bottom and right so that LQ's sides divide by ``force_multiple``.

        Samples whose LQ has such sides already are returned as they are.

        Raises:
            ImageError: a side of LQ is below ``force_multiple``.
        """
        height, width = (side - side % self._multiple for side in lq.size)
        if (height, width) == lq.size:
            return hq, lq
        if not height or not width:
            sides = f"{lq.size[1]} x {lq.size[0]}"
            raise ImageError(
                f"{lq.path}: LQ of {sides} pixels is smaller than force_multiple {self._multiple}; remove the picture"
            )
        return _cropped(hq, height * self._scale, width * self._scale), _cropped(lq, height, width)


@dataclass(frozen=True, slots=True, kw_only=True)
class TileOptions:
    """Options of cropping and degrading tiles.

    Attributes:
        min_tile_size: minimum side of a tile in pixels of the picture, and HQ's side before the resize to
            ``target_size``.
        target_size: HQ's final side.
        fixed_size: crop every tile at the minimum size.
        tile_scale_normal_stddev: standard deviation of the normal distribution of a tile's growth; 1 is growth to the
            whole square.
        use_flip: flip at random.
        use_rot: rotate by quarter turns at random.
        use_blurring: blur LQ.
        blur_magnitude: odd; side of the Gaussian's kernel in pixels, and a third of the longest motion blur.
        lq_noise: standard deviation of the noise on LQ, in 255ths.
    """

    min_tile_size: int
    target_size: int
    fixed_size: bool
    tile_scale_normal_stddev: float
    use_flip: bool
    use_rot: bool
    use_blurring: bool
    blur_magnitude: int
    lq_noise: float


def read_tile_options(options: ConfigOptions, *, scale: int) -> TileOptions:
    """Read and check the options of tiles.

    Raises:
        ConfigError: an option is missing or has a wrong value, ``min_tile_size`` is below ``target_size``,
            ``target_size`` is below ``scale``, or ``blur_magnitude`` is even.
    """
    tile_options = TileOptions(
        min_tile_size=options.integer("min_tile_size", minimum=1),
        target_size=options.integer("target_size", minimum=1),
        fixed_size=options.flag("fixed_size", False),
        tile_scale_normal_stddev=options.number("tile_scale_normal_stddev", 0.17, minimum=0),
        use_flip=options.flag("use_flip", False),
        use_rot=options.flag("use_rot", False),
        use_blurring=options.flag("use_blurring", False),
        blur_magnitude=options.integer("blur_magnitude", 3, minimum=1),
        lq_noise=options.number("lq_noise", 0, minimum=0),
    )
    if tile_options.target_size < scale:
        raise options.error(f"target_size must be at least scale, got {tile_options.target_size} and {scale}")
    if tile_options.min_tile_size < tile_options.target_size:
        raise options.error(
            f"min_tile_size must be at least target_size, "
            f"got {tile_options.min_tile_size} and {tile_options.target_size}"
        )
    if tile_options.blur_magnitude % 2 == 0:
        raise options.error(f"blur_magnitude must be odd, got {tile_options.blur_magnitude}")
    return tile_options


class Sample(NamedTuple):
    """A picture with its reference at one resolution.

    Attributes:
        patch: float32 (3, H, W).
        reference: float32 (4, H, W); the last channel is the mask.
        center: row and column of the patch's centre in the reference, in pixels of this resolution.
        path: path of the file or image that the patch was cropped from.
    """

    patch: Chw
    reference: Chw
    center: tuple[int, int]
    path: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.patch.shape[1], self.patch.shape[2]


def to_item(hq: Sample, lq: Sample) -> dict[str, Any]:
    """Return an HQ and an LQ sample as an item; FullImageDataset describes its keys."""
    return {
        "hq": to_tensor(hq.patch),
        "lq": to_tensor(lq.patch),
        "gt_fullsize_ref": to_tensor(hq.reference),
        "lq_fullsize_ref": to_tensor(lq.reference),
        "gt_center": torch.tensor(hq.center),
        "lq_center": torch.tensor(lq.center),
        "HQ_path": hq.path,
        "LQ_path": lq.path,
    }


def crop_tile(chw: Chw, path: str, tile: Tile, side: int) -> Sample:
    """Crop a tile from a picture (3, H, W); tile, reference, mask and centre are resized to ``side`` pixels."""
    square = np.ascontiguousarray(tile.square.crop(tile.flip_rotate.apply(chw)))
    mask = np.zeros((1, *square.shape[1:]), np.float32)
    tile.window.crop(mask)[:] = 1
    middle = tile.window.top + tile.window.side // 2, tile.window.left + tile.window.side // 2
    size = side, side
    return Sample(
        resize(tile.window.crop(square), size, cv2.INTER_LINEAR),
        resize(np.concatenate([square, mask]), size, cv2.INTER_LINEAR),
        rescale_center(middle, square.shape[1:], size),
        path,
    )


def resize_sample(sample: Sample, side: int) -> Sample:
    """Return a sample resized bilinearly to a square of ``side`` pixels."""
    size = side, side
    if sample.size == size:
        return sample
    return Sample(
        resize(sample.patch, size, cv2.INTER_LINEAR),
        resize(sample.reference, size, cv2.INTER_LINEAR),
        rescale_center(sample.center, sample.size, size),
        sample.path,
    )


def degrade(lq: Sample, opt: TileOptions, generator: np.random.Generator) -> Sample:
    """Return LQ with blur and noise; LQ's reference gets a fifth of the blur and the same noise."""
    patch, picture, mask = lq.patch, lq.reference[:-1], lq.reference[-1:]
    if opt.use_blurring:
        patch = _blur(patch, opt.blur_magnitude, generator)
        picture = _blur(picture, opt.blur_magnitude // 5 | 1, generator)
    if opt.lq_noise:
        noise = generator.standard_normal(patch.shape, np.float32) * np.float32(opt.lq_noise / 255)
        patch, picture = patch + noise, picture + noise
    return lq._replace(patch=patch, reference=np.concatenate([picture, mask]))


class _Picture(NamedTuple):
    """A decoded picture, float32 (3, H, W) in [0, 1], and its path."""

    chw: Chw
    path: str

    @property
    def size(self) -> tuple[int, int]:
        return self.chw.shape[1], self.chw.shape[2]


class _MinSide(NamedTuple):
    """Minimum height and width of a picture.

    Attributes:
        side: the minimum in pixels.
        reason: the options that demand the minimum, for the error message.
    """

    side: int
    reason: str


def _find_min_side(tile: TileOptions | None, scale: int, multiple: int) -> _MinSide:
    if tile is None:
        return _MinSide(scale * (multiple - 1) + 1, f"scale {scale} with force_multiple {multiple}")
    return _MinSide(tile.min_tile_size, f"min_tile_size {tile.min_tile_size}")


def _read(pictures: Pictures, index: int) -> _Picture:
    source, patch = pictures.source, pictures.patch_at(index)
    return _Picture(to_chw_float(source.read_pixels([patch])[0]), source.patch_path(patch))


def _as_sample(picture: _Picture) -> Sample:
    """Return a whole picture as a sample: the picture is its own reference, with a mask of 1."""
    height, width = picture.size
    reference = np.concatenate([picture.chw, np.ones((1, height, width), np.float32)])
    return Sample(picture.chw, reference, (height // 2, width // 2), picture.path)


def _cropped(sample: Sample, height: int, width: int) -> Sample:
    patch = sample.patch[:, :height, :width]
    # DL-Art-School moves the centre as if the sample were resized.
    center = rescale_center(sample.center, sample.size, patch.shape[1:])
    return Sample(patch, sample.reference[:, :height, :width], center, sample.path)


def _random_tile(generator: np.random.Generator, size: tuple[int, int], min_side: int, opt: TileOptions) -> Tile:
    stddev = None if opt.fixed_size else opt.tile_scale_normal_stddev
    return random_tile(generator, size, min_side, flip=opt.use_flip, rotate=opt.use_rot, growth_stddev=stddev)


def _blur(chw: Chw, magnitude: int, generator: np.random.Generator) -> Chw:
    """Blur by a Gaussian, along a line, or not at all, at random; ``magnitude`` is odd."""
    chance = generator.random()
    if chance < _GAUSSIAN_SHARE:
        # OpenCV replaces a sigma of 0 by the sigma that fits the kernel.
        sigma = float(generator.integers(magnitude))
        return np.stack([cv2.GaussianBlur(channel, (magnitude, magnitude), sigma) for channel in chw])
    if chance < _GAUSSIAN_SHARE + _MOTION_SHARE:
        length = int(generator.integers(1, 3 * magnitude))
        return motion_blur(chw, length, float(generator.integers(361)))
    return chw
