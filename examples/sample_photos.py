"""Write the demo's photos from scikit-image's samples: ``python examples/sample_photos.py demo/originals``.

Each kind of photos has a folder: photos, frames of clips, a stereo pair side by side, and labelled pictures with a
folder for each class. The classes are for ``dlas-store import torch:imagefolder``, all other kinds for ``dlas-store
extract``. The samples come with scikit-image's wheel, so nothing is downloaded.
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

PHOTOS = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")

CLIPS = ("astronaut", "coffee")
FRAMES = 8
FRAME_SIDE = 384
PAN = 16
"""Frames of a clip are squares of FRAME_SIDE pixels; each frame lies PAN pixels to the right of its predecessor."""

STEREO = "stereo_motorcycle"
CLASSES = ("brick", "grass", "gravel")
TILE_SIDE = 128


def write_photos(folder: Path) -> int:
    """Write whole photos and return the number of photos."""
    for name in PHOTOS:
        write_jpeg(folder / f"{name}.jpg", getattr(data, name)())
    return len(PHOTOS)


def write_clips(folder: Path) -> int:
    """Write the frames of clips, which pan over photos, and return the number of frames."""
    for name in CLIPS:
        photo = getattr(data, name)()
        for number in range(FRAMES):
            frame = photo[:FRAME_SIDE, number * PAN : number * PAN + FRAME_SIDE]
            write_jpeg(folder / f"{name}_{number:012d}.jpg", frame)
    return len(CLIPS) * FRAMES


def write_stereo(folder: Path) -> int:
    """Write both views of a stereo pair as one photo, side by side, and return the number of photos."""
    left, right, _ = getattr(data, STEREO)()
    write_jpeg(folder / "motorcycle.jpg", np.hstack([left, right]))
    return 1


def write_classes(folder: Path) -> int:
    """Crop photos of surfaces into labelled pictures, one folder a class, and return the number of pictures."""
    tiles = 0
    for name in CLASSES:
        (folder / name).mkdir()
        surface = cv2.cvtColor(getattr(data, name)(), cv2.COLOR_GRAY2RGB)
        for row in range(0, surface.shape[0] - TILE_SIDE + 1, TILE_SIDE):
            for column in range(0, surface.shape[1] - TILE_SIDE + 1, TILE_SIDE):
                tile = surface[row : row + TILE_SIDE, column : column + TILE_SIDE]
                write_jpeg(folder / name / f"{row:03d}_{column:03d}.jpg", tile)
                tiles += 1
    return tiles


def write_jpeg(path: Path, pixels: NDArray[Any]) -> None:
    """Write uint8 RGB (H, W, 3) as a JPEG."""
    path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 95, "RGB", "420"))


KINDS = {"photos": write_photos, "video": write_clips, "stereo": write_stereo, "classes": write_classes}
"""Name of a kind's folder -> function that writes the pictures of the kind."""


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for kind, write in KINDS.items():
        (root / kind).mkdir(parents=True)  # raises FileExistsError, so that an existing folder stays untouched
        print(f"{root / kind}: {write(root / kind)} pictures")
