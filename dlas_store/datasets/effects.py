"""Degradations, the pixel functions of the corruptions; the amount of each is an argument.

Every function takes float32 (3, H, W) RGB and returns a new array of that kind, or the argument itself if nothing
changes; it never writes to the argument. Values stay in [0, 1], except those of add_noise().
"""

from __future__ import annotations

import cv2
import numpy as np

from dlas_store.datasets.planes import Planes, resize, to_planes
from dlas_store.pixels import decode

_LUMA = np.array([0.2989, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in brightness, taken from torchvision's ColorJitter, which DL-Art-School uses."""

_HALVED_COLOUR = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420)


def quantize(planes: Planes, step: int) -> Planes:
    """Scale values to 0 to 255, floor them to multiples of a step, and scale them back."""
    return np.asarray(planes * 255 // step * step / 255, np.float32)


def jitter_color(planes: Planes, spread: float, generator: np.random.Generator) -> Planes:
    """Change brightness, contrast, saturation and hue, in random order.

    Args:
        planes: the picture.
        spread: in [0, 0.5]. Factors are drawn from [1 - spread, 1 + spread]; hue rotates by at most this fraction of
            its circle, in either direction.
        generator: the random numbers of factors and order.
    """
    brightness, contrast, saturation = map(float, generator.uniform(1 - spread, 1 + spread, 3))
    turn = float(generator.uniform(-spread, spread))
    for step in generator.permutation(4):
        if step == 0:
            planes = np.clip(planes * brightness, 0, 1)
        elif step == 1:
            planes = _blend(planes, _brightness(planes).mean(), contrast)
        elif step == 2:
            planes = _blend(planes, _brightness(planes), saturation)
        else:
            planes = _turn_hue(planes, turn)
    return planes


def blur(planes: Planes, sigma: float) -> Planes:
    """Blur by a Gaussian whose standard deviation is ``sigma`` pixels, from 0."""
    if sigma == 0:
        return planes
    return np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in planes])


def motion_blur(planes: Planes, length: int, angle: float) -> Planes:
    """Blur along a line.

    Args:
        planes: the picture.
        length: length of the line in pixels, from 1.
        angle: angle of the line in degrees.
    """
    kernel = line_kernel(length, angle)
    return np.stack([cv2.filter2D(plane, -1, kernel) for plane in planes])


def line_kernel(length: int, angle: float) -> Planes:
    """Return a motion blur's kernel, float32 (length, length) of sum 1; length in pixels, angle in degrees."""
    kernel = np.zeros((length, length), np.float32)
    kernel[(length - 1) // 2] = 1
    middle = (length - 1) / 2
    rotated = cv2.warpAffine(kernel, cv2.getRotationMatrix2D((middle, middle), angle, 1), (length, length))
    return np.asarray(rotated / rotated.sum(), np.float32)


def reduce(planes: Planes, factor: int, interpolation: int) -> Planes:
    """Reduce both sides by a factor, to at least one pixel, by one of OpenCV's interpolations."""
    if factor == 1:
        return planes
    height, width = (max(side // factor, 1) for side in planes.shape[1:])
    # Cubic and Lanczos overshoot, so clip; but keep values that noise has already put above 1.
    return np.clip(resize(planes, (height, width), interpolation), 0, max(1.0, float(planes.max())))


def add_noise(planes: Planes, amplitude: float, generator: np.random.Generator) -> Planes:
    """Add uniform noise from [0, amplitude); the sum is not clipped."""
    return planes + generator.random(planes.shape, np.float32) * np.float32(amplitude)


def compress(planes: Planes, quality: int) -> Planes:
    """Encode as JPEG of a quality from 1 to 100 with halved colour resolution, and decode."""
    pixels = cv2.merge([np.clip(plane * 255, 0, 255).astype(np.uint8) for plane in planes[::-1]])
    # OpenCV takes BGR and encodes as Pillow does; pixels of simplejpeg's encoder differ by up to 14 levels.
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality, *_HALVED_COLOUR])
    return to_planes(decode(encoded.tobytes()))


def lighten(planes: Planes, amount: float) -> Planes:
    """Add one amount to every value, and clip the sums to [0, 1]."""
    lightened: Planes = np.clip(planes + amount, 0, 1)
    return lightened


def grey(planes: Planes) -> Planes:
    """Replace each channel by the mean of the three."""
    mean: Planes = planes.mean(0)
    return np.stack([mean] * len(planes))


def _brightness(planes: Planes) -> Planes:
    return np.asarray(np.tensordot(_LUMA, planes, 1), np.float32)


def _blend(planes: Planes, other: Planes | np.float32, factor: float) -> Planes:
    return np.clip(planes * np.float32(factor) + other * np.float32(1 - factor), 0, 1)


def _turn_hue(planes: Planes, turn: float) -> Planes:
    hue, saturation, value = cv2.split(cv2.cvtColor(cv2.merge(list(planes)), cv2.COLOR_RGB2HSV))
    rotated = cv2.merge([(hue + np.float32(360 * turn)) % 360, saturation, value])
    rgb: Planes = np.stack(cv2.split(cv2.cvtColor(rotated, cv2.COLOR_HSV2RGB)))
    return np.clip(rgb, 0, 1)
