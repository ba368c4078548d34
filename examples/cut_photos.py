"""Make the sample data of the demo from scikit-image's photos: ``python examples/cut_photos.py demo``.

One folder a kind of data: patches of photos, of the frames of clips and of a stereo pair, as chunked folders; whole
photos; and labelled pictures. Patches are 256 pixels wide and overlap by half. The reference is the photo's centred
square, brought to the size of a patch; centres and widths are in its pixels. All photos come with scikit-image's wheel,
nothing is downloaded.
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

CLIPS = ("astronaut", "coffee")
FRAMES = 8
FRAME = 384
PAN = 16
"""A clip's frames are squares of FRAME pixels, each PAN pixels to the right of the one before."""

STEREO = "stereo_motorcycle"
CLASSES = ("brick", "grass", "gravel")
TILE = 128

Pixels = NDArray[np.uint8]


def cut_photos(folder: Path) -> int:
    """Write the photos as a new chunked folder and return the number of patches.

    Raises:
        FileExistsError: the folder is there already.
    """
    folder.mkdir(parents=True)
    return sum(cut_photo(getattr(data, name)(), folder / name) for name in PHOTOS)


def cut_video(folder: Path) -> int:
    """Write clips, made by moving over photos, as a new chunked folder and return the number of patches.

    Raises:
        FileExistsError: the folder is there already.
    """
    folder.mkdir(parents=True)
    patches = 0
    for name in CLIPS:
        photo = getattr(data, name)()
        for number in range(FRAMES):
            frame = photo[:FRAME, number * PAN : number * PAN + FRAME]
            patches += cut_photo(frame, folder / f"{name}_{number:012d}")
    return patches


def cut_stereo(folder: Path) -> int:
    """Write both views of a stereo pair as a new chunked folder and return the number of patches.

    Raises:
        FileExistsError: the folder is there already.
    """
    folder.mkdir(parents=True)
    left, right, _ = getattr(data, STEREO)()
    return cut_photo(left, folder / "motorcycle_left_0") + cut_photo(right, folder / "motorcycle_right_1")


def write_pictures(folder: Path) -> int:
    """Write the whole photos into a new folder and return their number.

    Raises:
        FileExistsError: the folder is there already.
    """
    folder.mkdir(parents=True)
    for name in PHOTOS:
        write_jpeg(folder / f"{name}.jpg", getattr(data, name)())
    return len(PHOTOS)


def write_classes(folder: Path) -> int:
    """Cut photos of surfaces into labelled pictures, a new folder with a folder each, and return their number.

    Raises:
        FileExistsError: the folder is there already.
    """
    tiles = 0
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        surface = cv2.cvtColor(getattr(data, name)(), cv2.COLOR_GRAY2RGB)
        for row in range(0, surface.shape[0] - TILE + 1, TILE):
            for column in range(0, surface.shape[1] - TILE + 1, TILE):
                tile = surface[row : row + TILE, column : column + TILE]
                write_jpeg(folder / name / f"{row:03d}_{column:03d}.jpg", tile)
                tiles += 1
    return tiles


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


KINDS = {
    "photos": cut_photos,
    "video": cut_video,
    "stereo": cut_stereo,
    "pictures": write_pictures,
    "classes": write_classes,
}
"""What writes each kind of data, by the name of its folder."""


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for kind, write in KINDS.items():
        print(f"{root / kind}: {write(root / kind)} pictures")
