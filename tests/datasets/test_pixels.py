"""Mode pixels: decoded patches and pictures, and nothing else."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlas_store.datasets import PixelsDataset, create_dataloader, create_dataset
from dlas_store.errors import ConfigError, ImageError, PatchIndexError, StoreError
from dlas_store.loading.workers import BufferReceiver, SharedBufferPool, new_slots
from dlas_store.sampling.rng import SampleKey
from tests.support.equality import assert_same
from tests.support.file_trees import write
from tests.support.picture_folders import store_of, write_pictures
from tests.support.sample_data import noise
from tests.support.source_contract import jpeg

PICTURES = {f"{name}/{n}.png": noise(20, 32, seed=n) for name, n in (("a", 0), ("a", 1), ("b", 2), ("b", 3))}


@pytest.fixture(params=["folder", "store"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = write_pictures(tmp_path / "photos", PICTURES)
    return folder if request.param == "folder" else store_of(folder)


def test_an_item_is_the_pixels_and_its_index(path: Path) -> None:
    dataset: Any = create_dataset({"mode": "pixels", "paths": path})
    assert isinstance(dataset, PixelsDataset)
    assert len(dataset) == 4
    for index, pixels in enumerate(PICTURES.values()):
        item = dataset[index]
        assert list(item) == ["pixels", "index"]
        assert type(item["index"]) is int
        assert item["index"] == index
        assert item["pixels"].dtype == torch.uint8
        assert item["pixels"].is_contiguous()
        np.testing.assert_array_equal(item["pixels"], pixels)


@pytest.mark.parametrize("loader", [{"loader": "threads"}, {"loader": "workers", "n_workers": 1}])
def test_a_batch_is_one_array_in_the_order_asked_for(path: Path, loader: dict[str, Any]) -> None:
    options = {"mode": "pixels", "dataroot": path, "phase": "train", "batch_size": 3, **loader}
    batches = list(create_dataloader(create_dataset(options), {**options, "phase": "val"}, sampler=[3, 0, 3, 1]))
    assert [batch["index"].tolist() for batch in batches] == [[3, 0, 3], [1]]
    assert [tuple(batch["pixels"].shape) for batch in batches] == [(3, 20, 32, 3), (1, 20, 32, 3)]
    pictures = list(PICTURES.values())
    np.testing.assert_array_equal(batches[0]["pixels"], np.stack([pictures[3], pictures[0], pictures[3]]))


def test_items_are_new_tensors_of_their_own(path: Path) -> None:
    dataset = PixelsDataset({"paths": path})
    dataset[0]["pixels"].zero_()
    assert dataset[0]["pixels"].any()


def test_weights_and_ignored_patches_number_the_items(path: Path) -> None:
    dataset = PixelsDataset({"paths": [path, path], "weights": [1, 2]})
    assert len(dataset) == 12
    assert [dataset.image_of(index) for index in (0, 4, 11)] == [dataset.image_of(index) for index in (0, 0, 3)]
    assert torch.equal(dataset[11]["pixels"], dataset[3]["pixels"])
    assert dataset[11]["index"] == 11
    assert dataset.image_of(3).endswith("b/3.png")


def test_a_pickled_dataset_gives_the_same(path: Path) -> None:
    dataset = PixelsDataset({"paths": path})
    assert_same(pickle.loads(pickle.dumps(dataset))[2], dataset[2])


def test_pictures_of_several_sizes_need_a_collate_or_batches_of_one(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos", {"a.png": noise(8, 9), "b.png": noise(10, 7)})
    options = {"mode": "pixels", "paths": folder, "phase": "val"}
    dataset: Any = create_dataset(options)
    message = r"b\.png: 7 x 10 pixels, where others of its batch have 9 x 8; set needs_collate .* batch_size to 1"
    with pytest.raises(StoreError, match=message):
        list(create_dataloader(dataset, {**options, "batch_size": 2}))
    shapes = [tuple(batch["pixels"].shape) for batch in create_dataloader(dataset, options)]
    assert shapes == [(1, 8, 9, 3), (1, 10, 7, 3)]
    (batch,) = create_dataloader(dataset, {**options, "batch_size": 2, "needs_collate": True})
    assert batch["pixels"].shape == (2, 10, 9, 3)
    assert not batch["pixels"][0, 8:].any()
    assert batch["index"].tolist() == [0, 1]


@pytest.mark.parametrize("cut", [slice(0, 10), slice(0, 250)])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_bad_picture_is_replaced_whatever_its_place_and_size(tmp_path: Path, cut: slice, batch_size: int) -> None:
    folder = write_pictures(tmp_path / "photos", {f"{n}.png": noise(10, 12, seed=n) for n in range(3)})
    other = write_pictures(tmp_path / "other", {"1.png": noise(30, 5)}) / "1.png"
    (folder / "1.png").write_bytes(other.read_bytes()[cut])
    dataset = PixelsDataset({"paths": folder, "on_error": "skip"})
    assert dataset[1]["index"] == 2
    options = {"phase": "val", "batch_size": batch_size, "on_error": "skip"}
    for order in ([0, 1, 2], [1, 0, 2]):
        batches = list(create_dataloader(dataset, options, sampler=order))
        assert torch.cat([batch["index"] for batch in batches]).tolist() == [2 if n == 1 else n for n in order]
        pixels = torch.cat([batch["pixels"] for batch in batches])
        assert torch.equal(pixels, torch.stack([dataset[n]["pixels"] for n in order]))


def with_size(size: int) -> bytes:
    """Return a JPEG of 32 x 20 pixels whose header says that it is a square of a size."""
    data = bytearray(jpeg(noise(20, 32)))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = size.to_bytes(2, "big") * 2
    return bytes(data)


@pytest.mark.parametrize(
    "bad", [with_size(65000), jpeg(noise(20, 32))[:-200], b"no picture"], ids=["large", "cut", "none"]
)
@pytest.mark.parametrize("loader", [{"loader": "threads"}, {"loader": "workers", "n_workers": 1}])
def test_a_batch_with_a_bad_picture_is_its_items(tmp_path: Path, bad: bytes, loader: dict[str, Any]) -> None:
    files = {f"{number:02d}.jpg": jpeg(noise(20, 32, seed=number)) for number in range(6)}
    folder = write(tmp_path / "photos", files | {"00.jpg": bad, "03.jpg": bad})
    options = {
        "mode": "pixels",
        "paths": folder,
        "phase": "train",
        "batch_size": 6,
        "on_error": "skip",
        "seed": 0,
        **loader,
    }
    dataset: Any = create_dataset(options)
    items = [dataset[index] for index in range(6)]
    assert [item["index"] for item in items] == [1, 1, 2, 4, 4, 5]
    assert dataset.take_skipped() == 2
    (batch,) = create_dataloader(dataset, {**options, "phase": "val"})
    assert batch["index"].tolist() == [1, 1, 2, 4, 4, 5]
    for row, item in zip(batch["pixels"], items, strict=True):
        assert torch.equal(row, item["pixels"])
    assert dataset._reported == 4  # The loader has reported as many.
    failing = create_dataset(options | {"on_error": "raise"})
    with pytest.raises(ImageError, match=r"0[03]\.jpg"):
        next(iter(create_dataloader(failing, {**options, "phase": "val"})))


def test_memory_of_a_batch_that_came_out_otherwise_is_free_again(tmp_path: Path) -> None:
    """The first picture's header says a size that no other picture has, and the picture is replaced."""
    big = jpeg(noise(300, 300))
    folder = write(tmp_path / "photos", {"0.jpg": big[:3000], "1.jpg": jpeg(noise(200, 200))})
    dataset = PixelsDataset({"paths": folder, "on_error": "skip"})
    slots = new_slots(1)
    pool, receiver = SharedBufferPool(slots, 0), BufferReceiver(slots, pin_memory=False)
    for _ in range(20):
        builder = dataset.batch_builder([SampleKey(0, 0), SampleKey(1, 0)], pool.allocate)
        builder.fill(0, 2)
        batch = receiver.receive(pool.send(builder.finish()))
        assert batch["pixels"].shape == (2, 200, 200, 3)
    assert slots.sum() <= 1


