"""Contact sheets: contents of the PNG files of the commands preview and read --picture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dlas_store import open_source
from dlas_store.cli.preview import (
    DEFAULT_IMAGES,
    DEFAULT_PICTURES,
    MAX_IMAGES,
    PATCH_SIDE,
    preview,
    spread,
    square_color,
)
from dlas_store.cli.read import ITEMS, LABEL_WIDTH, draw_items
from dlas_store.cli.sheet import EMPTY, MARGIN, below, fit, text_line, text_lines, write_png
from dlas_store.converters.importing import import_store
from dlas_store.datasets import create_dataset, register_dataset
from dlas_store.errors import ConfigError, NameNotFoundError, TargetExistsError, WriteError
from tests.conftest import MakeImage
from tests.support.command_line import done, error_line, refused, run
from tests.support.file_trees import numbered_pictures
from tests.support.picture_folders import write_pictures
from tests.support.sample_data import DATA, Array, noise

GREY = (60, 60, 60)


def pixels_of(file: Path) -> Array:
    with Image.open(file) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.asarray(picture)


def places_of(part: Array, sheet: Array) -> list[tuple[int, int]]:
    """Return row and column of every place at which a sheet contains exactly the pixels of a part."""
    height, width = part.shape[:2]
    starts = (sheet[: sheet.shape[0] - height + 1, : sheet.shape[1] - width + 1] == part[0, 0]).all(-1)
    return [
        (row, col)
        for row, col in np.argwhere(starts).tolist()
        if np.array_equal(sheet[row : row + height, col : col + width], part)
    ]


def flat(height: int, width: int, color: tuple[int, int, int] = GREY) -> Array:
    return np.full((height, width, 3), color, np.uint8)


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
    expected = np.kron(flat(64, 128), np.ones((4, 4, 1), np.uint8))
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
    assert places_of(np.kron(patch, np.ones((2, 2, 1), np.uint8)), sheet)
    preview(store, ["b"], tmp_path / "b.png")
    assert len(places_of(flat(512, 512), pixels_of(tmp_path / "b.png"))) == 1


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
    np.testing.assert_array_equal(fit(small, 32, 32), np.kron(np.asarray(small), np.ones((3, 3, 1), np.uint8)))
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
        with pytest.raises(TargetExistsError, match=r"p\.png: is there already; choose another name"):
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


# Items of a config


def config(folder: Path, **datasets: dict[str, Any]) -> Path:
    (folder / "c.yml").write_text(yaml.safe_dump({"datasets": datasets}))
    return folder / "c.yml"


SINGLE = {
    "mode": "single_image_extensible", "paths": str(DATA / "chunked"), "target_size": 128, "scale": 4,
    "need_ref": True, "strict": True, "seed": 1, "batch_size": 2, "n_workers": 0,
}  # fmt: skip


def to_pixels(chw: torch.Tensor) -> Array:
    pixels = (chw.double().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels


def magnified(pixels: Array, times: int) -> Array:
    return np.kron(pixels, np.ones((times, times, 1), np.uint8))


def test_items_are_columns_and_keys_are_rows(tmp_path: Path) -> None:
    assert draw_items(config(tmp_path, train=SINGLE), tmp_path / "p.png") == ITEMS
    sheet = pixels_of(tmp_path / "p.png")
    dataset = create_dataset(SINGLE)
    rows: dict[str, set[int]] = {}
    lefts: set[int] = set()
    for item in (dataset[index] for index in range(ITEMS)):
        for key, times in {"hq": 1, "lq": 4, "gt_fullsize_ref": 1, "lq_fullsize_ref": 4}.items():
            first = magnified(to_pixels(item[key][:3]), times)
            if key.endswith("ref"):
                gap = sheet[:1, :1].repeat(128, 0).repeat(2, 1)
                first = np.hstack([first, gap, magnified(to_pixels(item[key][3:]), times)])
            places = places_of(first, sheet)
            assert len(places) == 1, key
            rows.setdefault(key, set()).add(places[0][0])
            lefts.add(places[0][1])
    assert [len(tops) for tops in rows.values()] == [1] * 4
    tops = [tops.pop() for tops in rows.values()]
    assert tops == sorted(tops)
    assert len(lefts) == ITEMS
    assert min(lefts) == LABEL_WIDTH + 2 * MARGIN


def test_frames_stand_side_by_side_with_their_masks_below(tmp_path: Path) -> None:
    options = SINGLE | {
        "mode": "multi_frame_extensible", "paths": str(DATA / "chunked_video"), "num_frames": 3, "target_size": 64,
        "scale": 2,
    }  # fmt: skip
    draw_items(config(tmp_path, train=options), tmp_path / "p.png")
    sheet = pixels_of(tmp_path / "p.png")
    item = create_dataset(options)[0]
    gap = sheet[:1, :1]
    column, line = gap.repeat(64, 0).repeat(2, 1), gap.repeat(2, 0).repeat(64 * 3 + 4, 1)

    def row_of(frames: torch.Tensor) -> Array:
        first, second, third = map(to_pixels, frames)
        return np.hstack([first, column, second, column, third])

    assert places_of(row_of(item["hq"]), sheet)
    references = item["gt_fullsize_ref"]
    assert places_of(np.vstack([row_of(references[:, :3]), line, row_of(references[:, 3:])]), sheet)


def test_every_dataset_of_the_phase_is_shown(tmp_path: Path) -> None:
    heights = []
    for keys in (["train_a"], ["train_a", "train_b"], ["train_a", "val"]):
        file = tmp_path / f"{len(heights)}.png"
        shown = draw_items(config(tmp_path, **dict.fromkeys(keys, SINGLE)), file)
        heights.append(len(pixels_of(file)))
        assert shown == ITEMS * sum(key.startswith("train") for key in keys)
    one, two, with_val = heights
    assert (two - one, with_val) == (one - MARGIN, one)
    with pytest.raises(ConfigError, match="no dataset of phase 'test'"):
        draw_items(tmp_path / "c.yml", tmp_path / "p.png", phase="test")


def test_normalised_tensors_are_rescaled_to_their_range(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", {"1.png": noise(128, 128)})
    options = {"mode": "imagefolder", "paths": str(folder), "target_size": 128, "scale": 2, "rgb_n1_to_1": True}
    options["disable_flip"] = True
    draw_items(config(tmp_path, train=options), tmp_path / "p.png")
    (place,) = places_of(noise(128, 128), pixels_of(tmp_path / "p.png"))
    assert place[1] == LABEL_WIDTH + 2 * MARGIN


class Odd(torch.utils.data.Dataset[dict[str, Any]]):
    """A dataset with values of every kind, and tensors of several sizes."""

    def __init__(self, opt: Any) -> None: ...

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "many": torch.rand(341, 3, 4, 4),
            "grey": torch.arange(64).reshape(1, 8, 8),
            "nan": torch.full((3, 8, 8), float("nan")),
            "inf": torch.tensor([[[0.5, float("inf")]]]),
            "sizes": torch.rand(3, 8 + index, 9),
            "none": torch.zeros(0, 3, 8, 8),
            "flags": torch.tensor([True, False]),
            "vector": torch.rand(1000),
            "scalar": torch.tensor(3),
            "names": {"cat": 1},
            "text": "",
        } | ({"late": None} if index else {})


def test_values_of_every_kind_have_a_row(tmp_path: Path) -> None:
    register_dataset("odd", Odd)
    assert draw_items(config(tmp_path, train={"mode": "odd"}), tmp_path / "p.png") == 3
    ramp = np.rint(np.arange(64).reshape(8, 8, 1) / 63 * 255).astype(np.uint8).repeat(3, axis=2)
    assert len(places_of(magnified(ramp, 16), pixels_of(tmp_path / "p.png"))) == 3


# The commands


def test_preview_writes_the_file_that_it_names(tmp_path: Path) -> None:
    text = done("preview", DATA / "chunked", "ihc_left_2", "retina_left_3", "-o", "p.png", cwd=tmp_path)
    assert "p.png: shows 2 images" in text
    assert pixels_of(tmp_path / "p.png").shape[0] > 1024


def test_read_draws_after_its_lines(tmp_path: Path) -> None:
    path = config(tmp_path, train=SINGLE)
    lines = done("read", path, "--batches", "1", "--picture", "p.png", cwd=tmp_path).splitlines()
    assert lines[0].startswith("train: ")
    assert lines[-1] == f"p.png: shows {ITEMS} items"
    assert pixels_of(tmp_path / "p.png").any()
    assert "choose another name" in refused("read", path, "--picture", "p.png", cwd=tmp_path)


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
    assert "usage: dlas-store preview" in result.err
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
