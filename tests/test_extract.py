"""Extracting: which tiles come out of photos, under which names, and what is kept of them."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import psutil
import pytest
import simplejpeg
import yaml
from cli import PROGRAM, done, is_whole, run
from hypothesis import given, settings
from hypothesis import strategies as st
from photo_files import ENDINGS, decoded, encoded, flat, scene, upright
from PIL import Image
from samples import Array
from trees import read, states, write

from dlas_store import open_source
from dlas_store.cli import main
from dlas_store.datasets import SingleImageDataset

MAX_MEAN_DIFFERENCE = 2
"""Of 255, after decoding: the promise. A square that lies one pixel beside its place differs by some 10."""

SMALL = ("--crop-size", "32", "--step", "32", "--threshold", "8")
"""Options for photos of some dozen pixels."""


@pytest.fixture(autouse=True)
def opencv_without_threads() -> Iterator[None]:
    """Keep OpenCV's threads out of this process, from which the command forks its workers."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)


# What the rules say, in plain lines


class Tile(NamedTuple):
    """What one patch must be."""

    pixels: Array
    center: tuple[int, int, int]


def centred(pixels: Array) -> tuple[Array, int, int]:
    """Return the centred square, and its top and left."""
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side], top, left


def averaged(pixels: Array, side: int) -> Array:
    return cv2.resize(np.ascontiguousarray(pixels), (side, side), interpolation=cv2.INTER_AREA)


def starts(side: int, crop: int, step: int, threshold: int) -> list[int]:
    found = list(range(0, side - crop + 1, step))
    if found and side - (found[-1] + crop) > threshold:
        found.append(side - crop)
    return found


