"""Random crops, flips and rotations: rectangles as torchvision draws them, squares and tiles as DL-Art-School does."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dlas_store.transforms.resize import Chw

_OFFSET_STDDEV = 0.3
"""Standard deviation of a square's distance from the middle; 1 is the largest possible distance."""

_TRIES = 10
"""Number of random crops to try; if none fits, a crop around the centre is taken."""


class Crop(NamedTuple):
    """A rectangle of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Square(NamedTuple):
    """A square of a picture, in pixels."""

    top: int
    left: int
    side: int

    def enlarged(self, factor: int) -> Square:
        """Return the same square of the picture magnified by a factor."""
        return Square(self.top * factor, self.left * factor, self.side * factor)

    def crop(self, chw: Chw) -> Chw:
        """Return the square of a (C, H, W) array, as a view."""
        return chw[:, self.top : self.top + self.side, self.left : self.left + self.side]


class FlipRotate(NamedTuple):
    """A flip and rotation by quarter turns, as three swaps in this order.

    Attributes:
        hflip: swap left and right.
        vflip: swap top and bottom.
        transpose: then swap rows and columns.
    """

    hflip: bool
    vflip: bool
    transpose: bool

    def apply(self, chw: Chw) -> Chw:
        """Return a (C, H, W) array flipped and rotated, as a view."""
        if self.hflip:
            chw = chw[:, :, ::-1]
        if self.vflip:
            chw = chw[:, ::-1]
        return chw.swapaxes(1, 2) if self.transpose else chw


class Tile(NamedTuple):
    """Location of a tile in a picture.

    Attributes:
        flip_rotate: the flip and rotation that are applied to the picture first.
        square: the square of the rotated picture that the reference shows.
        window: the tile in that square.
    """

    flip_rotate: FlipRotate
    square: Square
    window: Square

    def enlarged(self, factor: int) -> Tile:
        """Return the same tile of the picture magnified by a factor."""
        return Tile(self.flip_rotate, self.square.enlarged(factor), self.window.enlarged(factor))


def random_resized_crop(
    size: tuple[int, int], *, areas: tuple[float, float], ratios: tuple[float, float], generator: np.random.Generator
) -> Crop:
    """Draw a rectangle of random area and aspect ratio, as torchvision's RandomResizedCrop does.

    Args:
        size: height and width of the picture.
        areas: smallest and largest fraction of the picture's area; the fraction is drawn uniformly.
        ratios: smallest and largest width over height; the ratio's logarithm is drawn uniformly.
        generator: the item's random numbers.

    Returns:
        A crop that lies within the picture. If none of a few draws lies within it, the largest crop of an allowed
        ratio around the centre, whatever its area.
    """
    height, width = size
    for _ in range(_TRIES):
        area = height * width * generator.uniform(*areas)
        ratio = math.exp(generator.uniform(math.log(ratios[0]), math.log(ratios[1])))
        crop_height, crop_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top = int(generator.integers(height - crop_height + 1))
            left = int(generator.integers(width - crop_width + 1))
            return Crop(top, left, crop_height, crop_width)
    min_ratio, max_ratio = ratios
    crop_height = min(height, round(width / min_ratio))
    crop_width = min(width, round(height * max_ratio))
    return Crop((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def random_square_crop(generator: np.random.Generator, size: tuple[int, int]) -> Square:
    """Draw a square as wide as a picture's shorter side, at a normally distributed distance from the middle.

    Args:
        generator: the item's random numbers.
        size: height and width of the picture.
    """
    height, width = size
    offset = float(np.clip(generator.normal(scale=_OFFSET_STDDEV), -1, 1))
    middle = abs(height - width) / 2
    start = int(middle + offset * middle)
    return Square(start, 0, width) if height > width else Square(0, start, height)


def random_flip_rotate(generator: np.random.Generator, *, flip: bool, rotate: bool) -> FlipRotate:
    """Draw a flip and rotation as DL-Art-School does: each allowed swap has probability 1/2.

    Args:
        generator: the item's random numbers.
        flip: allow the swap of left and right.
        rotate: allow the other two swaps; with ``flip``, all eight combinations are equally likely.
    """
    hflip, vflip, transpose = (generator.random(3) < 0.5).tolist()
    return FlipRotate(flip and hflip, rotate and vflip, rotate and transpose)


def random_tile(
    generator: np.random.Generator,
    size: tuple[int, int],
    min_side: int,
    *,
    flip: bool,
    rotate: bool,
    growth_stddev: float | None,
) -> Tile:
    """Draw a tile's location.

    Args:
        generator: the item's random numbers.
        size: height and width of the picture, neither below ``min_side``.
        min_side: minimum side of the tile in pixels of the picture.
        flip: flip at random.
        rotate: rotate by quarter turns at random.
        growth_stddev: standard deviation of the normal distribution of a tile's growth; 1 is growth to the whole
            square, None keeps the minimum side.
    """
    flip_rotate = random_flip_rotate(generator, flip=flip, rotate=rotate)
    square = random_square_crop(generator, size[::-1] if flip_rotate.transpose else size)
    growth = 0.0 if growth_stddev is None else min(abs(generator.normal(scale=growth_stddev)), 1)
    side = int(min_side + (square.side - min_side) * growth)
    room = square.side - side
    top, left = (
        min(max(int(min(offset, 1) * room + room // 2), 0), room)
        for offset in generator.normal(scale=_OFFSET_STDDEV, size=2)
    )
    return Tile(flip_rotate, square, Square(top, left, side))
