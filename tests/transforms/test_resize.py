"""Bicubic reduction: the pixels of MATLAB's imresize."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dlas_store.transforms.resize import matlab_reduce
from tests.support.sample_data import Array

FACTORS = pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 8])


def random_chw(height: int, width: int) -> Array:
    return np.random.default_rng(0).random((2, height, width), np.float32)


def contributions(length: int, factor: int) -> Array:
    """Return the (result, source) weights of one axis, computed in float64 as in imresize's contributions()."""
    scale, count = 1 / factor, -(-length // factor)
    centers = np.arange(1, count + 1) / scale + 0.5 * (1 - 1 / scale)
    taps = np.floor(centers - 2 / scale)[:, None] + np.arange(int(np.ceil(4 / scale)) + 2)
    distance = np.abs(scale * (centers[:, None] - taps))
    near = (1.5 * distance**3 - 2.5 * distance**2 + 1) * (distance <= 1)
    far = (-0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2) * ((distance > 1) & (distance <= 2))
    weights = (near + far) / (near + far).sum(1, keepdims=True)
    mirrored = np.concatenate([np.arange(length), np.arange(length)[::-1]])
    sources = mirrored[np.mod(taps.astype(int) - 1, 2 * length)]
    matrix = np.zeros((count, length))
    for row in range(count):
        np.add.at(matrix[row], sources[row], weights[row])
    return matrix


@FACTORS
@pytest.mark.parametrize("size", [(40, 64), (41, 59), (7, 90), (3, 2), (1, 1)])
def test_pixels_are_those_of_imresize(size: tuple[int, int], factor: int) -> None:
    chw = random_chw(*size)
    expected = contributions(size[0], factor) @ chw.astype(np.float64) @ contributions(size[1], factor).T
    reduced = matlab_reduce(chw, factor)
    assert reduced.dtype == np.float32
    assert reduced.shape == (2, -(-size[0] // factor), -(-size[1] // factor))
    np.testing.assert_allclose(reduced, expected, atol=1e-6)


def test_halving_weighs_eight_pixels_by_the_stretched_kernel() -> None:
    chw = np.zeros((1, 1, 16), np.float32)
    chw[0, 0, 7] = 256
    # Keys' kernel at 0.25, 0.75, 1.25 and 1.75, halved.
    np.testing.assert_allclose(matlab_reduce(chw, 2)[0, 0], [0, 0, -9, 111, 29, -3, 0, 0], atol=1e-4)


@FACTORS
def test_away_from_the_edges_it_is_the_bicubic_filter_of_pillow(factor: int) -> None:
    chw = random_chw(16 * factor, 20 * factor)[:1]
    pillow = np.asarray(Image.fromarray(chw[0]).resize((20, 16), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(matlab_reduce(chw, factor)[0, 3:-3, 3:-3], pillow[3:-3, 3:-3], atol=1e-5)


@FACTORS
def test_an_even_picture_stays_even_up_to_its_edges(factor: int) -> None:
    np.testing.assert_allclose(matlab_reduce(np.full((3, 37, 23), 0.7, np.float32), factor), 0.7, atol=1e-6)


def test_values_beyond_the_range_are_kept() -> None:
    chw = np.zeros((1, 32, 32), np.float32)
    chw[:, :, 16:] = 1
    reduced = matlab_reduce(chw, 4)
    assert reduced.max() > 1
    assert reduced.min() < 0


def test_by_one_it_is_a_copy() -> None:
    chw = random_chw(5, 6)
    reduced = matlab_reduce(chw, 1)
    np.testing.assert_array_equal(reduced, chw)
    assert not np.shares_memory(reduced, chw)