def cut(
    square: Array, crops: Sequence[int], steps: Sequence[int], threshold: int, resize: Sequence[float] | None = None
) -> dict[int, list[Tile]]:
    """Return the tiles of a square by crop size, sizes without a tile left out."""
    factors = resize or [crops[0] / crop for crop in crops]
    side = len(square)
    f = side / round(crops[0] * factors[0])
    tiles: dict[int, list[Tile]] = {}
    for crop, step, factor in zip(crops, steps, factors, strict=True):
        for row in starts(side, crop, step, threshold):
            for col in starts(side, crop, step, threshold):
                pixels = averaged(square[row : row + crop, col : col + crop], int(crop * factor))
                center = (int((row + crop // 2) // f), int((col + crop // 2) // f), int(crop // f))
                tiles.setdefault(crop, []).append(Tile(pixels, center))
    return tiles


# What came out


class Extracted(NamedTuple):
    """One image of a store or folder."""

    files: tuple[str, ...]
    tiles: list[bytes]
    reference: bytes
    centers: dict[int, tuple[int, int, int]]
    extra: dict[str, Any]


class Outcome(NamedTuple):
    """How an extraction ended."""

    status: int
    report: dict[str, Any]
    images: dict[str, Extracted]

    def reason(self, photo: str) -> str:
        """Return why a photo was left out, which must be said once."""
        (entry,) = (entry for entry in self.report["skipped"] if entry["photo"] == photo)
        assert isinstance(entry["reason"], str)
        return str(entry["reason"])


def images_of(path: Path) -> dict[str, Extracted]:
    """Return what is in a store or folder, by image."""
    found = {}
    with open_source(path) as source:
        for number in range(source.image_count):
            image, first = source.image(number), source.first_patch(number)
            reference = source.read_reference(number)
            assert reference is not None
            assert image.centers is not None
            found[image.name] = Extracted(
                image.files,
                [source.read(first + position) for position in range(len(image.files))],
                reference,
                {number: tuple(center) for number, center in image.centers.items()},
                dict(image.extra),
            )
    return found


def extract(photos: Path, *options: str | Path, to: str = "s.lmdb") -> Outcome:
    """Run the command in this process, into ``to`` beside the photos, and read back what it made."""
    target, report = photos.with_name(to), photos.with_name(f"{to}.json")
    status = main(["extract", *map(str, (photos, target, "--workers", "1", "--report", report, *options))])
    return Outcome(status, json.loads(report.read_text()), images_of(target) if target.exists() else {})


def extract_pixels(folder: Path, photos: Mapping[str, Array], *options: str | Path) -> Outcome:
    """Extract from pixels, by the paths of photos without their ending."""
    return extract(
        write(folder / "photos", {f"{name}.png": encoded(pixels, "png") for name, pixels in photos.items()}), *options
    )


def assert_close(content: bytes, pixels: Array) -> None:
    """Hold a tile to pixels, brought through the JPEG encoder that the original used."""
    done_, wanted = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert done_
    assert simplejpeg.decode_jpeg_header(content)[:2] == pixels.shape[:2]
    difference = simplejpeg.decode_jpeg(content).astype(int) - simplejpeg.decode_jpeg(wanted.tobytes())
    assert np.abs(difference).mean() <= MAX_MEAN_DIFFERENCE


def assert_made_of(image: Extracted, square: Array, tiles: Mapping[int, Sequence[Tile]], side: int) -> None:
    """Hold an image to its square and the tiles of each crop size."""
    wanted = [tile for of_size in tiles.values() for tile in of_size]
    assert image.files == tuple(f"{number:08d}.jpg" for number in range(len(wanted)))
    assert image.centers == {number: tile.center for number, tile in enumerate(wanted)}
    first, crops = 0, []
    for size, of_size in tiles.items():
        crops.append({"size": size, "first": first, "count": len(of_size)})
        first += len(of_size)
    assert [entry for entry in image.extra["crops"] if entry["count"]] == crops
    assert_close(image.reference, averaged(square, side))
    for content, tile in zip(image.tiles, wanted, strict=True):
        assert_close(content, tile.pixels)


# Crop sizes, steps, threshold, resize factors


def _comma(numbers: Sequence[float]) -> str:
    return ",".join(map(str, numbers))


class Options(NamedTuple):
    """What says which tiles are cut."""

    crops: list[int]
    steps: list[int]
    threshold: int
    resize: list[float] | None

    def flags(self) -> list[str]:
        """Return them as the command takes them."""
        given_resize = [] if self.resize is None else ["--resize", _comma(self.resize)]
        crops, steps = _comma(self.crops), _comma(self.steps)
        return ["--crop-size", crops, "--step", steps, "--threshold", str(self.threshold), *given_resize]


@st.composite
def _options(draw: st.DrawFn) -> Options:
    crops = draw(st.lists(st.integers(2, 20).map(lambda half: 2 * half), min_size=1, max_size=3, unique=True))
    steps = [draw(st.integers(max(1, crop // 4), 2 * crop)) for crop in crops]
    resize = None
    if draw(st.booleans()):
        # The first gives whole pixels, so that it needs no rule of rounding for the tile dimension.
        resize = [draw(st.sampled_from([1, 0.5, 1.5]))] + [draw(st.sampled_from([1, 0.5, 0.3])) for _ in crops[1:]]
    # int(crop * resize) of an inferred factor must not fall to the pixel below by rounding of floating point.
    elif any(int(crop * (crops[0] / crop)) != crops[0] for crop in crops):
        crops, steps = crops[:1], steps[:1]
    return Options(crops, steps, draw(st.integers(1, 24)), resize)


@given(_options(), st.lists(st.tuples(st.integers(6, 70), st.integers(6, 70)), min_size=1, max_size=6), st.data())
@settings(max_examples=25, deadline=None)
def test_tiles_centres_and_widths_follow_the_rules(
    options: Options, sizes: list[tuple[int, int]], data: st.DataObject
) -> None:
    min_size = data.draw(st.integers(1, 40))
    photos = {f"p{number}": scene(*size, seed=number) for number, size in enumerate(sizes)}
    with tempfile.TemporaryDirectory() as root:
        outcome = extract_pixels(Path(root), photos, *options.flags(), "--min-size", str(min_size))
    side = round(options.crops[0] * (options.resize or [1])[0])
    wanted = {}
    for name, pixels in photos.items():
        square, top, left = centred(pixels)
        tiles = cut(square, *options)
        if len(square) >= min_size and tiles:
            wanted[name] = tiles
            assert_made_of(outcome.images[name], square, tiles, side)
            assert outcome.images[name].extra["square"] == {"top": top, "left": left, "side": len(square)}
    assert outcome.images.keys() == wanted.keys()
    assert {entry["photo"] for entry in outcome.report["skipped"]} == {
        f"{name}.png" for name in photos if name not in wanted
    }
    assert not any(entry["bad"] for entry in outcome.report["skipped"])
    assert outcome.status == (0 if wanted else 1)


def test_without_options_crops_are_256_and_512_steps_half_threshold_128(tmp_path: Path) -> None:
    photos = {"just": scene(640, 650), "more": scene(700, 641, seed=1), "small": scene(511, 700)}
    outcome = extract_pixels(tmp_path, photos)
    assert outcome.status == 0
    assert outcome.images.keys() == {"just", "more"}
    assert "511" in outcome.reason("small.png") or "512" in outcome.reason("small.png")
    for name, image in outcome.images.items():
        square, _, _ = centred(photos[name])
        assert_made_of(image, square, cut(square, [256, 512], [128, 256], 128, [1, 0.5]), 256)
    counts = {name: [entry["count"] for entry in image.extra["crops"]] for name, image in outcome.images.items()}
    assert counts == {"just": [16, 1], "more": [16, 4]}  # 640 leaves exactly 128 over, 641 one more


def test_a_resize_factor_is_inferred_as_the_first_crop_over_each(tmp_path: Path) -> None:
    pixels = scene(96, 96)
    outcome = extract_pixels(tmp_path, {"a": pixels}, "--crop-size", "24,48,96,12", "--step", "96,96,96,96")
    assert_made_of(outcome.images["a"], pixels, cut(pixels, [24, 48, 96, 12], [96] * 4, 128, [1, 0.5, 0.25, 2]), 24)
    assert {simplejpeg.decode_jpeg_header(tile)[:2] for tile in outcome.images["a"].tiles} == {(24, 24)}


@pytest.mark.parametrize(("first", "other"), [(128, 161), (128, 187), (256, 322)])
def test_an_inferred_factor_loses_no_pixel_to_rounding(tmp_path: Path, first: int, other: int) -> None:
    assert int(other * (first / other)) == first - 1  # in floating point
    outcome = extract_pixels(tmp_path, {"a": scene(other, other)}, "--crop-size", f"{first},{other}")
    assert {simplejpeg.decode_jpeg_header(tile)[:2] for tile in outcome.images["a"].tiles} == {(first, first)}


def test_steps_default_to_half_of_each_crop(tmp_path: Path) -> None:
    pixels = scene(100, 100)
    outcome = extract_pixels(tmp_path, {"a": pixels}, "--crop-size", "32,64", "--threshold", "8")
    assert_made_of(outcome.images["a"], pixels, cut(pixels, [32, 64], [16, 32], 8), 32)


def test_a_crop_larger_than_the_square_gives_no_tile_and_the_others_do(tmp_path: Path) -> None:
    pixels = scene(40, 60)
    outcome = extract_pixels(tmp_path, {"a": pixels}, "--crop-size", "32,64", "--threshold", "4", "--min-size", "1")
    square, _, _ = centred(pixels)
    tiles = cut(square, [32, 64], [16, 32], 4)
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
        assert_made_of(image, square, cut(square, [32], [32], 8), 32)
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
    tiles = cut(square, [32], [32], 8)[32]
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
    tiles = cut(square, crops, crops, 128)
    right = {
        size: [tile for number, tile in enumerate(of) if number % len(of) ** 0.5 >= len(of) ** 0.5 / 2]
        for size, of in tiles.items()
    }
    assert [len(of) for of in right.values()] == [8, 2]
    assert_made_of(outcome.images["a"], square, right, crops[0])


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
    assert outcome.status == 0  # left out by an option
    assert outcome.images.keys() == {"one__a"}
    assert "mask" in outcome.reason("two/a.png")


def test_a_nested_photo_takes_the_mask_of_its_file_name_where_masks_lie_flat(tmp_path: Path) -> None:
    write(tmp_path / "masks", {"a.png.png": encoded(np.full((256, 256), 255, np.uint8), "png")})
    outcome = extract_pixels(tmp_path, {"one/a": scene(64, 64)}, "--masks", tmp_path / "masks", *SMALL)
    assert len(outcome.images["one__a"].files) == 4


# Which photos


def test_exclusions_hold_for_the_size_they_name_or_for_all(tmp_path: Path) -> None:
    photos = {name: scene(64, 64) for name in ("cat_1", "dog_2", "zoo/cat_3", "catalogue/bird", "fish")}
    options = ("--crop-size", "32,64", "--step", "32,64")
    outcome = extract_pixels(
        tmp_path,
        photos,
        *options,
        "--exclude",
        "64:cat",
        "--exclude",
        "32:dog",
        "--exclude",
        "64:zoo",
        "--exclude",
        "fish",
    )
    sizes = {
        name: [entry["size"] for entry in image.extra["crops"] if entry["count"]]
        for name, image in outcome.images.items()
    }
    assert sizes == {"cat_1": [32], "dog_2": [64], "zoo__cat_3": [32], "catalogue__bird": [32]}
    assert outcome.status == 0
    assert "exclu" in outcome.reason("fish.png")
    assert_made_of(outcome.images["dog_2"], photos["dog_2"], {64: cut(photos["dog_2"], [32, 64], [32, 64], 8)[64]}, 32)


def test_terms_are_looked_for_below_the_folder_of_photos(tmp_path: Path) -> None:
    outcome = extract_pixels(tmp_path / "holiday", {"a": scene(40, 40)}, "--exclude", "holiday", *SMALL)
    assert outcome.images.keys() == {"a"}


@pytest.mark.parametrize(
    ("height", "width", "factor"), [(600, 5500, 1), (600, 5501, 2), (5501, 601, 2), (602, 5502, 2)]
)
def test_a_photo_is_halved_when_its_longer_side_is_above_5500(
    tmp_path: Path, height: int, width: int, factor: int
) -> None:
    pixels = scene(height, width)
    outcome = extract_pixels(tmp_path, {"a": pixels}, "--crop-size", "128", "--step", "172")
    if factor == 2:
        pixels = cv2.resize(pixels, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    square, top, left = centred(pixels)
    image = outcome.images["a"]
    assert_made_of(image, square, cut(square, [128], [172], 128), 128)
    assert image.extra["photo"] | {"bytes": 0} == {"path": "a.png", "bytes": 0, "height": height, "width": width}
    assert image.extra["square"] == {"top": top, "left": left, "side": len(square)}


def test_the_least_side_is_that_after_halving(tmp_path: Path) -> None:
    photos = {"a": scene(128, 200), "b": scene(126, 200, seed=1), "c": scene(99, 100, seed=2)}
    outcome = extract_pixels(tmp_path, photos, "--halve-above", "100", "--min-size", "64", *SMALL)
    assert {name: image.extra["square"]["side"] for name, image in outcome.images.items()} == {"a": 64, "c": 99}
    assert outcome.reason("b.png")


def test_the_least_size_is_the_largest_crop_unless_given(tmp_path: Path) -> None:
    photos = {f"p{side}": scene(side, 90, seed=side) for side in (31, 32, 63, 64)}
    options = ("--crop-size", "64,32", "--step", "64,32")
    assert extract_pixels(tmp_path / "a", photos, *options).images.keys() == {"p64"}
    assert extract_pixels(tmp_path / "b", photos, *options, "--min-size", "32").images.keys() == {"p32", "p63", "p64"}
    small = extract_pixels(tmp_path / "c", photos, *options, "--min-size", "1")
    assert small.images.keys() == {"p32", "p63", "p64"}
    assert small.reason("p31.png")
    assert small.status == 0


def test_greyscale_is_left_out_unless_converted(tmp_path: Path) -> None:
    grey = scene(64, 64)[..., 0]
    files = {
        "g.png": encoded(grey, "png"),
        "j.jpg": encoded(grey, "jpg", quality=95),
        "a.png": encoded(Image.merge("LA", [Image.fromarray(grey), Image.new("L", (64, 64))]), "png"),
        "b.tif": encoded(Image.fromarray(grey).convert("1"), "tif"),
        "colour.png": encoded(np.dstack([grey] * 3), "png"),
    }
    photos = write(tmp_path / "photos", files)
    skipped = extract(photos, *SMALL)
    assert skipped.images.keys() == {"colour"}
    assert skipped.status == 0
    for name in ("g.png", "j.jpg", "a.png", "b.tif"):
        assert re.search("gr[ea]y", skipped.reason(name))
    assert not any(entry["bad"] for entry in skipped.report["skipped"])
    converted = extract(photos, "--greyscale", "convert", *SMALL, to="all.lmdb")
    assert converted.status == 0
    for name, content in files.items():
        square = decoded(content)
        assert_made_of(converted.images[name.partition(".")[0]], square, cut(square, [32], [32], 8), 32)


# How tiles are encoded


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


# Kinds of files


def test_every_kind_is_taken_with_endings_in_any_case(tmp_path: Path) -> None:
    files = {}
    for seed, ending in enumerate(ENDINGS):
        for number, spelt in enumerate((ending, ending.upper(), ending.capitalize())):
            files[f"{ending}{number}.{spelt}"] = encoded(scene(50, 40, seed=10 * seed + number), ending)
    photos = write(tmp_path / "photos", {**files, "notes.txt": b"n", "a/cache.pth": b"c", "jpg": b"no ending"})
    outcome = extract(photos, *SMALL)
    assert outcome.status == 0
    assert outcome.images.keys() == {name.partition(".")[0] for name in files}
    for name, content in files.items():
        pixels = decoded(content)
        square, top, left = centred(pixels)
        image = outcome.images[name.partition(".")[0]]
        assert_made_of(image, square, cut(square, [32], [32], 8), 32)
        assert image.extra["photo"] == {"path": name, "bytes": len(content), "height": 50, "width": 40}
        assert image.extra["square"] == {"top": top, "left": left, "side": 40}


def test_exif_turns_a_photo_before_it_is_cut_unless_ignored(tmp_path: Path) -> None:
    stored = scene(50, 80)
    files = {f"j{turn}.jpg": (encoded(stored, "jpg", quality=95, orientation=turn), turn) for turn in range(1, 9)}
    files |= {
        f"{ending}{turn}.{ending}": (encoded(stored, ending, orientation=turn), turn)
        for ending in ("png", "tiff", "webp")
        for turn in (3, 6)
    }
    photos = write(tmp_path / "photos", {name: content for name, (content, _) in files.items()})
    # Split, since the centred square of a turned photo is the turned square.
    options = ("--vertical-split", "--min-size", "1", "--crop-size", "24", "--step", "24", "--threshold", "4")
    for ignore in (False, True):
        outcome = extract(photos, *options, *(["--ignore-exif"] if ignore else []), to=f"{ignore}.lmdb")
        assert outcome.status == 0
        for name, (content, turn) in files.items():
            pixels = decoded(content) if name.startswith("j") else stored
            pixels = pixels if ignore else upright(pixels, turn)
            height, width = pixels.shape[:2]
            edge = min(height, width // 2)
            top = (height - edge) // 2
            image = outcome.images[f"{name.partition('.')[0]}_right"]
            square = pixels[top : top + edge, width // 2 : width // 2 + edge]
            assert_made_of(image, square, cut(square, [24], [24], 4), 24)
            assert image.extra["photo"] == {"path": name, "bytes": len(content), "height": 50, "width": 80}
            assert image.extra["square"] == {"top": top, "left": width // 2, "side": edge}


def test_alpha_is_dropped_and_a_palette_becomes_its_colours(tmp_path: Path) -> None:
    colours = scene(40, 40)
    alpha = np.zeros((40, 40, 1), np.uint8)
    alpha[:, 20:] = 99
    palette = Image.fromarray(colours).quantize(16)
    clear = palette.copy()
    clear.info["transparency"] = 0
    files = {
        "rgba.png": encoded(np.dstack([colours, alpha]), "png"),
        "rgba.webp": encoded(np.dstack([colours, alpha]), "webp"),
        "rgba.tif": encoded(np.dstack([colours, alpha]), "tif"),
        "palette.png": encoded(palette, "png"),
        "clear.png": encoded(clear, "png", transparency=0),
    }
    for name, content in files.items():
        photos = write(tmp_path / name / "photos", {name: content})
        square = np.array(palette.convert("RGB")) if name in ("palette.png", "clear.png") else colours
        outcome = extract(photos, *SMALL)
        assert_made_of(outcome.images[name.partition(".")[0]], square, cut(square, [32], [32], 8), 32)


# Names


def test_images_are_named_by_their_path_at_any_depth(tmp_path: Path) -> None:
    names = ["a", "b/c", "b/d/e/f/g/h", "two words/ünï.code", "日本/語", "-dash", ".hidden.not"]
    outcome = extract_pixels(tmp_path, {name: scene(40, 40, seed=n) for n, name in enumerate(names)}, *SMALL)
    assert outcome.images.keys() == {name.replace("/", "__") for name in names}
    for name in names:
        assert outcome.images[name.replace("/", "__")].extra["photo"]["path"] == f"{name}.png"
        assert outcome.images[name.replace("/", "__")].files[0] == "00000000.jpg"


def test_photos_in_linked_folders_are_taken(tmp_path: Path) -> None:
    write(tmp_path / "outside", {"a.png": encoded(scene(40, 40), "png")})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "outside")
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "photos")
    assert extract(tmp_path / "photos", *SMALL).images.keys() == {"linked__a"}


# --config


def _config(tmp_path: Path, options: Mapping[str, Any]) -> Path:
    return write(tmp_path, {"config.yml": yaml.safe_dump(dict(options)).encode()}) / "config.yml"


CONFIGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "sizes": (
        {"crop_sz": [32, 64], "step": [16, 40], "thres_sz": 4, "resize_final_img": [0.5, 0.25]},
        ("--crop-size", "32,64", "--step", "16,40", "--threshold", "4", "--resize", "0.5,0.25"),
    ),
    "one_size": ({"crop_sz": 48, "step": 20, "thres_sz": 4}, ("--crop-size", "48", "--step", "20", "--threshold", "4")),
    "only_resize": ({"crop_sz": [48], "only_resize": True}, ("--crop-size", "48", "--only-resize")),
    "split": (
        {"crop_sz": [48], "vertical_split": True, "min_size": 8},
        ("--crop-size", "48", "--vertical-split", "--min-size", "8"),
    ),
    "masks": (
        {"crop_sz": [32], "step": [32], "use_masking": True, "mask_path": "masks"},
        ("--crop-size", "32", "--step", "32", "--masks", "masks"),
    ),
    "no_masks": ({"crop_sz": 32, "use_masking": False, "mask_path": "nowhere"}, ("--crop-size", "32")),
    "exclusions": (
        {"crop_sz": [32, 64], "exclusions": [["one", "x"], []]},
        ("--crop-size", "32,64", "--exclude", "32:one", "--exclude", "32:x"),
    ),
    "halve": (
        {"crop_sz": [32], "input_image_max_size_before_being_halved": 90},
        ("--crop-size", "32", "--halve-above", "90"),
    ),
    "encoding": (
        {"crop_sz": [32], "compression_level": 70, "subsampling": "4:4:4", "n_thread": 2},
        ("--crop-size", "32", "--quality", "70", "--subsampling", "4:4:4"),
    ),
    "photos": (
        {"crop_sz": [32], "greyscale": "convert", "ignore_exif": True, "fast_decode": False},
        ("--crop-size", "32", "--greyscale", "convert", "--ignore-exif"),
    ),
}


@pytest.fixture
def varied(tmp_path: Path) -> Path:
    """Photos of which every option changes something, and masks for them."""
    files = {
        "one.png": encoded(scene(70, 110), "png"),
        "sub/two.jpg": encoded(scene(120, 80, seed=1), "jpg", quality=90, orientation=6),
        "sub/grey.png": encoded(scene(80, 80, seed=2)[..., 0], "png"),
    }
    mask = np.zeros((256, 256), np.uint8)
    mask[:200] = 255
    write(tmp_path / "masks", {f"{name}.png": encoded(mask, "png") for name in files})
    return write(tmp_path / "photos", files)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_with_the_names_of_the_original_does_what_flags_do(
    varied: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options, flags = CONFIGS[name]
    by_flags = extract(varied, *flags)
    by_config = extract(varied, "--config", _config(tmp_path, options), to="config.lmdb")
    assert by_config.images == by_flags.images
    assert by_config.images
    plain = extract(varied, "--crop-size", flags[1], to="plain.lmdb")
    assert (plain.images == by_flags.images) == (name == "no_masks")


def test_flags_override_a_config(varied: Path, tmp_path: Path) -> None:
    config = _config(
        tmp_path,
        {"crop_sz": [32, 64], "step": [32, 64], "thres_sz": 1, "compression_level": 10, "greyscale": "convert"},
    )
    flags = ("--threshold", "128", "--quality", "80", "--greyscale", "skip", "--step", "40,80")
    overridden = extract(varied, "--config", config, *flags)
    assert overridden.images == extract(varied, "--crop-size", "32,64", *flags, to="flags.lmdb").images


def test_folders_of_a_config_give_way_to_those_of_the_command(varied: Path, tmp_path: Path) -> None:
    config = _config(
        tmp_path, {"crop_sz": 64, "input_folder": "/nowhere/a", "save_folder": "/nowhere/b", "dest": "file"}
    )
    out = done("extract", "--config", config, varied, tmp_path / "s.lmdb")
    lines = [line for line in out.splitlines() if "input_folder" in line]
    assert len(lines) == 1
    assert "save_folder" in lines[0]
    assert images_of(tmp_path / "s.lmdb") == extract(varied, "--crop-size", "64", to="flags.lmdb").images


# --dry-run

DRY = {
    "plain": SMALL,
    "split": ("--vertical-split", "--min-size", "1", *SMALL),
    "sizes": ("--crop-size", "32,64", "--step", "20,30", "--threshold", "4", "--exclude", "32:two"),
    "masks": ("--masks", "masks", *SMALL),
    "halved": ("--halve-above", "100", "--min-size", "1", *SMALL),
    "only_resize": ("--only-resize", *SMALL),
    "convert": ("--greyscale", "convert", *SMALL),
}


@pytest.mark.parametrize("name", DRY)
def test_a_dry_run_says_what_will_come_and_writes_nothing(
    varied: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = read(tmp_path)
    assert main(["extract", "--dry-run", *DRY[name], "photos", "s.lmdb"]) == 0
    assert read(tmp_path) == before
    printed = capsys.readouterr()
    assert printed.err == ""
    outcome = extract(varied, *DRY[name])
    said = {word: int(number.replace(",", "")) for number, word in re.findall(r"(\d[\d,]*) (\w+)", printed.out)}
    assert said["photos"] == len({image.extra["photo"]["path"] for image in outcome.images.values()})
    assert said["images"] == outcome.report["images"]
    assert said["patches"] == outcome.report["patches"]
    assert re.search(r"[\d.,]+ [kMG]?B\b|bytes", printed.out)
    assert re.search(r"\d (s|min|h|seconds|minutes)\b", printed.out)


def test_the_estimate_of_bytes_is_of_the_right_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write(tmp_path / "photos", {f"{n}.png": encoded(scene(300, 300, seed=n), "png") for n in range(4)})
    options = ("--crop-size", "128", "--step", "64")
    assert main(["extract", "--dry-run", *options, str(photos), str(tmp_path / "s.lmdb")]) == 0
    (number, unit) = re.findall(r"([\d.,]+) ([kMG]?B)\b", capsys.readouterr().out)[0]
    estimate = float(number.replace(",", "")) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    assert 0.25 < estimate / extract(photos, *options).report["bytes"] < 4


# --report and the summary


def test_the_report_counts_what_came_out(varied: Path, tmp_path: Path) -> None:
    outcome = extract(varied, *SMALL)
    report = outcome.report
    assert set(report) == {"images", "patches", "bytes", "seconds", "skipped", "present", "changed"}
    assert report["images"] == len(outcome.images) == 2
    assert report["patches"] == sum(len(image.files) for image in outcome.images.values())
    assert report["bytes"] == sum(
        len(content) for image in outcome.images.values() for content in (*image.tiles, image.reference)
    )
    assert 0 < report["seconds"] < 100
    assert (report["present"], report["changed"]) == (0, [])
    assert [(entry["photo"], entry["bad"]) for entry in report["skipped"]] == [("sub/grey.png", False)]


def test_the_summary_counts_and_lists_photos_by_reason(varied: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    out = done("extract", *SMALL, "--exclude", "one", "--report", report, varied, tmp_path / "s.lmdb")
    facts = json.loads(report.read_text())
    assert "1 image" in out
    assert f"{facts['patches']} " in out
    assert "MB" in out
    for entry in facts["skipped"]:
        assert any(entry["photo"] in line and entry["reason"] in line for line in out.splitlines()), out


def test_progress_is_shown_on_a_terminal_and_not_in_a_pipe(varied: Path, tmp_path: Path) -> None:
    leader, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    command = [*PROGRAM, "extract", *SMALL, str(varied), str(tmp_path / "s.lmdb")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=terminal)
    os.close(terminal)
    shown = b""
    with suppress(OSError):  # how Linux says that the last process let go of the terminal
        while chunk := os.read(leader, 4096):
            shown += chunk
    os.close(leader)
    assert process.wait() == 0
    assert re.search(r"\d+%|\d+/\d+|/s", shown.decode()), shown
    assert "\r" not in done("extract", *SMALL, varied, tmp_path / "t.lmdb")


# Stores and folders, workers


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of several sizes in several folders, some of which are left out."""
    files = {
        f"{number % 3}/{number:02d}.png": encoded(scene(40 + number % 5 * 9, 60, seed=number), "png")
        for number in range(24)
    }
    files["0/bad.jpg"] = b""
    return write(tmp_path_factory.mktemp("many") / "photos", files)


OPTIONS = ("--crop-size", "24,48", "--step", "16,24", "--threshold", "4", "--quality", "90")


def test_a_store_and_a_folder_are_the_same_for_any_number_of_workers(many: Path, tmp_path: Path) -> None:
    folders, stores = [], []
    for workers in ("1", "2", "3"):
        folder, store = tmp_path / f"f{workers}", tmp_path / f"s{workers}.lmdb"
        for target in (folder, store):
            options = ("--workers", workers, "--shard-size", "5KiB", "--report", tmp_path / "r.json")
            result = run("extract", *OPTIONS, *options, many, target)
            assert (result.status, result.err) == (1, ""), result  # a bad photo
            assert "0/bad.jpg" in result.out
        assert is_whole(store, folder)  # metadata.jsonl included
        folders.append(read(folder))
        stores.append((images_of(store), {name: state[2] for name, state in states(store).items()}.keys()))
    assert folders[0] == folders[1] == folders[2]
    assert stores[0] == stores[1] == stores[2]
    names = {name.partition("/")[0] for name in folders[0]}
    assert names == {"metadata.jsonl", *stores[0][0]}
    for name in stores[0][0]:
        inside = sorted(path.rpartition("/")[2] for path in folders[0] if path.startswith(f"{name}/"))
        assert inside == [*stores[0][0][name].files, "centers.pt", "ref.jpg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "f1",
        "f2",
        "f3",
        "r.json",
        "s1.lmdb",
        "s2.lmdb",
        "s3.lmdb",
    ]


def test_images_come_in_the_order_of_their_names(many: Path, tmp_path: Path) -> None:
    run("extract", *OPTIONS, many, tmp_path / "s.lmdb")
    run("extract", *OPTIONS, many, tmp_path / "f")
    with open_source(tmp_path / "s.lmdb") as store, open_source(tmp_path / "f") as folder:
        names = [store.image_name(number) for number in range(store.image_count)]
        assert names == [folder.image_name(number) for number in range(folder.image_count)]


@pytest.mark.parametrize("to", ["s.lmdb", "folder"])
def test_every_item_is_read_by_the_dataset(many: Path, tmp_path: Path, to: str) -> None:
    run("extract", *OPTIONS, many, tmp_path / to)
    dataset = SingleImageDataset(
        {"paths": str(tmp_path / to), "target_size": 24, "scale": 2, "need_ref": True, "strict": True}
    )
    count = 0
    for index in range(len(dataset)):
        item = dataset[index]
        assert item["hq"].shape == (3, 24, 24)
        assert item["gt_fullsize_ref"].shape == (4, 24, 24)
        count += 1
    assert count == sum(len(image.files) for image in images_of(tmp_path / to).values())


def test_a_shard_size_divides_a_store(many: Path, tmp_path: Path) -> None:
    run("extract", *OPTIONS, "--shard-size", "5KiB", many, tmp_path / "small.lmdb")
    run("extract", *OPTIONS, "--shard-size", "1GiB", many, tmp_path / "large.lmdb")
    assert len(states(tmp_path / "small.lmdb")) > 3
    assert len(states(tmp_path / "large.lmdb")) == 1
    assert images_of(tmp_path / "small.lmdb") == images_of(tmp_path / "large.lmdb")


# --append


@pytest.fixture
def growing(tmp_path: Path) -> Path:
    """Photos of which a store was made."""
    photos = write(tmp_path / "photos", {f"{n}/a.png": encoded(scene(50, 60, seed=n), "png") for n in range(3)})
    assert extract(photos, *SMALL).status == 0
    return photos


def test_an_append_takes_new_photos_and_leaves_those_that_are_there(growing: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.lmdb"
    had, before = images_of(store), states(store)
    write(growing, {f"{n}/{n}.png": encoded(scene(50, 60, seed=n), "png") for n in (0, 5)})
    outcome = extract(growing, "--append", *SMALL)
    assert outcome.status == 0
    assert outcome.report["present"] == 3
    assert outcome.report["images"] == 2
    assert outcome.report["patches"] == sum(len(outcome.images[name].files) for name in ("0__0", "5__5"))
    assert outcome.report["changed"] == []
    assert before.items() <= states(store).items()
    assert outcome.images == extract(growing, *SMALL, to="fresh.lmdb").images
    assert {name: outcome.images[name] for name in had} == had


def test_an_append_of_nothing_new_changes_nothing(growing: Path, tmp_path: Path) -> None:
    before = read(tmp_path / "s.lmdb")
    outcome = extract(growing, "--append", *SMALL)
    assert (outcome.status, outcome.report["images"], outcome.report["present"]) == (0, 0, 3)
    assert read(tmp_path / "s.lmdb") == before


def test_an_append_reports_photos_that_changed_and_leaves_them(growing: Path, tmp_path: Path) -> None:
    had = images_of(tmp_path / "s.lmdb")
    write(growing, {"1/a.png": encoded(scene(55, 66, seed=9), "png"), "new.png": encoded(scene(50, 50), "png")})
    result = run("extract", "--append", *SMALL, "--report", tmp_path / "r.json", growing, tmp_path / "s.lmdb")
    assert "1/a.png" in result.out
    assert "Traceback" not in result.err
    assert json.loads((tmp_path / "r.json").read_text())["changed"] == ["1/a.png"]
    images = images_of(tmp_path / "s.lmdb")
    assert images.keys() == {*had, "new"}
    assert {name: images[name] for name in had} == had


def test_an_append_of_a_split_finds_both_halves_there(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", {"a.png": encoded(scene(50, 100), "png")})
    assert extract(photos, "--vertical-split", *SMALL).status == 0
    write(photos, {"b.png": encoded(scene(50, 100, seed=1), "png")})
    outcome = extract(photos, "--append", "--vertical-split", *SMALL)
    assert (outcome.status, outcome.report["images"], outcome.report["changed"]) == (0, 2, [])
    assert outcome.images.keys() == {"a_left", "a_right", "b_left", "b_right"}


def test_a_dry_run_of_an_append_counts_what_is_new(
    growing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(growing, {"new.png": encoded(scene(70, 70), "png")})
    before = read(tmp_path)
    assert main(["extract", "--append", "--dry-run", *SMALL, str(growing), str(tmp_path / "s.lmdb")]) == 0
    assert read(tmp_path) == before
    assert re.search(r"\b4 patches", capsys.readouterr().out)


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
            other = fast.images[name]
            assert (other.files, other.centers, other.extra) == (image.files, image.centers, image.extra)
            for one, two in zip((*image.tiles, image.reference), (*other.tiles, other.reference), strict=True):
                pixels = simplejpeg.decode_jpeg(one).astype(int)
                steps = [np.abs(np.diff(pixels, axis=axis)).mean() for axis in (0, 1)]
                # Encoding gives 1, and lying half a pixel of the tile beside its place half a step; another tile 60.
                assert np.abs(pixels - simplejpeg.decode_jpeg(two)).mean() <= 1 + sum(steps) / 2
        if number == 0:
            assert fast.images != exact.images


def test_a_fast_decode_that_saves_nothing_changes_nothing(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", {"a.jpg": encoded(scene(200, 200), "jpg", quality=95)})
    options = ("--crop-size", "128,64")  # the tile of 64 is enlarged
    assert extract(photos, "--fast-decode", *options).images == extract(photos, *options, to="exact.lmdb").images


# Inside other programs

_IN_A_PROGRAM = """
import sys, cv2, numpy
cv2.resize(numpy.zeros((3000, 3000, 3), numpy.uint8), (700, 700), interpolation=cv2.INTER_AREA)  # in several threads
from dlas_store.cli import main
sys.exit(main(["extract", *sys.argv[1:]]))
"""


def test_a_program_that_used_opencv_before_can_extract(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", {"a.png": encoded(scene(100, 100), "png")})
    program = [sys.executable, "-c", _IN_A_PROGRAM, *SMALL, str(photos), str(tmp_path / "s.lmdb")]
    process = subprocess.Popen(program, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        assert process.wait(20) == 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        pytest.fail("hangs")
    assert images_of(tmp_path / "s.lmdb").keys() == {"a"}


# Memory


def _tree_bytes(process: psutil.Process) -> int:
    total = 0
    for member in (process, *process.children(recursive=True)):
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _peak_bytes(*arguments: str | Path) -> int:
    """Return the most memory that a command and its processes held, looked at every few milliseconds."""
    process = subprocess.Popen([*PROGRAM, *map(str, arguments)], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, _tree_bytes(psutil.Process(process.pid)))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.005)
    assert process.wait() == 0
    return peak


@pytest.mark.parametrize("to", ["s.lmdb", "folder"])
def test_memory_does_not_grow_with_photos(tmp_path: Path, to: str) -> None:
    pixels = scene(1000, 1200)
    content = encoded(pixels, "jpg", quality=60)
    peaks = []
    for count in (12, 120):
        photos = write(tmp_path / f"photos{count}", {"0.jpg": content})
        for number in range(1, count):
            os.link(photos / "0.jpg", photos / f"{number}.jpg")
        options = ("--workers", "2", "--crop-size", "500", "--step", "500", "--quality", "100")
        peaks.append(_peak_bytes("extract", *options, photos, tmp_path / f"{count}{to}"))
    assert peaks[1] - peaks[0] <= 6 * pixels.nbytes
