"""Agreement of items with recorded outputs of DL-Art-School's own datasets."""

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
"""Of LQ with a JPEG corruption, in dB."""

CLASSES: dict[str, type[SingleImageDataset | MultiFrameDataset]] = {
    cls.__name__: cls for cls in (SingleImageDataset, MultiFrameDataset)
}


def expected_item(name: str, index: int) -> dict[str, Array]:
    """Return the recorded item of a case of the manifest."""
    with np.load(DATA / "golden" / f"{name}.npz") as arrays:
        return {key.removeprefix(f"{index}/"): arrays[key] for key in arrays if key.startswith(f"{index}/")}


def assert_agrees(value: Any, expected: Array) -> None:
    """Assert that a value of an item is the recorded one; pictures may differ by the tolerances above."""
    if isinstance(value, str):
        assert value.endswith(str(expected))
        return
    array = value.numpy()
    assert array.dtype == expected.dtype
    assert array.shape == expected.shape
    if array.dtype == np.int64:
        np.testing.assert_array_equal(array, expected)
    else:
        difference = np.abs(array - expected)
        assert difference.max() <= MAX_DIFFERENCE
        assert difference.mean() <= MEAN_DIFFERENCE


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
        # The original seeded the generator of each item with random_seed; this library adds the index.
        seed = case["options"]["random_seed"] - index
        dataset = SingleImageDataset({**case["options"], "random_seed": seed, "paths": sample_path(case["source"])})
        item, expected = dataset[index], expected_item("single_jpeg_seeded", index)
        assert item.keys() == expected.keys()
        error = float(np.square(item["lq"].numpy() - expected.pop("lq")).mean())
        assert error == 0 or -10 * np.log10(error) >= MIN_PSNR
        for key, value in expected.items():
            assert_agrees(item[key], value)


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
            # The original seeded the generator of each item with random_seed; this library adds the index.
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
