"""Mode torch_dataset: labelled pictures, cropped, flipped, normalized."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from dlas_store.converters.exporting import export_store
from dlas_store.converters.importing import import_store
from dlas_store.datasets import OptionWarning, TorchDataset, create_dataloader
from dlas_store.errors import ConfigError, MissingMetadataError, NotASourceError
from dlas_store.sampling.rng import SampleKey
from dlas_store.sources.published import open_published
from tests.support.picture_folders import write_pictures
from tests.support.published_files import levels, write_cifar10, write_cifar100, write_mnist
from tests.support.sample_data import Array, noise, png

MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
STDDEV = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


def normalized(pixels: Array) -> Array:
    """Return uint8 (H, W, 3) as torchvision's ToTensor and Normalize give them."""
    result: Array = (pixels.transpose(2, 0, 1).astype(np.float32) / 255 - MEAN) / STDDEV
    return result


def either_way(tensor: torch.Tensor, pixels: Array) -> bool:
    """Return whether a tensor shows the pixels or their mirror image."""
    return any(np.allclose(tensor, normalized(image), atol=1e-5) for image in (pixels, pixels[:, ::-1]))


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """A store of 20 pictures of CIFAR-100."""
    write_cifar100(tmp_path / "files")
    import_store([open_published("cifar100", tmp_path / "files")], tmp_path / "cifar100.lmdb")
    return tmp_path / "cifar100.lmdb"


def dataset(store: Path, **options: Any) -> TorchDataset:
    return TorchDataset({"dataroot": store, "image_size": 32, "seed": 1, **options})


def labelled_picture(tmp_path: Path, pixels: Array) -> Path:
    return write_pictures(tmp_path / "classes", {"cat/1.png": pixels}).parent / "classes"


def dataset_of_one(tmp_path: Path, pixels: Array, **options: Any) -> TorchDataset:
    """Return the dataset of one picture in the folder of its class."""
    folder = labelled_picture(tmp_path, pixels)
    return TorchDataset({"dataset": "imagefolder", "kwargs": {"root": folder}, "image_size": 32, "seed": 1, **options})


def test_an_item_has_the_keys_of_the_trainer(cifar: Path, tmp_path: Path) -> None:
    pixels, fine, coarse = write_cifar100(tmp_path / "files")
    data = dataset(cifar, dataset="cifar100", kwargs={"root": "/elsewhere", "train": True})
    assert len(data) == 20
    for index in (0, 19):
        item = data[index]
        assert item.keys() == {"lq", "hq", "labels", "coarse_labels", "LQ_path", "GT_path"}
        assert item["lq"].shape == (3, 32, 32)
        assert item["lq"].dtype == torch.float32
        assert torch.equal(item["lq"], item["hq"])
        assert (item["labels"], item["coarse_labels"]) == (fine[index], coarse[index])
        assert type(item["labels"]) is int
        assert item["GT_path"] == item["LQ_path"] == f"train/{index:06d}.png"
        assert either_way(item["hq"], pixels[index])


def test_without_coarse_labels_there_is_no_such_key(tmp_path: Path) -> None:
    item = dataset_of_one(tmp_path, noise(32, 32))[0]
    assert item.keys() == {"lq", "hq", "labels", "LQ_path", "GT_path"}
    assert item["labels"] == 0
    assert item["GT_path"] == "cat/1.png"


def test_half_of_the_pictures_are_mirrored_in_any_phase(cifar: Path) -> None:
    for phase in ("train", "val"):
        data = dataset(cifar, phase=phase)
        first = data[SampleKey(0, 0)]["hq"]
        same = sum(torch.equal(data[SampleKey(0, repetition)]["hq"], first) for repetition in range(400))
        assert 160 < same < 240


