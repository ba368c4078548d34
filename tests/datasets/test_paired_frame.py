"""Mode paired_frame: the images of a pair, and data that is refused at construction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlas_store.converters.importing import import_store
from dlas_store.datasets import PairedFrameDataset, SingleImageDataset, create_dataset
from dlas_store.errors import ConfigError
from tests.conftest import MakeImage
from tests.support.corruption_cases import expected_strengths
from tests.support.equality import assert_pickled_gives_the_same


def make_images(make_image: MakeImage, values: Mapping[str, int], *, patches: int = 1) -> Path:
    """Write images; all pixels of a patch have one value: the image's + position. Return the folder of the images."""
    for name, value in values.items():
        files = {f"{value}{n}.jpg": np.full((32, 32, 3), value + n, np.uint8) for n in range(patches)}
        folder = make_image(name, files)
    return folder


def dataset_of(path: Path | list[Path], **options: Any) -> PairedFrameDataset:
    return PairedFrameDataset({"paths": path, "target_size": 32, "scale": 2, **options})


def pairs(dataset: PairedFrameDataset) -> list[tuple[int, int]]:
    """Return the values of the left and the right image of every item, 0 to 255."""
    values = []
    for index in range(len(dataset)):
        left, right = dataset[index]["hq"]
        values.append((round(float(left.mean()) * 255), round(float(right.mean()) * 255)))
    return values


def test_an_item_is_two_single_image_items_left_first(sample_path: Callable[[str], Path]) -> None:
    path = sample_path("chunked_stereo")
    options = {"paths": path, "target_size": 64, "scale": 2, "need_ref": True, "strict": True}
    dataset, single = PairedFrameDataset(options), SingleImageDataset(options)
    assert len(dataset) == len(single) == 32
    for index in (0, 5, 16, 21, 31):
        item, left, right = dataset[index], single[index % 16], single[16 + index % 16]
        assert item.keys() == left.keys() - {"LQ_path"}
        assert item["GT_path"] == right["GT_path"]
        assert "/motorcycle_right_1/" in item["GT_path"]
        for key in item.keys() - {"GT_path"}:
            assert torch.equal(item[key], torch.stack([left[key], right[key]])), key


def test_each_pair_comes_once_for_either_side(make_image: MakeImage) -> None:
    images = {"a_left_0": 10, "b_right": 40, "b_left": 30, "a_right_1": 20}
    dataset = dataset_of(make_images(make_image, images, patches=2))
    assert pairs(dataset) == [(10, 20), (11, 21)] * 2 + [(30, 40), (31, 41)] * 2


def test_the_last_marker_of_a_name_counts(make_image: MakeImage) -> None:
    images = {"_left": 1, "_right": 2, "x_left_left0": 10, "x_left_right": 20, "x_right_left": 30, "x_right_right9": 40}
    assert pairs(dataset_of(make_images(make_image, images))) == [(1, 2)] * 2 + [(10, 20)] * 2 + [(30, 40)] * 2


def test_a_pair_may_be_imported_in_any_order(make_image: MakeImage, tmp_path: Path) -> None:
    right = make_images(make_image, {"a_right_0": 20}).rename(tmp_path / "right")
    left = make_images(make_image, {"a_left_1": 10})
    store = tmp_path / "pair.lmdb"
    import_store([right], store, layout="chunked")
    import_store([left], store, layout="chunked", append=True)
    assert pairs(dataset_of(store)) == [(10, 20)] * 2


def test_weights_repeat_roots_and_ignore_first_leaves_out_patches(make_image: MakeImage, tmp_path: Path) -> None:
    first = make_images(make_image, {"a_left": 10, "a_right": 20}, patches=2).rename(tmp_path / "first")
    second = make_images(make_image, {"a_left": 30, "a_right": 40}, patches=3)
    assert pairs(dataset_of([first, second], weights=[2, 1], ignore_first=1)) == (
        [(11, 21)] * 4 + [(31, 41), (32, 42)] * 2
    )


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"a_left": 1, "b_left": 2, "b_right": 3}, "image a_left has no partner, the right of 'a'"),
        ({"a_right_0": 1}, "image a_right_0 has no partner, the left of 'a'"),
        ({"a": 1, "b_left": 2, "b_right": 3}, "image a has no partner, for its name has neither _left nor _right"),
        ({"a_left_0": 1, "a_left_1": 2, "a_right": 3}, "images a_left_0 and a_left_1 are both the left of 'a'"),
    ],
)
def test_an_image_without_one_partner_is_refused_by_name(
    make_image: MakeImage, images: dict[str, int], message: str
) -> None:
    folder = make_images(make_image, images)
    with pytest.raises(ConfigError, match=f"^paired_frame 'stereo': {folder}: {message}"):
        dataset_of(folder, name="stereo")


def test_partners_of_different_patch_counts_are_refused(make_image: MakeImage) -> None:
    make_images(make_image, {"a_left": 1}, patches=2)
    folder = make_images(make_image, {"a_right": 1}, patches=3)
    with pytest.raises(ConfigError, match="images a_left and a_right are a pair, but have 2 and 3 patches"):
        dataset_of(folder)


def test_both_sides_are_corrupted_alike_with_strengths_of_their_own(make_image: MakeImage) -> None:
    folder = make_images(make_image, {"a_left": 10, "a_right": 20})
    item = dataset_of(folder, fixed_corruptions=["saturation"], random_seed=4)[1]
    left, right = expected_strengths(5, 2)
    brighter = [10 + 255 * 0.3 * left, 20 + 255 * 0.3 * right]
    np.testing.assert_allclose([float(lq.mean()) * 255 for lq in item["lq"]], brighter, atol=1e-3)


def test_the_mode_makes_it_and_a_pickled_one_gives_the_same(sample_path: Callable[[str], Path]) -> None:
    options = {"mode": "paired_frame", "paths": sample_path("chunked_stereo"), "target_size": 64, "scale": 2}
    dataset = create_dataset(options)
    assert isinstance(dataset, PairedFrameDataset)
    assert_pickled_gives_the_same(dataset, 20)
