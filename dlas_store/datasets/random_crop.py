"""A crop of random area and ratio, as torchvision's RandomResizedCrop draws it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

_TRIES = 10
"""After as many crops that do not fit, one around the centre is taken."""


class Crop(NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_crop(
    size: tuple[int, int], *, areas: tuple[float, float], ratios: tuple[float, float], generator: np.random.Generator
) -> Crop:
    """Draw a crop.

    Args:
        size: height and width of the picture.
        areas: least and largest part of the picture's area, drawn evenly.
        ratios: least and largest width over height; its logarithm is drawn evenly.
        generator: of the item.

    Returns:
        A crop that lies within the picture. Where the shape of the picture leaves no room for one, it is the largest
        of an allowed ratio around the centre, of whatever area.
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
    least, largest = ratios
    crop_height = min(height, round(width / least))
    crop_width = min(width, round(height * largest))
    return Crop((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)
