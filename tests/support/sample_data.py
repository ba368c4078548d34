"""Sample data: the folders of the checkout and of the data, and random pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
"""Folder of the checkout."""

DATA = ROOT / "tests" / "data"

Array = np.ndarray[Any, np.dtype[Any]]


def noise(height: int, width: int, *, seed: int = 0) -> Array:
    """Return random pixels, uint8 (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def png(pixels: Array) -> bytes:
    """Encode uint8 (H, W, 3) as PNG. Readers recognise the format by the bytes, whatever the file's ending."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
