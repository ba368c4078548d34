"""Agreement of whole pictures with an output of DL-Art-School's own FullImageDataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from test_golden import MANIFEST, assert_agrees, expected_item

from dlas_store.datasets import FullImageDataset


def test_full_image_gives_the_validation_item_of_the_original(sample_path: Callable[[str], Path]) -> None:
    case = MANIFEST["fullimage_val"]
    dataset = FullImageDataset({**case["options"], "dataroot_GT": sample_path("golden/fullimage_src")})
    assert len(dataset) == case["len"]
    for index in case["items"]:
        item, expected = dataset[index], expected_item("fullimage_val", index)
        assert item.keys() == expected.keys()
        for key, value in expected.items():
            assert_agrees(item[key], value)
