"""Mode fullimage: whole pictures to validate on, and tiles of them to train on.

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
from dlas_store.datasets.concat import open_paths
from dlas_store.datasets.patch_options import rescale_center
from dlas_store.datasets.pictures import PictureDataset, Pictures, check_min_side, check_min_sides, open_pictures
from dlas_store.errors import ImageError
from dlas_store.sampling.rng import SampleRng
from dlas_store.transforms.corruptions import motion_blur
from dlas_store.transforms.crops import Tile, random_tile
from dlas_store.transforms.resize import Chw, matlab_reduce, resize, to_chw_float, to_tensor


class Sample(NamedTuple):
    """A picture with its reference at one resolution.

    Attributes:
        patch: float32 (3, H, W).
        reference: float32 (4, H, W); the last channel is the mask.
        center: row and column of the patch's centre in the reference, in pixels of this resolution.
        path: path of the file or image that the patch was cut from.
    """

    patch: Chw
    reference: Chw
    center: tuple[int, int]
    path: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.patch.shape[1], self.patch.shape[2]


def pack_pair(hq: Sample, lq: Sample) -> dict[str, Any]:
    """Return an HQ and an LQ sample as the trainer takes them; SingleImageDataset describes all keys but the paths."""
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


_GAUSSIAN_SHARE = 0.4
_MOTION_SHARE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class TileOptions:
    """Options of cropping and degrading tiles.

    Attributes:
        min_tile_size: minimum side of a tile in pixels of the picture, and HQ's side before the resize to
            ``target_size``.
        target_size: HQ's final side.
        fixed_size: crop every tile at the minimum size.
        tile_scale_normal_stddev: standard deviation of the normal by which tiles grow; 1 is growth to the whole square.
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


def _random_tile(generator: np.random.Generator, size: tuple[int, int], least: int, opt: TileOptions) -> Tile:
    stddev = None if opt.fixed_size else opt.tile_scale_normal_stddev
    return random_tile(generator, size, least, flip=opt.use_flip, rotate=opt.use_rot, growth_stddev=stddev)


