"""Contact sheets: drawing, and the contents of the PNG files of preview."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlas_store import open_source
from dlas_store.cli.preview import (
    DEFAULT_IMAGES,
    DEFAULT_PICTURES,
    MAX_IMAGES,
    MAX_PALE_SQUARES,
    PATCH_SIDE,
    preview,
    spread,
    square_color,
)
from dlas_store.cli.sheet import EMPTY, MARGIN, below, fit, text_line, text_lines, write_png
from dlas_store.converters.importing import import_store
from dlas_store.errors import ConfigError, NameNotFoundError, TargetExistsError, WriteError
from tests.conftest import MakeImage
from tests.support.command_line import done, error_line, refused, run
from tests.support.file_trees import numbered_pictures
from tests.support.picture_folders import write_pictures
from tests.support.png_sheets import GREY, flat, magnified, pixels_of, places_of
from tests.support.sample_data import DATA, Array, noise


def reference_of(sheet: Array, height: int, width: int, edge: tuple[int, int, int]) -> Array:
    """Return the reference on a sheet of one image; ``edge`` is the colour of the reference's top left corner."""
    rows = np.flatnonzero((sheet[:, MARGIN] == edge).all(-1))
    return sheet[rows[0] : rows[0] + height, MARGIN : MARGIN + width]


# Images and their squares


def test_squares_are_where_the_centres_say_magnified_as_the_reference_is(make_image: MakeImage, tmp_path: Path) -> None:
    centers = {0: ((8, 8), 16), 1: ((40, 20), 20), 2: ((59, 100), 11)}
    patches = {f"{n}.png": noise(32, 32, seed=n) for n in range(3)}
    store = make_image("a", patches, reference=flat(64, 128), centers=centers)
    assert preview(store, [], tmp_path / "p.png") == 1
    seen = reference_of(pixels_of(tmp_path / "p.png"), 256, 512, square_color(0))
    expected = magnified(flat(64, 128), 4)
    for number, ((row, col), width) in enumerate(centers.values()):
        half = width // 2
        top, left, bottom, right = (4 * side for side in (row - half, col - half, row + half, col + half))
        expected[top:bottom, left:right] = square_color(number)
        expected[top + 2 : bottom - 2, left + 2 : right - 2] = GREY
    np.testing.assert_array_equal(seen, expected)


def test_large_references_are_reduced_with_their_squares(make_image: MakeImage, tmp_path: Path) -> None:
    store = make_image("a", {"0.png": flat(8, 8)}, reference=flat(2048, 1024), centers={0: ((1024, 512), 1024)})
    preview(store, [], tmp_path / "p.png")
    sheet = pixels_of(tmp_path / "p.png")
    rows, cols = np.nonzero((sheet[:, : MARGIN + 256] == square_color(0)).all(-1))
    assert (np.ptp(rows) + 1, cols.min() - MARGIN, cols.max() - MARGIN) == (256, 0, 255)


def test_squares_beyond_the_reference_are_cut(make_image: MakeImage, tmp_path: Path) -> None:
    store = make_image("a", {"0.png": flat(8, 8)}, reference=flat(128, 128), centers={0: ((120, 64), 64)})
    preview(store, [], tmp_path / "p.png")
    sheet = pixels_of(tmp_path / "p.png")
    assert len(places_of(flat(1, 256, square_color(0)), sheet[:, : MARGIN + 512])) == 2  # the upper edge alone


@pytest.mark.parametrize("name", ["astronaut_left_0", "retina_left_3"])
def test_shown_patches_are_evenly_chosen_and_framed(chunked_source_path: Path, tmp_path: Path, name: str) -> None:
    preview(chunked_source_path, [name], tmp_path / "p.png")
    sheet = pixels_of(tmp_path / "p.png")
    with open_source(chunked_source_path) as source:
        number = source.find_image(name)
        first, last = source.first_patch(number), source.first_patch(number + 1) - 1
        shown = [first + position for position in spread(last - first + 1, 15)]
        assert (len(shown), shown[0], shown[-1]) == (15, first, last)
        places = []
        for order, pixels in enumerate(source.read_pixels(shown)):
            framed = flat(PATCH_SIDE + 4, PATCH_SIDE + 4, square_color(order))
            framed[2:-2, 2:-2] = pixels
            places += places_of(framed, sheet)
    assert len(places) == 15
    assert places == sorted(places)
    assert len({row for row, _ in places}) == 3


def test_folder_and_store_give_the_same_preview(tmp_path: Path) -> None:
    import_store([DATA / "chunked"], tmp_path / "s.lmdb")
    assert preview(DATA / "chunked", [], tmp_path / "folder.png") == DEFAULT_IMAGES
    preview(tmp_path / "s.lmdb", [], tmp_path / "store.png")
    assert (tmp_path / "folder.png").read_bytes() == (tmp_path / "store.png").read_bytes()


