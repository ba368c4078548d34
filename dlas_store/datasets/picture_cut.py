"""Crop and flip of a picture and its labelled boxes, as mode imagefolder takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from dlas_store.aligned_memory import Pixels
from dlas_store.datasets.draws import ItemRandom
from dlas_store.datasets.image_folder_options import ImageFolderOptions
from dlas_store.datasets.least_size import check_least_side
from dlas_store.datasets.patch_labels import Box

CENTER_CROP = "center_crop_hq_sz"


class Picture(NamedTuple):
    """A picture's pixels, uint8 (H, W, 3), and the labelled boxes in it."""

    pixels: Pixels
    boxes: Sequence[Box] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def cut(self, top: int, left: int, side: int) -> Picture:
        """Return a square of the picture; its pixels are a view."""
        pixels = self.pixels[top : top + side, left : left + side]
        return Picture(pixels, [box.cut(top, left, (side, side)) for box in self.boxes])

    def flipped(self) -> Picture:
        """Return the picture flipped left to right."""
        width = self.size[1]
        # OpenCV takes a fortieth of the time that a copy of a reversed view takes.
        mirrored = np.asarray(cv2.flip(self.pixels, 1), np.uint8)
        return Picture(mirrored, [box.flipped(width) for box in self.boxes])


def cut_picture(picture: Picture, path: str, opt: ImageFolderOptions, random: ItemRandom) -> Picture:
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
        check_least_side(path, picture.size, side, reason=CENTER_CROP)
        picture = picture.cut(height // 2 - side // 2, width // 2 - side // 2, side)
    if opt.flip and random.coin():
        picture = picture.flipped()
    if opt.force_square and picture.pixels.shape[0] != picture.pixels.shape[1]:
        height, width = picture.size
        side = min(height, width)
        picture = picture.cut((height - side) // 2, (width - side) // 2, side)
    return picture
