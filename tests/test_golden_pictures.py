"""Agreement of the datasets of whole pictures with outputs of DL-Art-School's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_golden import MANIFEST, MIN_PSNR, assert_agrees, expected_item

from dlas_store.datasets import ImageFolderDataset


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
