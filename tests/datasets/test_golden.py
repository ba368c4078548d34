"""Agreement with outputs of DL-Art-School's own datasets.

Agreement of whole pictures with an output of DL-Art-School's own FullImageDataset.

Agreement of the datasets of whole pictures with outputs of DL-Art-School's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlas_store.datasets import FullImageDataset, ImageFolderDataset, MultiFrameDataset, SingleImageDataset
from tests.support.sample_data import DATA, Array

MANIFEST = json.loads((DATA / "golden" / "manifest.json").read_text())

MAX_DIFFERENCE = 1.5 / 255
MEAN_DIFFERENCE = 0.5 / 255
MIN_PSNR = 40

CLASSES: dict[str, type[SingleImageDataset | MultiFrameDataset]] = {
    cls.__name__: cls for cls in (SingleImageDataset, MultiFrameDataset)
}


@pytest.mark.parametrize("name", ["single_plain", "single_ref_meta", "single_eval", "multi_frame_start"])
def test_patch_datasets_give_the_items_of_the_original(name: str, sample_path: Callable[[str], Path]) -> None:
    case = MANIFEST[name]
    dataset = CLASSES[case["dataset"]]({**case["options"], "paths": str(sample_path(case["source"]))})
    assert len(dataset) == case["len"]
    for index in case["items"]:
        item, expected = dataset[index], expected_item(name, index)
        assert item.keys() == expected.keys()
        for key, value in expected.items():
            assert_agrees(item[key], value)


def test_seeded_jpeg_gives_the_pictures_of_the_original(sample_path: Callable[[str], Path]) -> None:
    case = MANIFEST["single_jpeg_seeded"]
    for index in case["items"]:
        # Each item of the original was made with a generator of the seed itself, where ours takes seed + index.
        seed = case["options"]["random_seed"] - index
        dataset = SingleImageDataset({**case["options"], "random_seed": seed, "paths": sample_path(case["source"])})
        item, expected = dataset[index], expected_item("single_jpeg_seeded", index)
        assert item.keys() == expected.keys()
        error = float(np.square(item["lq"].numpy() - expected.pop("lq")).mean())
        assert error == 0 or -10 * np.log10(error) >= MIN_PSNR
        for key, value in expected.items():
            assert_agrees(item[key], value)


def expected_item(name: str, index: int) -> dict[str, Array]:
    with np.load(DATA / "golden" / f"{name}.npz") as arrays:
        return {key.removeprefix(f"{index}/"): arrays[key] for key in arrays if key.startswith(f"{index}/")}


def assert_agrees(ours: Any, theirs: Array) -> None:
    if isinstance(ours, str):
        assert ours.endswith(str(theirs))
        return
    array = ours.numpy()
    assert array.dtype == theirs.dtype
    assert array.shape == theirs.shape
    if array.dtype == np.int64:
        np.testing.assert_array_equal(array, theirs)
    else:
        difference = np.abs(array - theirs)
        assert difference.max() <= MAX_DIFFERENCE
        assert difference.mean() <= MEAN_DIFFERENCE


def test_full_image_gives_the_validation_item_of_the_original(sample_path: Callable[[str], Path]) -> None:
    case = MANIFEST["fullimage_val"]
    dataset = FullImageDataset({**case["options"], "dataroot_GT": sample_path("golden/fullimage_src")})
    assert len(dataset) == case["len"]
    for index in case["items"]:
        item, expected = dataset[index], expected_item("fullimage_val", index)
        assert item.keys() == expected.keys()
        for key, value in expected.items():
            assert_agrees(item[key], value)


@pytest.mark.parametrize("name", ["imagefolder_plain", "imagefolder_jpeg"])
def test_image_folder_gives_the_items_of_the_original(name: str, sample_path: Callable[[str], Path]) -> None:
    case = MANIFEST[name]
    for index in case["items"]:
        options = {**case["options"], "paths": str(sample_path("photos"))}
        if "random_seed" in options:
            # Each item of the original was made with a generator of the seed itself, where ours takes seed + index.
            options["random_seed"] -= index
        dataset = ImageFolderDataset(options)
        assert len(dataset) == case["len"]
        item, expected = dataset[index], expected_item(name, index)
        assert item.keys() == expected.keys()
        assert item.pop("has_alt") is bool(expected.pop("has_alt"))
        np.testing.assert_allclose(item.pop("corruption_entropy"), expected.pop("corruption_entropy"), atol=1e-6)
        if name == "imagefolder_jpeg":
            error = float(np.square(item["lq"].numpy() - expected.pop("lq")).mean())
            assert error == 0 or -10 * np.log10(error) >= MIN_PSNR
        for key, value in expected.items():
            assert_agrees(item[key], value)
