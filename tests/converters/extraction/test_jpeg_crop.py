"""Crops of a JPEG equal the encoder's output for the same pixels; other kinds of JPEG are refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from dlas_store.converters.extraction import photos

pytest.importorskip("dlas_store.converters.extraction._jpeg_crop", reason="installed without a C compiler")

from dlas_store.converters.extraction._jpeg_crop import JpegBlocks
from dlas_store.converters.extraction.options import ExtractOptions, Subsampling
from dlas_store.converters.extraction.photos import JpegEncoder, Place, TileEncoder
from dlas_store.converters.extraction.tiles import EncodedTile, tile_photo
from tests.support.photo_files import flat, scene
from tests.support.sample_data import Array, noise

SUBSAMPLINGS: list[Subsampling] = ["4:2:0", "4:2:2", "4:4:4"]
PICTURES = {
    "noise": noise(160, 224),
    "scene": scene(160, 224),
    "white": flat(160, 224, (255, 255, 255)),
    "extremes": np.random.default_rng(0).integers(0, 2, (160, 224, 3), np.uint8) * np.uint8(255),
}


@pytest.mark.parametrize("quality", [1, 30, 75, 95, 100])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("name", PICTURES)
def test_a_part_is_what_the_encoder_makes_of_it(name: str, subsampling: Subsampling, quality: int) -> None:
    encoder, pixels = JpegEncoder(quality, subsampling), PICTURES[name]
    blocks = JpegBlocks(encoder.encode(pixels))
    height, width = encoder.unit
    random = np.random.default_rng(quality)
    for _ in range(20):
        top, bottom = height * np.sort(random.choice(160 // height + 1, 2, replace=False))
        left, right = width * np.sort(random.choice(224 // width + 1, 2, replace=False))
        crop = blocks.crop(int(top), int(left), int(bottom - top), int(right - left))
        assert crop == encoder.encode(pixels[top:bottom, left:right])
    assert blocks.crop(0, 0, 160, 224) == encoder.encode(pixels)


def test_whole_units_of_a_picture_that_ends_within_one_can_be_cut_out() -> None:
    encoder = JpegEncoder(95, "4:2:0")
    pixels = scene(45, 39)
    blocks = JpegBlocks(encoder.encode(pixels))
    assert blocks.crop(16, 16, 16, 16) == encoder.encode(pixels[16:32, 16:32])
    for rectangle in ((32, 0, 16, 16), (0, 32, 16, 16), (0, 0, 45, 39)):
        with pytest.raises(ValueError, match=r"whole units of 16 x 16 in 39 x 45"):
            blocks.crop(*rectangle)


def test_parts_beside_the_picture_or_its_units_are_an_error() -> None:
    blocks = JpegBlocks(JpegEncoder(95, "4:2:0").encode(scene(64, 64)))
    max_value = 2**63 - 1
    for value in (-16, 8, 80, 1 << 40, max_value, -max_value - 1):
        for index in range(4):
            rectangle = [16, 16, 16, 16]
            rectangle[index] = value
            with pytest.raises(ValueError, match="are not whole units"):
                blocks.crop(*rectangle)
    for rectangle in ([0, 0, 0, 16], [0, 0, 16, 0]):
        with pytest.raises(ValueError, match="are not whole units"):
            blocks.crop(*rectangle)
    with pytest.raises(OverflowError):
        blocks.crop(0, 0, 16, 1 << 64)
    with pytest.raises(TypeError):
        blocks.crop(0, 0, 16)  # type: ignore[call-arg]


def saved(pixels: Array, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        b"no JPEG at all, but longer than a header is",
        saved(scene(64, 64), progressive=True),
        saved(scene(64, 64)[:, :, 0]),
        saved(scene(64, 64), restart_marker_blocks=2),
        saved(flat(64, 64), optimize=True),
        np.asarray(cv2.imencode(".png", scene(8, 8))[1]),
    ],
)
def test_files_of_another_kind_are_an_error(data: Any) -> None:
    with pytest.raises(ValueError, match="not a JPEG of one baseline scan of three components"):
        JpegBlocks(data)


def test_arguments_of_another_kind_are_an_error() -> None:
    for args in ((), ("text",), (1,), (b"", b"")):
        with pytest.raises(TypeError):
            JpegBlocks(*args)
    with pytest.raises(TypeError):
        JpegBlocks(jpeg=b"")  # type: ignore[call-arg]


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_damaged_files_are_an_error_or_a_picture(subsampling: Subsampling) -> None:
    data = JpegEncoder(95, subsampling).encode(scene(48, 64))
    for size in range(len(data) - 2):  # only the end marker may be missing
        with pytest.raises(ValueError, match=r"JPEG|scan"):
            JpegBlocks(data[:size])
    random = np.random.default_rng(0)
    accepted = 0
    for _ in range(3000):
        damaged = bytearray(data)
        for index in random.integers(2, len(data), random.integers(1, 4)):
            damaged[index] = random.integers(0, 256)
        try:
            crop = JpegBlocks(damaged).crop(16, 16, 32, 32)
        except ValueError:
            continue
        accepted += 1
        assert crop.startswith(b"\xff\xd8")
        assert crop.endswith(b"\xff\xd9")
    assert accepted  # some damage shows only in the pixels


def places_every(step: int, until: int) -> list[Place]:
    return [Place(row, col) for row in range(0, until + 1, step) for col in range(0, until + 1, step)]


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("size", [16, 32, 24, 40, 30])
@pytest.mark.parametrize("step", [4, 8, 16, 11])
def test_tiles_are_what_they_are_if_encoded_alone(size: int, step: int, subsampling: Subsampling) -> None:
    encoder, picture = JpegEncoder(95, subsampling), noise(120, 120)
    places = [*places_every(step, 120 - size), Place(120 - size, 120 - size), Place(120 - size, 0)]
    tiles = TileEncoder(picture, places, size, encoder)
    for place in [*places, *reversed(places)]:
        assert tiles.encode(place) == encoder.encode(place.square(picture, size))


@pytest.fixture
def encoded_sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Height and width of each picture that OpenCV encodes during the test."""
    sizes: list[tuple[int, ...]] = []
    imencode = cv2.imencode

    def recorded(ending: str, pixels: Array, options: Any) -> Any:
        sizes.append(pixels.shape[:2])
        return imencode(ending, pixels, options)

    monkeypatch.setattr(photos.cv2, "imencode", recorded)
    return sizes