@pytest.mark.parametrize("size", [(64, 96), (97, 41), (20, 33), (32, 32)])
def test_the_shorter_side_is_resized_antialiased_and_the_centre_is_cut(tmp_path: Path, size: tuple[int, int]) -> None:
    pixels = noise(*size)
    height, width = (int(32 * side / min(size)) for side in size)
    resized = np.asarray(PillowImage.fromarray(pixels).resize((width, height), PillowImage.Resampling.BILINEAR))
    top, left = round((height - 32) / 2), round((width - 32) / 2)
    assert either_way(dataset_of_one(tmp_path, pixels)[0]["hq"], resized[top : top + 32, left : left + 32])


def test_a_random_crop_has_the_areas_and_ratios_of_torchvision(tmp_path: Path) -> None:
    rows, cols = np.mgrid[:200, :200].astype(np.uint8)
    data = dataset_of_one(tmp_path, np.dstack([rows, cols, rows]), random_crop=True)
    crops = [data[SampleKey(0, repetition)]["hq"].numpy() * STDDEV + MEAN for repetition in range(1000)]
    heights, widths = (np.array([np.ptp(crop[axis]) * 255 * 32 / 31 for crop in crops]) for axis in (0, 1))
    areas, ratios = heights * widths / 200**2, widths / heights
    assert 0.05 < areas.min() < 0.12
    assert 0.9 < areas.max() < 1.1
    assert abs(areas.mean() - 0.52) < 0.05
    assert 0.68 < ratios.min() < 0.8
    assert 1.25 < ratios.max() < 1.45
    assert len({crop.tobytes() for crop in crops}) > 990


def test_grey_pictures_become_rgb(tmp_path: Path) -> None:
    pixels, labels = levels(4, 28, 28), levels(4) % 10
    write_mnist(tmp_path / "MNIST" / "raw", pixels, labels)
    data = TorchDataset({"dataset": "mnist", "kwargs": {"root": tmp_path, "train": True}, "image_size": 28})
    assert [data[index]["labels"] for index in range(4)] == labels.tolist()
    assert either_way(data[3]["hq"], pixels[3][..., None].repeat(3, 2))


@pytest.mark.parametrize(
    ("options", "first", "length"),
    [({}, 0, 20), ({"offset": 5}, 5, 15), ({"fixed_len": 12}, 0, 12), ({"fixed_len": 12, "offset": 5}, 5, 7)],
)
def test_fixed_len_ends_and_offset_begins_the_pictures(
    cifar: Path, options: dict[str, int], first: int, length: int
) -> None:
    data = dataset(cifar, **options)
    assert len(data) == length
    assert data[0]["GT_path"] == f"train/{first:06d}.png"
    assert data.image_of(0).endswith(f"cifar100.lmdb/train/{first:06d}.png")
    assert data[length - 1]["GT_path"] == f"train/{first + length - 1:06d}.png"