def test_images_come_in_the_order_asked_for(tmp_path: Path) -> None:
    names = ["ihc_left_2", "astronaut_left_0"]
    preview(DATA / "chunked", names, tmp_path / "two.png")
    both = pixels_of(tmp_path / "two.png")
    top = MARGIN
    for name in names:
        preview(DATA / "chunked", [name], tmp_path / f"{name}.png")
        one = pixels_of(tmp_path / f"{name}.png")[MARGIN:-MARGIN]
        np.testing.assert_array_equal(both[top : top + len(one)], one)
        top += len(one) + MARGIN
    assert top == len(both)


def test_without_reference_there_is_grey_and_without_centres_no_square(make_image: MakeImage, tmp_path: Path) -> None:
    patch = noise(64, 64)
    make_image("a", {"0.png": patch}, centers={0: ((8, 8), 8)})
    store = make_image("b", {"0.png": patch}, reference=flat(128, 128))
    preview(store, ["a"], tmp_path / "a.png")
    sheet = pixels_of(tmp_path / "a.png")
    assert (places_of(flat(200, 512, EMPTY), sheet) or [(0, 0)])[0][1] == MARGIN
    assert places_of(magnified(patch, 2), sheet)
    preview(store, ["b"], tmp_path / "b.png")
    assert len(places_of(flat(512, 512), pixels_of(tmp_path / "b.png"))) == 1