def crop_tile(planes: Chw, path: str, tile: Tile, side: int) -> Sample:
    """Crop a tile from a picture (3, H, W); tile, reference, mask and centre are resized to ``side`` pixels."""
    square = np.ascontiguousarray(tile.square.crop(tile.turn.apply(planes)))
    mask = np.zeros((1, *square.shape[1:]), np.float32)
    tile.part.crop(mask)[:] = 1
    middle = tile.part.top + tile.part.side // 2, tile.part.left + tile.part.side // 2
    size = side, side
    return Sample(
        resize(tile.part.crop(square), size, cv2.INTER_LINEAR),
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
    """Return LQ with blur and noise; its reference gets a fifth of the blur and the same noise."""
    patch, reference = lq.patch, lq.reference
    picture = reference[:-1]
    if opt.use_blurring:
        patch = _blur(patch, opt.blur_magnitude, generator)
        picture = _blur(picture, opt.blur_magnitude // 5 | 1, generator)
    if opt.lq_noise:
        noise = generator.standard_normal(patch.shape, np.float32) * np.float32(opt.lq_noise / 255)
        patch, picture = patch + noise, picture + noise
    return lq._replace(patch=patch, reference=np.concatenate([picture, reference[-1:]]))


def _blur(planes: Chw, magnitude: int, generator: np.random.Generator) -> Chw:
    """Blur by a Gaussian, along a line, or not at all, at random; ``magnitude`` is odd."""
    kind = generator.random()
    if kind < _GAUSSIAN_SHARE:
        # From a sigma of 0, OpenCV derives the sigma that fits the kernel.
        sigma = float(generator.integers(magnitude))
        return np.stack([cv2.GaussianBlur(plane, (magnitude, magnitude), sigma) for plane in planes])
    if kind < _GAUSSIAN_SHARE + _MOTION_SHARE:
        length = int(generator.integers(1, 3 * magnitude))
        return motion_blur(planes, length, float(generator.integers(361)))
    return planes


class FullImageDataset(PictureDataset):
    """Pictures, or in phase train a random square tile of each.

    An item is a dict; s is ``scale``, h and w the sides of HQ: those of the picture, ``target_size`` in phase train:

    * ``hq`` float32 (3, h, w) and ``lq`` float32 (3, h/s, w/s): RGB in [0, 1]; LQ leaves it a little where it is a
      bicubic reduction or has noise;
    * ``gt_fullsize_ref`` float32 (4, h, w) and ``lq_fullsize_ref`` float32 (4, h/s, w/s): the whole picture (in phase
      train the square that the tile lies in), and the mask of the tile as fourth channel;
    * ``gt_center`` and ``lq_center`` int64 (2,): row and column of the tile's centre in the reference, in pixels;
    * ``HQ_path`` and ``LQ_path`` str: the picture's path; the same one without ``dataroot_LQ``.

    LQ is HQ brought down bicubically, or comes from ``dataroot_LQ``, whose pictures pair with those of HQ in order.
    The dataset may be used from several threads, after a fork, and pickled.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        """Open the data that the options name.

        Args:
            opt: options of the dataset: ``dataroot_GT`` or ``dataroot``, ``dataroot_GT_weights``, ``dataroot_LQ``,
                ``scale``, ``force_multiple``, and in phase train those of TileOptions.

        Raises:
            ConfigError: an option is missing or of a wrong value, HQ and LQ differ in the number of pictures, or a
                picture of a store is too small.
            StoreError: a path holds no pictures.
        """
        options = ConfigOptions.of_dataset(opt, mode="fullimage")
        super().__init__(options)
        self._scale = options.integer("scale", minimum=1)
        self._multiple = options.integer("force_multiple", 1, minimum=1)
        self._tile = None
        if (opt.get("phase") or "train") == "train":
            self._tile = read_tile_options(options, scale=self._scale)
        else:
            for field in fields(TileOptions):
                options.has(field.name)  # known, but of no effect
        self._pictures = open_pictures(options, key="dataroot_GT", weights_key="dataroot_GT_weights")
        self._lq = _open_lq(options, self._pictures)
        self._least = _least_side(self._tile, self._scale, self._multiple)
        if not self.skips_bad:
            check_min_sides(options, self._pictures.sources, self._least.side, reason=self._least.reason)
        options.warn_of_unknown()

    def make_item(self, index: int, random: SampleRng) -> dict[str, Any]:
        """Return an item.

        Args:
            index: 0 <= index < len(self).
            random: where its random choices come from.

        Raises:
            PatchIndexError: the index is outside of that.
            ImageError: a picture cannot be decoded, is too small, or LQ is not of the same shape as its HQ.
            StoreError: a picture cannot be read.
        """
        hq_picture = _read(self._pictures, index)
        check_min_side(hq_picture.path, hq_picture.size, self._least.side, reason=self._least.reason)
        lq_picture = None
        if self._lq:
            root = self._lq[int(random.generator.integers(len(self._lq)))]
            lq_picture = _read(root, self._pictures.unweighted(index))
        if self._tile is None:
            hq = _whole(hq_picture)
            if lq_picture is None:
                lq = self._reduced(hq)
            else:
                lq = _whole(lq_picture)
                lq = lq._replace(center=rescale_center(hq.center, hq.size, lq.size))
            hq, lq = self._to_multiple(hq, lq)
        else:
            hq, lq = self._cut(hq_picture, lq_picture, self._tile, random.generator)
        return pack_pair(hq, lq)

    def _cut(
        self, hq_picture: _Picture, lq_picture: _Picture | None, opt: TileOptions, generator: np.random.Generator
    ) -> tuple[Sample, Sample]:
        """Return a tile as HQ and LQ."""
        if lq_picture is None:
            tile = _random_tile(generator, hq_picture.size, opt.min_tile_size, opt)
            hq = crop_tile(hq_picture.planes, hq_picture.path, tile, opt.min_tile_size)
            lq = self._reduced(hq)
        else:
            # Drawn in LQ's pixels, the coarser ones, so that both pictures are cut along the same lines.
            factor, (height, width) = _common_size(hq_picture, lq_picture)
            hq_planes = hq_picture.planes[:, : height * factor, : width * factor]
            least = min(-(-opt.min_tile_size // factor), height, width)
            tile = _random_tile(generator, (height, width), least, opt)
            hq = crop_tile(hq_planes, hq_picture.path, tile.enlarged(factor), opt.min_tile_size)
            lq_planes = lq_picture.planes[:, :height, :width]
            lq = crop_tile(lq_planes, lq_picture.path, tile, opt.min_tile_size // self._scale)
        hq, lq = self._to_multiple(hq, lq)
        lq = resize_sample(lq, opt.target_size // self._scale)
        return resize_sample(hq, opt.target_size), degrade(lq, opt, generator)

    def _reduced(self, hq: Sample) -> Sample:
        """Return a sample brought down by ``scale``: pictures bicubically, the mask bilinearly."""
        patch = matlab_reduce(hq.patch, self._scale)
        mask = resize(hq.reference[-1:], patch.shape[1:], cv2.INTER_LINEAR)
        reference = np.concatenate([matlab_reduce(hq.reference[:-1], self._scale), mask])
        return Sample(patch, reference, rescale_center(hq.center, hq.size, patch.shape[1:]), hq.path)

    def _to_multiple(self, hq: Sample, lq: Sample) -> tuple[Sample, Sample]:
        """Return both cropped at the bottom and right, where a side of LQ does not divide by ``force_multiple``."""
        height, width = (side - side % self._multiple for side in lq.size)
        if (height, width) == lq.size:
            return hq, lq
        if not height or not width:
            sides = f"{lq.size[1]} x {lq.size[0]}"
            raise ImageError(f"{lq.path}: LQ of {sides} pixels is smaller than force_multiple {self._multiple}")
        return _cropped(hq, height * self._scale, width * self._scale), _cropped(lq, height, width)


class _Picture(NamedTuple):
    planes: Chw
    path: str

    @property
    def size(self) -> tuple[int, int]:
        return self.planes.shape[1], self.planes.shape[2]


class _Least(NamedTuple):
    """How small a picture may be.

    Attributes:
        side: pixels that both sides must have.
        reason: what asks for them.
    """

    side: int
    reason: str


def _least_side(tile: TileOptions | None, scale: int, multiple: int) -> _Least:
    if tile is None:
        return _Least(scale * (multiple - 1) + 1, f"scale {scale} with force_multiple {multiple}")
    return _Least(tile.min_tile_size, f"min_tile_size {tile.min_tile_size}")


def _open_lq(options: ConfigOptions, hq: Pictures) -> list[Pictures]:
    """Open each path of ``dataroot_LQ``; every one holds a picture for each of HQ."""
    if not options.has("dataroot_LQ"):
        return []
    roots = [Pictures([source], [1]) for source in open_paths(options, layout="pictures", key="dataroot_LQ")]
    for root in roots:
        if len(root) != hq.unweighted_count:
            raise options.error(
                f"dataroot_LQ must hold a picture for each of HQ: {root.source.path} holds {len(root)}, "
                f"and HQ {hq.unweighted_count}"
            )
    return roots


def _read(pictures: Pictures, index: int) -> _Picture:
    source, patch = pictures.source, pictures.patch_at(index)
    return _Picture(to_chw_float(source.read_pixels([patch])[0]), source.patch_path(patch))


def _whole(picture: _Picture) -> Sample:
    """Return a picture as its own reference, with a mask of 1."""
    height, width = picture.size
    reference = np.concatenate([picture.planes, np.ones((1, height, width), np.float32)])
    return Sample(picture.planes, reference, (height // 2, width // 2), picture.path)


def _cropped(sample: Sample, height: int, width: int) -> Sample:
    patch = sample.patch[:, :height, :width]
    # DL-Art-School moves the centre as if the sample were resized.
    center = rescale_center(sample.center, sample.size, patch.shape[1:])
    return Sample(patch, sample.reference[:, :height, :width], center, sample.path)


def _common_size(hq: _Picture, lq: _Picture) -> tuple[int, tuple[int, int]]:
    """Return by how much HQ is larger than LQ, and the size of what both show in pixels of LQ.

    Raises:
        ImageError: HQ is not LQ's size times a whole number, give or take the remainder of a division.
    """
    factor = max(round(hq.size[0] / lq.size[0]), 1)
    if any(abs(ours - theirs * factor) >= factor for ours, theirs in zip(hq.size, lq.size, strict=True)):
        sizes = [f"{picture.size[1]} x {picture.size[0]}" for picture in (lq, hq)]
        raise ImageError(f"{lq.path}: {sizes[0]} pixels, no whole part of the {sizes[1]} pixels of {hq.path}")
    height, width = (min(theirs, ours // factor) for ours, theirs in zip(hq.size, lq.size, strict=True))
    return factor, (height, width)