def test_what_tiles_share_is_encoded_once(encoded_sizes: list[tuple[int, ...]]) -> None:
    picture = scene(160, 160)
    overlapping = [*places_every(16, 96), Place(91, 91)]
    tiles = TileEncoder(picture, overlapping, 64, JpegEncoder(95, "4:2:0"))
    for place in overlapping:
        tiles.encode(place)
    assert encoded_sizes == [(160, 160), (64, 64)]
    encoded_sizes.clear()
    adjacent = places_every(64, 64)
    tiles = TileEncoder(picture, adjacent, 64, JpegEncoder(95, "4:2:0"))
    for place in adjacent:
        tiles.encode(place)
    assert encoded_sizes == [(64, 64)] * 4


@pytest.mark.parametrize("step", [1, 3])
def test_tiles_of_many_grids_do_not_each_need_the_whole_picture(
    step: int, encoded_sizes: list[tuple[int, ...]]
) -> None:
    picture, encoder, places = noise(200, 200), JpegEncoder(95, "4:4:4"), places_every(step, 72)
    tiles = TileEncoder(picture, places, 128, encoder)
    jpegs = [tiles.encode(place) for place in places]
    shared_sizes = [size for size in encoded_sizes if size != (128, 128)]
    assert shared_sizes
    assert sum(height * width for height, width in shared_sizes) <= 2 * 200 * 200
    assert jpegs == [encoder.encode(place.square(picture, 128)) for place in places]


@pytest.mark.parametrize("how", ["not compiled", "another encoder"])
def test_tiles_are_the_same_where_none_can_be_cut_out(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, encoder, places = scene(160, 160), JpegEncoder(95, "4:2:0"), places_every(16, 96)
    expected = [encoder.encode(place.square(picture, 64)) for place in places]
    if how == "not compiled":
        monkeypatch.setattr(photos, "JpegBlocks", None)
    else:
        imencode = cv2.imencode
        monkeypatch.setattr(
            photos.cv2,
            "imencode",
            lambda ending, pixels, options: imencode(
                ending, pixels, [*options, cv2.IMWRITE_JPEG_PROGRESSIVE, int(len(pixels) > 64)]
            ),
        )
    tiles = TileEncoder(picture, places, 64, encoder)
    assert [tiles.encode(place) for place in places] == expected


@pytest.mark.parametrize(
    "options",
    [
        {"crop_sz": [64, 128], "step": [16, 32], "thres_sz": 8},
        {"crop_sz": [64, 128], "step": [16, 27], "thres_sz": 8, "subsampling": "4:4:4", "compression_level": 80},
        {"crop_sz": [64, 96], "step": [24, 16], "resize_final_img": [0.5, 0.5], "subsampling": "4:2:2"},
        {"crop_sz": 64, "step": 16, "fast_decode": True, "resize_final_img": 0.25},
    ],
)
def test_photos_are_cut_into_the_same_tiles_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    (tmp_path / "photo.jpg").write_bytes(saved(scene(300, 310)))

    def tiles() -> list[EncodedTile]:
        (image,) = tile_photo(tmp_path, "photo.jpg", ExtractOptions.read(options)).images
        encoder = JpegEncoder(options.get("compression_level", 95), options.get("subsampling", "4:2:0"))
        encoded_tiles = list(image.encoded())
        assert [tile.data for tile in encoded_tiles] == [encoder.encode(pixels) for pixels in image.pixels()]
        return encoded_tiles

    expected = tiles()
    monkeypatch.setattr(photos, "JpegBlocks", None)
    assert tiles() == expected
