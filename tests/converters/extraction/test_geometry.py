"""Geometry of tiles, compared with plainly written rules; options and docstring examples."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlas_store.converters import sharding
from dlas_store.converters.extraction import geometry, tiles
from dlas_store.converters.extraction.geometry import Tile, center, count_tiles, squares, starts, tiles_by_crop
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.errors import ConfigError
from dlas_store.images.decode import Size
from dlas_store.sources.base import Center


@pytest.mark.parametrize("module", [geometry, sharding, tiles], ids=lambda module: module.__name__)
def test_examples_in_docstrings_hold(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0
    assert result.failed == 0


@given(side=st.integers(1, 3000), crop=st.integers(1, 800), step=st.integers(1, 900), threshold=st.integers(1, 900))
def test_tiles_are_a_step_apart_and_one_more_ends_where_more_than_the_threshold_is_left_over(
    side: int, crop: int, step: int, threshold: int
) -> None:
    regular = [start for start in range(0, side, step) if start + crop <= side]
    remaining = side - regular[-1] - crop if regular else 0
    assert starts(side, crop, step, threshold) == regular + ([side - crop] if remaining > threshold else [])


def test_a_center_is_that_of_the_crop_in_pixels_of_the_reference() -> None:
    assert center(Tile(row=300, col=0, crop=256, size=256), side=1000, tile_dimension=256) == Center(109, 32, 65)
    assert center(Tile(row=0, col=0, crop=1000, size=256), side=1000, tile_dimension=256) == Center(128, 128, 256)


@given(height=st.integers(2, 400), width=st.integers(2, 800))
def test_squares_of_a_split_meet_at_the_seam(height: int, width: int) -> None:
    left, right = squares(Size(height, width), vertical_split=True).values()
    assert left.left + left.side == right.left == width // 2
    for square, half in ((left, width // 2), (right, width - width // 2)):
        assert square.side == min(height, half)
        assert square.top == (height - square.side) // 2


@given(side=st.integers(1, 2000))
def test_tiles_are_counted_without_making_them(side: int) -> None:
    options = ExtractOptions.read({"crop_sz": [100, 300], "step": [70, 90], "resize_final_img": [0.5, 0.25]})
    for crop_indices in ([], [0], [1], [0, 1]):
        all_tiles = [tile for crop_tiles in tiles_by_crop(side, options, crop_indices) for tile in crop_tiles]
        assert count_tiles(side, options, crop_indices) == (len(all_tiles), sum(tile.size**2 for tile in all_tiles))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop_sz": []}, "crop_sz (--crop-size)"),
        ({"crop_sz": [256, 0]}, "crop_sz (--crop-size)"),
        ({"step": [128]}, "step (--step) must be of the length of crop_sz, 2"),
        ({"step": [128, 0]}, "step (--step)"),
        ({"thres_sz": 0}, "thres_sz (--threshold)"),
        ({"resize_final_img": [1, 0.001]}, "resize_final_img (--resize)"),
        ({"resize_final_img": [1, -1]}, "resize_final_img (--resize)"),
        ({"compression_level": 101}, "an integer from 1 to 100, got 101"),
        ({"use_masking": True}, "mask_path (--masks)"),
        ({"exclusions": [["a"]]}, "exclusions (--exclude)"),
        ({"tresh_sz": 64}, "nearest known one is 'thres_sz'"),
    ],
)
def test_a_wrong_option_is_an_error_that_names_it_and_its_flag(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ExtractOptions.read(options)
    assert words in str(caught.value)


def test_terms_of_flags_are_of_one_size_or_of_all() -> None:
    options = ExtractOptions.read({"crop_sz": [256, 512]}, exclude=["night", "512:dawn", "C:/x"])
    assert options.exclusions == (("night", "C:/x"), ("night", "dawn", "C:/x"))
    assert [options.crop_indices(path) for path in ("a.jpg", "dawn/a.jpg", "night/a.jpg")] == [[0, 1], [0], []]
    with pytest.raises(ConfigError, match="one of the crop sizes"):
        ExtractOptions.read({"crop_sz": [256, 512]}, exclude=["128:night"])