def test_above_a_hundred_patches_their_squares_do_not_hide_the_reference(make_image: MakeImage, tmp_path: Path) -> None:
    for count in (MAX_PALE_SQUARES, MAX_PALE_SQUARES + 1):
        centers = {number: ((8 + number // 12 * 8, 8 + number % 12 * 8), 16) for number in range(count)}
        patches = {f"{number}.png": flat(8, 8) for number in range(count)}
        store = make_image(f"of_{count}", patches, reference=flat(128, 128), centers=centers)
    greys = []
    for count in (MAX_PALE_SQUARES, MAX_PALE_SQUARES + 1):
        preview(store, [f"of_{count}"], tmp_path / f"{count}.png")
        reference = reference_of(pixels_of(tmp_path / f"{count}.png"), 512, 512, square_color(0))
        colors = [GREY, *map(square_color, range(15))]
        greys.append(sum(int((reference == color).all(-1).sum()) for color in colors) / 512**2)
    assert greys[0] < 1  # pale lines too
    assert greys[1] == 1  # the shown patches' squares only


def test_as_many_images_as_asked_for_are_shown(tmp_path: Path) -> None:
    folder = numbered_pictures(tmp_path / "many", 50)
    assert preview(folder, [], tmp_path / "3.png", count=3) == 3
    assert preview(folder, [], tmp_path / "90.png", count=90) == 50
    with pytest.raises(ConfigError, match=f"at most {MAX_IMAGES}"):
        preview(folder, [], tmp_path / "p.png", count=MAX_IMAGES + 1)


def test_a_random_choice_is_repeated_by_its_seed_and_spread_over_the_data(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", {f"{number:02}.png": noise(64, 64, seed=number) for number in range(50)})
    sheets = []
    for name, seed in {"a": 7, "b": 7, "c": 8}.items():
        done("preview", folder, "--random", str(seed), "--count", "5", "-o", tmp_path / f"{name}.png")
        sheets.append((tmp_path / f"{name}.png").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]
    assert len(pixels_of(tmp_path / "a.png"))
    with pytest.raises(ConfigError, match="leave them out where images are named"):
        preview(folder, ["01.png"], tmp_path / "p.png", seed=1)


def test_a_name_that_no_image_has_brings_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(NameNotFoundError, match="did you mean 'astronaut_left_0'"):
        preview(DATA / "chunked", ["astronaut_lft_0"], tmp_path / "p.png")


def test_pictures_are_thumbnails_in_a_grid(tmp_path: Path) -> None:
    shapes = [(192, 192), (96, 96), (64, 192), (192, 100), (20, 20), (768, 192), (192, 192)]
    pictures = {f"{n}.png": flat(*shape, (n + 1, 0, 0)) for n, shape in enumerate(shapes)}
    folder = write_pictures(tmp_path / "a", pictures)
    assert preview(folder, [], tmp_path / "p.png") == 7
    sheet = pixels_of(tmp_path / "p.png")
    boxes = []
    for number in range(7):
        rows, cols = np.nonzero((sheet == (number + 1, 0, 0)).all(-1))
        boxes.append((int(cols.min()), int(np.ptp(rows)) + 1, int(np.ptp(cols)) + 1))
        assert len(rows) == boxes[-1][1] * boxes[-1][2]
    lefts, heights, widths = zip(*boxes, strict=True)
    assert lefts == (*(MARGIN + 200 * n for n in range(6)), MARGIN)
    assert list(zip(heights, widths, strict=True)) == [
        (192, 192), (192, 192), (64, 192), (192, 100), (180, 180), (192, 48), (192, 192),
    ]  # fmt: skip
    assert preview(numbered_pictures(tmp_path / "many", 50), [], tmp_path / "many.png") == DEFAULT_PICTURES


def test_evenly_chosen_are_the_first_the_last_and_between() -> None:
    for count in range(1, 200):
        chosen = spread(count, 15)
        assert len(set(chosen)) == min(count, 15)
        assert (chosen[0], chosen[-1]) == (0, count - 1)
        assert max(np.diff(chosen), default=0) - min(np.diff(chosen), default=0) <= 1
    assert len({square_color(n) for n in range(15)}) == 15


# Sheets and files


def test_magnified_by_whole_numbers_and_reduced_by_averaging() -> None:
    small = Image.fromarray(noise(10, 7))
    np.testing.assert_array_equal(fit(small, 32, 32), magnified(np.asarray(small), 3))
    assert fit(small, 13, 13).size == (7, 10)
    checks = np.indices((64, 64)).sum(0) % 2 * np.full((3, 1, 1), 200)
    assert set(np.unique(fit(Image.fromarray(checks.transpose(1, 2, 0).astype(np.uint8)), 32, 32))) == {100}
    assert fit(Image.fromarray(flat(1, 1000)), 10, 10).size == (10, 1)


@pytest.mark.parametrize("text", ["", "name", "two\nlines\udc80", "x" * 1000, "Ω☃" * 30])
def test_any_text_stays_in_its_box(text: str) -> None:
    assert text_line(text, 100, size=12).size == (100, 16)
    many = text_lines(text, 100, size=12, max_lines=3)
    assert many.width == 100
    assert many.height in (16, 32, 48)


def test_paths_are_broken_after_slashes() -> None:
    width = 110
    both = text_lines("folder/of_images/00000001.jpg", width)
    expected = below([text_lines("folder/of_images/", width), text_lines("00000001.jpg", width)], gap=0)
    assert both == expected


def test_of_a_long_text_the_end_fills_the_lines_after_dots() -> None:
    lines = text_lines("x" * 500, 110, max_lines=3)
    assert lines.crop((0, 0, 6, 16)) == text_line("...", 110).crop((0, 0, 6, 16))
    assert all(np.ptp(np.asarray(lines)[top : top + 16, 90:].astype(int)) > 0 for top in (0, 16, 32))


def test_an_existing_file_is_not_touched(tmp_path: Path) -> None:
    file = tmp_path / "p.png"
    file.write_bytes(b"mine")
    for draw in (lambda: preview(DATA / "chunked", [], file), lambda: write_png(Image.new("RGB", (1, 1)), file)):
        with pytest.raises(TargetExistsError, match=r"p\.png: exists; choose another name, or move it away"):
            draw()
    assert file.read_bytes() == b"mine"
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(TargetExistsError):
        preview(DATA / "chunked", [], tmp_path / "link.png")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"no folder .*gone"):
        preview(DATA / "chunked", [], tmp_path / "gone" / "p.png")
    assert not (tmp_path / "gone").exists()


def test_nothing_is_left_of_a_file_that_the_disk_refused(tmp_path: Path) -> None:
    before = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    result = run("preview", DATA / "chunked", "-o", "p.png", cwd=tmp_path, before=before + limit)
    assert "p.png: cannot be written" in error_line(result)
    assert not list(tmp_path.iterdir())


def test_images_that_are_not_there_or_too_many(tmp_path: Path) -> None:
    with pytest.raises(NameNotFoundError, match="no image 'cat'"):
        preview(DATA / "chunked", ["astronaut_left_0", "cat"], tmp_path / "p.png")
    with pytest.raises(ConfigError, match="at most 200"):
        preview(DATA / "chunked", ["astronaut_left_0"] * (MAX_IMAGES + 1), tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


# The commands


def test_preview_writes_the_file_that_it_names(tmp_path: Path) -> None:
    text = done("preview", DATA / "chunked", "ihc_left_2", "retina_left_3", "-o", "p.png", cwd=tmp_path)
    assert "p.png: shows 2 images" in text
    assert pixels_of(tmp_path / "p.png").shape[0] > 1024


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "image": (("cat", "-o", "p.png"), "no image 'cat'"),
    "exists": (("-o", "there.png"), "choose another name"),
    "folder": (("-o", "gone/p.png"), "no folder gone"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_line_and_status_1(tmp_path: Path, name: str) -> None:
    (tmp_path / "there.png").write_bytes(b"mine")
    arguments, message = REFUSED[name]
    assert message in refused("preview", DATA / "chunked", *arguments, cwd=tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]


@pytest.mark.parametrize("arguments", [("s.lmdb",), ("s.lmdb", "-o"), ("-o", "p.png"), ("s.lmdb", "-o", "p.jpg")])
def test_wrong_usage_is_status_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = run("preview", *arguments, cwd=tmp_path)
    assert result.status == 2
    assert result.err.startswith("dlas-store preview: error: ")
    assert not list(tmp_path.iterdir())


def test_preview_loads_neither_torch_nor_opencv(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from dlas_store.cli.main import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "assert not {'torch', 'cv2'} & sys.modules.keys()\n"
    )
    arguments = ["preview", DATA / "chunked", "-o", tmp_path / "p.png"]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True)
