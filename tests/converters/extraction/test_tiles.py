"""Extraction: tiles of a photo, their pixels, and their centres."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support.file_trees import write
from tests.support.photo_files import (
    SMALL,
    Outcome,
    assert_close,
    assert_made_of,
    averaged,
    centred,
    encoded,
    expected_tiles,
    extract,
    extract_pixels,
    flat,
    scene,
)
from tests.support.sample_data import Array

pytestmark = pytest.mark.usefixtures("opencv_without_threads")


# Crop sizes, steps, threshold, resize factors


def _comma(numbers: Sequence[float]) -> str:
    return ",".join(map(str, numbers))


class Options(NamedTuple):
    """Options that determine the tiles."""

    crops: list[int]
    steps: list[int]
    threshold: int
    resize: list[float] | None

    def flags(self) -> list[str]:
        """Return the options as arguments of the command."""
        resize = [] if self.resize is None else ["--resize", _comma(self.resize)]
        crops, steps = _comma(self.crops), _comma(self.steps)
        return ["--crop-size", crops, "--step", steps, "--threshold", str(self.threshold), *resize]


@st.composite
def _options(draw: st.DrawFn) -> Options:
    crops = draw(st.lists(st.integers(2, 20).map(lambda half: 2 * half), min_size=1, max_size=3, unique=True))
    steps = [draw(st.integers(max(1, crop // 4), 2 * crop)) for crop in crops]
    resize = None
    if draw(st.booleans()):
        # The first factor gives whole pixels, so that the tile dimension does not depend on rounding.
        resize = [draw(st.sampled_from([1, 0.5, 1.5]))] + [draw(st.sampled_from([1, 0.5, 0.3])) for _ in crops[1:]]
    # int(crop * resize) of an inferred factor must not fall to the pixel below by rounding of floating point.
    elif any(int(crop * (crops[0] / crop)) != crops[0] for crop in crops):
        crops, steps = crops[:1], steps[:1]
    return Options(crops, steps, draw(st.integers(1, 24)), resize)


@given(_options(), st.lists(st.tuples(st.integers(6, 70), st.integers(6, 70)), min_size=1, max_size=6), st.data())
@settings(max_examples=25)
def test_tiles_centres_and_widths_follow_the_rules(
    options: Options, sizes: list[tuple[int, int]], data: st.DataObject
) -> None:
    min_size = data.draw(st.integers(1, 40))
    photos = {f"p{number}": scene(*size, seed=number) for number, size in enumerate(sizes)}
    with tempfile.TemporaryDirectory() as root:
        outcome = extract_pixels(Path(root), photos, *options.flags(), "--min-size", str(min_size))
    side = round(options.crops[0] * (options.resize or [1])[0])
    expected = {}
    for name, pixels in photos.items():
        square, top, left = centred(pixels)
        tiles = expected_tiles(square, *options)
        if len(square) >= min_size and tiles:
            expected[name] = tiles
            assert_made_of(outcome.images[name], square, tiles, side)
            assert outcome.images[name].extra["square"] == {"top": top, "left": left, "side": len(square)}
    assert outcome.images.keys() == expected.keys()
    assert {entry["photo"] for entry in outcome.report["skipped"]} == {
        f"{name}.png" for name in photos if name not in expected
    }
    assert not any(entry["bad"] for entry in outcome.report["skipped"])
    assert outcome.status == (0 if expected else 1)


def test_without_options_crops_are_256_and_512_steps_half_threshold_128(tmp_path: Path) -> None:
    photos = {"just": scene(640, 650), "more": scene(700, 641, seed=1), "small": scene(511, 700)}
    outcome = extract_pixels(tmp_path, photos)
    assert outcome.status == 0
    assert outcome.images.keys() == {"just", "more"}
    assert "511" in outcome.reason("small.png") or "512" in outcome.reason("small.png")
    for name, image in outcome.images.items():
        square, _, _ = centred(photos[name])
        assert_made_of(image, square, expected_tiles(square, [256, 512], [128, 256], 128, [1, 0.5]), 256)
    counts = {name: [entry["count"] for entry in image.extra["crops"]] for name, image in outcome.images.items()}
    assert counts == {"just": [16, 1], "more": [16, 4]}  # 640 leaves exactly 128 over, 641 one more


def test_a_resize_factor_is_inferred_as_the_first_crop_over_each(tmp_path: Path) -> None:
    pixels = scene(96, 96)
    outcome = extract_pixels(tmp_path, {"a": pixels}, "--crop-size", "24,48,96,12", "--step", "96,96,96,96")
    assert_made_of(
        outcome.images["a"], pixels, expected_tiles(pixels, [24, 48, 96, 12], [96] * 4, 128, [1, 0.5, 0.25, 2]), 24
    )
    assert {simplejpeg.decode_jpeg_header(tile)[:2] for tile in outcome.images["a"].tiles} == {(24, 24)}


@pytest.mark.parametrize(("first", "second"), [(128, 161), (128, 187), (256, 322)])
def test_an_inferred_factor_loses_no_pixel_to_rounding(tmp_path: Path, first: int, second: int) -> None:
    assert int(second * (first / second)) == first - 1  # in floating point
    outcome = extract_pixels(tmp_path, {"a": scene(second, second)}, "--crop-size", f"{first},{second}")
    assert {simplejpeg.decode_jpeg_header(tile)[:2] for tile in outcome.images["a"].tiles} == {(first, first)}


def test_steps_default_to_half_of_each_crop(tmp_path: Path) -> None:
    pixels = scene(100, 100)
    outcome = extract_pixels(tmp_path, {"a": pixels}, "--crop-size", "32,64", "--threshold", "8")
    assert_made_of(outcome.images["a"], pixels, expected_tiles(pixels, [32, 64], [16, 32], 8), 32)


def test_a_crop_larger_than_the_square_gives_no_tile_and_the_others_do(tmp_path: Path) -> None:
    pixels = scene(40, 60)
    outcome = extract_pixels(tmp_path, {"a": pixels}, "--crop-size", "32,64", "--threshold", "4", "--min-size", "1")
    square, _, _ = centred(pixels)
    tiles = expected_tiles(square, [32, 64], [16, 32], 4)
    assert tiles.keys() == {32}
    assert_made_of(outcome.images["a"], square, tiles, 32)


def test_only_resize_gives_one_patch_the_whole_square(tmp_path: Path) -> None:
    photos = {"a": scene(70, 120), "b": scene(64, 64, seed=1)}
    outcome = extract_pixels(tmp_path, photos, "--only-resize", "--crop-size", "64,32", "--resize", "0.5,1")
    assert outcome.status == 0
    for name, image in outcome.images.items():
        square, _, _ = centred(photos[name])
        assert image.files == ("00000000.jpg",)
        assert_close(image.tiles[0], averaged(square, 32))
        assert_close(image.reference, averaged(square, 32))
        assert image.centers == {0: (16, 16, 32)}
    assert outcome.images.keys() == photos.keys()


# Stereo


@pytest.mark.parametrize(("height", "width"), [(60, 140), (50, 160), (60, 141), (100, 80), (100, 81), (57, 113)])
def test_a_vertical_split_takes_a_square_of_each_half_towards_the_seam(tmp_path: Path, height: int, width: int) -> None:
    pixels = scene(height, width)
    outcome = extract_pixels(tmp_path, {"sub/a": pixels}, "--vertical-split", *SMALL)
    middle = width // 2
    for side, columns in {"left": range(middle), "right": range(middle, width)}.items():
        edge = min(height, len(columns))
        top = (height - edge) // 2
        left = middle - edge if side == "left" else middle
        square = pixels[top : top + edge, left : left + edge]
        image = outcome.images[f"sub__a_{side}"]
        assert_made_of(image, square, expected_tiles(square, [32], [32], 8), 32)
        assert image.extra["square"] == {"top": top, "left": left, "side": edge}
        assert image.extra["photo"]["path"] == "sub/a.png"
    assert len(outcome.images) == outcome.report["images"] == 2


def test_the_least_side_is_that_before_the_split(tmp_path: Path) -> None:
    photos = {"wide": scene(64, 70), "low": scene(63, 200, seed=1)}
    outcome = extract_pixels(tmp_path, photos, "--vertical-split", "--min-size", "64", *SMALL)
    assert outcome.images.keys() == {"wide_left", "wide_right"}
    outcome.reason("low.png")


# Masks


def _with_mask(tmp_path: Path, mask: Array, *, side: int = 64) -> Outcome:
    write(tmp_path / "masks", {"a.png.png": encoded(mask, "png")})
    return extract_pixels(tmp_path, {"a": scene(side, side)}, "--masks", tmp_path / "masks", "--min-size", "1", *SMALL)


def test_a_tile_is_kept_where_its_mask_is_at_least_half_white(tmp_path: Path) -> None:
    mask = np.zeros((256, 256), np.uint8)
    mask[:128, :64] = 255  # top left: exactly half
    mask[:128, 128:191] = 255  # top right: just less
    mask[128:, 128:] = 128  # bottom right: just more
    (mask[128:, :128])[:] = 127  # bottom left: just less
    outcome = _with_mask(tmp_path, mask)
    square = scene(64, 64)
    tiles = expected_tiles(square, [32], [32], 8)[32]
    assert_made_of(outcome.images["a"], square, {32: [tiles[0], tiles[3]]}, 32)


def test_a_mask_of_one_bit_is_one_of_black_and_white(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", {"a.png": encoded(scene(64, 64), "png")})
    half = Image.new("1", (256, 256))
    half.paste(1, (0, 0, 256, 128))
    write(tmp_path / "masks", {"a.png.png": encoded(half, "png")})
    outcome = extract(photos, "--masks", tmp_path / "masks", *SMALL)
    assert [center[0] for center in outcome.images["a"].centers.values()] == [8, 8]


@pytest.mark.parametrize("side", [96, 200, 256, 300, 1000])
def test_masks_lie_over_the_square_for_every_crop_size(tmp_path: Path, side: int) -> None:
    mask = np.zeros((256, 256), np.uint8)
    mask[:, 128:] = 255
    write(tmp_path / "masks", {"a.png.png": encoded(mask, "png")})
    crops = [side // 4, side // 2]
    options = ("--crop-size", _comma(crops), "--step", _comma(crops), "--masks", tmp_path / "masks", "--min-size", "1")
    square = scene(side, side)
    outcome = extract_pixels(tmp_path, {"a": np.hstack([flat(side, 20), square, flat(side, 20)])}, *options)
    tiles = expected_tiles(square, crops, crops, 128)
    columns = {size: round(len(crop_tiles) ** 0.5) for size, crop_tiles in tiles.items()}
    right_half = {
        size: [tile for number, tile in enumerate(crop_tiles) if number % columns[size] >= columns[size] / 2]
        for size, crop_tiles in tiles.items()
    }
    assert [len(crop_tiles) for crop_tiles in right_half.values()] == [8, 2]
    assert_made_of(outcome.images["a"], square, right_half, crops[0])


def test_a_mask_is_named_after_its_photo_with_the_ending_and_is_used_for_both_halves(tmp_path: Path) -> None:
    photos = write(
        tmp_path / "photos",
        {"a.png": encoded(scene(64, 128), "png"), "b.JPG": encoded(scene(64, 128, seed=1), "jpg", quality=95)},
    )
    top = np.zeros((256, 256), np.uint8)
    top[:128] = 255
    write(tmp_path / "masks", {"a.png.png": encoded(top, "png"), "b.JPG.png": encoded(255 - top, "png")})
    outcome = extract(photos, "--masks", tmp_path / "masks", "--vertical-split", *SMALL)
    rows = {name: [center[0] for center in image.centers.values()] for name, image in outcome.images.items()}
    assert rows == {"a_left": [8, 8], "a_right": [8, 8], "b_left": [24, 24], "b_right": [24, 24]}


def test_masks_of_nested_photos_lie_nested(tmp_path: Path) -> None:
    white, black = np.full((256, 256), 255, np.uint8), np.zeros((256, 256), np.uint8)
    write(tmp_path / "masks", {"one/a.png.png": encoded(white, "png"), "two/a.png.png": encoded(black, "png")})
    photos = {"one/a": scene(64, 64), "two/a": scene(64, 64, seed=1)}
    outcome = extract_pixels(tmp_path, photos, "--masks", tmp_path / "masks", *SMALL)
    assert outcome.status == 0  # skipped by an option
    assert outcome.images.keys() == {"one__a"}
    assert "mask" in outcome.reason("two/a.png")


def test_a_nested_photo_takes_the_mask_of_its_file_name_where_masks_lie_flat(tmp_path: Path) -> None:
    write(tmp_path / "masks", {"a.png.png": encoded(np.full((256, 256), 255, np.uint8), "png")})
    outcome = extract_pixels(tmp_path, {"one/a": scene(64, 64)}, "--masks", tmp_path / "masks", *SMALL)
    assert len(outcome.images["one__a"].files) == 4


# Encoding of tiles


def _subsampling(content: bytes) -> str:
    return str(simplejpeg.decode_jpeg_header(content)[3])


def _quantization(content: bytes, tmp_path: Path) -> Any:
    with Image.open(write(tmp_path, {"tile.jpg": content}) / "tile.jpg") as image:
        return image.quantization


@pytest.mark.parametrize("subsampling", [None, "4:2:0", "4:2:2", "4:4:4"])
@pytest.mark.parametrize("quality", [None, 95, 60])
def test_tiles_have_the_quality_and_subsampling_asked_for(
    tmp_path: Path, quality: int | None, subsampling: str | None
) -> None:
    options = [] if quality is None else ["--quality", str(quality)]
    options += [] if subsampling is None else ["--subsampling", subsampling]
    outcome = extract_pixels(tmp_path, {"a": scene(64, 64)}, *options, *SMALL)
    like = encoded(scene(32, 32), "jpg", quality=quality or 95, subsampling="4:2:0")
    for content in (*outcome.images["a"].tiles, outcome.images["a"].reference):
        assert _subsampling(content) == (subsampling or "4:2:0").replace(":", "")
        assert _quantization(content, tmp_path) == _quantization(like, tmp_path)
        assert simplejpeg.decode_jpeg_header(content)[2] == "YCbCr"


# --fast-decode


def test_a_fast_decode_keeps_all_but_pixels_and_those_nearly(tmp_path: Path) -> None:
    sizes = [(1024, 1024), (1030, 1601), (1999, 1023), (1100, 1025)]
    smooth = [scene(*size, seed=seed, cell=128) for seed, size in enumerate(sizes)]
    photos = write(
        tmp_path / "photos",
        {f"{seed}.jpg": encoded(pixels, "jpg", quality=95, orientation=seed + 5) for seed, pixels in enumerate(smooth)},
    )
    for number, options in enumerate(
        [
            ("--crop-size", "512", "--resize", "0.25"),
            ("--crop-size", "512,1000", "--resize", "0.125,0.0625", "--threshold", "16"),
            ("--only-resize", "--crop-size", "64"),
            ("--crop-size", "256", "--resize", "0.25", "--halve-above", "1050", "--min-size", "256"),
            ("--crop-size", "256", "--resize", "0.5", "--vertical-split"),
        ]
    ):
        exact = extract(photos, *options, to=f"exact{number}.lmdb")
        fast = extract(photos, "--fast-decode", *options, to=f"fast{number}.lmdb")
        assert exact.status == fast.status == 0
        assert exact.images.keys() == fast.images.keys()
        for name, image in exact.images.items():
            fast_image = fast.images[name]
            assert (fast_image.files, fast_image.centers, fast_image.extra) == (image.files, image.centers, image.extra)
            for exact_jpeg, fast_jpeg in zip(
                (*image.tiles, image.reference), (*fast_image.tiles, fast_image.reference), strict=True
            ):
                pixels = simplejpeg.decode_jpeg(exact_jpeg).astype(int)
                steps = [np.abs(np.diff(pixels, axis=axis)).mean() for axis in (0, 1)]
                # Encoding differs by 1, a shift by half a pixel of the tile by half a step, another tile by 60.
                assert np.abs(pixels - simplejpeg.decode_jpeg(fast_jpeg)).mean() <= 1 + sum(steps) / 2
        if number == 0:
            assert fast.images != exact.images


def test_a_fast_decode_that_saves_nothing_changes_nothing(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", {"a.jpg": encoded(scene(200, 200), "jpg", quality=95)})
    options = ("--crop-size", "128,64")  # the tile of 64 is enlarged
    assert extract(photos, "--fast-decode", *options).images == extract(photos, *options, to="exact.lmdb").images
