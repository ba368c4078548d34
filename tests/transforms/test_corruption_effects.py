"""The effect of each corruption on a known picture, and the distribution of its random numbers."""

from __future__ import annotations

import colorsys
import math
from collections import Counter

import cv2
import numpy as np
import pytest

from dlas_store.transforms.corruptions import line_kernel
from tests.support.corruption_cases import (
    INTERPOLATIONS,
    JPEG,
    NAMES,
    PHOTO,
    PLACEHOLDERS,
    apply,
    corrupt,
    enlarged,
    expected_strengths,
    flat,
    interleaved,
    pillow_jpeg,
    reduced,
    to_chw,
)
from tests.support.sample_data import Array, noise


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(60, 44), (17, 31), (3, 5), (1, 1)])
def test_every_corruption_keeps_type_size_and_range_and_leaves_its_argument_alone(
    name: str, size: tuple[int, int]
) -> None:
    frame = to_chw(noise(*size))
    frame.setflags(write=False)
    before = frame.copy()
    for index in range(12):
        corrupted, _ = corrupt(frame, name, index=index, cosine_bias=False, corruption_blur_scale=3)
        assert corrupted.dtype == np.float32
        assert corrupted.shape == frame.shape
        assert corrupted.min() >= 0
        assert corrupted.max() <= (1 if not name.startswith("noise") else 1 + 6 / 255)
    np.testing.assert_array_equal(frame, before)


@pytest.mark.parametrize("name", PLACEHOLDERS)
def test_placeholders_do_nothing(name: str) -> None:
    frame = to_chw(PHOTO)
    assert corrupt(frame, name)[0] is frame


def test_without_a_corruption_frames_are_returned_as_they_are() -> None:
    frames = [to_chw(PHOTO), to_chw(noise(8, 8))]
    for options in ({}, {"random_corruptions": ["noise"]}, {"random_seed": 3}):
        corrupted, strengths = apply(frames, **options)
        assert strengths == []
        assert all(result is frame for result, frame in zip(corrupted, frames, strict=True))


