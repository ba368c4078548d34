"""Corruption cases: pictures to corrupt, calls of the corruptions, and expected results."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from dlas_store.config import ConfigOptions
from dlas_store.images.decode import decode
from dlas_store.sampling.rng import SampleKey, SampleRng
from dlas_store.transforms.corruptions import Corruptions
from tests.support.sample_data import DATA, Array

PHOTO = decode((DATA / "chunked" / "astronaut_left_0" / "00000003.jpg").read_bytes())[:60, :44]
PLACEHOLDERS = ["none", "block_noise", "color_shift", "interlacing", "chromatic_aberration"]
JPEG = {
    "jpeg": (10, 20),
    "jpeg-low": (15, 10),
    "jpeg-medium": (23, 25),
    "jpeg-broad": (15, 60),
    "jpeg-normal": (47, 35),
}
NAMES = [
    "color_quantization", "color_jitter", "gaussian_blur", "motion_blur", "lq_resampling", "lq_resampling4x", "noise",
    "noise-5", *JPEG, "saturation", "greyscale", *PLACEHOLDERS,
]  # fmt: skip
INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_CUBIC, cv2.INTER_LINEAR, cv2.INTER_LANCZOS4)


def to_chw(pixels: Array) -> Array:
    return np.ascontiguousarray((pixels / np.float32(255)).astype(np.float32).transpose(2, 0, 1))


def interleaved(frame: Array) -> Array:
    return np.ascontiguousarray(frame.transpose(1, 2, 0))


def flat(*colour: float, side: int = 8) -> Array:
    return np.repeat(np.array(colour, np.float32), side * side).reshape(-1, side, side)


def apply(
    frames: Sequence[Array], *fixed: str, seed: int = 0, index: int = 0, repetition: int = 0, **options: Any
) -> tuple[list[Array], list[float]]:
    corruptions = Corruptions.read(ConfigOptions.of_dataset({"fixed_corruptions": list(fixed), **options}, mode="test"))
    return corruptions.apply(frames, SampleRng(seed, SampleKey(index, repetition)))


def corrupt(frame: Array, *fixed: str, **options: Any) -> tuple[Array, float]:
    """Corrupt a frame; return the corrupted frame and the strength of the last corruption."""
    (corrupted,), strengths = apply([frame], *fixed, **options)
    return corrupted, strengths[-1]


def pillow_jpeg(frame: Array, quality: int) -> Array:
    buffer = io.BytesIO()
    Image.fromarray((interleaved(frame) * 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return to_chw(np.asarray(Image.open(buffer)))


def reduced(frame: Array, factor: int, interpolation: int) -> Array:
    """Reduce an interleaved frame (H, W, C) as lq_resampling does."""
    height, width = frame.shape[:2]
    small: Array = cv2.resize(frame, (width // factor, height // factor), interpolation=interpolation)
    return np.clip(small, 0, 1)


def enlarged(frame: Array, size: tuple[int, ...]) -> Array:
    return to_chw(cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_LINEAR) * 255)


def expected_strengths(seed: int, count: int, *, cosine_bias: bool = True) -> list[float]:
    uniform = random.Random(seed)
    numbers = [uniform.random() for _ in range(count)]
    return [1 - math.cos(number * math.pi / 2) for number in numbers] if cosine_bias else numbers
