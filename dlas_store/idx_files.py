"""Readers of MNIST and Fashion-MNIST as published: IDX files, plain or compressed by gzip."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlas_store.array_pictures import LabelledPictures
from dlas_store.errors import DamagedError

MAX_BYTES = 1 << 30
"""Most bytes that a file's header may claim; MNIST's largest file has 47 MB."""

_UINT8 = 8


def load_idx(images: Path, labels: Path, *, split: str, class_names: tuple[str, ...]) -> LabelledPictures:
    """Load the pictures from one file and their labels from another.

    Args:
        images: IDX file of three dimensions (n, H, W).
        labels: IDX file of one dimension (n,).
        split: see LabelledPictures.
        class_names: name of each label, in the order of the labels' numbers.

    Raises:
        DamagedError: a file is damaged or no IDX file, or their lengths differ.
    """
    pixels, numbers = read_idx(images, dimensions=3), read_idx(labels, dimensions=1)
    if len(pixels) != len(numbers):
        raise DamagedError(f"{labels}: has {len(numbers)} labels for the {len(pixels)} pictures of {images.name}")
    return LabelledPictures(
        split=split,
        pixels=pixels,
        labels={"label": numbers.astype(np.int64)},
        class_names={"label": class_names},
    )


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of bytes; a file that begins with gzip's magic number is decompressed.

    Args:
        path: the file.
        dimensions: number of dimensions that the file must have.

    Raises:
        DamagedError: the file cannot be read, is no IDX file of bytes, or is shorter or longer than its header says.
    """
    header_size = 4 + 4 * dimensions
    try:
        with path.open("rb") as raw:
            is_compressed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if is_compressed else path.open("rb") as file:
            header = file.read(header_size)
            if len(header) != header_size or header[:4] != bytes([0, 0, _UINT8, dimensions]):
                raise DamagedError(f"{path}: no IDX file of bytes in {dimensions} dimensions; download it again")
            shape = struct.unpack(f">{dimensions}I", header[4:])
            size = int(np.prod(shape, dtype=object))
            if size > MAX_BYTES:
                raise DamagedError(f"{path}: claims {size} bytes, more than {MAX_BYTES}")
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedError(f"{path}: cannot be read ({error}); download it again") from error
    if len(data) != size:
        raise DamagedError(f"{path}: is not of the {header_size + size} bytes that it should be; download it again")
    return np.frombuffer(data, np.uint8).reshape(shape)
