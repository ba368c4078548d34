"""The part of a picture that mode imagefolder takes, flipped or not, with the boxes that are labelled in it."""

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
    """Pixels, uint8 (H, W, 3), and the labelled boxes in them."""

    pixels: Pixels
    boxes: Sequence[Box] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def cut(self, top: int, left: int, side: int) -> Picture:
        """Return a square part of the picture, a view of it."""
        pixels = self.pixels[top : top + side, left : left + side]
        return Picture(pixels, [box.cut(top, left, (side, side)) for box in self.boxes])

    def flipped(self) -> Picture:
        """Return the picture flipped left to right."""
        width = self.size[1]
        # OpenCV takes a fortieth of the time of copying a reversed view.
        mirrored = np.asarray(cv2.flip(self.pixels, 1), np.uint8)
        return Picture(mirrored, [box.flipped(width) for box in self.boxes])


def cut_picture(picture: Picture, path: str, opt: ImageFolderOptions, random: ItemRandom) -> Picture:
    """Cut the centre crop of a picture, flip it or not, and cut the middle square of that, as far as options say.

    Args:
        picture: as it was decoded.
        path: its own.
        opt: the options.
        random: of the item.

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
