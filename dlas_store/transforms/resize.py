"""CHW float arrays: conversion of pixels to them, resizing by OpenCV, and MATLAB's bicubic reduction.

The hot operations run in C loops if the extension was compiled, else in OpenCV and NumPy; only the last bit of averages
differs. The C loops read a picture from memory once and take Python's lock once. OpenCV and NumPy take the lock up to
ten times a picture, and threads wait for each other to release it.
"""

from __future__ import annotations

import logging
from itertools import pairwise
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dlas_store.images.memory import Pixels

_LOG = logging.getLogger(__name__)

pixel_loops: ModuleType | None
try:
    from dlas_store._native import pixel_loops
except ImportError as error:  # no compiler when the package was installed
    _LOG.debug("OpenCV and NumPy make HQ, LQ and masks, which is slower, because a C extension is missing (%s)", error)
    pixel_loops = None

Chw = NDArray[np.float32]
"""A CHW float array: float32 (C, H, W) in [0, 1], of which the first three channels are RGB."""

_MAX_FACTOR = 257
"""Largest factor by which the C loops reduce sides."""

_UNIT = float(np.float32(1 / 255))
"""Factor from uint8 levels to [0, 1], as float32 rounds it."""


def to_chw_float(pixels: Pixels) -> Chw:
    """Return uint8 (H, W, C) pixels as a new float32 array (C, H, W) in [0, 1]."""
    chw = np.empty((pixels.shape[2], *pixels.shape[:2]), np.float32)
    write_chw(pixels, chw)
    return chw


def to_tensor(chw: Chw) -> torch.Tensor:
    """Return an array as a contiguous tensor; a contiguous array is not copied."""
    return torch.from_numpy(np.ascontiguousarray(chw))


def write_chw(pixels: Pixels, *out: Chw) -> None:
    """Write the area averages of pixels to a CHW float array, and the averages of that array to a second one, if given.

    Args:
        pixels: uint8 (H, W, C).
        out: float32 (C, h, w) arrays, contiguous; they receive values in [0, 1].
    """
    c_loops = loops_for(pixels.shape[:2], *out)
    if c_loops is not None and pixels.shape[2] == 3 and pixels.flags.c_contiguous:
        c_loops.write_pixels(pixels, *out)
        return
    channels = split_channels(pixels)
    if channels.shape == out[0].shape:
        to_unit(channels, out[0])
    else:
        resize_area(to_unit(channels, np.empty(channels.shape, np.float32)), out[0].shape[1:], out=out[0])
    for larger, smaller in pairwise(out):
        resize_area(larger, smaller.shape[1:], out=smaller)


def write_pair(pixels: Pixels, size: tuple[int, ...], hq: Chw, *lq: Chw) -> None:
    """Resize pixels by area averaging, write them to HQ, and write the area average of HQ to LQ.

    Args:
        pixels: uint8 (H, W, C).
        size: height and width to which the pixels are resized first.
        hq: float32 (C, h, w), contiguous; resized rows and columns beyond its bottom and right are cropped.
        lq: no array, or one that is smaller than HQ.
    """
    if hq.shape[1:] == size:
        write_chw(pixels, hq, *lq)
        return
    resized = np.empty((len(hq), *size), np.float32)
    write_chw(pixels, resized)
    hq[...] = resized[:, : hq.shape[1], : hq.shape[2]]
    for out in lq:
        resize_area(hq, out.shape[1:], out=out)


def loops_for(size: tuple[int, ...], *out: Chw) -> ModuleType | None:
    """Return the module of C loops; None if it was not compiled or cannot reduce a picture to the sizes of the arrays.

    The C loops reduce by whole factors only, with one factor for both sides.

    Args:
        size: height and width of the picture.
        out: float32 (C, h, w) arrays that the loops are to write to.
    """
    if pixel_loops is None:
        return None
    for _, height, width in (chw.shape for chw in out):
        factor = size[0] // height
        if factor > _MAX_FACTOR or size != (height * factor, width * factor):
            return None
    return pixel_loops


def split_channels(pixels: Pixels, out: Pixels | None = None) -> Pixels:
    """Return uint8 (H, W, C) pixels as (C, H, W): in ``out``, a contiguous array, or in a new array by default."""
    if out is None:
        out = np.empty((pixels.shape[2], *pixels.shape[:2]), np.uint8)
    cv2.split(pixels, mv=list(out))
    return out


def to_unit(channels: Pixels, out: Chw) -> Chw:
    """Write uint8 (C, H, W) divided by 255 to a contiguous float32 array of the same shape, and return the array.

    The single pass over memory takes 37 us for 256 x 256 x 3 into uncached memory; dividing in a pass of its own takes
    48 us. The result equals the division's: the second weight corrects the rounding of the factor.
    """
    tall, result = channels.reshape(-1, channels.shape[2]), out.reshape(-1, out.shape[2])
    cv2.addWeighted(tall, _UNIT, tall, 1 / 255 - _UNIT, 0, dst=result, dtype=cv2.CV_32F)
    return out