@pytest.mark.parametrize("options", [{}, {"random_crop": True, "image_size": 24}])
def test_a_store_its_export_and_the_published_files_give_the_same_items(
    cifar: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    export_store(cifar, tmp_path / "exported")
    published = {"dataset": "cifar100", "kwargs": {"root": tmp_path / "files"}, "dataroot": None}
    exported = dataset(tmp_path / "exported", **options)
    for key in (SampleKey(0, 0), SampleKey(19, 3)):
        items = [data[key] for data in (dataset(cifar, **options), exported, dataset(cifar, **options, **published))]
        for item in items[1:]:
            assert torch.equal(item.pop("hq"), items[0]["hq"])
            assert torch.equal(item.pop("lq"), items[0]["lq"])
            assert item == {name: value for name, value in items[0].items() if name not in {"hq", "lq"}}


def test_kwargs_pick_the_split(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-py")
    for folder, name in [("train", "a"), ("val", "b")]:
        write_pictures(tmp_path / folder, {f"{name}/1.png": noise(8, 8)})
    names = {
        ("cifar10", "train", True): "train/000000.png",
        ("cifar10", "train", False): "test/000000.png",
        ("imagenet", "split", "train"): "a/1.png",
        ("imagenet", "split", "val"): "b/1.png",
        ("imagefolder", "split", "val"): "b/1.png",
    }
    for (name, key, value), path in names.items():
        data = TorchDataset({"dataset": name, "kwargs": {"root": tmp_path, key: value}, "image_size": 8})
        assert data[0]["GT_path"] == path


def test_batches_hold_labels_as_a_tensor(cifar: Path) -> None:
    opt = {"dataroot": cifar, "image_size": 32, "batch_size": 4, "phase": "val", "n_workers": 0}
    batch = next(iter(create_dataloader(TorchDataset(opt), opt)))
    assert batch["hq"].shape == (4, 3, 32, 32)
    assert batch["labels"].dtype == torch.int64
    assert batch["labels"].shape == batch["coarse_labels"].shape == (4,)


def test_an_item_follows_from_seed_index_and_repetition(cifar: Path) -> None:
    data = dataset(cifar, random_crop=True)
    first = data[SampleKey(0, 3)]["hq"]
    assert torch.equal(first, pickle.loads(pickle.dumps(data))[SampleKey(0, 3)]["hq"])
    assert not torch.equal(first, data[SampleKey(0, 4)]["hq"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": None}, "image_size is missing"),
        ({"dataset": "svhn"}, "dataset must be one of mnist, fmnist, cifar10, cifar100, imagenet, imagefolder"),
        ({"fixed_len": 21}, "offset must be below fixed_len, and that at most 20, .* got 0 and 21"),
        ({"offset": 20}, "got 20 and 20"),
        ({"offset": 5, "fixed_len": 5}, "got 5 and 5"),
        ({"random_crop": 2}, "random_crop must be true or false"),
        ({"dataroot": None}, "dataset is missing"),
        ({"dataroot": None, "dataset": "mnist"}, "paths is missing, or dataset with kwargs"),
        ({"dataroot": None, "dataset": "mnist", "kwargs": {}}, "kwargs: root is missing"),
        (
            {"dataroot": None, "dataset": "mnist", "kwargs": {"root": "/absent", "download": True}},
            "kwargs: root '/absent' does not exist, and nothing is downloaded",
        ),
    ],
)
def test_a_wrong_option_is_refused_at_construction(cifar: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^torch_dataset 'c': .*{message}"):
        dataset(cifar, name="c", **options)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotASourceError, match="holds no train-images-idx3-ubyte"):
        TorchDataset({"dataset": "mnist", "kwargs": {"root": tmp_path, "train": True}, "image_size": 28})


def test_pictures_without_a_label_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", {"1.png": noise(8, 8), "2.png": noise(8, 8)})
    with pytest.raises(MissingMetadataError, match=r"a/1\.png: has no label; import with dlas-store import torch:NAME"):
        TorchDataset({"paths": folder, "image_size": 8})
    (folder / "metadata.jsonl").write_text(json.dumps({"image": "1.png", "label": 7}) + "\n")
    data = TorchDataset({"paths": folder, "image_size": 8})
    assert data[0]["labels"] == 7
    with pytest.raises(MissingMetadataError, match=r"a/2\.png: has no label"):
        data[1]


def test_an_option_of_no_effect_is_warned_of(tmp_path: Path) -> None:
    folder = labelled_picture(tmp_path, noise(8, 8))
    opt = {"dataset": "imagefolder", "kwargs": {"root": folder, "transform": 1}, "image_size": 8, "scale": 1}
    with pytest.warns(OptionWarning, match="kwargs: option 'transform' is not known"):
        TorchDataset(opt)


def test_a_grey_png_and_one_with_alpha_become_rgb(tmp_path: Path) -> None:
    folder = labelled_picture(tmp_path, noise(8, 8))
    (folder / "cat" / "2.png").write_bytes(png(noise(8, 8)[..., 0]))
    (folder / "cat" / "3.png").write_bytes(png(np.dstack([noise(8, 8), noise(8, 8, seed=1)[..., :1]])))
    data = TorchDataset({"dataset": "imagefolder", "kwargs": {"root": folder}, "image_size": 8})
    assert either_way(data[1]["hq"], noise(8, 8)[..., :1].repeat(3, 2))
    assert either_way(data[2]["hq"], noise(8, 8))
