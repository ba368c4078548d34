"""Mode stylegan2: each rule that makes a square of a picture."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dlas_store.datasets import OptionWarning, Stylegan2Dataset, create_dataloader, create_dataset
from dlas_store.errors import ConfigError, ImageError
from dlas_store.sampling.rng import SampleKey
from dlas_store.transforms.crops import random_resized_crop
from tests.support.picture_folders import store_of, to_chw, write_pictures
from tests.support.sample_data import Array, noise


def dataset(folder: Path, **options: Any) -> Stylegan2Dataset:
    return Stylegan2Dataset({"path": str(folder), "target_size": 32, "aug_prob": 0, "seed": 0, **options})


def one_picture(tmp_path: Path, pixels: Array) -> Path:
    return write_pictures(tmp_path / "photos", {"one.png": pixels})


def gradient(height: int, width: int) -> Array:
    """Return pixels whose red is the row and whose green is the column, both below 256."""
    rows, cols = np.mgrid[:height, :width]
    return np.stack([rows, cols, np.zeros_like(rows)], -1).astype(np.uint8)


def test_hq_and_lq_are_the_same_in_tensors_of_their_own(tmp_path: Path) -> None:
    folder = one_picture(tmp_path, noise(50, 50))
    item = dataset(folder)[0]
    assert item.keys() == {"hq", "lq", "GT_path"}
    assert item["GT_path"] == str(folder / "one.png")
    assert (item["hq"].shape, item["hq"].dtype) == ((3, 32, 32), torch.float32)
    assert torch.equal(item["hq"], item["lq"])
    assert item["hq"].data_ptr() != item["lq"].data_ptr()


@pytest.mark.parametrize("shape", [(64, 101), (101, 64), (20, 33), (7, 64), (32, 32), (33, 32), (200, 33)])
def test_the_shorter_side_is_resized_antialiased_and_the_middle_cut(tmp_path: Path, shape: tuple[int, int]) -> None:
    pixels = noise(*shape)
    height, width = (32 * side // min(shape) for side in shape)
    resized = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    top, left = (round((side - 32) / 2) for side in (height, width))
    expected = to_chw(resized[top : top + 32, left : left + 32])
    np.testing.assert_array_equal(dataset(one_picture(tmp_path, pixels))[0]["hq"], expected)


def test_a_picture_of_the_target_size_stays_as_it_is(tmp_path: Path) -> None:
    pixels = noise(32, 32)
    np.testing.assert_array_equal(dataset(one_picture(tmp_path, pixels))[0]["hq"], to_chw(pixels))


def test_a_part_of_the_items_is_a_random_crop(tmp_path: Path) -> None:
    data = dataset(one_picture(tmp_path, gradient(40, 32)), aug_prob=0.3)
    middle = dataset(tmp_path / "photos")[0]["hq"]
    crops = sum(not torch.equal(data[SampleKey(0, repetition)]["hq"], middle) for repetition in range(1000))
    assert 240 < crops < 360  # 4.1 standard deviations
    assert torch.equal(data[SampleKey(0, 5)]["hq"], data[SampleKey(0, 5)]["hq"])


def test_a_random_crop_is_a_part_of_the_resized_picture(tmp_path: Path) -> None:
    data = dataset(one_picture(tmp_path, gradient(200, 240)), target_size=200, aug_prob=1)
    for repetition in range(50):
        rows, cols = (data[SampleKey(0, repetition)]["hq"][channel].numpy() * 255 for channel in (0, 1))
        height, width = rows[-1, 0] - rows[0, 0] + 1, cols[0, -1] - cols[0, 0] + 1
        assert 0.48 * 200 * 240 <= height * width <= 1.01 * 200 * 240
        assert 0.96 < width / height < 1.04
        assert np.ptp(rows, 1).max() <= 1


@pytest.mark.parametrize("size", [(300, 300), (300, 400), (500, 300)])
def test_crops_cover_half_to_all_of_the_area_at_ratios_near_1(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    height, width = size
    crops = [random_resized_crop(size, areas=(0.5, 1), ratios=(0.98, 1.02), generator=generator) for _ in range(2000)]
    areas = np.array([crop.height * crop.width / (height * width) for crop in crops])
    ratios = np.array([crop.width / crop.height for crop in crops])
    largest = min(1, min(size) ** 2 * 1.02 / (height * width))
    assert 0.495 < areas.min() < 0.52
    assert largest * 0.97 < areas.max() <= largest * 1.01
    assert 0.97 < ratios.min() < 0.985
    assert 1.015 < ratios.max() < 1.03
    assert all(0 <= crop.top <= height - crop.height and 0 <= crop.left <= width - crop.width for crop in crops)
    lefts = np.array([crop.left / (width - crop.width) for crop in crops if crop.width < width - 20])
    assert abs(lefts.mean() - 0.5) < 0.05
    assert lefts.min() < 0.01
    assert lefts.max() > 0.99


@pytest.mark.parametrize(("size", "expected"), [((300, 40), (130, 0, 41, 40)), ((40, 300), (0, 130, 40, 41))])
def test_where_no_crop_fits_the_middle_is_taken(size: tuple[int, int], expected: tuple[int, int, int, int]) -> None:
    crop = random_resized_crop(size, areas=(0.5, 1), ratios=(0.98, 1.02), generator=np.random.default_rng(0))
    assert abs(np.array(crop) - expected).max() <= 1
    assert min(crop.height, crop.width) == 40


def test_transparent_gives_alpha_and_1_where_there_is_none(tmp_path: Path) -> None:
    rgba = np.dstack([noise(32, 32), noise(32, 32)[..., :1]])
    grey = noise(32, 32, seed=1)[..., 0]
    folder = write_pictures(tmp_path / "photos", {"a.png": rgba, "b.png": noise(32, 32), "c.png": grey})
    clear, opaque = dataset(folder, transparent=True), dataset(folder)
    np.testing.assert_array_equal(clear[0]["hq"], to_chw(rgba))
    np.testing.assert_array_equal(opaque[0]["hq"], to_chw(rgba)[:3])
    for index in (1, 2):
        assert clear[index]["hq"].shape == (4, 32, 32)
        assert (clear[index]["hq"][3] == 1).all()
        assert torch.equal(clear[index]["hq"][:3], opaque[index]["hq"])
    np.testing.assert_array_equal(opaque[2]["hq"], to_chw(np.dstack([grey] * 3)))


def test_items_come_alike_from_folder_store_chunked_store_pickle_and_workers(tmp_path: Path) -> None:
    names = ["a b/1.png", "a-b/1.png", "a/1.png", "a/2.png"]
    folder = write_pictures(tmp_path / "photos", {name: noise(40, 60, seed=n) for n, name in enumerate(names)})
    write_pictures(folder, {"a/ref.jpg": noise(8, 8)})
    options = {
        "mode": "stylegan2",
        "target_size": 32,
        "aug_prob": 0.5,
        "seed": 2,
        "phase": "train",
        "batch_size": 4,
        "n_workers": 2,
    }
    for key, source in (("path", folder), ("dataroot", store_of(folder)), ("path", store_of(folder, "chunked"))):
        data = create_dataset({**options, key: source})
        expected = torch.stack([dataset(folder, aug_prob=0.5, seed=2)[SampleKey(index, 0)]["hq"] for index in range(4)])
        unpickled = pickle.loads(pickle.dumps(data))
        assert torch.equal(torch.stack([unpickled[SampleKey(index, 0)]["hq"] for index in range(4)]), expected)
        (batch,) = create_dataloader(data, {**options, "pin_memory": False}, shuffle=False)
        assert torch.equal(batch["hq"], expected)
        assert batch["GT_path"] == [f"{source}/{name}" for name in names]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": None}, "path is missing; it must be a path or a list of paths"),
        ({"path": "/absent"}, "path names '/absent', which does not exist"),
        ({"dataroot": "/absent"}, "path and dataroot are both given"),
        ({"target_size": None}, "target_size is missing; it must be a positive integer"),
        ({"target_size": 32.5}, "target_size must be a positive integer, got 32.5"),
        ({"aug_prob": None}, "aug_prob is missing; it must be a number from 0 to 1"),
        ({"aug_prob": 1.1}, "aug_prob must be a number from 0 to 1, got 1.1"),
        ({"transparent": 2}, "transparent must be true or false, got 2"),
    ],
)
def test_a_wrong_option_is_refused_at_construction_by_name(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    folder = one_picture(tmp_path, noise(8, 8))
    with pytest.raises(ConfigError, match=f"^stylegan2 'faces': {message}"):
        dataset(folder, name="faces", **options)


def test_an_option_of_no_effect_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(OptionWarning, match="'weights' is not known"):
        dataset(one_picture(tmp_path, noise(8, 8)), weights=[1])


def test_a_bad_picture_is_named_and_skipped_on_request(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos", {"a.png": noise(8, 8), "b.png": noise(8, 8)})
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"photos/a\.png"):
        dataset(folder)[0]
    assert dataset(folder, on_error="skip")[0]["GT_path"].endswith("b.png")