def resize(chw: Chw, size: tuple[int, ...], interpolation: int) -> Chw:
    """Return a new array (C, *size), resized by one of OpenCV's interpolations.

    Each channel is resized alone: OpenCV halves one channel five times as fast as interleaved channels, with the same
    result.
    """
    height, width = size
    return np.stack([cv2.resize(channel, (width, height), interpolation=interpolation) for channel in chw])


def resize_area(chw: Chw, size: tuple[int, ...], *, interleaved: bool = False, out: Chw | None = None) -> Chw:
    """Return a float32 array (C, *size), resized by area averaging as in DL-Art-School.

    Args:
        chw: the array to resize, float32 (C, H, W).
        size: new height and width.
        interleaved: resize with channels last, as DL-Art-School does, which takes up to ten times as long. Only the
            last bit of a float differs, but a JPEG corruption afterwards truncates to bytes and makes that bit visible.
        out: contiguous array that receives the result; a new one by default.
    """
    height, width = size
    if out is None:
        out = np.empty((len(chw), height, width), np.float32)
    if chw.shape[1:] == (height, width):
        out[...] = chw
    elif interleaved:
        pixels = np.ascontiguousarray(chw.transpose(1, 2, 0))
        out[...] = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
    elif chw.shape[1] % height or chw.shape[2] % width:
        for channel, result in zip(chw, out, strict=True):
            cv2.resize(channel, (width, height), dst=result, interpolation=cv2.INTER_AREA)
    else:
        _reduce_area(np.ascontiguousarray(chw), out)
    return out


def matlab_reduce(chw: Chw, factor: int) -> Chw:
    """Reduce both sides by a factor, as MATLAB's ``imresize(picture, 1 / factor)``: bicubic, antialiased, not clipped.

    MATLAB's reduction is the standard by which super-resolution compares results. The picture is continued beyond each
    edge by its mirror image.

    Args:
        chw: float32 (C, H, W).
        factor: a whole number from 1.

    Returns:
        A new array, float32 (C, ceil(H / factor), ceil(W / factor)). Its values may leave the range of ``chw``.
    """
    weights = _matlab_weights(factor)
    rows = _reduce_rows(chw, factor, weights)
    columns = _reduce_rows(rows.swapaxes(1, 2), factor, weights)
    return np.ascontiguousarray(columns.swapaxes(1, 2))


def _reduce_area(chw: Chw, out: Chw) -> None:
    """Average all channels by whole factors at once, stacked into one tall channel; no average mixes two channels.

    A factor of a power of two is reached by halving, which OpenCV does fastest: reducing 256 x 256 x 3 by 4 takes 26 us
    in two halvings and 66 us at once.
    """
    tall: NDArray[Any] = chw.reshape(-1, chw.shape[2])
    result = out.reshape(-1, out.shape[2])
    factor = chw.shape[1] // out.shape[1]
    if chw.shape[2] // out.shape[2] == factor and factor & (factor - 1) == 0:
        while factor > 2:
            tall = cv2.resize(tall, (tall.shape[1] // 2, tall.shape[0] // 2), interpolation=cv2.INTER_AREA)
            factor //= 2
    cv2.resize(tall, (result.shape[1], result.shape[0]), dst=result, interpolation=cv2.INTER_AREA)


def _matlab_weights(factor: int) -> NDArray[np.float32]:
    """Return the weights of source pixels for one result pixel, float32 (4 * factor,) or one fewer, of sum 1.

    With a whole factor, every result pixel has the same offset to the source pixels around it, so that one row of
    weights serves all. The kernel is stretched by the factor, which makes it antialiased.
    """
    reach = 2 * factor
    # Distances from the result pixel's centre to source pixels' centres: halves for an even factor, else whole numbers.
    distances = np.arange(1 - reach, reach) if factor % 2 else np.arange(-reach, reach) + 0.5
    kernel = _cubic_kernel(np.abs(distances) / factor)
    return np.asarray(kernel / kernel.sum(), np.float32)


def _cubic_kernel(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Keys' cubic kernel with a = -1/2 for distances in [0, 2], in source pixels before it is stretched."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance <= 1, near, far)


def _reduce_rows(chw: Chw, factor: int, weights: NDArray[np.float32]) -> Chw:
    channels, height, width = chw.shape
    count = -(-height // factor)
    first = factor // 2 - len(weights) // 2
    last = (count - 1) * factor + first + len(weights)
    mirrored = np.pad(chw, ((0, 0), (-first, max(last - height, 0)), (0, 0)), "symmetric")
    reduced = np.zeros((channels, count, width), np.float32)
    for tap, weight in enumerate(weights):
        reduced += weight * mirrored[:, tap : tap + (count - 1) * factor + 1 : factor]
    return reduced
