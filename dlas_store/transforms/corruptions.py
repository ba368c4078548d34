"""Corruptions that degrade LQ beyond a downsized HQ: their options, order and strengths, and the effects themselves.

An effect takes an image, float32 (3, H, W) RGB, and returns a new array of that kind, or the argument itself if nothing
changes; it never writes to its argument. Values stay in [0, 1], except after add_noise(). The amount of an effect is
an argument.
"""

from __future__ import annotations

import math
import random as python_random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import cv2
import numpy as np

from dlas_store.config import ConfigOptions
from dlas_store.images.decode import decode
from dlas_store.sampling.rng import SampleRng
from dlas_store.transforms.resize import Chw, resize, to_chw_float

_LUMA = np.array([0.2989, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in brightness, taken from torchvision's ColorJitter, which DL-Art-School uses."""

_HALVED_COLOUR = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420)

_INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_CUBIC, cv2.INTER_LINEAR, cv2.INTER_LANCZOS4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corruptions:
    """The corruptions of a dataset.

    Attributes:
        fixed: names of the corruptions that are always applied, in order, after the random ones.
        random: names of the corruptions to draw from, with replacement.
        random_count: number of corruptions to draw for an item.
        blur_scale: factor of the strength of both blurs, from 0.
        cosine_bias: whether weak corruptions are more likely than strong ones.
        random_seed: seed that fixes the strengths of every item; None draws them from the item's own random numbers.
    """

    fixed: tuple[str, ...] = ()
    random: tuple[str, ...] = ()
    random_count: int = 0
    blur_scale: float = 1
    cosine_bias: bool = True
    random_seed: int | None = None

    @classmethod
    def read(cls, options: ConfigOptions) -> Corruptions:
        """Read the corruption options of a dataset.

        Raises:
            ConfigError: an option has a wrong value, names an unknown corruption, or asks to draw from an empty list.
        """
        corruptions = cls(
            fixed=_read_names(options, "fixed_corruptions"),
            random=_read_names(options, "random_corruptions"),
            random_count=options.integer("num_corrupts_per_image", 0, minimum=0),
            blur_scale=options.number("corruption_blur_scale", 1, minimum=0),
            cosine_bias=options.flag("cosine_bias", True),
            random_seed=options.integer("random_seed") if options.has("random_seed") else None,
        )
        if corruptions.random_count and not corruptions.random:
            raise options.error("num_corrupts_per_image asks for random corruptions, but random_corruptions names none")
        return corruptions

    @property
    def is_active(self) -> bool:
        """Whether any corruption is applied."""
        return bool(self.fixed or self.random_count)

    def apply(self, frames: Sequence[Chw], random: SampleRng) -> tuple[list[Chw], list[float]]:
        """Corrupt the frames of an item: one list of corruptions for all frames, strengths drawn for each frame.

        Args:
            frames: float32 (3, H, W) RGB in [0, 1], of any sizes; never written to.
            random: the item's random numbers.

        Returns:
            The corrupted frames, float32 of their own sizes in [0, 1] (noise may leave that range), and the strengths
            of the fixed corruptions in [0, 1]: all of the first frame in order of application, then all of the second,
            and so on. A frame that no corruption changes is returned as it is.
        """
        if not self.is_active:
            return list(frames), []
        numbers = random.generator.integers(len(self.random), size=self.random_count) if self.random_count else ()
        names = [self.random[number] for number in numbers] + list(self.fixed)
        draw_strength = self._strengths(random)
        corrupted_frames: list[Chw] = []
        fixed_strengths: list[float] = []
        for frame in frames:
            strengths = [draw_strength() for _ in names]
            corrupted_frames.append(self._corrupt(frame, names, strengths, random.generator))
            fixed_strengths += strengths[self.random_count :]
        return corrupted_frames, fixed_strengths

    def _strengths(self, random: SampleRng) -> Callable[[], float]:
        """Return a function that draws a strength at each call."""
        uniform: Callable[[], float] = random.generator.random
        if self.random_seed is not None:
            # Python's generator gives the strengths that DL-Art-School draws from the same seed.
            uniform = python_random.Random(self.random_seed + random.index).random  # noqa: S311
        return (lambda: 1 - math.cos(uniform() * math.pi / 2)) if self.cosine_bias else uniform

    def _corrupt(self, frame: Chw, names: list[str], strengths: list[float], generator: np.random.Generator) -> Chw:
        # JPEG compression would remove most of the noise.
        skipped_names = _JPEG.keys() if _NOISE.keys() & set(names) else frozenset[str]()
        original_sizes: list[tuple[int, ...]] = []
        for name, strength in zip(names, strengths, strict=True):
            if name in skipped_names:
                continue
            size = frame.shape[1:]
            frame = _CORRUPTIONS[name](frame, _Parameters(strength, self.blur_scale, generator))
            if frame.shape[1:] != size:
                original_sizes.append(size)
        for size in reversed(original_sizes):
            frame = resize(frame, size, cv2.INTER_LINEAR)
        return frame


def _read_names(options: ConfigOptions, key: str) -> tuple[str, ...]:
    names = options.texts(key, [])
    for name in names:
        if name not in _CORRUPTIONS:
            raise options.error(f"{key} names {name!r}; known corruptions are {', '.join(sorted(_CORRUPTIONS))}")
    return tuple(names)


class _Parameters(NamedTuple):
    """Parameters of one application of a corruption: strength in [0, 1], blur_scale from 0, random numbers."""

    strength: float
    blur_scale: float
    generator: np.random.Generator


_Corruption = Callable[[Chw, _Parameters], Chw]
"""Applies an effect to an image, in the amount that the strength gives."""


def _jitter_visibly(image: Chw, params: _Parameters) -> Chw:
    spread = 0.2 * params.strength
    return jitter_color(image, spread, params.generator) if 255 * spread > 1 else image


def _blur_along_a_line(image: Chw, params: _Parameters) -> Chw:
    angle = float(params.generator.uniform(0, 360))
    return motion_blur(image, int(3 * params.strength * params.blur_scale) + 1, angle)


def _resample_by_strength(image: Chw, params: _Parameters) -> Chw:
    return _resample(image, 1 if params.strength < 0.3 else 2 if params.strength < 0.7 else 4, params.generator)


def _resample(image: Chw, factor: int, generator: np.random.Generator) -> Chw:
    return reduce(image, factor, _INTERPOLATIONS[generator.integers(len(_INTERPOLATIONS))])


def _jpeg(low: int, span: int) -> _Corruption:
    """Return the corruption by a JPEG quality that falls from ``low + span`` to ``low`` as the strength grows."""
    return lambda image, params: compress(image, int((1 - params.strength) * span) + low)


_NOISE: Mapping[str, _Corruption] = {
    "noise": lambda image, params: add_noise(image, 6 * params.strength / 255, params.generator),
    "noise-5": lambda image, params: add_noise(image, 5 / 255, params.generator),
}

_JPEG = {
    "jpeg": _jpeg(10, 20),
    "jpeg-low": _jpeg(15, 10),
    "jpeg-medium": _jpeg(23, 25),
    "jpeg-broad": _jpeg(15, 60),
    "jpeg-normal": _jpeg(47, 35),
}

_PLACEHOLDERS = ("none", "block_noise", "color_shift", "interlacing", "chromatic_aberration")
"""Names that do nothing."""

_CORRUPTIONS: Mapping[str, _Corruption] = MappingProxyType(
    {
        "color_quantization": lambda image, params: quantize(image, 2 ** (int(params.strength * 10 / 3) + 2)),
        "color_jitter": _jitter_visibly,
        "gaussian_blur": lambda image, params: blur(image, 1.5 * params.strength * params.blur_scale),
        "motion_blur": _blur_along_a_line,
        "lq_resampling": _resample_by_strength,
        "lq_resampling4x": lambda image, params: _resample(image, 4, params.generator),
        "saturation": lambda image, params: lighten(image, 0.3 * params.strength),
        "greyscale": lambda image, _: grey(image),
        **_NOISE,
        **_JPEG,
        **dict.fromkeys(_PLACEHOLDERS, lambda image, _: image),
    }
)
"""Name of a corruption in a config -> function that applies it to an image."""


def quantize(image: Chw, step: int) -> Chw:
    """Scale values to 0 to 255, floor them to multiples of a step, and scale them back."""
    return np.asarray(image * 255 // step * step / 255, np.float32)


def jitter_color(image: Chw, spread: float, generator: np.random.Generator) -> Chw:
    """Change brightness, contrast, saturation and hue, in random order.

    Args:
        image: float32 (3, H, W) RGB.
        spread: in [0, 0.5]. Factors are drawn from [1 - spread, 1 + spread]; hue rotates by at most this fraction of
            its circle, in either direction.
        generator: the random numbers of factors and order.
    """
    brightness, contrast, saturation = map(float, generator.uniform(1 - spread, 1 + spread, 3))
    hue_rotation = float(generator.uniform(-spread, spread))
    for step in generator.permutation(4):
        if step == 0:
            image = np.clip(image * brightness, 0, 1)
        elif step == 1:
            image = _blend(image, _brightness(image).mean(), contrast)
        elif step == 2:
            image = _blend(image, _brightness(image), saturation)
        else:
            image = _rotate_hue(image, hue_rotation)
    return image


def blur(image: Chw, sigma: float) -> Chw:
    """Blur by a Gaussian whose standard deviation is ``sigma`` pixels, from 0."""
    if sigma == 0:
        return image
    return np.stack([cv2.GaussianBlur(channel, (0, 0), sigma) for channel in image])


def motion_blur(image: Chw, length: int, angle: float) -> Chw:
    """Blur along a line.

    Args:
        image: float32 (C, H, W).
        length: length of the line in pixels, from 1.
        angle: angle of the line in degrees.
    """
    kernel = line_kernel(length, angle)
    return np.stack([cv2.filter2D(channel, -1, kernel) for channel in image])


def line_kernel(length: int, angle: float) -> Chw:
    """Return a motion blur's kernel, float32 (length, length) of sum 1; length in pixels, angle in degrees."""
    kernel = np.zeros((length, length), np.float32)
    kernel[(length - 1) // 2] = 1
    middle = (length - 1) / 2
    rotated = cv2.warpAffine(kernel, cv2.getRotationMatrix2D((middle, middle), angle, 1), (length, length))
    return np.asarray(rotated / rotated.sum(), np.float32)


def reduce(image: Chw, factor: int, interpolation: int) -> Chw:
    """Reduce both sides by a factor, to at least one pixel, by one of OpenCV's interpolations."""
    if factor == 1:
        return image
    height, width = (max(side // factor, 1) for side in image.shape[1:])
    # Cubic and Lanczos overshoot, so clip; but keep values that noise has already put above 1.
    return np.clip(resize(image, (height, width), interpolation), 0, max(1.0, float(image.max())))


def add_noise(image: Chw, amplitude: float, generator: np.random.Generator) -> Chw:
    """Add uniform noise from [0, amplitude); the sum is not clipped."""
    return image + generator.random(image.shape, np.float32) * np.float32(amplitude)


def compress(image: Chw, quality: int) -> Chw:
    """Encode as JPEG of a quality from 1 to 100 with halved colour resolution, and decode."""
    pixels = cv2.merge([np.clip(channel * 255, 0, 255).astype(np.uint8) for channel in image[::-1]])
    # OpenCV takes BGR and encodes as Pillow does; pixels of simplejpeg's encoder differ by up to 14 levels.
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality, *_HALVED_COLOUR])
    return to_chw_float(decode(encoded.tobytes()))


def lighten(image: Chw, amount: float) -> Chw:
    """Add one amount to every value, and clip the sums to [0, 1]."""
    lightened: Chw = np.clip(image + amount, 0, 1)
    return lightened


def grey(image: Chw) -> Chw:
    """Replace each channel by the mean of the three."""
    mean: Chw = image.mean(0)
    return np.stack([mean] * len(image))


def _brightness(image: Chw) -> Chw:
    return np.asarray(np.tensordot(_LUMA, image, 1), np.float32)


def _blend(image: Chw, background: Chw | np.float32, factor: float) -> Chw:
    return np.clip(image * np.float32(factor) + background * np.float32(1 - factor), 0, 1)


def _rotate_hue(image: Chw, fraction: float) -> Chw:
    hue, saturation, value = cv2.split(cv2.cvtColor(cv2.merge(list(image)), cv2.COLOR_RGB2HSV))
    rotated = cv2.merge([(hue + np.float32(360 * fraction)) % 360, saturation, value])
    rgb: Chw = np.stack(cv2.split(cv2.cvtColor(rotated, cv2.COLOR_HSV2RGB)))
    return np.clip(rgb, 0, 1)
