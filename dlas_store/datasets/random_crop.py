"""Random crops of random area and aspect ratio, drawn as torchvision's RandomResizedCrop draws them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

_TRIES = 10
"""Number of random crops to try; if none fits, a crop around the centre is taken."""


class Crop(NamedTuple):
    """A rectangle of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_crop(
    size: tuple[int, int], *, areas: tuple[float, float], ratios: tuple[float, float], generator: np.random.Generator
) -> Crop:
    """Draw a random crop.

    Args:
        size: height and width of the picture.
        areas: smallest and largest fraction of the picture's area; the fraction is drawn uniformly.
        ratios: smallest and largest width over height; the ratio's logarithm is drawn uniformly.
        generator: the item's random numbers.

    Returns:
        A crop that lies within the picture. If the picture's shape leaves no room for one, the largest crop of an
        allowed ratio around the centre, whatever its area.
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
