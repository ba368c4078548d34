"""Pictures as datasets work on them: float32, channels first."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dlas_store.source import Pixels

Planes = NDArray[np.float32]
"""Channels first: float32 (C, H, W), RGB first, [0, 1]."""


def to_planes(pixels: Pixels) -> Planes:
    """Return uint8 (H, W, C) pixels as float32 (C, H, W) in [0, 1].

    OpenCV's split and then a division a plane takes 54 us for 256 x 256 x 3, one division of the transposed array 66.
    """
    planes = np.empty((pixels.shape[2], *pixels.shape[:2]), np.float32)
    for plane, channel in zip(planes, cv2.split(pixels), strict=True):
        np.divide(channel, np.float32(255), out=plane)
    return planes


def resize(planes: Planes, size: tuple[int, ...], interpolation: int) -> Planes:
    """Return a new array (C, *size), resized by one of OpenCV's interpolations.

    A plane at a time: OpenCV halves a plane five times as fast as interleaved channels, with the same result.
    """
    height, width = size
    return np.stack([cv2.resize(plane, (width, height), interpolation=interpolation) for plane in planes])


def area_resize(planes: Planes, size: tuple[int, ...], *, interleaved: bool = False) -> Planes:
    """Return a new array (C, *size), resized by area averaging as DL-Art-School does it, in float32.

    Args:
        planes: to be resized.
        size: new height and width.
        interleaved: resize with channels last, as DL-Art-School does, which takes up to ten times as long. Only the
            last bit of a float differs, but a JPEG corruption truncates to bytes after it and makes that visible.
    """
    if not interleaved:
        return resize(planes, size, cv2.INTER_AREA)
    height, width = size
    pixels = np.ascontiguousarray(planes.transpose(1, 2, 0))
    return np.ascontiguousarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA).transpose(2, 0, 1))


def pack(planes: Planes) -> torch.Tensor:
    """Return planes as a contiguous tensor, without a copy where they are so already."""
    return torch.from_numpy(np.ascontiguousarray(planes))
