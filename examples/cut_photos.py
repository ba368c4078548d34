"""Cut scikit-image's sample photos into a chunked folder: ``python examples/cut_photos.py demo/photos``.

Patches are 256 pixels wide and overlap by half. The reference is the photo's centred square, brought to the size of a
patch; centres and widths are in its pixels. All photos come with scikit-image's wheel, nothing is downloaded.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from skimage import data

from dlas_store.centers import write_centers
from dlas_store.metadata import Center

PATCH = 256
STEP = 128
PHOTOS = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")

Pixels = NDArray[np.uint8]


def cut_photos(folder: Path) -> int:
    """Write the photos as a new chunked folder and return the number of patches.

    Raises:
        FileExistsError: the folder is there already.
    """
    folder.mkdir(parents=True)
    return sum(cut_photo(getattr(data, name)(), folder / name) for name in PHOTOS)


def cut_photo(photo: Pixels, folder: Path) -> int:
    """Write one image of a chunked folder and return its number of patches.

    Args:
        photo: uint8 (H, W, 3), RGB, neither side below 256.
        folder: is made.
    """
    side = min(photo.shape[:2])
    top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
    square = photo[top : top + side, left : left + side]
    folder.mkdir()
    write_jpeg(folder / "ref.jpg", cv2.resize(square, (PATCH, PATCH), interpolation=cv2.INTER_AREA))
    scale = side / PATCH
    starts = range(0, side - PATCH + 1, STEP)
    centers = {}
    for number, (row, column) in enumerate(((row, column) for row in starts for column in starts), start=1):
        write_jpeg(folder / f"{number:08d}.jpg", square[row : row + PATCH, column : column + PATCH])
        middle_row, middle_column = row + PATCH // 2, column + PATCH // 2
        centers[number] = Center(int(middle_row // scale), int(middle_column // scale), int(PATCH // scale))
    (folder / "centers.pt").write_bytes(write_centers(centers))
    return len(centers)


def write_jpeg(path: Path, pixels: NDArray[Any]) -> None:
    """Write uint8 RGB (H, W, 3) as DL-Art-School's own script does: quality 95, 4:2:0."""
    path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 95, "RGB", "420"))


if __name__ == "__main__":
    print(f"{sys.argv[1]}: {cut_photos(Path(sys.argv[1]))} patches")
