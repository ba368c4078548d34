"""How full image and multi scale make a picture square: turned at random, then cut along its longer side."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dlas_store.datasets.planes import Planes

OFFSET_STDDEV = 0.3
"""Standard deviation of a crop's distance from the middle, where 1 is as far as it can go."""


class Turn(NamedTuple):
    """A picture mirrored and turned by quarters.

    Attributes:
        mirrored: left and right swapped.
        upside_down: top and bottom swapped.
        transposed: then rows and columns swapped.
    """

    mirrored: bool
    upside_down: bool
    transposed: bool

    def apply(self, planes: Planes) -> Planes:
        """Return (C, H, W) planes turned, a view of them."""
        if self.mirrored:
            planes = planes[:, :, ::-1]
        if self.upside_down:
            planes = planes[:, ::-1]
        return planes.swapaxes(1, 2) if self.transposed else planes


class Square(NamedTuple):
    """A square part of a picture, in pixels."""

    top: int
    left: int
    side: int

    def enlarged(self, factor: int) -> Square:
        """Return the same part of a picture that is larger by a factor."""
        return Square(self.top * factor, self.left * factor, self.side * factor)

    def cut(self, planes: Planes) -> Planes:
        """Return the part of (C, H, W) planes, a view of them."""
        return planes[:, self.top : self.top + self.side, self.left : self.left + self.side]


def draw_turn(generator: np.random.Generator, *, flip: bool, rotate: bool) -> Turn:
    """Draw a turn as DL-Art-School does: each swap that is allowed comes with probability 1/2.

    Args:
        generator: of the item.
        flip: allow mirroring.
        rotate: allow the other two swaps; together with ``flip`` all eight turns are equally likely.
    """
    mirrored, upside_down, transposed = (generator.random(3) < 0.5).tolist()
    return Turn(flip and mirrored, rotate and upside_down, rotate and transposed)


def draw_square(generator: np.random.Generator, size: tuple[int, int]) -> Square:
    """Draw a square of a picture's shorter side, its place along the longer one from a normal around the middle.

    Args:
        generator: of the item.
        size: height and width of the picture.
    """
    height, width = size
    offset = float(np.clip(generator.normal(scale=OFFSET_STDDEV), -1, 1))
    middle = abs(height - width) / 2
    start = int(middle + offset * middle)
    return Square(start, 0, width) if height > width else Square(0, start, height)
