"""Extraction: selection of photos, file formats, names of images, and appends to a store."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dlas_store.cli.main import main
from tests.support.command_line import run
from tests.support.file_trees import read, states, write
from tests.support.photo_files import (
    ENDINGS,
    SMALL,
    assert_made_of,
    centred,
    decoded,
    encoded,
    expected_tiles,
    extract,
    extract_pixels,
    images_of,
    scene,
    upright,
)

pytestmark = pytest.mark.usefixtures("opencv_without_threads")


# Selection of photos


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
    assert_made_of(
        outcome.images["dog_2"], photos["dog_2"], {64: expected_tiles(photos["dog_2"], [32, 64], [32, 64], 8)[64]}, 32
    )


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
    assert_made_of(image, square, expected_tiles(square, [128], [172], 128), 128)
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
        assert_made_of(converted.images[name.partition(".")[0]], square, expected_tiles(square, [32], [32], 8), 32)


# File formats


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
        assert_made_of(image, square, expected_tiles(square, [32], [32], 8), 32)
        assert image.extra["photo"] == {"path": name, "bytes": len(content), "height": 50, "width": 40}
        assert image.extra["square"] == {"top": top, "left": left, "side": 40}


def test_exif_turns_a_photo_before_it_is_cut_unless_ignored(tmp_path: Path) -> None:
    stored = scene(50, 80)
    files = {
        f"j{orientation}.jpg": (encoded(stored, "jpg", quality=95, orientation=orientation), orientation)
        for orientation in range(1, 9)
    }
    files |= {
        f"{ending}{orientation}.{ending}": (encoded(stored, ending, orientation=orientation), orientation)
        for ending in ("png", "tiff", "webp")
        for orientation in (3, 6)
    }
    photos = write(tmp_path / "photos", {name: content for name, (content, _) in files.items()})
    # The photo is split, because the centred square of a rotated photo is just the rotated square.
    options = ("--vertical-split", "--min-size", "1", "--crop-size", "24", "--step", "24", "--threshold", "4")
    for ignore in (False, True):
        outcome = extract(photos, *options, *(["--ignore-exif"] if ignore else []), to=f"{ignore}.lmdb")
        assert outcome.status == 0
        for name, (content, orientation) in files.items():
            pixels = decoded(content) if name.startswith("j") else stored
            pixels = pixels if ignore else upright(pixels, orientation)
            height, width = pixels.shape[:2]
            edge = min(height, width // 2)
            top = (height - edge) // 2
            image = outcome.images[f"{name.partition('.')[0]}_right"]
            square = pixels[top : top + edge, width // 2 : width // 2 + edge]
            assert_made_of(image, square, expected_tiles(square, [24], [24], 4), 24)
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
        assert_made_of(outcome.images[name.partition(".")[0]], square, expected_tiles(square, [32], [32], 8), 32)


# Names


def test_images_are_named_by_their_path_at_any_depth(tmp_path: Path) -> None:
    names = ["a", "b/c", "b/d/e/f/g/h", "two words/ünï.code", "日本/語", "-dash", ".hidden.not"]
    outcome = extract_pixels(
        tmp_path, {name: scene(40, 40, seed=n) for n, name in enumerate(names)}, "--include-hidden", *SMALL
    )
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


# --append


@pytest.fixture
def growing(tmp_path: Path) -> Path:
    """Photos, with a store extracted from them."""
    photos = write(tmp_path / "photos", {f"{n}/a.png": encoded(scene(50, 60, seed=n), "png") for n in range(3)})
    assert extract(photos, *SMALL).status == 0
    return photos


def test_an_append_takes_new_photos_and_leaves_those_that_are_there(growing: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.lmdb"
    old_images, old_states = images_of(store), states(store)
    write(growing, {f"{n}/{n}.png": encoded(scene(50, 60, seed=n), "png") for n in (0, 5)})
    outcome = extract(growing, "--append", *SMALL)
    assert outcome.status == 0
    assert outcome.report["present"] == 3
    assert outcome.report["images"] == 2
    assert outcome.report["patches"] == sum(len(outcome.images[name].files) for name in ("0__0", "5__5"))
    assert outcome.report["changed"] == []
    assert old_states.items() <= states(store).items()
    assert outcome.images == extract(growing, *SMALL, to="fresh.lmdb").images
    assert {name: outcome.images[name] for name in old_images} == old_images


def test_an_append_of_nothing_new_changes_nothing(growing: Path, tmp_path: Path) -> None:
    old_files = read(tmp_path / "s.lmdb")
    outcome = extract(growing, "--append", *SMALL)
    assert (outcome.status, outcome.report["images"], outcome.report["present"]) == (0, 0, 3)
    assert read(tmp_path / "s.lmdb") == old_files


def test_an_append_reports_photos_that_changed_and_leaves_them(growing: Path, tmp_path: Path) -> None:
    old_images = images_of(tmp_path / "s.lmdb")
    write(growing, {"1/a.png": encoded(scene(55, 66, seed=9), "png"), "new.png": encoded(scene(50, 50), "png")})
    result = run("extract", "--append", *SMALL, "--report", tmp_path / "r.json", growing, tmp_path / "s.lmdb")
    assert "1/a.png" in result.out
    assert "Traceback" not in result.err
    assert json.loads((tmp_path / "r.json").read_text())["changed"] == ["1/a.png"]
    images = images_of(tmp_path / "s.lmdb")
    assert images.keys() == {*old_images, "new"}
    assert {name: images[name] for name in old_images} == old_images


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
    old_files = read(tmp_path)
    assert main(["extract", "--append", "--dry-run", *SMALL, str(growing), str(tmp_path / "s.lmdb")]) == 0
    assert read(tmp_path) == old_files
    assert re.search(r"\b4 patches", capsys.readouterr().out)
