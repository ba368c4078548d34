"""What full image trains on: a random square tile of a picture, resized, and the blur and noise on its LQ."""

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
    """How tiles are cut and made worse.

    Attributes:
        min_tile_size: least side of a tile in pixels of the picture, and side of HQ before ``target_size``.
        target_size: side of HQ in the end.
        fixed_size: cut no tile that is larger.
        tile_scale_normal_stddev: of the normal by which tiles are larger; 1 is the whole square.
        use_flip: mirror.
        use_rot: turn by quarters.
        use_blurring: blur LQ.
        blur_magnitude: odd; side of the Gaussian's kernel in pixels, a third of the longest motion blur.
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
    """Where a tile lies.

    Attributes:
        turn: what is done to the picture first.
        square: the part of the turned picture that the reference shows.
        part: the tile in that square.
    """

    turn: Turn
    square: Square
    part: Square

    def enlarged(self, factor: int) -> Tile:
        """Return the same tile of a picture that is larger by a factor."""
        return Tile(self.turn, self.square.enlarged(factor), self.part.enlarged(factor))


def read_tile_options(options: ConfigOptions, *, scale: int) -> TileOptions:
    """Check the options of tiles.

    Raises:
        ConfigError: one is missing or of a wrong value, ``min_tile_size`` is below ``target_size`` or that below
            ``scale``, or ``blur_magnitude`` is even.
    """
    checked = TileOptions(
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
    if checked.target_size < scale:
        raise options.error(f"target_size must be at least scale, got {checked.target_size} and {scale}")
    if checked.min_tile_size < checked.target_size:
        raise options.error(
            f"min_tile_size must be at least target_size, got {checked.min_tile_size} and {checked.target_size}"
        )
    if checked.blur_magnitude % 2 == 0:
        raise options.error(f"blur_magnitude must be odd, got {checked.blur_magnitude}")
    return checked


def draw_tile(generator: np.random.Generator, size: tuple[int, int], least: int, opt: TileOptions) -> Tile:
    """Draw a tile.

    Args:
        generator: of the item.
        size: height and width of the picture, neither below ``least``.
        least: least side of the tile in pixels of that picture.
        opt: the options.
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
    """Cut a tile from a picture (3, H, W); tile, reference, mask and centre come at the given side in pixels."""
    whole = np.ascontiguousarray(tile.square.cut(tile.turn.apply(planes)))
    mask = np.zeros((1, *whole.shape[1:]), np.float32)
    tile.part.cut(mask)[:] = 1
    middle = tile.part.top + tile.part.side // 2, tile.part.left + tile.part.side // 2
    size = side, side
    return Sample(
        resize(tile.part.cut(whole), size, cv2.INTER_LINEAR),
        resize(np.concatenate([whole, mask]), size, cv2.INTER_LINEAR),
        rescale_center(middle, whole.shape[1:], size),
        path,
    )


def resize_sample(sample: Sample, side: int) -> Sample:
    """Return a sample resized bilinearly to a square."""
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
    """Return LQ blurred and with noise; its reference is blurred at a fifth of the magnitude, with the same noise."""
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
    """Blur by a Gaussian, along a line, or not at all; magnitude is odd."""
    kind = generator.random()
    if kind < _GAUSSIAN_SHARE:
        # A sigma of 0 stands for the one that fits the kernel, as in OpenCV.
        sigma = float(generator.integers(magnitude))
        return np.stack([cv2.GaussianBlur(plane, (magnitude, magnitude), sigma) for plane in planes])
    if kind < _GAUSSIAN_SHARE + _MOTION_SHARE:
        length = int(generator.integers(1, 3 * magnitude))
        return motion_blur(planes, length, float(generator.integers(361)))
    return planes
