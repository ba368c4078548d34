"""Tiles, the training samples of mode full image: a random square of a picture, resized, with blur and noise on LQ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from dlas_store.datasets.effects import motion_blur
from dlas_store.datasets.patches import rescale_center
from dlas_store.datasets.planes import Planes, resize
from dlas_store.datasets.samples import Sample
from dlas_store.datasets.square_crop import OFFSET_STDDEV, Square, Turn, draw_square, draw_turn
from dlas_store.options import ConfigOptions

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


class Tile(NamedTuple):
    """Location of a tile in a picture.

    Attributes:
        turn: the flip and rotation that are applied to the picture first.
        square: the square of the rotated picture that the reference shows.
        part: the tile in that square.
    """

    turn: Turn
    square: Square
    part: Square

    def enlarged(self, factor: int) -> Tile:
        """Return the same tile of the picture magnified by a factor."""
        return Tile(self.turn, self.square.enlarged(factor), self.part.enlarged(factor))


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


def draw_tile(generator: np.random.Generator, size: tuple[int, int], least: int, opt: TileOptions) -> Tile:
    """Draw a tile's location.

    Args:
        generator: the item's random numbers.
        size: height and width of the picture, neither below ``least``.
        least: minimum side of the tile in pixels of that picture.
        opt: the options of tiles.
    """
    turn = draw_turn(generator, flip=opt.use_flip, rotate=opt.use_rot)
    square = draw_square(generator, size[::-1] if turn.transposed else size)
    growth = 0.0 if opt.fixed_size else min(abs(generator.normal(scale=opt.tile_scale_normal_stddev)), 1)
    side = int(least + (square.side - least) * growth)
    room = square.side - side
    top, left = (
        min(max(int(min(offset, 1) * room + room // 2), 0), room)
        for offset in generator.normal(scale=OFFSET_STDDEV, size=2)
    )
    return Tile(turn, square, Square(top, left, side))


def cut_tile(planes: Planes, path: str, tile: Tile, side: int) -> Sample:
    """Crop a tile from a picture (3, H, W); tile, reference, mask and centre are resized to ``side`` pixels."""
    square = np.ascontiguousarray(tile.square.cut(tile.turn.apply(planes)))
    mask = np.zeros((1, *square.shape[1:]), np.float32)
    tile.part.cut(mask)[:] = 1
    middle = tile.part.top + tile.part.side // 2, tile.part.left + tile.part.side // 2
    size = side, side
    return Sample(
        resize(tile.part.cut(square), size, cv2.INTER_LINEAR),
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


def worsen(lq: Sample, opt: TileOptions, generator: np.random.Generator) -> Sample:
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


def _blur(planes: Planes, magnitude: int, generator: np.random.Generator) -> Planes:
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
