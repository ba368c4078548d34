"""StoreDataset, collate and create_loader: batches without a config, in any loop of PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import dlas_store
from dlas_store import StoreDataset, collate, create_loader, open_source
from dlas_store.converters import import_store
from dlas_store.datasets import create_dataset
from dlas_store.errors import ConfigError, ImageError
from tests.sources.test_archives import write_tar
from tests.support.sample_data import noise, png

COUNT = 50
SIDE = 96  # large enough for shared memory


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 50 pictures with labels and captions."""
    root = tmp_path_factory.mktemp("plain")
    folder = root / "pictures"
    folder.mkdir()
    lines = []
    for number in range(COUNT):
        (folder / f"{number:02}.png").write_bytes(png(noise(SIDE, SIDE, seed=number)))
        lines.append(json.dumps({"image": f"{number:02}.png", "label": number % 7, "caption": f"no. {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    import_store([folder], root / "store.lmdb")
    return root / "store.lmdb"


def pixels_of(number: int) -> torch.Tensor:
    return torch.from_numpy(noise(SIDE, SIDE, seed=number)).permute(2, 0, 1)


def check(batches: list[Any], numbers: list[int]) -> None:
    """Check the pictures, labels and captions of batches, in order."""
    pixels = torch.cat([batch["pixels"] for batch in batches])
    assert torch.equal(pixels, torch.stack(list(map(pixels_of, numbers))))
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [number % 7 for number in numbers]
    assert [text for batch in batches for text in batch["caption"]] == [f"no. {number}" for number in numbers]


FIELDS = ["label", "caption"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_pictures_and_fields(workers: int, store: Path) -> None:
    loader = create_loader(store, batch_size=8, fields=FIELDS, workers=workers)
    batches = list(loader)
    assert [len(batch["pixels"]) for batch in batches] == [8] * 6 + [2]
    assert batches[0]["pixels"].is_contiguous(memory_format=torch.channels_last)
    check(batches, list(range(COUNT)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shuffled_loader_follows_its_seed_and_resumes(workers: int, store: Path) -> None:
    def labels(loader: Any) -> list[list[int]]:
        return [batch["label"].tolist() for batch in loader]

    options: dict[str, Any] = {"batch_size": 8, "shuffle": True, "fields": ["label"], "drop_last": True, "seed": 3}
    first, second = (create_loader(store, workers=workers, **options) for _ in range(2))
    epoch = labels(first)
    assert epoch == labels(second)
    assert len(epoch) == 6
    batches = iter(first)
    part = [next(batches)["label"].tolist() for _ in range(2)]
    state = first.state_dict()
    del batches
    second.load_state_dict(state)
    rest = labels(second)
    first.set_epoch(1)
    assert part + rest == labels(first)


def test_channels_last_gives_the_pixels_as_they_are_decoded(store: Path) -> None:
    (batch,) = create_loader(store, batch_size=COUNT, channels_last=True)
    assert batch["pixels"].shape == (COUNT, SIDE, SIDE, 3)
    np.testing.assert_array_equal(batch["pixels"][7], noise(SIDE, SIDE, seed=7))
    assert batch.keys() == {"pixels"}


def double(batch: Any) -> Any:
    return batch["pixels"].float() * 2


@pytest.mark.parametrize("option", ["transform", "item_transform"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_transform_makes_the_batch(workers: int, option: str, store: Path) -> None:
    transform: dict[str, Any] = {option: double}
    batch = next(iter(create_loader(store, batch_size=4, workers=workers, **transform)))
    assert torch.equal(batch, torch.stack([pixels_of(number).float() * 2 for number in range(4)]))


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_any_dataloader_gets_the_same_batches_epoch_after_epoch(
    num_workers: int, store: Path, *, persistent: bool
) -> None:
    if persistent and not num_workers:
        pytest.skip("without workers none persist")
    dataset = StoreDataset(store, fields=FIELDS)
    loader = DataLoader(
        dataset, batch_size=8, num_workers=num_workers, collate_fn=collate, persistent_workers=persistent
    )
    for _ in range(3):
        check(list(loader), list(range(COUNT)))  # all batches are kept at a time


def test_two_loops_over_one_loader_do_not_disturb_each_other(store: Path) -> None:
    loader = DataLoader(StoreDataset(store, fields=FIELDS), batch_size=5, num_workers=2, collate_fn=collate)
    pairs = list(zip(loader, loader, strict=True))
    for side in range(2):
        check([pair[side] for pair in pairs], list(range(COUNT)))


def test_a_worker_uses_its_shared_memory_again(store: Path) -> None:
    loader = DataLoader(StoreDataset(store), batch_size=1, num_workers=1, collate_fn=collate)
    addresses = set()
    for _ in range(3):
        for batch in loader:
            addresses.add(batch["pixels"].data_ptr())
            del batch
    assert len(addresses) < COUNT


def test_an_error_in_a_worker_reaches_the_loop(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(noise(8, 8)))
    (tmp_path / "b.png").write_bytes(png(noise(8, 8))[:-30])
    loader = DataLoader(StoreDataset(tmp_path), batch_size=2, num_workers=1, collate_fn=collate)
    with pytest.raises(ImageError, match=r"b\.png"):
        list(loader)


def test_an_item_is_what_a_batch_holds(store: Path) -> None:
    dataset = StoreDataset(store, fields=FIELDS)
    item = dataset[9]
    assert torch.equal(item["pixels"], pixels_of(9))
    assert (item["label"], item["caption"]) == (2, "no. 9")
    batch = collate(dataset.__getitems__([9, 4]))
    check([batch], [9, 4])


def test_a_field_that_is_not_there_is_an_error_that_lists_those_that_are(store: Path) -> None:
    with pytest.raises(ConfigError, match="has no field 'labels'; it has caption, label"):
        StoreDataset(store, fields=["labels"])


def test_an_open_source_and_several_are_read(store: Path) -> None:
    with open_source(store) as source:
        assert len(StoreDataset(source)) == COUNT
        assert len(StoreDataset([source, store])) == 2 * COUNT


def test_the_package_loads_torch_only_when_asked_for_a_loader() -> None:
    is_loaded = "print('torch' in sys.modules)"
    program = f"import sys, dlas_store; {is_loaded}; dlas_store.create_loader; {is_loaded}"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"]
    with pytest.raises(AttributeError, match="nothing"):
        dlas_store.nothing  # noqa: B018


def test_weights_of_0_are_an_error_that_names_them(store: Path) -> None:
    with pytest.raises(ConfigError, match=r"no patches in paths: .*; all weights are 0"):
        create_dataset({"mode": "pixels", "paths": [store], "weights": [0]})


def test_a_config_reads_a_range_of_archives(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"a-{number}.tar", {"0.png": png(noise(8, 8, seed=number))})
    dataset: Any = create_dataset({"mode": "pixels", "paths": str(tmp_path / "a-{0..1}.tar")})
    np.testing.assert_array_equal(dataset[1]["pixels"], noise(8, 8, seed=1))


@pytest.mark.parametrize("opt", [None, [], "pixels", 3])
def test_options_that_are_no_mapping_are_an_error_that_says_so(opt: Any) -> None:
    with pytest.raises(ConfigError, match="the options of a dataset must be a mapping with a mode, got"):
        create_dataset(opt)
