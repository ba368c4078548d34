"""Mode single_image_extensible: the rules by which a patch, its reference, mask and centre become an item."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from dlas_store.converters.importing import import_store
from dlas_store.datasets import OptionWarning, SingleImageDataset
from dlas_store.datasets.patch_options import rescale_center, rescale_centers
from dlas_store.datasets.references import mask_box
from dlas_store.errors import ConfigError, ImageError, MissingMetadataError, NotASourceError, PatchIndexError
from dlas_store.sampling.rng import SampleKey
from dlas_store.sources.base import Center
from tests.conftest import MakeImage
from tests.support.corruption_cases import expected_strengths
from tests.support.picture_folders import write_pictures
from tests.support.sample_data import DATA, Array, noise, png


def make_item(folder: Path, index: int = 0, **options: Any) -> dict[str, Any]:
    defaults = {"paths": str(folder), "target_size": 64, "scale": 2}
    return SingleImageDataset({**defaults, **options})[index]


def files_of(dataset: SingleImageDataset) -> list[str]:
    """Return the IMAGE/FILE of every item."""
    return ["/".join(Path(dataset[index]["GT_path"]).parts[-2:]) for index in range(len(dataset))]


def chw(pixels: Array) -> Array:
    """Return pixels as float32 (C, H, W) in [0, 1]."""
    return np.divide(pixels.transpose(2, 0, 1), 255, dtype=np.float32)


def halved(array: Array) -> Array:
    """Return an array (C, H, W) with both sides halved by averaging."""
    channels, height, width = array.shape
    average: Array = array.reshape(channels, height // 2, 2, width // 2, 2).mean((2, 4))
    return average


def test_an_item_has_the_keys_types_and_shapes_of_the_trainer(make_image: MakeImage) -> None:
    item = make_item(make_image("a", {"1.jpg": noise(64, 64)}))
    tensors = {key: (tuple(value.shape), value.dtype) for key, value in item.items() if "path" not in key}
    assert tensors == {
        "hq": ((3, 64, 64), torch.float32),
        "lq": ((3, 32, 32), torch.float32),
        "gt_fullsize_ref": ((4, 64, 64), torch.float32),
        "lq_fullsize_ref": ((4, 32, 32), torch.float32),
        "gt_center": ((2,), torch.int64),
        "lq_center": ((2,), torch.int64),
    }
    assert item["GT_path"] == item["LQ_path"]
    assert item["GT_path"].endswith("chunked/a/1.jpg")


def test_hq_is_the_patch_and_lq_its_area_average(make_image: MakeImage) -> None:
    pixels = noise(64, 64)
    item = make_item(make_image("a", {"1.jpg": pixels}))
    np.testing.assert_array_equal(item["hq"], chw(pixels))
    np.testing.assert_allclose(item["lq"], halved(chw(pixels)), atol=1e-6)


@pytest.mark.parametrize("shape", [(128, 128), (64, 128), (128, 64), (100, 90), (32, 32)])
def test_a_patch_of_another_size_is_resized_to_the_target_by_area_in_float(
    make_image: MakeImage, shape: tuple[int, int]
) -> None:
    pixels = noise(*shape)
    item = make_item(make_image("a", {"1.jpg": pixels}))
    expected = cv2.resize(pixels.astype(np.float32) / 255, (64, 64), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
    np.testing.assert_allclose(item["hq"], expected, atol=1e-6)


def test_without_need_ref_reference_mask_and_centre_are_zero(make_image: MakeImage) -> None:
    folder = make_image("a", {"1.jpg": noise(64, 64)}, reference=noise(64, 64), centers={1: ((9, 9), 4)})
    item = make_item(folder, strict=True)
    assert not item["gt_fullsize_ref"].any()
    assert not item["lq_fullsize_ref"].any()
    assert item["gt_center"].tolist() == item["lq_center"].tolist() == [0, 0]


def test_without_a_ref_jpg_reference_mask_and_centre_are_zero(make_image: MakeImage) -> None:
    item = make_item(make_image("a", {"1.jpg": noise(64, 64)}, centers={1: ((9, 9), 4)}), need_ref=True, strict=True)
    assert not item["gt_fullsize_ref"].any()
    assert item["gt_center"].tolist() == [0, 0]


@pytest.mark.parametrize("metadata", ["strict", "needs_metadata"])
def test_the_reference_comes_with_the_mask_of_the_patch_square(make_image: MakeImage, metadata: str) -> None:
    reference = noise(64, 64, seed=1)
    folder = make_image("a", {"00000007.jpg": noise(64, 64)}, reference=reference, centers={7: ((20, 40), 16)})
    item = make_item(folder, need_ref=True, **{metadata: True})
    mask = np.full((64, 64), 0.1, np.float32)
    mask[12:28, 32:48] = 1
    np.testing.assert_array_equal(item["gt_fullsize_ref"], np.concatenate([chw(reference), mask[None]]))
    np.testing.assert_allclose(item["lq_fullsize_ref"], halved(item["gt_fullsize_ref"].numpy()), atol=1e-6)
    assert item["gt_center"].tolist() == [20, 40]
    assert item["lq_center"].tolist() == [10, 20]


@pytest.mark.parametrize(
    ("center", "rows", "cols"),
    [
        (Center(10, 10, 8), (6, 14), (6, 14)),
        (Center(10, 10, 7), (7, 13), (7, 13)),
        (Center(2, 30, 8), (0, 6), (26, 32)),
        (Center(-9, 10, 8), (0, 0), (6, 14)),
        (Center(16, 16, 99), (0, 32), (0, 32)),
        (Center(40, 40, 8), (32, 32), (32, 32)),
    ],
)
def test_the_mask_square_is_clamped_to_the_image(center: Center, rows: tuple[int, int], cols: tuple[int, int]) -> None:
    assert mask_box(center, (32, 32)) == (*rows, *cols)


def test_without_metadata_the_whole_of_a_256_patch_is_taken(make_image: MakeImage) -> None:
    folder = make_image("a", {"1.jpg": noise(256, 256)}, reference=noise(256, 256), centers={1: ((9, 9), 4)})
    item = make_item(folder, need_ref=True)
    assert item["gt_center"].tolist() == [32, 32]
    assert (item["gt_fullsize_ref"][3] == 1).all()


def test_a_reference_of_another_size_is_brought_to_the_patch_with_its_centre_and_width(make_image: MakeImage) -> None:
    reference = noise(128, 128, seed=1)
    folder = make_image("a", {"1.jpg": noise(64, 64)}, reference=reference, centers={1: ((41, 80), 32)})
    item = make_item(folder, need_ref=True, strict=True)
    mask = np.full((64, 64), 0.1, np.float32)
    mask[12:28, 32:48] = 1
    np.testing.assert_allclose(item["gt_fullsize_ref"][:3], halved(chw(reference)), atol=1e-6)
    np.testing.assert_array_equal(item["gt_fullsize_ref"][3], mask)
    assert item["gt_center"].tolist() == [20, 40]


def test_a_centre_is_truncated_at_every_step(make_image: MakeImage) -> None:
    folder = make_image("a", {"1.jpg": noise(99, 99)}, reference=noise(99, 99), centers={1: ((31, 98), 16)})
    item = make_item(folder, need_ref=True, strict=True)
    hq = [int(float(64) / float(99) * float(value)) for value in (31, 98)]
    assert item["gt_center"].tolist() == hq == [20, 63]
    assert item["lq_center"].tolist() == [10, 31]


@pytest.mark.parametrize(("value", "old", "new", "rescaled"), [(55, 88, 48, 29), (49, 49, 64, 63), (20, 40, 10, 5)])
def test_rescaling_a_centre_divides_first_and_in_floating_point(value: int, old: int, new: int, rescaled: int) -> None:
    assert rescale_center((value, 0), (old, 7), (new, 7)) == (rescaled, 0)  # To multiply first would give 30 and 64.
    several = np.array([[[value, 3]], [[0, 0]]])
    assert rescale_centers(several, (old, 7), (new, 7)).tolist() == [[[rescaled, 3]], [[0, 0]]]


def test_sides_are_cropped_at_the_bottom_and_right_and_the_centre_stays(make_image: MakeImage) -> None:
    pixels = noise(66, 66)
    folder = make_image("a", {"1.jpg": pixels}, reference=pixels, centers={1: ((65, 30), 8)})
    item = make_item(folder, target_size=66, scale=4, force_multiple=16, need_ref=True, strict=True)
    np.testing.assert_array_equal(item["hq"], chw(pixels)[:, :64, :64])
    np.testing.assert_array_equal(item["gt_fullsize_ref"][:3], chw(pixels)[:, :64, :64])
    assert item["gt_fullsize_ref"].shape == (4, 64, 64)
    assert item["lq"].shape == (3, 16, 16)
    assert item["gt_center"].tolist() == [65, 30]
    assert item["lq_center"].tolist() == [16, 7]


def test_with_eval_lq_is_hq_in_tensors_of_its_own(make_image: MakeImage) -> None:
    folder = make_image("a", {"1.jpg": noise(128, 128)}, reference=noise(128, 128), centers={1: ((31, 33), 8)})
    item = make_item(folder, eval=True, need_ref=True, strict=True, fixed_corruptions=["noise"])
    for hq, lq in (("hq", "lq"), ("gt_fullsize_ref", "lq_fullsize_ref"), ("gt_center", "lq_center")):
        assert torch.equal(item[hq], item[lq])
        assert item[hq].data_ptr() != item[lq].data_ptr()
    assert make_item(folder, eval=True, scale=None)["lq"].shape == (3, 64, 64)


def test_with_eval_the_multiple_is_that_of_hq(make_image: MakeImage) -> None:
    folder = make_image("a", {"1.jpg": noise(64, 64)})
    assert make_item(folder, eval=True, scale=2, force_multiple=64)["lq"].shape == (3, 64, 64)
    with pytest.raises(ConfigError, match="force_multiple"):
        make_item(folder, scale=2, force_multiple=64)


def test_every_item_of_the_sample_has_one_size_and_the_same_item_again() -> None:
    dataset = SingleImageDataset(
        {"paths": DATA / "chunked", "target_size": 64, "scale": 4, "need_ref": True, "strict": True}
    )
    for index in range(0, len(dataset), 37):
        first, second = dataset[index], dataset[index]
        assert first["lq_fullsize_ref"].shape == (4, 16, 16)
        assert all(torch.equal(first[key], second[key]) for key in first if "path" not in key)


@pytest.mark.parametrize(
    ("file", "centers", "reason"),
    [
        ("1.jpg", None, "has no centers.pt"),
        ("1.jpg", {2: ((1, 1), 2)}, "has no centre for it in its centers.pt"),
        ("first.jpg", {1: ((1, 1), 2)}, "has no centre for it in its centers.pt"),
    ],
)
def test_a_needed_centre_that_is_missing_names_image_file_and_remedy(
    make_image: MakeImage, file: str, centers: Mapping[int, tuple[tuple[int, int], int]] | None, reason: str
) -> None:
    folder = make_image("a_left_0", {file: noise(64, 64)}, reference=noise(64, 64), centers=centers)
    message = f"{folder}: patch {file} needs a centre, but image a_left_0 {reason}; .* set strict"
    with pytest.raises(MissingMetadataError, match=message):
        make_item(folder, need_ref=True, strict=True)
    assert make_item(folder, need_ref=True)["gt_center"].tolist() == [128, 128]
    assert make_item(folder, strict=True)["gt_center"].tolist() == [0, 0]


def test_two_files_of_one_number_share_its_centre(make_image: MakeImage) -> None:
    patches = {"1.jpg": noise(64, 64), "00000001.jpg": noise(64, 64, seed=1)}
    folder = make_image("a", patches, reference=noise(64, 64), centers={1: ((9, 8), 4)})
    items = [make_item(folder, index, need_ref=True, strict=True) for index in range(2)]
    assert [Path(item["GT_path"]).name for item in items] == ["00000001.jpg", "1.jpg"]
    assert items[0]["gt_center"].tolist() == items[1]["gt_center"].tolist() == [9, 8]


def test_damaged_pictures_raise_with_their_names(make_image: MakeImage) -> None:
    folder = make_image("a", {"1.jpg": noise(64, 64)}, reference=noise(64, 64))
    (folder / "a" / "ref.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    with pytest.raises(ImageError, match="chunked: reference of image a: "):
        make_item(folder, need_ref=True)
    (folder / "a" / "1.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    with pytest.raises(ImageError, match=r"1\.jpg"):
        make_item(folder)


def two_folders(make_image: MakeImage) -> list[Path]:
    """Write two folders of 3 and of 4 patches."""
    folder = make_image("a", {f"{n}.jpg": noise(64, 64, seed=n) for n in range(3)})
    first = folder.rename(folder.with_name("first"))
    folder = make_image("b", {"1.jpg": noise(64, 64)})
    make_image("c", {f"{n}.jpg": noise(64, 64) for n in range(3)})
    return [first, folder.rename(folder.with_name("second"))]


FIRST = ["a/0.jpg", "a/1.jpg", "a/2.jpg"]
SECOND = ["b/1.jpg", "c/0.jpg", "c/1.jpg", "c/2.jpg"]


@pytest.mark.parametrize(
    ("weights", "files"),
    [
        (None, FIRST + SECOND),
        ([2, 1], FIRST * 2 + SECOND),
        ([1, 3], FIRST + SECOND * 3),
        ([0, 2], SECOND * 2),
        ([1, 0], FIRST),
    ],
)
def test_roots_follow_one_another_repeated_by_their_weights(
    make_image: MakeImage, weights: list[int] | None, files: list[str]
) -> None:
    dataset = SingleImageDataset({"paths": two_folders(make_image), "weights": weights, "target_size": 64, "scale": 1})
    assert files_of(dataset) == files


@pytest.mark.parametrize("weights", [3, [3]])
def test_weights_beside_a_path_in_no_list_are_warned_of(make_image: MakeImage, weights: int | list[int]) -> None:
    folder = make_image("a", {"0.jpg": noise(64, 64)})
    options = {"paths": folder, "target_size": 64, "scale": 1}
    with pytest.warns(OptionWarning, match=r"weights repeats the only path 3 times, and DL-Art-School ignores weights"):
        dataset = SingleImageDataset({**options, "weights": weights})
    assert len(dataset) == 3
    assert len(SingleImageDataset({**options, "paths": [folder], "weights": weights})) == 3
    assert len(SingleImageDataset({**options, "weights": [1]})) == 1


def test_patches_in_a_folder_inside_an_images_folder_are_warned_of(make_image: MakeImage) -> None:
    folder = make_image("a", {"0.jpg": noise(64, 64)})
    others = ["a/more/1.jpg", "a/notes/1.txt", "b/c/0.jpg", "b/ref.jpg", "d/ref.jpg", "d/e/ref.jpg"]
    write_pictures(folder, dict.fromkeys(others, noise(64, 64)))
    options = {"paths": folder, "target_size": 64, "scale": 1}
    message = "the patches in 2 folders are left out, because they lie deeper than IMAGE/FILE: a/more, b; move them"
    with pytest.warns(OptionWarning, match=message) as caught:
        dataset = SingleImageDataset(options)
    assert len(caught) == len(dataset) == 1
    shutil.rmtree(folder / "a" / "more")
    shutil.rmtree(folder / "b")
    assert len(SingleImageDataset(options)) == 1


@pytest.mark.parametrize(
    ("ignored", "weights", "files"),
    [
        (1, [2, 1], FIRST[1:] * 2 + SECOND[2:]),
        (2, [1, 2], FIRST[2:] + SECOND[3:] * 2),
    ],
)
def test_ignore_first_drops_the_first_patches_of_every_image(
    make_image: MakeImage, ignored: int, weights: list[int], files: list[str]
) -> None:
    opt = {"paths": two_folders(make_image), "weights": weights, "ignore_first": ignored, "target_size": 64, "scale": 1}
    assert files_of(SingleImageDataset(opt)) == files


def test_huge_weights_cost_no_memory(make_image: MakeImage) -> None:
    folder = make_image("a", {"1.jpg": noise(64, 64), "2.jpg": noise(64, 64)})
    dataset = SingleImageDataset({"paths": [folder, folder], "weights": [10**12, 1], "target_size": 64, "scale": 2})
    assert len(dataset) == 2 * 10**12 + 2
    assert dataset[2 * 10**12 - 1]["GT_path"].endswith("2.jpg")
    assert dataset[2 * 10**12]["GT_path"].endswith("1.jpg")


@pytest.mark.parametrize("index", [-1, 7, 10**18])
def test_an_index_outside_is_an_index_error(make_image: MakeImage, index: int) -> None:
    dataset = SingleImageDataset({"dataroot": two_folders(make_image), "target_size": 64, "scale": 2})
    with pytest.raises(PatchIndexError, match=f"no item {index}: the dataset has 7"):
        dataset[index]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_size": "abc"}, "target_size must be a positive integer, got 'abc'"),
        ({"target_size": None}, "target_size is missing; it must be a positive integer"),
        ({"target_size": 0}, "target_size must be a positive integer, got 0"),
        ({"scale": None}, "scale is missing"),
        ({"scale": 0}, "scale must be a positive integer, got 0"),
        ({"scale": 128}, r"target_size // scale must be a multiple of force_multiple, got 64 // 128 = 0"),
        ({"force_multiple": 3}, r"target_size // scale .* got 64 // 2 = 32 and force_multiple 3"),
        ({"force_multiple": True}, "force_multiple must be a positive integer, got True"),
        ({"eval": 2}, "eval must be true or false, got 2"),
        ({"need_ref": "yes"}, "need_ref must be true or false, got 'yes'"),
        ({"strict": -1}, "strict must be true or false, got -1"),
        ({"needs_metadata": []}, "needs_metadata must be true or false"),
        ({"ignore_first": -1}, "ignore_first must be an integer of at least 0, got -1"),
        ({"ignore_first": 3}, "no patches in paths: "),
        ({"weights": [1, 1]}, "weights must be one for each of paths: 1, got 2"),
        ({"weights": [0.5]}, "weights must be integers of at least 0"),
        ({"weights": [0]}, "no patches in paths: "),
        ({"paths": None}, "paths is missing; it must be a path or a list of paths"),
        ({"paths": ["/absent/div2k"]}, "paths names '/absent/div2k', which does not exist"),
        ({"paths": None, "dataroot": "/absent/div2k"}, "dataroot names '/absent/div2k', which does not exist"),
        ({"dataroot": "/absent/div2k"}, "paths and dataroot are both given"),
        ({"fixed_corruptions": ["jpg"]}, "fixed_corruptions names 'jpg'; known corruptions are .*jpeg-broad"),
        ({"fixed_corruptions": ["jpg"], "eval": True}, "fixed_corruptions names 'jpg'"),
        ({"corruption_blur_scale": "x"}, "corruption_blur_scale must be a number"),
        ({"random_seed": 1.5}, "random_seed must be an integer, got 1.5"),
        ({"corrupt_before_downsize": 2}, "corrupt_before_downsize must be true or false"),
    ],
)
def test_a_wrong_option_is_refused_at_construction_by_name(
    make_image: MakeImage, options: dict[str, Any], message: str
) -> None:
    folder = make_image("a", {"1.jpg": noise(64, 64)})
    with pytest.raises(ConfigError, match=f"^single_image_extensible 'div2k': .*{message}"):
        make_item(folder, name="div2k", **options)


CORRUPTED: dict[str, Any] = {"fixed_corruptions": ["greyscale", "saturation"], "random_seed": 5}


def grey_and_bright(frame: Array, *, seed: int = 5) -> Array:
    """Return a frame corrupted by CORRUPTED, with the strengths of item 0."""
    return np.clip(np.stack([frame.mean(0)] * 3) + 0.3 * expected_strengths(seed, 2)[1], 0, 1)


def test_lq_alone_is_corrupted(make_image: MakeImage) -> None:
    pixels = noise(64, 64)
    folder = make_image("a", {"1.jpg": pixels}, reference=pixels, centers={1: ((20, 40), 16)})
    item, clean = (make_item(folder, need_ref=True, strict=True, **options) for options in (CORRUPTED, {}))
    np.testing.assert_allclose(item["lq"], grey_and_bright(halved(chw(pixels))), atol=1e-5)
    assert item["lq"].dtype == torch.float32
    for key in ("hq", "gt_fullsize_ref", "lq_fullsize_ref", "gt_center", "lq_center"):
        assert torch.equal(item[key], clean[key]), key


def test_before_downsize_the_copy_of_hq_that_lq_is_made_from_is_corrupted(make_image: MakeImage) -> None:
    pixels = noise(64, 64)
    folder = make_image("a", {"1.jpg": pixels})
    item = make_item(folder, corrupt_before_downsize=True, **CORRUPTED)
    np.testing.assert_allclose(item["lq"], halved(grey_and_bright(chw(pixels))), atol=1e-5)
    np.testing.assert_array_equal(item["hq"], chw(pixels))
    # The corruption clips before the average is taken, so LQ differs from a corrupted LQ.
    assert not np.allclose(item["lq"], make_item(folder, **CORRUPTED)["lq"], atol=1e-3)


@pytest.mark.parametrize("before", [True, False])
def test_with_scale_1_a_corruption_that_does_nothing_still_gives_lq_memory_of_its_own(
    make_image: MakeImage, before: bool
) -> None:
    folder = make_image("a", {"1.jpg": noise(64, 64)})
    item = make_item(folder, scale=1, fixed_corruptions=["none"], corrupt_before_downsize=before)
    assert torch.equal(item["hq"], item["lq"])
    assert item["hq"].data_ptr() != item["lq"].data_ptr()


def test_strengths_go_by_the_item_in_an_epoch_and_fresh_noise_by_the_repetition(make_image: MakeImage) -> None:
    pixels = noise(64, 64)
    folder = make_image("a", {"1.jpg": pixels})
    dataset = SingleImageDataset(
        {"paths": [folder], "weights": [2], "target_size": 64, "scale": 2, "seed": 1, **CORRUPTED}
    )
    for index in range(2):
        expected = grey_and_bright(halved(chw(pixels)), seed=5 + index)
        np.testing.assert_allclose(dataset[SampleKey(index, 3)]["lq"], expected, atol=1e-5)

    noisy = SingleImageDataset(
        {"paths": folder, "target_size": 64, "scale": 2, "seed": 1, "fixed_corruptions": ["noise"], "random_seed": 5}
    )
    first, same, other = (noisy[SampleKey(0, repetition)]["lq"] for repetition in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_corruption_options_without_a_corruption_are_accepted(make_image: MakeImage) -> None:
    folder = make_image("a", {"1.jpg": noise(64, 64)})
    options: dict[str, Any] = {
        "fixed_corruptions": [],
        "random_corruptions": ["noise"],
        "num_corrupts_per_image": 0,
        "corruption_blur_scale": 0.5,
        "cosine_bias": False,
        "random_seed": -3,
        "corrupt_before_downsize": True,
    }
    assert torch.equal(make_item(folder, **options)["lq"], make_item(folder)["lq"])


def test_an_option_of_no_effect_is_warned_of(make_image: MakeImage) -> None:
    folder = make_image("a", {"1.jpg": noise(64, 64)})
    with pytest.warns(OptionWarning, match="'need_reference' is not known and has no effect; did you mean 'need_ref'"):
        make_item(folder, need_reference=True)


def test_a_folder_without_patches_is_no_source(tmp_path: Path) -> None:
    with pytest.raises((NotASourceError, ConfigError), match=str(tmp_path)):
        make_item(tmp_path)


def test_a_store_of_whole_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(png(noise(64, 64)))
    store = tmp_path / "photos.lmdb"
    import_store([tmp_path / "photos"], store, layout="pictures")
    with pytest.raises(NotASourceError, match="whole pictures"):
        make_item(store)


def test_a_pickled_dataset_gives_the_same_items(chunked_source_path: Path) -> None:
    dataset = SingleImageDataset(
        {"paths": chunked_source_path, "target_size": 64, "scale": 2, "need_ref": True, "strict": True}
    )
    before = dataset[100]
    data = pickle.dumps(dataset)
    assert len(data) < 4096
    after = pickle.loads(data)[100]
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]) if isinstance(value, torch.Tensor) else value == after[key]
