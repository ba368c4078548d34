"""Agreement with outputs of DL-Art-School's own datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import DATA, Array

from dlas_store.datasets import SingleImageDataset

MANIFEST = json.loads((DATA / "golden" / "manifest.json").read_text())

MAX_DIFFERENCE = 1.5 / 255
MEAN_DIFFERENCE = 0.5 / 255


@pytest.mark.parametrize("name", ["single_plain", "single_ref_meta", "single_eval"])
def test_single_image_gives_the_items_of_the_original(name: str, chunked_source_path: Path) -> None:
    case = MANIFEST[name]
    dataset = SingleImageDataset({**case["options"], "paths": str(chunked_source_path)})
    assert len(dataset) == case["len"]
    expected = np.load(DATA / "golden" / f"{name}.npz")
    for index in case["items"]:
        item = dataset[index]
        keys = {key.removeprefix(f"{index}/") for key in expected.files if key.startswith(f"{index}/")}
        assert item.keys() == keys
        for key in keys:
            assert_agrees(item[key], expected[f"{index}/{key}"])


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
