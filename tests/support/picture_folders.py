"""Folders of pictures for a test, the stores made of the folders, and expected pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dlas_store.converters.importing import import_store
from dlas_store.sources.base import Layout
from tests.support.sample_data import Array, png


def write_pictures(folder: Path, pictures: Mapping[str, Array]) -> Path:
    """Write pictures, given by their paths below the folder, as PNG, whatever the ending of a path."""
    for name, pixels in pictures.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels))
    return folder


def store_of(folder: Path, layout: Layout = "pictures") -> Path:
    """Import a folder into a store beside it."""
    store = folder.with_name(f"{folder.name}_{layout}.lmdb")
    import_store([folder], store, layout=layout)
    return store


def to_chw(pixels: Array) -> Array:
    """Convert uint8 (H, W, C) to float32 (C, H, W) in [0, 1]."""
    return np.divide(pixels.transpose(2, 0, 1), 255, dtype=np.float32)


def averaged(array: Array, factor: int = 2) -> Array:
    """Reduce an array (C, H, W) by averaging squares of factor x factor."""
    channels, height, width = array.shape
    mean: Array = array.reshape(channels, height // factor, factor, width // factor, factor).mean((2, 4))
    return mean
