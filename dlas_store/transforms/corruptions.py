"""Corruptions that degrade LQ beyond a downsized HQ: their options, order and strengths.

Degradations, the pixel functions of the corruptions; the amount of each is an argument.

Every function takes float32 (3, H, W) RGB and returns a new array of that kind, or the argument itself if nothing
changes; it never writes to the argument. Values stay in [0, 1], except those of add_noise().
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


def quantize(planes: Chw, step: int) -> Chw:
    """Scale values to 0 to 255, floor them to multiples of a step, and scale them back."""
    return np.asarray(planes * 255 // step * step / 255, np.float32)


def jitter_color(planes: Chw, spread: float, generator: np.random.Generator) -> Chw:
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


def blur(planes: Chw, sigma: float) -> Chw:
    """Blur by a Gaussian whose standard deviation is ``sigma`` pixels, from 0."""
    if sigma == 0:
        return planes
    return np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in planes])


def motion_blur(planes: Chw, length: int, angle: float) -> Chw:
    """Blur along a line.

    Args:
        planes: the picture.
        length: length of the line in pixels, from 1.
        angle: angle of the line in degrees.
    """
    kernel = line_kernel(length, angle)
    return np.stack([cv2.filter2D(plane, -1, kernel) for plane in planes])


def line_kernel(length: int, angle: float) -> Chw:
    """Return a motion blur's kernel, float32 (length, length) of sum 1; length in pixels, angle in degrees."""
    kernel = np.zeros((length, length), np.float32)
    kernel[(length - 1) // 2] = 1
    middle = (length - 1) / 2
    rotated = cv2.warpAffine(kernel, cv2.getRotationMatrix2D((middle, middle), angle, 1), (length, length))
    return np.asarray(rotated / rotated.sum(), np.float32)


def reduce(planes: Chw, factor: int, interpolation: int) -> Chw:
    """Reduce both sides by a factor, to at least one pixel, by one of OpenCV's interpolations."""
    if factor == 1:
        return planes
    height, width = (max(side // factor, 1) for side in planes.shape[1:])
    # Cubic and Lanczos overshoot, so clip; but keep values that noise has already put above 1.
    return np.clip(resize(planes, (height, width), interpolation), 0, max(1.0, float(planes.max())))


def add_noise(planes: Chw, amplitude: float, generator: np.random.Generator) -> Chw:
    """Add uniform noise from [0, amplitude); the sum is not clipped."""
    return planes + generator.random(planes.shape, np.float32) * np.float32(amplitude)


def compress(planes: Chw, quality: int) -> Chw:
    """Encode as JPEG of a quality from 1 to 100 with halved colour resolution, and decode."""
    pixels = cv2.merge([np.clip(plane * 255, 0, 255).astype(np.uint8) for plane in planes[::-1]])
    # OpenCV takes BGR and encodes as Pillow does; pixels of simplejpeg's encoder differ by up to 14 levels.
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality, *_HALVED_COLOUR])
    return to_chw_float(decode(encoded.tobytes()))


def lighten(planes: Chw, amount: float) -> Chw:
    """Add one amount to every value, and clip the sums to [0, 1]."""
    lightened: Chw = np.clip(planes + amount, 0, 1)
    return lightened


def grey(planes: Chw) -> Chw:
    """Replace each channel by the mean of the three."""
    mean: Chw = planes.mean(0)
    return np.stack([mean] * len(planes))


def _brightness(planes: Chw) -> Chw:
    return np.asarray(np.tensordot(_LUMA, planes, 1), np.float32)


def _blend(planes: Chw, other: Chw | np.float32, factor: float) -> Chw:
    return np.clip(planes * np.float32(factor) + other * np.float32(1 - factor), 0, 1)


def _turn_hue(planes: Chw, turn: float) -> Chw:
    hue, saturation, value = cv2.split(cv2.cvtColor(cv2.merge(list(planes)), cv2.COLOR_RGB2HSV))
    rotated = cv2.merge([(hue + np.float32(360 * turn)) % 360, saturation, value])
    rgb: Chw = np.stack(cv2.split(cv2.cvtColor(rotated, cv2.COLOR_HSV2RGB)))
    return np.clip(rgb, 0, 1)


class _Application(NamedTuple):
    """Parameters of one application of a corruption: strength in [0, 1], blur_scale from 0, random numbers."""

    strength: float
    blur_scale: float
    generator: np.random.Generator


_Effect = Callable[[Chw, _Application], Chw]

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
        corrupted: list[Chw] = []
        fixed_strengths: list[float] = []
        for frame in frames:
            strengths = [draw_strength() for _ in names]
            corrupted.append(self._corrupt(frame, names, strengths, random.generator))
            fixed_strengths += strengths[self.random_count :]
        return corrupted, fixed_strengths

    def _strengths(self, random: SampleRng) -> Callable[[], float]:
        uniform: Callable[[], float] = random.generator.random
        if self.random_seed is not None:
            # Python's generator gives the strengths that DL-Art-School draws from the same seed.
            uniform = python_random.Random(self.random_seed + random.index).random  # noqa: S311
        return (lambda: 1 - math.cos(uniform() * math.pi / 2)) if self.cosine_bias else uniform

    def _corrupt(self, frame: Chw, names: list[str], strengths: list[float], generator: np.random.Generator) -> Chw:
        # JPEG compression would remove most of the noise.
        skipped = _JPEG.keys() if _NOISE.keys() & set(names) else frozenset[str]()
        original_sizes: list[tuple[int, ...]] = []
        for name, strength in zip(names, strengths, strict=True):
            if name in skipped:
                continue
            size = frame.shape[1:]
            frame = _EFFECTS[name](frame, _Application(strength, self.blur_scale, generator))
            if frame.shape[1:] != size:
                original_sizes.append(size)
        for size in reversed(original_sizes):
            frame = resize(frame, size, cv2.INTER_LINEAR)
        return frame


def _read_names(options: ConfigOptions, key: str) -> tuple[str, ...]:
    names = options.texts(key, [])
    for name in names:
        if name not in _EFFECTS:
            raise options.error(f"{key} names {name!r}; known corruptions are {', '.join(sorted(_EFFECTS))}")
    return tuple(names)


def _quantize(planes: Chw, application: _Application) -> Chw:
    return quantize(planes, 2 ** (int(application.strength * 10 / 3) + 2))


def _jitter_color(planes: Chw, application: _Application) -> Chw:
    spread = 0.2 * application.strength
    return jitter_color(planes, spread, application.generator) if 255 * spread > 1 else planes


def _blur(planes: Chw, application: _Application) -> Chw:
    return blur(planes, 1.5 * application.strength * application.blur_scale)


def _motion_blur(planes: Chw, application: _Application) -> Chw:
    angle = float(application.generator.uniform(0, 360))
    return motion_blur(planes, int(3 * application.strength * application.blur_scale) + 1, angle)


def _resample(planes: Chw, application: _Application) -> Chw:
    return _reduce(
        planes, 1 if application.strength < 0.3 else 2 if application.strength < 0.7 else 4, application.generator
    )


def _resample4x(planes: Chw, application: _Application) -> Chw:
    return _reduce(planes, 4, application.generator)


def _reduce(planes: Chw, factor: int, generator: np.random.Generator) -> Chw:
    return reduce(planes, factor, _INTERPOLATIONS[generator.integers(len(_INTERPOLATIONS))])


def _noise(planes: Chw, application: _Application) -> Chw:
    return add_noise(planes, 6 * application.strength / 255, application.generator)


def _noise5(planes: Chw, application: _Application) -> Chw:
    return add_noise(planes, 5 / 255, application.generator)


def _jpeg(low: int, span: int) -> _Effect:
    return lambda planes, application: compress(planes, int((1 - application.strength) * span) + low)


def _lighten(planes: Chw, application: _Application) -> Chw:
    return lighten(planes, 0.3 * application.strength)


def _grey(planes: Chw, _: _Application) -> Chw:
    return grey(planes)


def _nothing(planes: Chw, _: _Application) -> Chw:
    return planes


_NOISE = {"noise": _noise, "noise-5": _noise5}
_JPEG = {
    "jpeg": _jpeg(10, 20),
    "jpeg-low": _jpeg(15, 10),
    "jpeg-medium": _jpeg(23, 25),
    "jpeg-broad": _jpeg(15, 60),
    "jpeg-normal": _jpeg(47, 35),
}
_PLACEHOLDERS = ("none", "block_noise", "color_shift", "interlacing", "chromatic_aberration")

_EFFECTS: Mapping[str, _Effect] = MappingProxyType(
    {
        "color_quantization": _quantize,
        "color_jitter": _jitter_color,
        "gaussian_blur": _blur,
        "motion_blur": _motion_blur,
        "lq_resampling": _resample,
        "lq_resampling4x": _resample4x,
        "saturation": _lighten,
        "greyscale": _grey,
        **_NOISE,
        **_JPEG,
        **dict.fromkeys(_PLACEHOLDERS, _nothing),
    }
)
