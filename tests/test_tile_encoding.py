"""Tiles that share a JPEG decode to the pixels of tiles encoded one by one, in every decoder that we know of."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from photo_files import scene
from PIL import Image
from samples import Array, noise

from dlas_store.converters.extraction.encoding import Encoder, Place, Sheet
from dlas_store.converters.extraction.options import Subsampling
from dlas_store.pixels import Size, check_picture

SUBSAMPLINGS: tuple[Subsampling, ...] = ("4:2:0", "4:2:2", "4:4:4")


def same_in_all_decoders(one: bytes, two: bytes) -> bool:
    decoders = (
        simplejpeg.decode_jpeg,
        lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR),
        lambda data: np.asarray(Image.open(io.BytesIO(data))),
    )
    return all(np.array_equal(decode(one), decode(two)) for decode in decoders)


def check_sheet(pixels: Array, places: list[Place], side: int, encoder: Encoder) -> int:
    """Compare all tiles of a sheet with tiles encoded one by one, and return how many of them share."""
    sheet = Sheet(pixels, places, side, encoder)
    sharing = 0
    for place in places:
        data = sheet.encoded(place)
        alone = encoder.encode(pixels[place.row : place.row + side, place.col : place.col + side])
        assert check_picture(data) == Size(side, side)
        assert same_in_all_decoders(data, alone)
        sharing += data != alone
    return sharing


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("quality", [30, 95, 100])
def test_tiles_that_overlap_share_and_have_the_same_pixels(subsampling: Subsampling, quality: int) -> None:
    starts = [0, 32, 64, 96, 131]  # the last ends with the square
    places = [Place(row, col) for row in starts for col in starts]
    pixels = scene(195, 195, seed=3)
    assert check_sheet(pixels, places, 64, Encoder(quality, subsampling)) == len(places) - 1  # the corner stands alone


@settings(max_examples=40, deadline=None)
@given(
    side=st.integers(1, 100),
    step=st.integers(1, 100),
    extent=st.integers(1, 260),
    subsampling=st.sampled_from(SUBSAMPLINGS),
    keep=st.floats(0.1, 1),
)
def test_tiles_of_any_size_step_and_choice_have_the_same_pixels(
    side: int, step: int, extent: int, subsampling: Subsampling, keep: float
) -> None:
    pixels = noise(side + extent, side + extent, seed=side)
    places = [Place(row, col) for row in range(0, extent, step) for col in range(0, extent, step)]
    chosen = np.random.default_rng(step).random(len(places)) < keep
    kept = [place for place, choice in zip(places, chosen, strict=True) if choice][:20]
    check_sheet(pixels, kept, side, Encoder(90, subsampling))


def test_tiles_that_do_not_overlap_are_encoded_one_by_one() -> None:
    places = [Place(row, col) for row in (0, 64, 128) for col in (0, 64)]
    assert check_sheet(noise(192, 128), places, 64, Encoder(95, "4:2:0")) == 0


def test_a_shared_tile_is_about_a_percent_larger() -> None:
    starts = range(0, 513, 128)
    places = [Place(row, col) for row in starts for col in starts]
    pixels, encoder = scene(768, 768, cell=8), Encoder(95, "4:2:0")
    sheet = Sheet(pixels, places, 256, encoder)
    shared = sum(len(sheet.encoded(place)) for place in places)
    alone = sum(len(encoder.encode(pixels[row : row + 256, col : col + 256])) for row, col in places)
    assert 1 < shared / alone < 1.02
