"""Corruptions of a dataset: their choice and order, and their strengths with and without a fixed seed."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from dlas_store.config import ConfigOptions
from dlas_store.errors import ConfigError
from dlas_store.transforms.corruptions import Corruptions
from tests.support.corruption_cases import (
    INTERPOLATIONS,
    NAMES,
    PHOTO,
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
from tests.support.sample_data import noise


@pytest.mark.parametrize("cosine_bias", [True, False])
@pytest.mark.parametrize("seeds", [{}, {"random_seed": 0}])
def test_strengths_are_uniform_or_biased_towards_weak_ones(cosine_bias: bool, seeds: dict[str, int]) -> None:
    strengths = [
        strength
        for index in range(500)
        for strength in apply([flat(0)] * 2, "none", "none", index=index, cosine_bias=cosine_bias, **seeds)[1]
    ]
    assert len(strengths) == 2000
    assert 0 <= min(strengths) < 0.01
    assert 0.98 < max(strengths) <= 1
    assert np.mean(strengths) == pytest.approx(1 - 2 / math.pi if cosine_bias else 0.5, abs=0.03)
    assert np.median(strengths) == pytest.approx(1 - math.cos(math.pi / 4) if cosine_bias else 0.5, abs=0.04)


@pytest.mark.parametrize("seed", [7, -193])
@pytest.mark.parametrize("cosine_bias", [True, False])
def test_random_seed_gives_each_item_the_strengths_of_seed_plus_index(seed: int, cosine_bias: bool) -> None:
    for index in (0, 1, 200):
        for rng in ({"repetition": 0}, {"repetition": 9}, {"seed": 5}):
            _, strengths = apply(
                [flat(0)] * 3, "none", "greyscale", index=index, random_seed=seed, cosine_bias=cosine_bias, **rng
            )
            assert strengths == expected_strengths(seed + index, 6, cosine_bias=cosine_bias)


def test_random_seed_fixes_strengths_but_not_noise_angles_or_which() -> None:
    def corrupted(repetition: int, *fixed: str, **options: Any) -> list[Any]:
        frames, strengths = apply([to_chw(PHOTO)], *fixed, random_seed=3, repetition=repetition, **options)
        return [frames[0].tobytes(), strengths]

    for name in ("noise-5", "motion_blur", "lq_resampling4x"):
        options = {"corruption_blur_scale": 9, "cosine_bias": False}
        repetitions = [corrupted(repetition, name, **options) for repetition in range(8)]
        assert all(strengths == repetitions[0][1] for _, strengths in repetitions)
        assert len({picture for picture, _ in repetitions}) > 1
    for name in ("jpeg", "gaussian_blur", "color_quantization"):
        assert corrupted(0, name) == corrupted(1, name)
    choice = {"random_corruptions": ["greyscale", "jpeg", "none"], "num_corrupts_per_image": 1}
    assert len({corrupted(repetition, **choice)[0] for repetition in range(20)}) == 3


@pytest.mark.parametrize("options", [{}, {"random_seed": 1}])
def test_an_item_is_corrupted_alike_by_seed_index_and_repetition_and_otherwise_by_any_of_them(
    options: dict[str, int],
) -> None:
    def corrupted(**rng: int) -> bytes:
        (picture,), _ = apply(
            [to_chw(PHOTO)],
            "noise",
            "motion_blur",
            random_corruptions=["color_jitter", "lq_resampling"],
            num_corrupts_per_image=2,
            **options,
            **rng,
        )
        return picture.tobytes()

    assert corrupted() == corrupted(seed=0, index=0, repetition=0)
    keys = ({}, {"seed": 1}, {"index": 1}, {"repetition": 1}, {"index": 2, "repetition": 1})
    assert len({corrupted(**key) for key in keys}) == 5


def test_random_corruptions_are_drawn_evenly_and_with_replacement() -> None:
    frame = flat(0.2, 0.4, 0.9)
    counts: Counter[tuple[bool, bool]] = Counter()
    for index in range(600):
        corrupted, _ = corrupt(
            frame,
            "none",
            index=index,
            random_corruptions=["saturation", "greyscale", "none"],
            num_corrupts_per_image=2,
            random_seed=0,
        )
        grey = bool(np.ptp(corrupted[:, 0, 0]) < 1e-6)
        counts[grey, bool(corrupted.mean() > frame.mean() + 1e-6)] += 1
    for kind, share in {(False, False): 1, (True, False): 3, (False, True): 3, (True, True): 2}.items():
        assert counts[kind] / 600 == pytest.approx(share / 9, abs=0.06)


def test_random_corruptions_come_before_the_fixed_ones_whose_strengths_alone_are_returned() -> None:
    frame = to_chw(PHOTO)
    (corrupted,), strengths = apply(
        [frame],
        "color_quantization",
        "none",
        random_corruptions=["saturation"],
        num_corrupts_per_image=1,
        random_seed=9,
    )
    expected = expected_strengths(9, 3)
    assert strengths == expected[1:]
    step = 2 ** (int(expected[1] * 10 / 3) + 2)
    brighter = np.clip(frame + np.float32(0.3 * expected[0]), 0, 1)
    np.testing.assert_allclose(corrupted, np.floor(brighter * 255 / step) * step / 255, atol=1e-5)


def test_restoring_comes_after_every_other_corruption() -> None:
    frame = to_chw(PHOTO)
    corrupted, strength = corrupt(frame, "lq_resampling4x", "jpeg")
    quality = int((1 - strength) * 20) + 10
    small = (reduced(interleaved(frame), 4, interpolation) for interpolation in INTERPOLATIONS)
    restored = [
        enlarged(interleaved(pillow_jpeg(to_chw(picture * 255), quality)), frame.shape[1:]) for picture in small
    ]
    assert min(np.abs(picture - corrupted).max() for picture in restored) < 0.02


def test_two_resamplings_are_restored_one_after_the_other() -> None:
    frame = to_chw(PHOTO)
    corrupted, _ = corrupt(frame, "lq_resampling4x", "lq_resampling4x")
    assert corrupted.shape == frame.shape
    assert corrupted.std() < corrupt(frame, "lq_resampling4x")[0].std()


def test_all_frames_get_the_same_corruptions_each_with_strengths_of_its_own() -> None:
    frame = to_chw(PHOTO)
    single, single_strengths = apply([frame], "color_quantization", "saturation", random_seed=11)
    frames, strengths = apply([frame, frame], "color_quantization", "saturation", random_seed=11)
    assert strengths == expected_strengths(11, 4)
    assert single_strengths == strengths[:2]
    np.testing.assert_array_equal(frames[0], single[0])
    assert not np.array_equal(frames[0], frames[1])

    grey = flat(0.1, 0.5, 0.9)
    for index in range(20):
        same, _ = apply([grey] * 3, index=index, random_corruptions=["greyscale", "none"], num_corrupts_per_image=1)
        assert len({frame.tobytes() for frame in same}) == 1


def test_frames_of_different_sizes_are_restored_each_to_its_own() -> None:
    frames = [to_chw(noise(*size)) for size in ((32, 32), (20, 44), (9, 7))]
    for index in range(10):
        corrupted, _ = apply(frames, "lq_resampling", "lq_resampling4x", index=index, cosine_bias=False)
        assert [frame.shape for frame in corrupted] == [frame.shape for frame in frames]


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"fixed_corruptions": ["jpg"]},
            "fixed_corruptions names 'jpg'; known corruptions are block_noise, ",
        ),
        ({"random_corruptions": ["jpeg", ""]}, "random_corruptions names ''; known corruptions are"),
        ({"fixed_corruptions": 3}, "fixed_corruptions must be a text or a list of texts, got 3"),
        ({"num_corrupts_per_image": -1}, "num_corrupts_per_image must be an integer of at least 0, got -1"),
        ({"num_corrupts_per_image": 1}, "num_corrupts_per_image asks for random .*, but random_corruptions names none"),
        ({"corruption_blur_scale": -0.1}, "corruption_blur_scale must be a number of at least 0"),
        ({"cosine_bias": 2}, "cosine_bias must be true or false, got 2"),
        ({"random_seed": "7"}, "random_seed must be an integer, got '7'"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^test: {message}"):
        Corruptions.read(ConfigOptions.of_dataset(options, mode="test"))


def test_an_unknown_name_lists_every_known_one() -> None:
    with pytest.raises(ConfigError) as caught:
        Corruptions.read(ConfigOptions.of_dataset({"fixed_corruptions": ["sepia"]}, mode="test"))
    assert str(caught.value).split(" are ")[1].split(", ") == sorted(NAMES)