@pytest.mark.parametrize(("dtype", "remainder"), [(np.uint8, 16), (np.float32, 0)])
@pytest.mark.parametrize("shape", [(2, 200, 200, 3), (3, 181, 179, 3)])
def test_shared_memory_begins_where_decoding_is_fastest(shape: tuple[int, ...], dtype: Any, remainder: int) -> None:
    slots = new_slots(1)
    pool, receiver = SharedBufferPool(slots, 0), BufferReceiver(slots, pin_memory=False)
    for number in range(3):
        array = pool.allocate(shape, dtype)
        assert (array.shape, array.dtype, array.ctypes.data % 32) == (shape, dtype, remainder)
        array[...] = number
        received = receiver.receive(pool.send({"pixels": torch.from_numpy(array)}))["pixels"]
        assert received.shape == shape
        assert (received == number).all()
        assert slots.sum() == 1
        del received
    receiver.receive({})
    assert slots.sum() == 0


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_outside_is_an_error(path: Path, index: int) -> None:
    with pytest.raises(PatchIndexError, match=f"no item {index}: the dataset has 4"):
        PixelsDataset({"paths": path})[index]


def test_wrong_options_are_refused_by_name(path: Path) -> None:
    with pytest.raises(ConfigError, match="pixels: paths is missing"):
        PixelsDataset({})
    with pytest.raises(ConfigError, match="pixels: weights must be one for each of paths: 1, got 2"):
        PixelsDataset({"paths": path, "weights": [1, 1]})