def test_color_quantization_floors_to_multiples_of_a_power_of_two() -> None:
    frame = to_chw(PHOTO)
    steps = set()
    for index in range(40):
        corrupted, strength = corrupt(frame, "color_quantization", index=index, cosine_bias=False)
        step = 2 ** (int(strength * 10 / 3) + 2)
        np.testing.assert_allclose(corrupted, to_chw(PHOTO // step * step), atol=1e-6)
        steps.add(step)
    assert steps == {4, 8, 16, 32}


@pytest.mark.parametrize("blur_scale", [1, 2.5])
def test_gaussian_blur_has_the_strength_as_its_sigma(blur_scale: float) -> None:
    frame = to_chw(PHOTO)
    for index in range(5):
        corrupted, strength = corrupt(frame, "gaussian_blur", index=index, corruption_blur_scale=blur_scale)
        expected = cv2.GaussianBlur(interleaved(frame), (0, 0), 1.5 * strength * blur_scale)
        np.testing.assert_allclose(corrupted, expected.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("name", ["gaussian_blur", "motion_blur"])
def test_a_blur_scale_of_zero_blurs_nothing(name: str) -> None:
    np.testing.assert_array_equal(corrupt(to_chw(PHOTO), name, corruption_blur_scale=0)[0], to_chw(PHOTO))


def test_motion_blur_spreads_a_point_along_a_line_of_its_length() -> None:
    point = np.zeros((3, 41, 41), np.float32)
    point[:, 20, 20] = 1
    angles = []
    for index in range(60):
        corrupted, strength = corrupt(point, "motion_blur", index=index, cosine_bias=False, corruption_blur_scale=6)
        length = int(18 * strength) + 1
        rows, cols = (indices.astype(float) for indices in np.nonzero(corrupted[0] > 1e-6))
        assert corrupted[0].sum() == pytest.approx(1, abs=1e-4)
        assert max(np.ptp(rows), np.ptp(cols)) <= length
        if length >= 8:
            spread = np.linalg.eigvalsh(np.cov(rows, cols))
            assert spread[0] < 0.5 < spread[1]
            angles.append(math.degrees(math.atan2(*np.linalg.eigh(np.cov(cols, rows))[1][::-1, 1])) % 180)
    counts, _ = np.histogram(angles, 4, (0, 180))
    assert counts.min() >= 3


@pytest.mark.parametrize("length", range(1, 8))
def test_the_kernel_of_a_line_sums_to_one_at_every_angle(length: int) -> None:
    for angle in range(361):
        kernel = line_kernel(length, angle)
        assert kernel.shape == (length, length)
        assert kernel.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(line_kernel(3, 0), np.array([[0, 0, 0], [1, 1, 1], [0, 0, 0]], np.float32) / 3)
    np.testing.assert_allclose(line_kernel(3, 90), line_kernel(3, 0).T, atol=1e-6)


@pytest.mark.parametrize(("name", "always"), [("lq_resampling", None), ("lq_resampling4x", 4)])
def test_lq_resampling_goes_down_by_any_interpolation_and_back_up_bilinearly(name: str, always: int | None) -> None:
    frame = to_chw(PHOTO)
    count_of: Counter[tuple[int, int]] = Counter()
    for index in range(400):
        corrupted, strength = corrupt(frame, name, index=index, cosine_bias=False)
        factor = always or (1 if strength < 0.3 else 2 if strength < 0.7 else 4)
        if factor == 1:
            assert corrupted is frame
            count_of[1, 0] += 1
            continue
        small = (reduced(interleaved(frame), factor, interpolation) for interpolation in INTERPOLATIONS)
        distances = [float(np.abs(enlarged(picture, frame.shape[1:]) - corrupted).max()) for picture in small]
        assert min(distances) < 1e-5
        count_of[factor, int(np.argmin(distances))] += 1
    factors = Counter({factor: sum(n for key, n in count_of.items() if key[0] == factor) for factor in (1, 2, 4)})
    if always is None:
        assert 80 < factors[1] < 160
        assert 120 < factors[2] < 200
    # Each interpolation reads different pixels to reduce by a whole number, so that a photo tells all four apart.
    assert all(count_of[4, number] > factors[4] / 8 for number in range(4))


@pytest.mark.parametrize(("name", "amplitude"), [("noise", None), ("noise-5", 5)])
def test_noise_is_uniform_of_its_amplitude_and_not_clipped(name: str, amplitude: float | None) -> None:
    frame = flat(1, 0.5, 0, side=64)
    for index in range(8):
        corrupted, strength = corrupt(frame, name, index=index)
        levels = (corrupted - frame) * 255
        top = 6 * strength if amplitude is None else amplitude
        assert levels.min() > -1e-4
        assert levels.max() < top + 1e-4
        assert levels.max() > 0.98 * top
        np.testing.assert_allclose(levels.mean((1, 2)), top / 2, rtol=0.05)
        assert levels.std() == pytest.approx(top / math.sqrt(12), rel=0.05)
        assert len(np.unique(levels[2])) > 3500  # nearly every value has different noise


@pytest.mark.parametrize("name", JPEG)
def test_jpeg_is_pillows_at_the_quality_that_the_strength_gives(name: str) -> None:
    low, span = JPEG[name]
    frame = to_chw(PHOTO)
    qualities = set()
    for index in range(150):
        corrupted, strength = corrupt(frame, name, index=index, cosine_bias=False)
        quality = int((1 - strength) * span) + low
        qualities.add(quality)
        if index < 8:
            np.testing.assert_array_equal(corrupted, pillow_jpeg(frame, quality))
    assert low <= min(qualities) <= low + span // 8
    assert low + span - 1 - span // 8 <= max(qualities) <= low + span


def test_jpeg_truncates_to_whole_levels_first() -> None:
    np.testing.assert_array_equal(
        corrupt(to_chw(PHOTO) + np.float32(0.9 / 255 * (1 - to_chw(PHOTO))), "jpeg", random_seed=1)[0],
        corrupt(to_chw(PHOTO), "jpeg", random_seed=1)[0],
    )


def test_jpeg_takes_values_outside_of_the_range_as_its_ends() -> None:
    outside = to_chw(PHOTO) * 1.4 - np.float32(0.2)
    inside = np.clip(outside, 0, 1)
    for name in ("jpeg", "jpeg-normal"):
        np.testing.assert_array_equal(corrupt(outside, name)[0], corrupt(inside, name)[0])


@pytest.mark.parametrize("noises", ["noise", "noise-5"])
def test_jpeg_is_skipped_beside_noise_but_draws_its_strength(noises: str) -> None:
    frame = to_chw(PHOTO)
    for names in (("jpeg", noises), (noises, "jpeg-low")):
        (corrupted,), strengths = apply([frame], *names, random_seed=5)
        assert np.abs(corrupted - frame).max() < 6 / 255
        assert strengths == expected_strengths(5, 2)
    (corrupted,), _ = apply([frame], "jpeg", random_corruptions=[noises], num_corrupts_per_image=1)
    assert np.abs(corrupted - frame).max() < 6 / 255


def test_saturation_adds_to_every_value_up_to_one() -> None:
    corrupted, strength = corrupt(flat(0, 0.4, 0.99), "saturation", cosine_bias=False, random_seed=2)
    assert 0.3 * strength > 0.01
    np.testing.assert_allclose(corrupted, flat(0.3 * strength, 0.4 + 0.3 * strength, 1), atol=1e-6)


def test_greyscale_is_the_mean_of_the_channels() -> None:
    frame = to_chw(PHOTO)
    np.testing.assert_allclose(corrupt(frame, "greyscale")[0], np.stack([frame.mean(0)] * 3), atol=1e-6)


# Steps of colour jitter, each on a picture that shows no other step


def jittered(frame: Array) -> list[tuple[Array, float]]:
    """Return the frame after each jitter that is strong enough to be measured, and the spread of its factors."""
    jitters = [corrupt(frame, "color_jitter", index=index, cosine_bias=False) for index in range(500)]
    return [(corrupted, 0.2 * strength) for corrupted, strength in jitters if strength > 0.25]


def assert_uniform(values: list[float]) -> None:
    """Check that values are distributed uniformly in [-1, 1]."""
    assert -1.01 < min(values) < -0.9
    assert 0.9 < max(values) < 1.01
    assert np.mean(values) == pytest.approx(0, abs=0.12)
    assert np.std(values) == pytest.approx(1 / math.sqrt(3), rel=0.12)


def test_color_jitter_does_nothing_where_it_is_too_weak_to_see() -> None:
    frame = to_chw(PHOTO)
    weak = 0
    for index in range(200):
        corrupted, strength = corrupt(frame, "color_jitter", index=index)
        if 255 * 0.2 * strength <= 1:
            assert corrupted is frame
            weak += 1
        else:
            assert not np.array_equal(corrupted, frame)
    assert 10 < weak < 50


def test_color_jitter_multiplies_brightness_and_stretches_contrast_about_the_mean() -> None:
    frame = np.repeat(np.array([0.4, 0.6], np.float32), 32).reshape(1, 8, 8).repeat(3, 0)
    brightness, contrast = [], []
    for corrupted, spread in jittered(frame):
        np.testing.assert_allclose(corrupted[1:], corrupted[:2], atol=1e-4)  # a grey picture stays grey
        dark, bright = corrupted[0].min(), corrupted[0].max()
        factor = (dark + bright) / 2 / 0.4999
        brightness.append(float(factor - 1) / spread)
        contrast.append(float((bright - dark) / 0.2 / factor - 1) / spread)
    assert_uniform(brightness)
    assert_uniform(contrast)


def test_color_jitter_turns_hue_and_stretches_saturation() -> None:
    colour = (0.5, 0.35, 0.3)
    hue = colorsys.rgb_to_hsv(*colour)[0]
    rotations, chroma = [], []
    for corrupted, spread in jittered(flat(*colour)):
        rotated_hue, *_ = colorsys.rgb_to_hsv(*corrupted[:, 0, 0].tolist())
        rotations.append(((rotated_hue - hue + 0.5) % 1 - 0.5) / spread)
        chroma.append(float(np.ptp(corrupted[:, 0, 0]) / np.ptp(colour)))
    assert_uniform(rotations)
    assert min(chroma) > 0.8**3 - 0.01
    assert max(chroma) < 1.2**3 + 0.01
    assert np.std(chroma) > 0.08


def test_color_jitter_takes_its_steps_in_an_order_that_varies() -> None:
    # White stays white if raised brightness clips it, unless an earlier step lowered the contrast.
    frame = np.repeat(np.array([0, 1], np.float32), 32).reshape(1, 8, 8).repeat(3, 0)
    clipped = Counter(bool(corrupted.max() == 1) for corrupted, _ in jittered(frame) if corrupted.min() > 0.01)
    assert min(clipped[True], clipped[False]) > 20
