"""Mode multiscale: its square crop, its tree of patches, and its LQ."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlas_store.datasets import MultiScaleDataset, build_tree, tree_leaves
from dlas_store.errors import ConfigError, ImageError
from dlas_store.sampling.rng import SampleKey
from tests.support.picture_folders import averaged, store_of, to_chw, write_pictures
from tests.support.sample_data import Array, noise


def dataset(folder: Path, **options: Any) -> MultiScaleDataset:
    defaults = {"paths": folder, "hq_tile_size": 8, "num_scales": 3, "scale": 2, "seed": 1}
    return MultiScaleDataset({**defaults, **options})


def flips_and_rotations(square: Array) -> list[Array]:
    """Return a square (C, H, W) in all eight combinations of flips and rotations."""
    return [np.rot90(mirrored, times, (1, 2)) for mirrored in (square, square[:, :, ::-1]) for times in range(4)]


def combinations_of(square: Array, arrays: list[Array]) -> list[int]:
    """Return for each array its number among the eight combinations of a square."""
    combinations = flips_and_rotations(square)
    return [next(n for n, way in enumerate(combinations) if np.allclose(way, array, atol=1e-5)) for array in arrays]


def quadrants(square: Array) -> list[Array]:
    half = square.shape[1] // 2
    return [square[:, top : top + half, left : left + half] for top in (0, half) for left in (0, half)]


def expected_patches(square: Array, side: int, depths: int) -> list[Array]:
    """Return the patches of a square, computed by the recursion of DL-Art-School."""
    patches = [averaged(square, square.shape[1] // side)]

    def extract(parent: Array, remaining_depths: int) -> None:
        if not remaining_depths:
            return
        children = quadrants(parent)
        patches.extend(averaged(child, child.shape[1] // side) for child in children)
        for child in children:
            extract(child, remaining_depths - 1)

    extract(square, depths - 1)
    return patches


@pytest.mark.parametrize("num_scales", [1, 2, 3, 4])
def test_patches_are_the_whole_then_four_quadrants_each_depth_first(tmp_path: Path, num_scales: int) -> None:
    side = 8 << num_scales
    pixels = noise(side, side)
    item = dataset(write_pictures(tmp_path / "a", {"1.png": pixels}), num_scales=num_scales)[0]
    (combination,) = combinations_of(averaged(to_chw(pixels), side // 8), [item["hq"][0].numpy()])
    expected = expected_patches(flips_and_rotations(to_chw(pixels))[combination], 8, num_scales)
    assert item["hq"].shape == ((4**num_scales - 1) // 3, 3, 8, 8)
    np.testing.assert_allclose(item["hq"], np.stack(expected), atol=1e-5)
    np.testing.assert_allclose(item["lq"], np.stack([averaged(patch) for patch in expected]), atol=1e-5)
    assert item["hq"].dtype == item["lq"].dtype == torch.float32
    assert item["GT_path"].endswith("a/1.png")
    assert item.keys() == {"hq", "lq", "GT_path"}


def test_pictures_come_in_all_eight_turns_alike(tmp_path: Path) -> None:
    pixels = noise(64, 64)
    data = dataset(write_pictures(tmp_path / "a", {"1.png": pixels}))
    pictures = [data[SampleKey(0, repetition)]["hq"][0].numpy() for repetition in range(800)]
    counts = np.bincount(combinations_of(averaged(to_chw(pixels), 8), pictures), minlength=8)
    assert len(counts) == 8
    assert counts.min() > 60
    assert counts.max() < 140


@pytest.mark.parametrize("size", [(64, 192), (192, 64)])
def test_the_square_lies_about_the_middle_of_the_longer_side(tmp_path: Path, size: tuple[int, int]) -> None:
    # Grey rises by one level a pixel along the longer side, so that a square's mean tells where the square begins.
    ramp = np.arange(192, dtype=np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    pixels = ramp if size[1] == 192 else ramp.swapaxes(0, 1)
    data = dataset(write_pictures(tmp_path / "a", {"1.png": pixels}), num_scales=1, hq_tile_size=32)
    means = np.array([float(data[SampleKey(0, repetition)]["hq"].mean()) * 255 for repetition in range(1000)])
    offsets = (means - 31.5 - 64) / 64
    assert abs(offsets.mean()) < 0.05
    assert 0.26 < offsets.std() < 0.34
    assert offsets.min() >= -1 - 1e-3
    assert offsets.max() <= 1 + 1e-3


@pytest.mark.parametrize("size", [(30, 30), (31, 30), (100, 90), (16, 200)])
def test_a_picture_of_any_size_is_resized_to_the_tree(tmp_path: Path, size: tuple[int, int]) -> None:
    data = dataset(write_pictures(tmp_path / "a", {"1.png": noise(*size)}))
    for repetition in range(10):
        assert data[SampleKey(0, repetition)]["hq"].shape == (21, 3, 8, 8)


def test_lq_is_cut_from_a_corrupted_copy_of_the_whole(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", {"1.png": noise(64, 64)})
    item = dataset(folder, fixed_corruptions=["greyscale"])[SampleKey(0, 0)]
    assert np.ptp(item["lq"].numpy(), axis=1).max() < 1e-6
    grey = item["hq"].numpy().mean(1)
    np.testing.assert_allclose(item["lq"][:, 0], averaged(grey), atol=1e-5)
    assert torch.equal(dataset(folder)[SampleKey(0, 0)]["hq"], item["hq"])


def test_leaves_lead_to_the_whole_by_their_offsets(tmp_path: Path) -> None:
    side = 32
    item = dataset(write_pictures(tmp_path / "a", {"1.png": noise(8 * side, 8 * side)}), hq_tile_size=side)[0]
    leaves = tree_leaves(3)
    assert [leaf.index for leaf in leaves] == [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
    for leaf in leaves:
        *nodes, root = leaf.chain()
        assert len(nodes) == 2
        assert root.index == 0
        assert root.parent is None
        for node in nodes:
            assert node.parent is not None
            top, left = int(node.top * side), int(node.left * side)
            quadrant = item["hq"][node.parent.index][:, top : top + side // 2, left : left + side // 2]
            np.testing.assert_allclose(quadrant, averaged(item["hq"][node.index].numpy()), atol=1e-5)


def test_pictures_of_several_roots_are_sorted_as_one_list(tmp_path: Path) -> None:
    for name in ("b/1.png", "a/2.png", "a/c/1.png"):
        write_pictures(tmp_path, {name: noise(40, 40)})
    data = dataset(tmp_path, paths=[tmp_path / "b", tmp_path / "a", tmp_path / "a" / "c"])
    found = [data[index]["GT_path"].removeprefix(f"{tmp_path}/") for index in range(len(data))]
    assert found == ["a/2.png", "a/c/1.png", "a/c/1.png", "b/1.png"]


def test_a_tree_of_one_scale_is_a_leaf() -> None:
    assert [leaf.index for leaf in tree_leaves(1)] == [0]
    assert [len(build_tree(n)) for n in (1, 2, 3, 4, 5)] == [1, 5, 21, 85, 341]
    assert [node.index for node in build_tree(5)] == list(range(341))


def test_an_item_follows_from_seed_index_and_repetition(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", {"1.png": noise(40, 90)})
    data = dataset(folder, fixed_corruptions=["noise"])
    first = data[SampleKey(0, 3)]
    again = pickle.loads(pickle.dumps(data))[SampleKey(0, 3)]
    assert torch.equal(first["hq"], again["hq"])
    assert torch.equal(first["lq"], again["lq"])
    assert not torch.equal(first["hq"], data[SampleKey(0, 4)]["hq"])
    assert not torch.equal(first["hq"], dataset(folder, seed=2)[SampleKey(0, 3)]["hq"])


@pytest.mark.parametrize("layout", ["pictures", "chunked"])
def test_items_of_folder_and_store_are_equal(tmp_path: Path, layout: Any) -> None:
    folder = write_pictures(tmp_path / "a", {f"{n}/{n}.png": noise(40 + n, 60, seed=n) for n in range(3)})
    from_folder, from_store = dataset(folder), dataset(folder, paths=None, dataroot=store_of(folder, layout))
    assert len(from_folder) == len(from_store) == 3
    for index in range(3):
        a, b = from_folder[SampleKey(index, 0)], from_store[SampleKey(index, 0)]
        assert torch.equal(a["hq"], b["hq"])
        assert torch.equal(a["lq"], b["lq"])
        assert Path(a["GT_path"]).name == Path(b["GT_path"]).name == f"{index}.png"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hq_tile_size": None}, "hq_tile_size is missing"),
        ({"num_scales": 0}, "num_scales must be a positive integer, got 0"),
        ({"scale": 3}, "hq_tile_size must be a multiple of scale, got 8 and 3"),
        ({"fixed_corruptions": ["smear"]}, "fixed_corruptions names 'smear'"),
        ({"paths": "/absent"}, "paths names '/absent', which does not exist"),
    ],
)
def test_a_wrong_option_is_refused_at_construction(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    folder = write_pictures(tmp_path / "a", {"1.png": noise(8, 8)})
    with pytest.raises(ConfigError, match=f"^multiscale: {message}"):
        dataset(folder, **options)


def test_a_damaged_picture_raises_with_its_name(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", {"1.png": noise(8, 8)})
    (folder / "1.png").write_bytes(b"\xff\xd8\xff nonsense")
    with pytest.raises(ImageError, match=r"a/1\.png"):
        dataset(folder)[0]
