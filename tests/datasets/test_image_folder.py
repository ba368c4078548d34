"""Mode imagefolder: each rule that makes an item of a picture, and of a second picture with it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from dlas_store.cli.read import describe_batches
from dlas_store.datasets import ImageFolderDataset, OptionWarning, create_dataloader, create_dataset
from dlas_store.errors import ConfigError, ImageError, NotASourceError, StoreError
from dlas_store.loading.threads import ThreadsLoader
from dlas_store.sampling.rng import SampleKey
from tests.support.corruption_cases import expected_strengths
from tests.support.picture_folders import averaged, store_of, to_chw, write_pictures
from tests.support.sample_data import DATA, Array, noise, png

PLAIN = {"scale": 2, "disable_flip": True}


def dataset(folder: Path, **options: Any) -> ImageFolderDataset:
    return ImageFolderDataset({"paths": str(folder), "seed": 0, **PLAIN, **options})


def item_of(folder: Path, index: int = 0, **options: Any) -> dict[str, Any]:
    return dataset(folder, **options)[index]


def one_picture(tmp_path: Path, pixels: Array) -> Path:
    return write_pictures(tmp_path / "photos", {"one.png": pixels})


def names(data: ImageFolderDataset, source: Path) -> list[str]:
    return [str(data[index]["HQ_path"]).removeprefix(f"{source}/") for index in range(len(data))]


def assert_same(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[key]), key
        elif "path" not in key:
            assert value == second[key]


def test_an_item_has_the_keys_types_and_shapes_of_the_trainer(tmp_path: Path) -> None:
    folder = one_picture(tmp_path, noise(60, 80))
    item = item_of(folder, target_size=32)
    tensors = {key: (tuple(value.shape), value.dtype) for key, value in item.items() if torch.is_tensor(value)}
    assert tensors == {
        "hq": ((3, 32, 32), torch.float32),
        "lq": ((3, 16, 16), torch.float32),
        "corruption_entropy": ((0,), torch.float32),
    }
    assert item["has_alt"] is False
    assert item["HQ_path"] == item["LQ_path"] == str(folder / "one.png")
    assert len(item) == 6


def test_without_a_target_size_hq_is_the_picture_and_lq_its_area_average(tmp_path: Path) -> None:
    pixels = noise(64, 64)
    item = item_of(one_picture(tmp_path, pixels))
    np.testing.assert_array_equal(item["hq"], to_chw(pixels))
    np.testing.assert_allclose(item["lq"], averaged(to_chw(pixels)), atol=1e-6)


@pytest.mark.parametrize("shape", [(96, 160), (160, 96), (97, 64), (64, 97)])
def test_the_middle_square_is_cut(tmp_path: Path, shape: tuple[int, int]) -> None:
    pixels = noise(*shape)
    side = min(shape)
    top, left = ((length - side) // 2 for length in shape)
    expected = to_chw(pixels[top : top + side, left : left + side])
    np.testing.assert_array_equal(item_of(one_picture(tmp_path, pixels), scale=1)["hq"], expected)


def test_a_picture_is_resized_to_the_target_by_area_in_float(tmp_path: Path) -> None:
    pixels = noise(100, 100)
    expected = cv2.resize(pixels.astype(np.float32) / 255, (64, 64), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
    np.testing.assert_allclose(item_of(one_picture(tmp_path, pixels), target_size=64)["hq"], expected, atol=1e-6)


@pytest.mark.parametrize(("shape", "hq"), [((100, 80), (64, 64)), ((64, 90), (64, 90)), ((90, 64), (64, 64))])
def test_not_squared_a_picture_is_resized_only_where_its_height_differs(
    tmp_path: Path, shape: tuple[int, int], hq: tuple[int, int]
) -> None:
    item = item_of(one_picture(tmp_path, noise(*shape)), target_size=64, force_square=False)
    assert item["hq"].shape == (3, *hq)
    assert item["lq"].shape == (3, hq[0] // 2, hq[1] // 2)


def test_sides_are_cropped_at_the_bottom_and_right_to_the_multiple(tmp_path: Path) -> None:
    pixels = noise(66, 75)
    item = item_of(one_picture(tmp_path, pixels), force_square=False, force_multiple=8)
    np.testing.assert_array_equal(item["hq"], to_chw(pixels)[:, :64, :64])
    assert item["lq"].shape == (3, 32, 32)


@pytest.mark.parametrize(("shape", "crop"), [((64, 90), 32), ((65, 91), 33), ((65, 90), 64), ((64, 64), 64)])
def test_the_centre_crop_starts_at_half_the_side_less_half_the_crop(
    tmp_path: Path, shape: tuple[int, int], crop: int
) -> None:
    pixels = noise(*shape)
    top, left = (length // 2 - crop // 2 for length in shape)
    item = item_of(one_picture(tmp_path, pixels), center_crop_hq_sz=crop, scale=1)
    np.testing.assert_array_equal(item["hq"], to_chw(pixels[top : top + crop, left : left + crop]))


def test_a_centre_crop_larger_than_a_picture_names_it(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos", {"a.png": noise(64, 64), "b/small.png": noise(64, 30)})
    data = dataset(folder, center_crop_hq_sz=32)
    assert data[0]["hq"].shape == (3, 32, 32)
    message = r"b/small\.png: 30 x 64 pixels are too few for center_crop_hq_sz, which needs 32 x 32"
    with pytest.raises(ImageError, match=message):
        data[1]
    store = store_of(folder)
    with pytest.raises(ConfigError, match=f"^imagefolder: .*{message}"):
        dataset(store, center_crop_hq_sz=32)
    assert dataset(store, center_crop_hq_sz=32, on_error="skip")[1]["HQ_path"].endswith("a.png")


def test_a_picture_smaller_than_the_multiple_names_itself(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"one\.png: 20 x 20 .* force_multiple times scale, which needs 32 x 32"):
        item_of(one_picture(tmp_path, noise(20, 20)), force_multiple=16)


def test_half_of_all_items_are_flipped_before_they_are_squared(tmp_path: Path) -> None:
    pixels = noise(16, 21)
    data = dataset(one_picture(tmp_path, pixels), disable_flip=False, scale=1)
    straight, mirrored = to_chw(pixels[:, 2:18]), to_chw(pixels[:, ::-1][:, 2:18])
    flips = 0
    for repetition in range(1000):
        hq = data[SampleKey(0, repetition)]["hq"].numpy()
        flipped = not np.array_equal(hq, straight)
        assert not flipped or np.array_equal(hq, mirrored)
        flips += flipped
    assert 430 < flips < 570  # 4.4 standard deviations


def test_an_item_is_a_function_of_seed_index_and_repetition(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "tiles", {f"a/{n}.png": noise(32, 32, seed=n) for n in range(6)})
    options = {
        "disable_flip": False,
        "all_image_color_jitter": 0.3,
        "fetch_alt_tiled_image": True,
        "random_corruptions": ["noise", "gaussian_blur", "lq_resampling"],
        "num_corrupts_per_image": 2,
    }
    data, same_seed, other_seed = (dataset(folder, **options, seed=seed) for seed in (3, 3, 4))
    for key in (SampleKey(0, 0), SampleKey(5, 0), SampleKey(2, 7)):
        assert_same(data[key], same_seed[key])
        assert not torch.equal(data[key]["lq"], other_seed[key]["lq"])
    assert not torch.equal(data[SampleKey(0, 0)]["lq"], data[SampleKey(0, 1)]["lq"])


def test_colours_are_jittered_within_the_setting_and_before_lq_is_made(tmp_path: Path) -> None:
    grey = np.full((8, 8, 3), 100, np.uint8)
    data = dataset(one_picture(tmp_path, grey), all_image_color_jitter=0.1)
    values = []
    for repetition in range(500):
        item = data[SampleKey(0, repetition)]
        np.testing.assert_allclose(item["lq"], averaged(item["hq"].numpy()), atol=1e-6)
        values.append(float(item["hq"].mean()) * 255)
    # Colour jitter changes nothing but the brightness of an even grey.
    assert 90 - 1e-3 <= min(values) < 91.5
    assert 108.5 < max(values) <= 110 + 1e-3


@pytest.mark.parametrize("jitter", [0, 1 / 255])
def test_a_jitter_below_one_level_does_nothing(tmp_path: Path, jitter: float) -> None:
    pixels = noise(8, 8)
    np.testing.assert_array_equal(
        item_of(one_picture(tmp_path, pixels), all_image_color_jitter=jitter)["hq"], to_chw(pixels)
    )


def test_skip_lq_leaves_out_what_belongs_to_lq(tmp_path: Path) -> None:
    folder = one_picture(tmp_path, noise(32, 32))
    item = item_of(folder, skip_lq=True, fetch_alt_image=True, fixed_corruptions=["jpeg"])
    assert item.keys() == {"hq", "HQ_path", "LQ_path", "has_alt", "alt_hq"}


CORRUPTED: dict[str, Any] = {"fixed_corruptions": ["greyscale", "saturation"], "random_seed": 5}


def grey_and_bright(frame: Array, strength: float) -> Array:
    return np.clip(np.stack([frame.mean(0)] * 3) + 0.3 * strength, 0, 1)


@pytest.mark.parametrize(
    ("options", "before", "after"),
    [
        ({}, 4, 1),
        ({"corrupt_before_downsize": True}, 1, 4),
        ({"corrupt_before_downsize": True, "corrupt_before_downsize_factor": 2}, 2, 2),
        ({"corrupt_before_downsize": True, "corrupt_before_downsize_factor": 4}, 4, 1),
        ({"corrupt_before_downsize_factor": 2}, 4, 1),
        ({"corrupt_before_downsize_factor": 3}, 4, 1),
    ],
)
def test_corruption_comes_after_the_downsizing_before_it_or_in_between(
    tmp_path: Path, options: dict[str, Any], before: int, after: int
) -> None:
    pixels = noise(64, 32)
    item = item_of(one_picture(tmp_path, pixels), scale=4, force_square=False, **CORRUPTED, **options)
    strengths = expected_strengths(5, 2)
    expected = averaged(grey_and_bright(averaged(to_chw(pixels), before), strengths[1]), after)
    np.testing.assert_allclose(item["lq"], expected, atol=1e-5)
    np.testing.assert_array_equal(item["hq"], to_chw(pixels))
    np.testing.assert_allclose(item["corruption_entropy"], strengths, atol=1e-6)


@pytest.mark.parametrize("before", [True, False])
def test_with_scale_1_lq_has_memory_of_its_own(tmp_path: Path, before: bool) -> None:
    item = item_of(one_picture(tmp_path, noise(8, 8)), scale=1, corrupt_before_downsize=before, fetch_alt_image=True)
    images = [item[key] for key in ("hq", "lq", "alt_hq", "alt_lq")]
    assert all(torch.equal(image, images[0]) for image in images)
    assert len({image.data_ptr() for image in images}) == 4


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"rgb_n1_to_1": True}, [1, -1, 0.2]),
        ({"normalize": "stylegan2_norm"}, [1, -1, 0.2]),
        ({"normalize": "imagenet"}, [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.6 - 0.406) / 0.225]),
        ({"normalize": "stylegan2_norm", "rgb_n1_to_1": True}, [1, -3, -0.6]),
    ],
)
def test_all_images_are_normalized_and_then_mapped(
    tmp_path: Path, options: dict[str, Any], expected: list[float]
) -> None:
    pixels = np.tile(np.array([255, 0, 153], np.uint8), (8, 8, 1))
    folder = write_pictures(tmp_path / "video", {f"a_{n:08d}.png": pixels for n in range(2)})
    item = item_of(folder, fetch_alt_image=True, **options)
    for key in ("hq", "lq", "alt_hq", "alt_lq"):
        assert item[key].dtype == torch.float32
        np.testing.assert_allclose(item[key].mean((1, 2)), expected, atol=1e-5)


def test_fixed_parameters_are_added_as_tensors_of_their_own(tmp_path: Path) -> None:
    constants = {"domain": 3, "weights": [0.5, 1], "flag": True}
    data = dataset(one_picture(tmp_path, noise(8, 8)), fixed_parameters=constants, normalize="imagenet")
    data[0]["weights"].zero_()
    assert {key: data[0][key].tolist() for key in constants} == constants
    assert data[0]["domain"].dtype == torch.int64
    assert data[0]["weights"].dtype == torch.float32


def video(tmp_path: Path) -> Path:
    names = ["b/x.webm_00000478.png", "b/x.webm_00000479.png", "b/x.webm_00000481.png", "c/x.webm_00000480.png",
             "d.png", "99999999.png", "100000000.png"]  # fmt: skip
    return write_pictures(tmp_path / "video", {name: noise(40, 60, seed=n) for n, name in enumerate(names)})


def test_the_next_number_is_the_alternative(tmp_path: Path) -> None:
    folder = video(tmp_path)
    data = dataset(folder, fetch_alt_image=True, target_size=16, disable_flip=False, **CORRUPTED)
    order = names(data, folder)
    next_of = {"b/x.webm_00000478.png": "b/x.webm_00000479.png"}
    for index, name in enumerate(order):
        item = data[index]
        assert item["has_alt"] is (name in next_of)
        if item["has_alt"]:
            expected = cv2.resize(to_chw(noise(40, 60, seed=1)).transpose(1, 2, 0), (16, 16), interpolation=3)
            np.testing.assert_allclose(item["alt_hq"], expected.transpose(2, 0, 1), atol=1e-5)
        else:
            assert torch.equal(item["alt_hq"], item["hq"])
        strengths = expected_strengths(5 + index, 4)
        np.testing.assert_allclose(item["corruption_entropy"], strengths, atol=1e-6)
        for key, strength in (("", strengths[1]), ("alt_", strengths[3])):
            lq = grey_and_bright(averaged(item[f"{key}hq"].numpy()), strength)
            np.testing.assert_allclose(item[f"{key}lq"], lq, atol=1e-5)


def test_a_damaged_next_number_is_an_error(tmp_path: Path) -> None:
    folder = video(tmp_path)
    (folder / "b" / "x.webm_00000479.png").write_bytes(b"no picture")
    data = dataset(folder, fetch_alt_image=True)
    index = names(dataset(folder, skip_lq=True, on_error="skip"), folder).index("b/x.webm_00000478.png")
    with pytest.raises(ImageError, match=r"00000479\.png"):
        data[index]


def test_another_patch_of_the_folder_is_the_alternative_each_as_often(tmp_path: Path) -> None:
    levels = {"a/1.png": 10, "a/2.png": 20, "a/b/3.png": 30, "a/3.png": 40, "a/ref.jpg": 50, "c/1.png": 60}
    pictures = {name: np.full((8, 8, 3), level, np.uint8) for name, level in levels.items()}
    folder = write_pictures(tmp_path / "tiles", pictures)
    data = dataset(folder, fetch_alt_tiled_image=True)
    order = ["a/1.png", "a/2.png", "a/3.png", "a/b/3.png", "c/1.png"]
    assert names(data, folder) == order
    for index, name in enumerate(order):
        siblings = [levels[path] for path in order if path != name and Path(path).parent == Path(name).parent]
        counts = dict.fromkeys(siblings or [levels[name]], 0)
        for repetition in range(200):
            item = data[SampleKey(index, repetition)]
            assert item["has_alt"] is bool(siblings)
            np.testing.assert_allclose(averaged(item["alt_hq"].numpy()), item["alt_lq"], atol=1e-6)
            counts[round(float(item["alt_hq"].mean()) * 255)] += 1
        assert min(counts.values()) >= 200 // len(counts) * 0.7


def test_alternatives_are_neither_cropped_nor_flipped_nor_squared_nor_jittered(tmp_path: Path) -> None:
    pixels = noise(40, 60)
    folder = write_pictures(tmp_path / "video", {"a_00000001.png": noise(40, 60, seed=1), "a_00000002.png": pixels})
    data = dataset(folder, fetch_alt_image=True, center_crop_hq_sz=32, all_image_color_jitter=0.5, disable_flip=False)
    for repetition in range(8):
        np.testing.assert_array_equal(data[SampleKey(0, repetition)]["alt_hq"], to_chw(pixels))


NESTED = ["a-b/1.png", "a.png", "a/1.png", "a/10.png", "a/9.png", "a/b/c.PNG", "b.webp", "é.png"]


def test_pictures_come_in_path_order_without_references(tmp_path: Path) -> None:
    pictures = {name: noise(8, 8, seed=n) for n, name in enumerate(reversed(NESTED))}
    folder = write_pictures(tmp_path / "photos", {**pictures, "a/ref.jpg": noise(8, 8), "ref.jpg": noise(8, 8)})
    (folder / "notes.txt").write_text("no picture")
    for source in (folder, store_of(folder)):
        assert names(dataset(source), source) == NESTED


def test_a_chunked_store_gives_every_patch_in_the_path_order_of_its_folder(tmp_path: Path) -> None:
    names_of = {"a": ["1", "2"], "a-b": ["1"], "a b": ["3", "4"], "ab": ["1"], "a_b": ["1"]}
    pictures = {f"{image}/{file}.png": noise(8, 8) for image, files in names_of.items() for file in files}
    folder = write_pictures(tmp_path / "chunked", pictures)
    store = store_of(folder, "chunked")
    expected = sorted(pictures)
    assert expected[0] == "a b/3.png"
    assert names(dataset(folder), folder) == names(dataset(store, weights=[1]), store) == expected
    assert names(dataset(store, paths=[str(store)] * 2, weights=[1, 1]), store) == expected * 2


@pytest.mark.parametrize(
    ("weights", "expected"), [(None, "ab"), ([2, 1], "aab"), ([0, 2], "bb"), (["x"], None), ([1], None), ([0, 0], None)]
)
def test_roots_follow_one_another_repeated_by_their_weights(
    tmp_path: Path, weights: list[int] | None, expected: str | None
) -> None:
    folders = [write_pictures(tmp_path / name, {f"{name}.png": noise(8, 8)}) for name in "ab"]
    if expected is None:
        with pytest.raises(ConfigError, match=r"weights|no pictures in paths"):
            dataset(tmp_path, paths=folders, weights=weights)
    else:
        data = dataset(tmp_path, paths=folders, weights=weights)
        assert "".join(Path(data[index]["HQ_path"]).stem for index in range(len(data))) == expected


SAMPLE = {
    "scale": 2,
    "target_size": 64,
    "force_multiple": 4,
    "fixed_corruptions": ["lq_resampling", "jpeg-broad", "noise"],
    "all_image_color_jitter": 0.2,
    "normalize": "imagenet",
    "seed": 9,
}


@pytest.mark.parametrize("alternative", ["fetch_alt_image", "fetch_alt_tiled_image"])
def test_items_of_a_chunked_folder_and_of_stores_of_either_layout_are_equal(
    tmp_path: Path, alternative: str, chunked_source_path: Path
) -> None:
    folder = DATA / "chunked"
    from_folder, from_store = (
        ImageFolderDataset({**SAMPLE, "paths": path, alternative: True}) for path in (folder, chunked_source_path)
    )
    assert len(from_folder) == len(from_store) == 262
    alternatives = 0
    for index in range(0, 262, 13):
        first, second = from_folder[SampleKey(index, 1)], from_store[SampleKey(index, 1)]
        assert_same(first, second)
        assert Path(first["HQ_path"]).parts[-2:] == Path(second["HQ_path"]).parts[-2:]
        alternatives += first["has_alt"]
    assert alternatives > 15


def test_items_of_a_store_of_pictures_are_those_of_its_folder(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos", {name: noise(70, 80, seed=n) for n, name in enumerate(NESTED)})
    from_folder, from_store = (
        ImageFolderDataset({**SAMPLE, "paths": path, "fetch_alt_tiled_image": True})
        for path in (folder, store_of(folder))
    )
    for index in range(len(NESTED)):
        assert_same(from_folder[SampleKey(index, 2)], from_store[SampleKey(index, 2)])


def test_a_pickled_dataset_and_workers_give_the_same_items(chunked_source_path: Path) -> None:
    options = {
        **SAMPLE,
        "mode": "imagefolder",
        "paths": chunked_source_path,
        "fetch_alt_tiled_image": True,
        "phase": "train",
        "batch_size": 32,
    }
    data = create_dataset(options)
    pickled = pickle.dumps(data)
    assert len(pickled) < 16384
    assert_same(data[SampleKey(100, 0)], pickle.loads(pickled)[SampleKey(100, 0)])
    in_process, in_workers = (
        list(create_dataloader(data, {**options, "n_workers": count, "pin_memory": False}, shuffle=False))
        for count in (0, 2)
    )
    assert len(in_process) == 8
    for first, second in zip(in_process, in_workers, strict=True):
        assert_same(first, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": None}, "scale is missing; it must be a positive integer"),
        ({"target_size": 0}, "target_size must be a positive integer, got 0"),
        ({"target_size": 64, "scale": 4, "force_multiple": 3}, r"target_size // scale .* 64 // 4 = 16 and .* 3"),
        ({"target_size": 2, "scale": 4}, r"target_size // scale must be .* 2 // 4 = 0"),
        ({"force_multiple": 0}, "force_multiple must be a positive integer"),
        ({"center_crop_hq_sz": "x"}, "center_crop_hq_sz must be a positive integer, got 'x'"),
        ({"force_square": "no"}, "force_square must be true or false, got 'no'"),
        ({"disable_flip": 2}, "disable_flip must be true or false"),
        ({"skip_lq": "no"}, "skip_lq must be true or false"),
        ({"corrupt_before_downsize": 2}, "corrupt_before_downsize must be true or false"),
        ({"corrupt_before_downsize_factor": 0}, "corrupt_before_downsize_factor must be a positive integer"),
        (
            {"corrupt_before_downsize": True, "corrupt_before_downsize_factor": 3},
            "corrupt_before_downsize_factor must divide scale, got 3 and scale 2",
        ),
        ({"normalize": "cifar"}, "normalize must be one of imagenet, stylegan2_norm, got 'cifar'"),
        ({"rgb_n1_to_1": 2}, "rgb_n1_to_1 must be true or false"),
        ({"all_image_color_jitter": 1.5}, "all_image_color_jitter must be a number from 0 to 1, got 1.5"),
        ({"all_image_color_jitter": -0.1}, "all_image_color_jitter must be a number from 0 to 1"),
        ({"fixed_parameters": [1]}, r"fixed_parameters must be a mapping, got \[1\]"),
        ({"fixed_parameters": {"a": "x"}}, "fixed_parameters: a must be a number or lists of them, got 'x'"),
        (
            {"fetch_alt_image": True, "fetch_alt_tiled_image": True},
            "fetch_alt_image and fetch_alt_tiled_image are both",
        ),
        ({"fixed_corruptions": ["jpg"]}, "fixed_corruptions names 'jpg'"),
        ({"labeler": "patch_labels"}, "labeler must be a mapping, got 'patch_labels'"),
        ({"paths": None}, "paths is missing"),
        ({"dataroot": "/absent"}, "paths and dataroot are both given"),
        ({"paths": "/absent"}, "paths names '/absent', which does not exist"),
    ],
)
def test_a_wrong_option_is_refused_at_construction_by_name(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    folder = one_picture(tmp_path, noise(64, 64))
    with pytest.raises(ConfigError, match=f"^imagefolder 'faces': .*{message}"):
        dataset(folder, name="faces", **options)


def test_an_option_of_no_effect_is_warned_of(tmp_path: Path) -> None:
    folder = one_picture(tmp_path, noise(8, 8))
    with pytest.warns(OptionWarning, match="'ignore_first' is not known and has no effect"):
        dataset(folder, ignore_first=1)


def test_a_folder_without_pictures_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(NotASourceError, match=str(tmp_path)):
        dataset(tmp_path)


def test_a_bad_picture_is_named_and_skipped_on_request(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos", {"a.png": noise(8, 8), "b.png": noise(8, 8)})
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"photos/a\.png"):
        item_of(folder)
    assert item_of(folder, on_error="skip")["HQ_path"].endswith("b.png")


def test_pictures_of_several_sizes_are_no_batch_unless_they_are_padded(tmp_path: Path) -> None:
    folder = write_pictures(
        tmp_path / "photos", {"a.png": noise(40, 40), "b.png": noise(60, 60), "c.png": noise(40, 40)}
    )
    options = {"phase": "val", "batch_size": 3}
    message = r"photos/b\.png: 60 x 60 pixels, where others of its batch have 40 x 40; set target_size, needs_collate"
    with pytest.raises(StoreError, match=message):
        list(create_dataloader(dataset(folder), options))
    (batch,) = create_dataloader(dataset(folder), {**options, "needs_collate": True})
    assert batch["hq"].shape == (3, 3, 60, 60)
    (batch,) = create_dataloader(dataset(folder, target_size=20), options)
    assert batch["hq"].shape == (3, 3, 20, 20)


@pytest.mark.parametrize(("claimed", "crop"), [(30, 32), (64, None)])
def test_a_batch_that_begins_with_a_bad_picture_has_the_size_of_the_others(
    tmp_path: Path, claimed: int, crop: int | None
) -> None:
    pictures = {f"{name}.png": noise(40, 40, seed=number) for number, name in enumerate("abcd")}
    folder = write_pictures(tmp_path / "photos", pictures)
    bad = png(noise(claimed, claimed))
    (folder / "a.png").write_bytes(bad[: len(bad) // 2])  # the header, which holds the size, is undamaged
    data = dataset(folder, disable_flip=False, center_crop_hq_sz=crop, on_error="skip")
    keys = [SampleKey(index, 3) for index in (0, 2, 0, 3)]
    expected = default_collate([data[key] for key in keys])
    assert data.take_skipped() == 2
    loader = ThreadsLoader(data, sampler=keys, batch_size=4, drop_last=False, threads=2)
    (batch,) = loader
    assert_same(batch, expected)
    assert batch["hq"].shape == (4, 3, crop or 40, crop or 40)
    assert [Path(path).name for path in batch["HQ_path"]] == ["b.png", "c.png", "b.png", "d.png"]


def test_read_shows_a_tensor_without_numbers(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    options = f"mode: imagefolder, paths: {DATA / 'photos'}, target_size: 64, scale: 2, batch_size: 2"
    config.write_text(f"datasets: {{train: {{{options}}}}}")
    lines = list(describe_batches(config, batches=1))
    assert any(line.split() == ["corruption_entropy", "float32", "2", "x", "0", "empty"] for line in lines)
