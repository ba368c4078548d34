"""Area averages are OpenCV's."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import noise

from dlas_store.converters.extraction.averaging import resized
from dlas_store.pixels import Size


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    rows=st.integers(1, 120),
    cols=st.integers(1, 120),
    seed=st.integers(0, 9),
)
def test_resized_gives_what_opencv_gives(height: int, width: int, rows: int, cols: int, seed: int) -> None:
    whole = noise(height + 3, width + 5, seed=seed)
    for pixels in (whole[1 : 1 + height, 2 : 2 + width], np.ascontiguousarray(whole[:height, :width])):
        expected = cv2.resize(pixels, (cols, rows), interpolation=cv2.INTER_AREA)
        difference = np.abs(resized(pixels, Size(rows, cols)).astype(int) - expected)
        assert difference.max() <= 1  # floats summed in another order, where the average is half way
        assert (difference > 0).sum() <= 2 + 0.01 * difference.size


@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_the_average_of_equal_pixels_is_their_value(value: int) -> None:
    pixels = np.full((1999, 1501, 3), value, np.uint8)
    assert (resized(pixels, Size(256, 256)) == value).all()


def test_pixels_of_that_size_are_not_copied() -> None:
    pixels = noise(20, 30)
    assert resized(pixels, Size(20, 30)) is pixels
