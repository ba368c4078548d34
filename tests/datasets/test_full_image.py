"""Mode fullimage: whole pictures for validation, tiles for training, each with HQ, LQ, references, mask and centres."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from dlas_store.converters.importing import import_store
from dlas_store.datasets import FullImageDataset, OptionWarning
from dlas_store.errors import ConfigError, ImageError, PatchIndexError
from dlas_store.sampling.rng import SampleKey
from dlas_store.transforms.resize import matlab_reduce
from tests.support.picture_folders import averaged, store_of, to_chw, write_pictures
from tests.support.sample_data import Array, noise

TRAIN = {"phase": "train", "scale": 2, "min_tile_size": 32, "target_size": 32, "seed": 1}


def train(folder: Path | list[Path], **options: Any) -> FullImageDataset:
    return FullImageDataset({"dataroot_GT": folder, **TRAIN, **options})


def validate(folder: Path, **options: Any) -> FullImageDataset:
    return FullImageDataset({"dataroot_GT": folder, "scale": 2, "phase": "val", **options})


def items_of(data: FullImageDataset, count: int, index: int = 0) -> list[dict[str, Any]]:
    """Return repetitions 0 to count - 1 of an item."""
    return [data[SampleKey(index, repetition)] for repetition in range(count)]


def coordinates(height: int, width: int) -> Array:
    """Return a picture whose red is the row and whose green is the column."""
    rows, cols = np.mgrid[:height, :width]
    return np.dstack([rows, cols, np.zeros_like(rows)]).astype(np.uint8)


def bilinear(array: Array, height: int, width: int) -> Array:
    return np.stack([cv2.resize(np.ascontiguousarray(channel), (width, height)) for channel in array])


def equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    same_tensors = all(torch.equal(value, b[key]) for key, value in a.items() if isinstance(value, torch.Tensor))
    return a.keys() == b.keys() and same_tensors


# Validation


def test_a_whole_picture_comes_with_its_bicubic_reduction(tmp_path: Path) -> None:
    pixels = noise(41, 60)
    item = validate(write_pictures(tmp_path / "a", {"b/1.png": pixels}), scale=4)[0]
    reduced = matlab_reduce(to_chw(pixels), 4)
    np.testing.assert_array_equal(item["hq"], to_chw(pixels))
    np.testing.assert_array_equal(item["lq"], reduced)
    assert item["lq"].shape == (3, 11, 15)
    np.testing.assert_array_equal(item["gt_fullsize_ref"], np.concatenate([to_chw(pixels), np.ones((1, 41, 60))]))
    np.testing.assert_array_equal(item["lq_fullsize_ref"], np.concatenate([reduced, np.ones((1, 11, 15))]))
    assert item["gt_center"].tolist() == [20, 30]
    assert item["lq_center"].tolist() == [int(11 / 41 * 20), int(15 / 60 * 30)]
    assert item["HQ_path"] == item["LQ_path"]
    assert item["HQ_path"].endswith("a/b/1.png")
    assert {value.dtype for value in item.values() if isinstance(value, torch.Tensor)} == {torch.float32, torch.int64}


def test_where_lq_does_not_divide_both_are_cropped_and_the_centre_moves_as_if_resized(tmp_path: Path) -> None:
    pixels = noise(41, 64)
    item = validate(write_pictures(tmp_path / "a", {"1.png": pixels}), force_multiple=16)[0]
    np.testing.assert_array_equal(item["hq"], to_chw(pixels)[:, :32, :64])
    np.testing.assert_array_equal(item["lq"], matlab_reduce(to_chw(pixels), 2)[:, :16, :32])
    assert item["gt_fullsize_ref"].shape == (4, 32, 64)
    assert item["lq_fullsize_ref"].shape == (4, 16, 32)
    assert item["gt_center"].tolist() == [int(32 / 41 * 20), 32]
    assert item["lq_center"].tolist() == [int(16 / 21 * int(21 / 41 * 20)), 16]


def test_where_lq_divides_hq_keeps_its_odd_pixels(tmp_path: Path) -> None:
    item = validate(write_pictures(tmp_path / "a", {"1.png": noise(31, 32)}), force_multiple=16)[0]
    assert item["hq"].shape == (3, 31, 32)
    assert item["lq"].shape == (3, 16, 16)


def test_tile_options_have_no_effect_on_validation_and_need_not_be_right(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", {"1.png": noise(20, 30)})
    options = {"min_tile_size": 9, "target_size": 99, "use_flip": True, "blur_magnitude": 4, "lq_noise": 50}
    assert equal(validate(folder, **options)[0], validate(folder)[0])


def test_items_of_a_scale_of_one_do_not_share_memory(tmp_path: Path) -> None:
    item = validate(write_pictures(tmp_path / "a", {"1.png": noise(20, 30)}), scale=1)[0]
    assert torch.equal(item["hq"], item["lq"])
    tensors = [value for value in item.values() if isinstance(value, torch.Tensor)]
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)


# Training


def test_a_tile_has_the_keys_types_and_sizes_of_the_trainer(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", {"1.png": noise(70, 90)})
    item = train(folder, min_tile_size=48, target_size=32, scale=4)[0]
    tensors = {key: (tuple(value.shape), value.dtype) for key, value in item.items() if "path" not in key}
    assert tensors == {
        "hq": ((3, 32, 32), torch.float32),
        "lq": ((3, 8, 8), torch.float32),
        "gt_fullsize_ref": ((4, 32, 32), torch.float32),
        "lq_fullsize_ref": ((4, 8, 8), torch.float32),
        "gt_center": ((2,), torch.int64),
        "lq_center": ((2,), torch.int64),
    }


def test_a_tile_of_fixed_size_is_cut_from_the_picture_as_it_is(tmp_path: Path) -> None:
    pixels = noise(80, 80)
    item = train(write_pictures(tmp_path / "a", {"1.png": pixels}), fixed_size=True)[0]
    top, left = find_tile(to_chw(pixels), item["hq"].numpy())
    np.testing.assert_array_equal(item["lq"], matlab_reduce(item["hq"].numpy(), 2))
    picture = bilinear(to_chw(pixels), 32, 32)
    np.testing.assert_array_equal(item["gt_fullsize_ref"][:3], picture)
    np.testing.assert_array_equal(item["lq_fullsize_ref"][:3], matlab_reduce(picture, 2))
    mask = np.zeros((1, 80, 80), np.float32)
    mask[:, top : top + 32, left : left + 32] = 1
    np.testing.assert_array_equal(item["gt_fullsize_ref"][3:], bilinear(mask, 32, 32))
    np.testing.assert_array_equal(item["lq_fullsize_ref"][3:], bilinear(bilinear(mask, 32, 32), 16, 16))
    center = [int(32 / 80 * (top + 16)), int(32 / 80 * (left + 16))]
    assert item["gt_center"].tolist() == center
    assert item["lq_center"].tolist() == [int(16 / 32 * value) for value in center]


def find_tile(picture: Array, tile: Array) -> tuple[int, int]:
    """Return row and column at which a tile was cropped, unchanged, from a picture (C, H, W)."""
    side = tile.shape[1]
    windows = np.lib.stride_tricks.sliding_window_view(picture[0], (side, side))
    ((top, left),) = np.argwhere((windows == tile[0]).all((2, 3)))
    return int(top), int(left)


def test_a_larger_tile_is_resized_to_t_and_then_to_the_target_bilinearly(tmp_path: Path) -> None:
    # A standard deviation so large makes every tile grow to the whole picture.
    pixels = noise(80, 80)
    data = train(write_pictures(tmp_path / "a", {"1.png": pixels}), min_tile_size=40, tile_scale_normal_stddev=1e9)
    item = data[0]
    hq = bilinear(to_chw(pixels), 40, 40)
    np.testing.assert_array_equal(item["hq"], bilinear(hq, 32, 32))
    np.testing.assert_array_equal(item["lq"], bilinear(matlab_reduce(hq, 2), 16, 16))
    np.testing.assert_array_equal(item["gt_fullsize_ref"][:3], item["hq"])
    assert (item["gt_fullsize_ref"][3] == 1).all()
    assert item["gt_center"].tolist() == [int(32 / 40 * 20)] * 2
    assert item["lq_center"].tolist() == [int(16 / 20 * int(20 / 40 * 20))] * 2


def test_tile_sizes_and_places_have_the_distributions_of_the_original(tmp_path: Path) -> None:
    data = train(write_pictures(tmp_path / "a", {"1.png": coordinates(232, 232)}))
    items = items_of(data, 1500)
    # The mean of a tile's red is its middle row; the difference of its last and first row tells its side.
    rows = np.array([item["hq"][0].numpy() * 255 for item in items])
    sides = (rows[:, -1, 0] - rows[:, 0, 0]) * 32 / 31
    growth = (sides - 32) / 200
    normal = np.minimum(np.abs(np.random.default_rng(0).normal(scale=0.17, size=100_000)), 1)
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert abs(np.quantile(growth, share) - np.quantile(normal, share)) < 0.03
    room = 232 - sides
    tops = rows.mean((1, 2)) - sides / 2 + 0.5
    offsets = (tops - room / 2) / room
    expected = np.clip(np.random.default_rng(0).normal(scale=0.3, size=100_000), -0.5, 0.5)
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert abs(np.quantile(offsets, share) - np.quantile(expected, share)) < 0.05
    assert sides.min() > 31
    assert tops.min() > -1
    assert (tops + sides).max() < 233


def test_places_on_both_axes_are_drawn_apart(tmp_path: Path) -> None:
    data = train(write_pictures(tmp_path / "a", {"1.png": coordinates(200, 200)}), fixed_size=True)
    centers = np.array([item["gt_center"].numpy() for item in items_of(data, 400)])
    assert abs(np.corrcoef(centers.T)[0, 1]) < 0.15


@pytest.mark.parametrize("size", [(64, 200), (200, 64)])
def test_the_reference_is_a_random_square_of_a_longer_picture(tmp_path: Path, size: tuple[int, int]) -> None:
    data = train(write_pictures(tmp_path / "a", {"1.png": coordinates(*size)}))
    axis = int(size[1] > size[0])
    means = [float(item["gt_fullsize_ref"][axis].mean()) * 255 - 31.5 for item in items_of(data, 500)]
    starts = (np.array(means) - 68) / 68
    assert abs(starts.mean()) < 0.06
    assert 0.25 < starts.std() < 0.35
    assert np.abs(starts).max() < 1.02


@pytest.mark.parametrize(
    ("flip", "rotate", "combinations"),
    [(False, False, 1), (True, False, 2), (False, True, 4), (True, True, 8)],
)
def test_flip_and_rot_turn_the_picture_in_equal_shares(
    tmp_path: Path, flip: bool, rotate: bool, combinations: int
) -> None:
    data = train(write_pictures(tmp_path / "a", {"1.png": coordinates(64, 64)}), use_flip=flip, use_rot=rotate)
    count_of: dict[tuple[bool, ...], int] = {}
    for item in items_of(data, 60 * combinations):
        rows, cols = item["gt_fullsize_ref"][:2].numpy()
        combination = tuple(bool(value) for value in (rows[0, 0] < 0.1, cols[0, 0] < 0.1, rows[0, 1] == rows[0, 0]))
        count_of[combination] = count_of.get(combination, 0) + 1
    assert len(count_of) == combinations
    assert min(count_of.values()) > 35
    upright = (True, True, True)
    assert count_of[upright]
    if flip and not rotate:
        assert count_of.keys() == {upright, (True, False, True)}


def test_a_tile_whose_lq_does_not_divide_is_cropped_before_the_last_resize(tmp_path: Path) -> None:
    pixels = noise(42, 42)
    folder = write_pictures(tmp_path / "a", {"1.png": pixels})
    item = train(folder, min_tile_size=42, target_size=32, force_multiple=8)[0]
    np.testing.assert_array_equal(item["hq"], to_chw(pixels)[:, :32, :32])
    np.testing.assert_array_equal(item["lq"], matlab_reduce(to_chw(pixels), 2)[:, :16, :16])


# Blur and noise


def test_blur_changes_lq_only_in_the_shares_of_the_original(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", {"1.png": noise(32, 32)})
    plain = train(folder)[0]
    data = train(folder, use_blurring=True, blur_magnitude=9)
    items = items_of(data, 1000)
    assert all(torch.equal(item["hq"], plain["hq"]) for item in items)
    assert all(torch.equal(item["gt_fullsize_ref"], plain["gt_fullsize_ref"]) for item in items)
    assert all(torch.equal(item["lq_fullsize_ref"][3], plain["lq_fullsize_ref"][3]) for item in items)
    same = sum(torch.equal(item["lq"], plain["lq"]) for item in items)
    assert 280 < same < 360  # 30 % are not blurred; 30 % are motion blurs, each 26th of one pixel
    picture = plain["lq"].numpy()
    gaussian = {
        sigma: np.stack([cv2.GaussianBlur(channel, (9, 9), sigma) for channel in picture])
        for sigma in map(float, range(9))
    }
    counts = [sum(bool(np.allclose(item["lq"], blurred, atol=1e-6)) for item in items) for blurred in gaussian.values()]
    assert 350 < sum(counts) < 450
    assert min(counts) > 20


def test_references_are_blurred_at_a_fifth_of_the_magnitude(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", {"1.png": noise(32, 32)})
    spread_of: dict[str, list[float]] = {"lq": [], "lq_fullsize_ref": []}
    for item in items_of(train(folder, use_blurring=True, blur_magnitude=25), 100):
        for key, spreads in spread_of.items():
            spreads.append(float(item[key][:3].std()))
    assert np.mean(spread_of["lq"]) < 0.9 * np.mean(spread_of["lq_fullsize_ref"])
    plain = train(folder)[0]["lq_fullsize_ref"]
    items = items_of(train(folder, use_blurring=True, blur_magnitude=3), 100)
    # At magnitude 3 the reference's magnitude is 1: the Gaussian's kernel has one pixel, a line one or two.
    assert sum(torch.equal(item["lq_fullsize_ref"], plain) for item in items) > 70


@pytest.mark.parametrize("magnitude", [1, 3, 5, 9, 11, 21, 31])
def test_every_odd_magnitude_works(tmp_path: Path, magnitude: int) -> None:
    folder = write_pictures(tmp_path / "a", {"1.png": noise(64, 64)})
    for item in items_of(train(folder, use_blurring=True, blur_magnitude=magnitude), 40):
        assert np.isfinite(item["lq"].numpy()).all()


def test_noise_is_the_same_on_lq_and_its_reference(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", {"1.png": noise(128, 128)})
    options = {"min_tile_size": 128, "target_size": 128}
    plain, noisy = train(folder, **options)[SampleKey(0, 0)], train(folder, **options, lq_noise=20)[SampleKey(0, 0)]
    added = (noisy["lq"] - plain["lq"]).numpy() * 255
    assert 19 < added.std() < 21
    assert abs(added.mean()) < 1
    np.testing.assert_allclose(noisy["lq_fullsize_ref"][:3] - plain["lq_fullsize_ref"][:3], added / 255, atol=1e-5)
    assert torch.equal(noisy["lq_fullsize_ref"][3], plain["lq_fullsize_ref"][3])
    assert torch.equal(noisy["hq"], plain["hq"])
    assert noisy["lq"].dtype == torch.float32


# LQ from dataroot_LQ


def pairs(tmp_path: Path, *, factor: int = 2, sizes: Mapping[str, tuple[int, int]] | None = None) -> tuple[Path, Path]:
    """Write pictures of whole levels as LQ, and as HQ their enlargements, whose area averages need no rounding."""
    hq, lq = {}, {}
    for number, (name, (height, width)) in enumerate((sizes or {"1.png": (64, 96)}).items()):
        small = noise(height // factor, width // factor, seed=number)
        lq[name] = small
        hq[name] = small.repeat(factor, 0).repeat(factor, 1)
    return write_pictures(tmp_path / "hq", hq), write_pictures(tmp_path / "lq", lq)


def test_in_validation_lq_comes_as_it_is(tmp_path: Path) -> None:
    hq, lq = pairs(tmp_path)
    item = validate(hq, dataroot_LQ=lq)[0]
    np.testing.assert_allclose(item["lq"], averaged(item["hq"].numpy()), atol=1e-6)
    assert item["lq_center"].tolist() == [16, 24]
    assert item["LQ_path"].endswith("lq/1.png")
    assert item["HQ_path"].endswith("hq/1.png")


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_in_training_both_get_the_same_geometry(tmp_path: Path, factor: int) -> None:
    hq, lq = pairs(tmp_path, factor=factor, sizes={"1.png": (128, 192)})
    data = train(hq, dataroot_LQ=lq, scale=factor, fixed_size=True, use_flip=True, use_rot=True)
    for item in items_of(data, 30):
        np.testing.assert_allclose(item["lq"], averaged(item["hq"].numpy(), factor), atol=1e-6)
        np.testing.assert_array_equal(item["lq_fullsize_ref"][3] > 0.5, averaged_mask(item, factor))
        difference = item["gt_center"].numpy() / factor - item["lq_center"].numpy()
        assert np.abs(difference).max() <= 1


def averaged_mask(item: Mapping[str, Any], factor: int) -> Array:
    inside: Array = averaged(item["gt_fullsize_ref"][3:].numpy(), factor)[0] > 0.5
    return inside


def test_tiles_of_any_size_match(tmp_path: Path) -> None:
    hq, lq = pairs(tmp_path, sizes={"1.png": (128, 192)})
    ramp = coordinates(64, 96)
    write_pictures(lq, {"1.png": ramp})
    write_pictures(hq, {"1.png": ramp.repeat(2, 0).repeat(2, 1)})
    for item in items_of(train(hq, dataroot_LQ=lq, use_flip=True, use_rot=True), 30):
        assert float((item["lq"].mean((1, 2)) - item["hq"].mean((1, 2))).abs().max()) < 1 / 255


def test_one_of_several_lq_roots_is_drawn(tmp_path: Path) -> None:
    folders = [write_pictures(tmp_path / str(n), {"1.png": np.full((16, 16, 3), 50 * n, np.uint8)}) for n in range(3)]
    hq = write_pictures(tmp_path / "hq", {"1.png": noise(32, 32)})
    items = items_of(train(hq, dataroot_LQ=folders), 600)
    counts = np.bincount([round(float(item["lq"].mean()) * 255 / 50) for item in items])
    assert counts.tolist() == [counts[0], counts[1], counts[2]]
    assert counts.min() > 150
    assert all(f"/{round(float(item['lq'].mean()) * 255 / 50)}/1.png" in item["LQ_path"] for item in items)


def test_lq_pairs_by_order_through_several_roots_and_weights(tmp_path: Path) -> None:
    def grey(level: int, side: int) -> Array:
        return np.full((side, side, 3), level, np.uint8)

    first = write_pictures(tmp_path / "b", {f"{n}.png": grey(n, 32) for n in range(3, 5)})
    second = write_pictures(tmp_path / "a", {f"{n}.png": grey(n, 32) for n in range(3)})
    lq = write_pictures(tmp_path / "lq", {f"x{n}.png": grey(n, 16) for n in range(5)})
    options = {"dataroot_GT_weights": [2, 1], "dataroot_LQ": lq, "phase": "val", "scale": 2}
    data = FullImageDataset({"dataroot_GT": [first, second], **options})
    levels = [round(float(data[index]["hq"].mean()) * 255) for index in range(len(data))]
    assert levels == [0, 1, 2, 3, 3, 4, 4]
    assert [round(float(data[index]["lq"].mean()) * 255) for index in range(len(data))] == levels


@pytest.mark.parametrize("as_store", [False, True])
@pytest.mark.parametrize(
    ("roots", "expected"),
    [
        (["b", "a"], ["a/1", "a/1", "a/c/1", "a/c/1", "a/d", "a/d", "b/1"]),
        (["a", "a/c"], ["a/1", "a/c/1", "a/c/1", "a/c/1", "a/d"]),
        (["a", "a"], ["a/1", "a/1", "a/1", "a/c/1", "a/c/1", "a/c/1", "a/d", "a/d", "a/d"]),
        (["a", "a.b"], ["a.b/1", "a.b/1", "a/1", "a/c/1", "a/d"]),
        (["a"], ["a/1", "a/1", "a/c/1", "a/c/1", "a/d", "a/d"]),
    ],
)
def test_pictures_of_several_roots_are_sorted_as_one_list(
    tmp_path: Path, roots: list[str], expected: list[str], as_store: bool
) -> None:
    names = ["a/1.png", "a/c/1.png", "a/d.png", "b/1.png", "a.b/1.png"]
    write_pictures(tmp_path, {name: noise(40, 40, seed=n) for n, name in enumerate(names)})
    paths = [tmp_path / root for root in roots]
    if as_store:
        for path in dict.fromkeys(paths):
            import_store([path], path.with_name(f"{path.name}.lmdb"), layout="pictures")
        paths = [path.with_name(f"{path.name}.lmdb") for path in paths]
    data = FullImageDataset({"dataroot_GT": paths, "dataroot_GT_weights": [1, 2][-len(roots) :], "scale": 2})
    found = [data[index]["HQ_path"] for index in range(len(data))]
    assert [path.replace(".lmdb", "").removeprefix(f"{tmp_path}/").removesuffix(".png") for path in found] == expected
    assert [data.image_of(index) for index in range(len(data))] == found
    again = pickle.loads(pickle.dumps(data))
    assert [again[index]["HQ_path"] for index in range(len(again))] == found


def test_a_path_order_of_several_roots_has_no_item_beyond_its_ends(tmp_path: Path) -> None:
    for name in "ab":
        write_pictures(tmp_path / name, {"1.png": noise(40, 40)})
    data = FullImageDataset({"dataroot_GT": [tmp_path / "a", tmp_path / "b"], "scale": 2})
    for index in (-1, 2):
        with pytest.raises(PatchIndexError, match=f"no item {index}: the dataset has 2"):
            data[index]


def named_pairs(tmp_path: Path, hq: list[str], lq: list[str]) -> FullImageDataset:
    """Open pairs of pictures by their names, HQ of 64 x 64 and LQ of 16 x 16 pixels."""
    write_pictures(tmp_path / "hq", {name: noise(64, 64) for name in hq})
    write_pictures(tmp_path / "lq", {name: noise(16, 16) for name in lq})
    return validate(tmp_path / "hq", dataroot_LQ=tmp_path / "lq", scale=4)


@pytest.mark.parametrize(
    ("hq", "lq", "pair"),
    [
        (["a.png", "b.png", "c.png"], ["a.png", "c.png", "d.png"], "b.png is paired with LQ .*/lq/c.png"),
        (["a.png", "b.png", "c.png"], ["b.png", "c.png", "d.png"], "b.png is paired with LQ .*/lq/c.png"),
        (["1.png", "2.png"], ["2.png", "3.png"], "2.png is paired with LQ .*/lq/3.png"),
        (["01.png", "11.png"], ["02.png", "12.png"], "11.png is paired with LQ .*/lq/12.png"),
        (["01.png", "02.png", "03.png"], ["01x4.png", "03x4.png", "04x4.png"], "02.png is paired .*/03x4.png"),
        ([f"{n}.png" for n in range(1, 12)], [f"{n:02d}.png" for n in range(1, 12)], "10.png is paired .*/02.png"),
    ],
)
def test_pairs_whose_names_do_not_belong_together_are_warned_of(
    tmp_path: Path, hq: list[str], lq: list[str], pair: str
) -> None:
    with pytest.warns(OptionWarning, match=rf"^fullimage: dataroot_LQ: HQ .*/hq/{pair}, and their names do not fit"):
        named_pairs(tmp_path, hq, lq)


@pytest.mark.parametrize(
    ("hq", "lq"),
    [
        (["a.png", "b.png", "c.png"], ["a.jpg", "b.jpg", "c.jpg"]),
        (["0001.png", "0002.png", "0004.png"], ["0001x4.png", "0002x4.png", "0004x4.png"]),
        (["Canon_001_HR.png", "Nikon_2_HR.png"], ["Canon_001_LR4.png", "Nikon_2_LR4.png"]),
        (["left.png", "right.png", "up_l.png"], ["lr_left.png", "lr_right.png", "lr_up_l.png"]),
        (["img_001_SRF_4_HR.png", "img_002_SRF_4_HR.png"], ["img_001_SRF_4_LR.png", "img_002_SRF_4_LR.png"]),
        (["x/1.png", "y/2.png"], ["1.png", "2.png"]),
        (["a.png"], ["b.png"]),
    ],
)
def test_pairs_whose_names_fit_are_silent(tmp_path: Path, hq: list[str], lq: list[str]) -> None:
    data = named_pairs(tmp_path, hq, lq)
    assert [data[index]["lq"].shape for index in range(len(data))] == [(3, 16, 16)] * len(hq)


@pytest.mark.parametrize("size", [(15, 16), (16, 15), (32, 32), (64, 64), (17, 16)])
def test_lq_whose_size_is_not_hqs_over_scale_is_an_error_that_names_the_pair(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    hq = write_pictures(tmp_path / "hq", {"1.png": noise(64, 64), "2.png": noise(64, 64)})
    lq = write_pictures(tmp_path / "lq", {"1.png": noise(16, 16), "2.png": noise(*size)})
    message = rf"lq.*/2\.png: {size[1]} x {size[0]} pixels are not the 64 x 64 pixels of .*hq.*/2\.png at scale 4"
    data = validate(hq, dataroot_LQ=lq, scale=4)
    assert data[0]["lq"].shape == (3, 16, 16)
    with pytest.raises(ImageError, match=message):
        data[1]
    hq, lq = store_of(hq), store_of(lq)
    with pytest.raises(ConfigError, match=message):
        validate(hq, dataroot_LQ=lq, scale=4)
    assert validate(hq, dataroot_LQ=lq, scale=4, on_error="skip")[1]["HQ_path"].endswith("/1.png")


def test_hq_may_have_a_remainder_beyond_lq(tmp_path: Path) -> None:
    hq = write_pictures(tmp_path / "hq", {"1.png": noise(67, 98)})
    lq = write_pictures(tmp_path / "lq", {"1.png": noise(33, 49)})
    assert train(hq, dataroot_LQ=lq)[0]["lq"].shape == (3, 16, 16)


def test_lq_of_another_shape_is_an_error_that_names_both(tmp_path: Path) -> None:
    hq = write_pictures(tmp_path / "hq", {"1.png": noise(64, 96)})
    lq = write_pictures(tmp_path / "lq", {"2.png": noise(32, 32)})
    with pytest.raises(ImageError, match=r"lq/2\.png: 32 x 32 pixels, no whole part of the 96 x 64 pixels of .*hq/1"):
        train(hq, dataroot_LQ=lq)[0]


# Both phases


@pytest.mark.parametrize("phase", ["train", "val"])
@pytest.mark.parametrize("layout", ["pictures", "chunked"])
def test_items_of_folder_and_store_are_equal(tmp_path: Path, phase: str, layout: Any) -> None:
    names = ["a/1.png", "a/2.png", "a-b/1.png"]
    folder = write_pictures(tmp_path / "a", {name: noise(50 + n, 60, seed=n) for n, name in enumerate(names)})
    options = {"phase": phase, "use_flip": True, "use_blurring": True, "lq_noise": 3}
    from_folder, from_store = train(folder, **options), train(store_of(folder, layout), **options)
    assert len(from_folder) == len(from_store) == 3
    for index in range(3):
        a, b = from_folder[SampleKey(index, 5)], from_store[SampleKey(index, 5)]
        assert equal(a, b)
        assert a["HQ_path"].removeprefix(str(folder)) == "/" + "/".join(Path(b["HQ_path"]).parts[-2:])


def test_an_item_follows_from_seed_index_and_repetition(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", {"1.png": noise(60, 90)})
    data = train(folder, use_flip=True, use_rot=True, use_blurring=True, lq_noise=5)
    first = data[SampleKey(0, 3)]
    assert equal(first, pickle.loads(pickle.dumps(data))[SampleKey(0, 3)])
    assert not equal(first, data[SampleKey(0, 4)])
    assert not equal(first, train(folder, seed=2)[SampleKey(0, 3)])


def test_weights_repeat_roots_and_dataroot_stands_for_dataroot_gt(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", {"1.png": noise(40, 40), "2.png": noise(40, 40)})
    data = FullImageDataset({"dataroot": folder, "dataroot_GT_weights": 3, "scale": 2, "phase": "val"})
    assert [data[index]["HQ_path"][-5:] for index in range(len(data))] == ["1.png", "2.png"] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": None}, "scale is missing"),
        ({"target_size": None}, "target_size is missing"),
        ({"min_tile_size": None}, "min_tile_size is missing"),
        ({"min_tile_size": 31}, "min_tile_size must be at least target_size, got 31 and 32"),
        ({"scale": 64}, "target_size must be at least scale, got 32 and 64"),
        ({"blur_magnitude": 4}, "blur_magnitude must be odd, got 4"),
        ({"lq_noise": "much"}, "lq_noise must be a number"),
        ({"tile_scale_normal_stddev": -1}, "tile_scale_normal_stddev must be a number of at least 0"),
        ({"use_flip": 2}, "use_flip must be true or false"),
        ({"dataroot_GT": "/absent"}, "dataroot_GT names '/absent', which does not exist"),
        ({"dataroot_LQ": "/absent"}, "dataroot_LQ names '/absent', which does not exist"),
        ({"dataroot": "/absent"}, "dataroot_GT and dataroot are both given"),
        ({"dataroot_GT_weights": [1, 2]}, "dataroot_GT_weights must be one for each"),
    ],
)
def test_a_wrong_option_is_refused_at_construction(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    folder = write_pictures(tmp_path / "a", {"1.png": noise(64, 64)})
    with pytest.raises(ConfigError, match=f"^fullimage 'div2k': {message}"):
        train(folder, name="div2k", **options)


def test_hq_and_lq_of_different_length_are_refused_at_construction(tmp_path: Path) -> None:
    hq = write_pictures(tmp_path / "hq", {"1.png": noise(32, 32), "2.png": noise(32, 32)})
    lq = write_pictures(tmp_path / "lq", {"1.png": noise(16, 16)})
    with pytest.raises(ConfigError, match=r"dataroot_LQ must hold a picture for each of HQ: .*lq holds 1, and HQ 2"):
        train(hq, dataroot_LQ=lq)


@pytest.mark.parametrize("layout", ["pictures", "chunked"])
def test_a_picture_smaller_than_a_tile_is_named_at_construction_of_a_store(tmp_path: Path, layout: Any) -> None:
    folder = write_pictures(tmp_path / "a", {"b/1.png": noise(64, 64), "b/2.png": noise(64, 31)})
    store = store_of(folder, layout)
    with pytest.raises(ConfigError, match=r"b/2\.png: 31 x 64 pixels are too few for min_tile_size 32"):
        train(store)
    assert train(store, on_error="skip")[1]["HQ_path"].endswith("1.png")


def test_a_picture_smaller_than_a_tile_is_named_when_it_is_read_from_a_folder(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", {"1.png": noise(64, 31)})
    with pytest.raises(ImageError, match=r"a/1\.png: 31 x 64 pixels are too few for min_tile_size 32, which needs"):
        train(folder)[0]


def test_a_picture_too_small_to_validate_is_named(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", {"1.png": noise(30, 64)})
    assert validate(folder, force_multiple=15)[0]["lq"].shape == (3, 15, 30)
    with pytest.raises(ConfigError, match=r"1\.png: 64 x 30 pixels are too few for scale 2 with force_multiple 16"):
        validate(store_of(folder), force_multiple=16)


def test_an_option_of_no_effect_is_warned_of(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", {"1.png": noise(64, 64)})
    with pytest.warns(OptionWarning, match="'use_flips' is not known and has no effect; did you mean 'use_flip'"):
        train(folder, use_flips=True)


def test_the_centre_of_lq_is_that_of_hq_also_where_lq_comes_from_a_root(tmp_path: Path) -> None:
    hq = write_pictures(tmp_path / "hq", {"a.png": noise(101, 150)})
    lq = write_pictures(tmp_path / "lq", {"a.png": noise(26, 38)})
    for options in ({}, {"dataroot_LQ": lq}):
        item = validate(hq, scale=4, **options)[0]
        assert item["gt_center"].tolist() == [50, 75]
        assert item["lq_center"].tolist() == [int(26 / 101 * 50), int(38 / 150 * 75)]
