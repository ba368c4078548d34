"""Agreement with the tiles that DL-Art-School's own script made from the sample photos."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from dlas_store import open_source
from dlas_store.sources.base import Source
from tests.support.command_line import done
from tests.support.sample_data import DATA

MEAN_DIFFERENCE = 2
"""Promised maximum of the mean difference of decoded pixels, of 255, averaged over the tiles."""

EXACT_DIFFERENCE = 0.5
"""Maximum mean difference of a single tile, of 255, if the script had a photo with the same pixels."""


def _positions(source: Source, number: int) -> list[tuple[int, int, int]]:
    """Return the centre and width of each patch of an image, in order; DL-Art-School counts the ids differently."""
    image = source.image(number)
    centers = [image.center_of(position) for position in range(len(image.files))]
    assert None not in centers
    return [tuple(center) for center in centers if center is not None]


def _differences(ours: Source, our_number: int, theirs: Source, their_number: int) -> list[float]:
    """Return the mean difference of each tile and, as the last one, of the reference."""
    assert _positions(ours, our_number) == _positions(theirs, their_number)
    pairs = [
        (ours.read(ours.first_patch(our_number) + position), theirs.read(theirs.first_patch(their_number) + position))
        for position in range(len(ours.image(our_number).files))
    ]
    references = ours.read_reference(our_number), theirs.read_reference(their_number)
    assert None not in references
    differences = []
    for our_jpeg, their_jpeg in [*pairs, references]:
        assert our_jpeg is not None
        assert their_jpeg is not None
        assert simplejpeg.decode_jpeg_header(our_jpeg) == simplejpeg.decode_jpeg_header(their_jpeg)
        delta = simplejpeg.decode_jpeg(our_jpeg).astype(int) - simplejpeg.decode_jpeg(their_jpeg)
        differences.append(float(np.abs(delta).mean()))
    return differences


@pytest.mark.parametrize("to", ["s.lmdb", "folder"])
def test_the_sample_comes_out_of_the_sample_photos(tmp_path: Path, to: str) -> None:
    photos = shutil.copytree(DATA / "photos", tmp_path / "photos")
    shutil.copy(DATA / "camera.png", photos)
    options = ("--crop-size", "128,256", "--step", "128,256", "--threshold", "64", "--min-size", "512")
    summary = done("extract", *options, photos, tmp_path / to)
    assert re.search(r"camera\.png", summary)  # greyscale
    assert re.search(r"rocket\.jpg", summary)  # 427 pixels high
    with open_source(tmp_path / to) as ours, open_source(DATA / "chunked") as theirs:
        originals = {re.sub(r"_left_\d+$", "", theirs.image_name(n)): n for n in range(theirs.image_count)}
        assert [ours.image_name(number) for number in range(ours.image_count)] == sorted(originals)
        for number, name in enumerate(sorted(originals)):
            differences = _differences(ours, number, theirs, originals[name])
            assert max(differences) <= EXACT_DIFFERENCE


def test_the_stereo_sample_comes_out_of_the_photo_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    shutil.copy(DATA / "stereo_side_by_side.jpg", tmp_path / "photos" / "motorcycle.jpg")
    # The script's minimum size is 512 for any crop size; a threshold of 128 would drop the last row and column.
    options = ("--crop-size", "256", "--step", "128", "--threshold", "64", "--resize", "0.5", "--vertical-split")
    done("extract", *options, "--min-size", "512", tmp_path / "photos", tmp_path / "s.lmdb")
    with open_source(tmp_path / "s.lmdb") as ours, open_source(DATA / "chunked_stereo") as theirs:
        assert [ours.image_name(number) for number in range(2)] == ["motorcycle_left", "motorcycle_right"]
        originals = [theirs.find_image("motorcycle_left_0"), theirs.find_image("motorcycle_right_1")]
        for number, original in enumerate(originals):
            # The sample photo was encoded as JPEG once more than the photo that the script had.
            assert np.mean(_differences(ours, number, theirs, original)) <= MEAN_DIFFERENCE
