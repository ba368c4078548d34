"""ItemDataset: random numbers by seed, index and repetition, epochs in workers, and the replacement of bad samples."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dlas_store.config import ConfigOptions
from dlas_store.datasets import SingleImageDataset, create_dataloader
from dlas_store.errors import ConfigError, ImageError, PatchIndexError, StoreError
from dlas_store.loading.batch import NO_REFERENCE, Allocate, CollatingBuilder, RawBatch
from dlas_store.loading.dataset import ItemDataset
from dlas_store.sampling.rng import SampleKey, SampleRng
from tests.conftest import MakeImage
from tests.support.sample_data import noise


class Rolls(ItemDataset):
    """A dataset whose items hold their index and a random number; items listed in ``bad`` cannot be read."""

    def __init__(self, opt: Mapping[str, Any]) -> None:
        options = ConfigOptions.of_dataset(opt, mode="rolls")
        super().__init__(options)
        self.length = options.integer("length", 12)
        self.bad = set(opt.get("bad", ()))
        self.nameless = options.flag("nameless", False)

    def __len__(self) -> int:
        return self.length

    def image_of(self, index: int) -> str:
        if self.nameless:
            raise StoreError("its name is damaged")
        return f"image{index // 4}"

    def make_item(self, index: int, random: SampleRng) -> dict[str, Any]:
        if index in self.bad:
            raise ImageError(f"item {index} is damaged")
        return {"index": index, "roll": int(random.generator.integers(1 << 40)), "process": os.getpid()}


def rolls(loader: Any) -> list[tuple[int, int]]:
    """Return (index, random number) of the items of an epoch."""
    return [
        (int(index), int(roll)) for batch in loader for index, roll in zip(batch["index"], batch["roll"], strict=True)
    ]


def test_a_dataset_has_its_options_as_dl_art_schools_programs_read_them() -> None:
    dataset = Rolls({"name": "set14", "length": 3})
    assert dataset.opt == {"name": "set14", "length": 3}
    assert dataset.opt["dataroot_GT"] is None
    assert "dataroot_GT" not in dataset.opt
    again = pickle.loads(pickle.dumps(dataset))
    assert again.opt == dataset.opt
    assert again.opt["dataroot_GT"] is None


@pytest.mark.parametrize("workers", [0, 2])
def test_after_reset_random_each_evaluation_has_the_same_items(workers: int) -> None:
    dataset = Rolls({})
    loader: Any = DataLoader(dataset, 3, num_workers=workers, multiprocessing_context="fork" if workers else None)
    before = rolls(loader)
    assert rolls(loader) != before
    dataset.reset_random()
    first = rolls(loader)
    assert rolls(loader) == first
    dataset.set_epoch(1)
    assert rolls(loader) != first
    dataset.reset_random()
    assert rolls(loader) == first


def our_loader(workers: int = 0, *, start: str = "fork", **options: Any) -> Any:
    options = {
        "phase": "train",
        "batch_size": 3,
        "seed": 5,
        "loader": "workers",
        "n_workers": workers,
        "start_method": start,
        **options,
    }
    return create_dataloader(Rolls(options), options)


# Random numbers


def test_random_numbers_follow_from_seed_index_and_repetition_alone() -> None:
    def roll(seed: int, index: int, repetition: int) -> int:
        return int(Rolls({"seed": seed})[SampleKey(index, repetition)]["roll"])

    assert roll(1, 2, 3) == roll(1, 2, 3)
    similar = [
        roll(*numbers) for numbers in ((1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2), (3, 2, 1), (2, 1, 3))
    ]
    assert len(set(similar)) == len(similar)


def test_without_a_seed_pytorch_draws_it() -> None:
    def roll() -> int:
        torch.manual_seed(8)
        return int(Rolls({})[SampleKey(0, 0)]["roll"])

    assert roll() == roll()
    assert len({Rolls({})[SampleKey(0, 0)]["roll"] for _ in range(4)}) == 4


@pytest.mark.parametrize("seed", [-1, "x", 0.5])
def test_a_wrong_seed_is_refused(seed: Any) -> None:
    with pytest.raises(ConfigError, match="rolls: seed must be an integer of at least 0"):
        Rolls({"seed": seed})


@pytest.mark.parametrize(("workers", "start"), [(1, "fork"), (2, "fork"), (1, "spawn")])
def test_our_loader_gives_the_same_items_with_any_number_of_workers(workers: int, start: str) -> None:
    local, remote = our_loader(), our_loader(workers, start=start)
    expected = [rolls(local), rolls(local)]
    assert [rolls(remote), rolls(remote)] == expected
    assert expected[0] != expected[1]
    assert {roll for _, roll in expected[0]}.isdisjoint(roll for _, roll in expected[1])


def test_corrupted_samples_are_the_same_with_any_number_of_workers(chunked_source_path: Path) -> None:
    options = {
        "paths": chunked_source_path,
        "target_size": 32,
        "scale": 2,
        "phase": "train",
        "batch_size": 32,
        "seed": 3,
        "random_corruptions": ["noise", "motion_blur", "color_jitter", "lq_resampling"],
        "num_corrupts_per_image": 2,
    }

    def lq(workers: int) -> list[torch.Tensor]:
        loader = create_dataloader(SingleImageDataset(options), {**options, "loader": "workers", "n_workers": workers})
        return [batch["lq"] for _ in range(2) for batch in loader]

    assert all(torch.equal(local, remote) for local, remote in zip(lq(0), lq(2), strict=True))


def test_set_epoch_gives_an_epoch_again() -> None:
    loader = our_loader(2)
    epochs = [rolls(loader) for _ in range(3)]
    loader.set_epoch(1)
    assert [rolls(loader), rolls(loader)] == epochs[1:]
    resumed = our_loader()
    resumed.set_epoch(2)
    assert rolls(resumed) == epochs[2]


def test_a_sampler_of_ints_gets_our_epochs_too() -> None:
    options = {"phase": "train", "batch_size": 3, "seed": 5}
    loader = create_dataloader(Rolls(options), options, sampler=range(12))
    first, second = rolls(loader), rolls(loader)
    assert [index for index, _ in first] == list(range(12))
    assert [roll for _, roll in first] == [Rolls(options)[SampleKey(n, 0)]["roll"] for n in range(12)]
    assert [roll for _, roll in second] == [Rolls(options)[SampleKey(n, 1)]["roll"] for n in range(12)]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_set_epoch_reaches_the_persistent_workers_of_another_loader(start: str) -> None:
    dataset = Rolls({"seed": 2})
    loader: Any = DataLoader(
        dataset, batch_size=3, num_workers=2, persistent_workers=True, multiprocessing_context=start
    )
    for epoch in (0, 7, 0):
        dataset.set_epoch(epoch)
        assert [roll for _, roll in rolls(loader)] == [dataset[SampleKey(index, epoch)]["roll"] for index in range(12)]


@pytest.mark.parametrize(
    "options",
    [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}],
    ids=["here", "new", "persistent"],
)
def test_another_loader_without_set_epoch_differs_by_pass_and_follows_manual_seed(options: dict[str, Any]) -> None:
    def epochs() -> list[list[tuple[int, int]]]:
        dataset = Rolls({"seed": 2})
        torch.manual_seed(4)
        loader: Any = DataLoader(dataset, batch_size=3, **options)
        return [rolls(loader) for _ in range(3)]

    first = epochs()
    assert len({roll for epoch in first for _, roll in epoch}) == 36
    assert epochs() == first


def test_an_item_of_a_pickled_dataset_is_the_same() -> None:
    dataset = Rolls({})
    dataset.set_epoch(3)
    again: Rolls = pickle.loads(pickle.dumps(dataset))
    assert again[5]["roll"] == dataset[5]["roll"]


@pytest.mark.parametrize("item", [-1, 12, SampleKey(12, 0), SampleKey(-1, 5)])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_an_index_outside_is_an_error_and_never_skipped(item: Any, on_error: str) -> None:
    with pytest.raises(PatchIndexError, match=r"no item -?\d+: the dataset has 12"):
        Rolls({"on_error": on_error})[item]


# Bad samples


def test_by_default_a_bad_sample_raises() -> None:
    for options in ({}, {"on_error": "raise"}):
        with pytest.raises(ImageError, match="item 2 is damaged"):
            Rolls({"bad": [2], **options})[2]
    with pytest.raises(ImageError, match="item 2 is damaged"):
        rolls(our_loader(2, bad=[2]))


def test_on_error_is_one_of_two() -> None:
    with pytest.raises(ConfigError, match="rolls: on_error must be one of raise, skip, got 'ignore'"):
        Rolls({"on_error": "ignore"})


def test_skipping_gives_the_next_sample_that_can_be_read(caplog: pytest.LogCaptureFixture) -> None:
    dataset = Rolls({"bad": [2, 3, 11], "on_error": "skip", "seed": 1})
    assert [dataset[SampleKey(index, 0)]["index"] for index in range(12)] == [0, 1, 4, 4, 4, 5, 6, 7, 8, 9, 10, 0]
    # A replacement has its own random numbers, not those of the bad sample.
    assert dataset[SampleKey(2, 6)]["roll"] == dataset[SampleKey(4, 6)]["roll"]
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "skipped a bad sample of image0: item 2 is damaged",
        "skipped a bad sample of image2: item 11 is damaged",
    ]


def test_skipped_samples_are_counted_once() -> None:
    dataset = Rolls({"bad": [2, 3, 11], "on_error": "skip"})
    for index in range(12):
        dataset[index]
    assert dataset.take_skipped() == 4  # 2 and 3, 3 again, 11
    assert dataset.take_skipped() == 0
    dataset[3]
    assert dataset.take_skipped() == 1


def test_where_nothing_can_be_read_skipping_ends_with_an_error() -> None:
    dataset = Rolls({"bad": range(12), "on_error": "skip"})
    with pytest.raises(StoreError, match="Rolls: none of the 12 items can be read; run dlas-store verify"):
        dataset[4]


def test_a_bad_sample_whose_name_is_damaged_too_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    dataset = Rolls({"bad": [2], "on_error": "skip", "nameless": True})
    assert dataset[2]["index"] == 3
    assert [record.getMessage() for record in caplog.records] == ["skipped a bad sample of item 2: item 2 is damaged"]


@pytest.mark.parametrize("workers", [0, 2])
def test_our_loader_reports_what_was_skipped_at_the_end_of_each_epoch(
    workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    loader = our_loader(workers, bad=[2, 3, 11], on_error="skip", phase="train")
    for _ in range(2):
        caplog.clear()
        batches = iter(loader)
        items = rolls([next(batches)])
        assert "of this epoch" not in caplog.text
        items += rolls(batches)
        assert {index for index, _ in items} == {0, 1, 4, 5, 6, 7, 8, 9, 10}
        reports = [record for record in caplog.records if "of this epoch" in record.getMessage()]
        assert [(report.levelno, report.getMessage()) for report in reports] == [
            (logging.WARNING, "4 samples of this epoch could not be read and were replaced")
        ]


def test_an_epoch_without_bad_samples_reports_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rolls(our_loader(2, on_error="skip"))
    assert caplog.records == []


def test_a_damaged_patch_of_a_folder_is_skipped_by_its_image(
    make_image: MakeImage, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_image("photo", {f"{n}.jpg": noise(32, 32, seed=n) for n in range(3)})
    (folder / "photo" / "1.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    options = {"paths": folder, "target_size": 32, "scale": 2, "on_error": "skip", "phase": "val"}
    loader = create_dataloader(SingleImageDataset(options), options)
    assert [Path(path).name for batch in loader for path in batch["GT_path"]] == ["0.jpg", "2.jpg", "2.jpg"]
    first, last = (record.getMessage() for record in caplog.records)
    assert first.startswith(f"skipped a bad sample of {folder}/photo: ")
    assert "1.jpg" in first
    assert last == "1 samples of this epoch could not be read and were replaced"


class Sum:
    """A transform that sums the pixels of raw batches."""

    def make(self, raw: RawBatch) -> dict[str, Any]:
        return {"sum": raw.pixels.sum((1, 2, 3)), "index": raw.paths}


class RawRolls(Rolls):
    """Rolls with a device transform. A raw batch has one grey pixel an item, whose value is the item's index."""

    def device_transform(self, device: torch.device) -> Sum:
        if device.type != "cpu":
            raise ConfigError("Rolls come to the CPU alone")
        return Sum()

    def begin_raw_batch(self, keys: Sequence[SampleKey], allocate: Allocate) -> CollatingBuilder:
        def collate_raw(items: list[Any]) -> RawBatch:
            pixels = allocate((len(items), 1, 1, 3), np.uint8)
            pixels[:] = np.reshape([item["index"] for item in items], (-1, 1, 1, 1))
            images = torch.full((len(items),), NO_REFERENCE)
            squares = torch.zeros(len(items), 3, dtype=torch.int64)
            names = [str(item["index"]) for item in items]
            return RawBatch(torch.from_numpy(pixels), [], images, squares, names, (len(items),))

        return CollatingBuilder(self.__getitem__, keys, collate_raw)


@pytest.mark.parametrize("loader", ["threads", "workers"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_of_ones_own_makes_its_batches_on_a_device(loader: str, workers: int) -> None:
    opt = {"loader": loader, "n_workers": workers, "phase": "train", "batch_size": 4, "device": "cpu", "seed": 1}
    batches = list(create_dataloader(RawRolls({"length": 12}), opt))
    assert sorted(index for batch in batches for index in batch["index"]) == sorted(map(str, range(12)))
    assert all(batch["sum"].tolist() == [3 * int(index) for index in batch["index"]] for batch in batches)


def test_a_dataset_says_which_device_it_has_no_transform_for() -> None:
    opt = {"phase": "train", "batch_size": 4, "device": "meta"}
    with pytest.raises(ConfigError, match="RawRolls: Rolls come to the CPU alone"):
        create_dataloader(RawRolls({}), opt)
    with pytest.raises(ConfigError, match="Rolls: device is for single_image_extensible"):
        create_dataloader(Rolls({}), opt)
    with pytest.raises(NotImplementedError, match="Rolls makes no batches for a device"):
        Rolls({}).begin_raw_batch([SampleKey(0, 0)], np.empty)
