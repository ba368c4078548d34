"""Corruptions that degrade LQ beyond a downsized HQ: their options, order and strengths."""

from __future__ import annotations

import math
import random as python_random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import cv2
import numpy as np

from dlas_store.datasets import effects
from dlas_store.datasets.draws import ItemRandom
from dlas_store.datasets.planes import Planes, resize
from dlas_store.options import ConfigOptions


class _Application(NamedTuple):
    """Parameters of one application of a corruption: strength in [0, 1], blur_scale from 0, random numbers."""

    strength: float
    blur_scale: float
    generator: np.random.Generator


_Effect = Callable[[Planes, _Application], Planes]

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

    def apply(self, frames: Sequence[Planes], random: ItemRandom) -> tuple[list[Planes], list[float]]:
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
        corrupted: list[Planes] = []
        fixed_strengths: list[float] = []
        for frame in frames:
            strengths = [draw_strength() for _ in names]
            corrupted.append(self._corrupt(frame, names, strengths, random.generator))
            fixed_strengths += strengths[self.random_count :]
        return corrupted, fixed_strengths

    def _strengths(self, random: ItemRandom) -> Callable[[], float]:
        uniform: Callable[[], float] = random.generator.random
        if self.random_seed is not None:
            # Python's generator gives the strengths that DL-Art-School draws from the same seed.
            uniform = python_random.Random(self.random_seed + random.index).random  # noqa: S311
        return (lambda: 1 - math.cos(uniform() * math.pi / 2)) if self.cosine_bias else uniform

    def _corrupt(
        self, frame: Planes, names: list[str], strengths: list[float], generator: np.random.Generator
    ) -> Planes:
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


def _quantize(planes: Planes, application: _Application) -> Planes:
    return effects.quantize(planes, 2 ** (int(application.strength * 10 / 3) + 2))


def _jitter_color(planes: Planes, application: _Application) -> Planes:
    spread = 0.2 * application.strength
    return effects.jitter_color(planes, spread, application.generator) if 255 * spread > 1 else planes


def _blur(planes: Planes, application: _Application) -> Planes:
    return effects.blur(planes, 1.5 * application.strength * application.blur_scale)


def _motion_blur(planes: Planes, application: _Application) -> Planes:
    angle = float(application.generator.uniform(0, 360))
    return effects.motion_blur(planes, int(3 * application.strength * application.blur_scale) + 1, angle)


def _resample(planes: Planes, application: _Application) -> Planes:
    return _reduce(
        planes, 1 if application.strength < 0.3 else 2 if application.strength < 0.7 else 4, application.generator
    )


def _resample4x(planes: Planes, application: _Application) -> Planes:
    return _reduce(planes, 4, application.generator)


def _reduce(planes: Planes, factor: int, generator: np.random.Generator) -> Planes:
    return effects.reduce(planes, factor, _INTERPOLATIONS[generator.integers(len(_INTERPOLATIONS))])


def _noise(planes: Planes, application: _Application) -> Planes:
    return effects.add_noise(planes, 6 * application.strength / 255, application.generator)


def _noise5(planes: Planes, application: _Application) -> Planes:
    return effects.add_noise(planes, 5 / 255, application.generator)


def _jpeg(low: int, span: int) -> _Effect:
    return lambda planes, application: effects.compress(planes, int((1 - application.strength) * span) + low)


def _lighten(planes: Planes, application: _Application) -> Planes:
    return effects.lighten(planes, 0.3 * application.strength)


def _grey(planes: Planes, _: _Application) -> Planes:
    return effects.grey(planes)


def _nothing(planes: Planes, _: _Application) -> Planes:
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
