"""Sheets of a config's items: the contents of the PNG file of read --picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dlas_store.cli.preview import spread
from dlas_store.cli.read import ITEMS, LABEL_WIDTH, describe_batches, draw_items
from dlas_store.cli.sheet import GAP, MARGIN, text_line
from dlas_store.datasets import create_dataset, register_dataset
from dlas_store.errors import ConfigError
from tests.support.command_line import done, refused
from tests.support.picture_folders import write_pictures
from tests.support.png_sheets import magnified, pixels_of, places_of
from tests.support.sample_data import DATA, Array, noise


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


def test_items_are_columns_and_keys_are_rows(tmp_path: Path) -> None:
    assert draw_items(config(tmp_path, train=SINGLE), tmp_path / "p.png") == ITEMS
    sheet = pixels_of(tmp_path / "p.png")
    dataset = create_dataset(SINGLE)
    rows: dict[str, set[int]] = {}
    lefts: set[int] = set()
    for item in (dataset[index] for index in spread(262, ITEMS)):
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


def test_items_of_mode_pixels_are_drawn_as_pictures(tmp_path: Path) -> None:
    pictures = {f"{number:02}.png": noise(60, 90, seed=number) for number in range(20)}
    folder = write_pictures(tmp_path / "a", pictures)
    draw_items(config(tmp_path, train={"mode": "pixels", "paths": str(folder)}), tmp_path / "p.png")
    sheet = pixels_of(tmp_path / "p.png")
    shown = [name for name, pixels in pictures.items() if places_of(pixels, sheet)]
    assert shown == [f"{number:02}.png" for number in spread(20, ITEMS)]


class WithZeros(torch.utils.data.Dataset[dict[str, Any]]):
    """A dataset with a key that is zero in all items, and a key that is zero in some."""

    def __init__(self, opt: Any) -> None: ...

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"mask": torch.zeros(1, 8, 8), "sometimes": torch.full((1, 8, 8), float(index)), "zero": 0}


class WithoutZeros(WithZeros):
    """The same items without the key that is zero in all of them."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value for key, value in super().__getitem__(index).items() if key != "mask"}


def test_a_key_that_is_all_zero_is_named_and_not_drawn(tmp_path: Path) -> None:
    heights = []
    for number, cls in enumerate((WithZeros, WithoutZeros)):
        register_dataset("zeros", cls)
        draw_items(config(tmp_path, train={"mode": "zeros"}), tmp_path / f"{number}.png")
        heights.append(len(pixels_of(tmp_path / f"{number}.png")))
    line = text_line("all zero, not shown: mask", 100).height + GAP
    assert heights[0] - heights[1] == line


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"loader": "threads", "n_threads": 1}, "loader threads: 1 thread"),
        ({"loader": "workers", "n_workers": 0}, "loader workers: no worker process, this process makes the batches"),
        ({"loader": "workers", "n_workers": 1}, "loader workers: 1 worker process, 1 thread each"),
        ({"loader": "workers", "n_workers": 2, "n_threads": 2}, "loader workers: 2 worker processes, 2 threads each"),
    ],
)
def test_read_says_which_loader_reads_and_with_how_many_threads(
    options: dict[str, Any], text: str, tmp_path: Path
) -> None:
    data = {"mode": "pixels", "paths": str(DATA / "chunked"), "batch_size": 4}
    lines = list(describe_batches(config(tmp_path, train=data | options), batches=1))
    assert lines[0] == f"train: pixels, 262 items, 65 batches of 4; {text}"
    assert lines[-1].startswith("  1 batch read, ")


def test_read_draws_after_its_lines(tmp_path: Path) -> None:
    path = config(tmp_path, train=SINGLE)
    lines = done("read", path, "--batches", "1", "--picture", "p.png", cwd=tmp_path).splitlines()
    assert lines[0].startswith("train: ")
    assert lines[-1] == f"p.png: shows {ITEMS} items"
    assert pixels_of(tmp_path / "p.png").any()
    assert "choose another name" in refused("read", path, "--picture", "p.png", cwd=tmp_path)
