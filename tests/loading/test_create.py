"""create_dataset and create_dataloader: options, phases, orders, workers, modes, and their use by DL-Art-School."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from dlas_store.cli.read import describe_batches
from dlas_store.config import OptionWarning, load_config
from dlas_store.datasets import (
    SingleImageDataset,
    create_dataloader,
    create_dataset,
    dlas_factories,
    register_dataset,
    take_over,
    zero_pad,
)
from dlas_store.errors import ConfigError, MissingMetadataError, NotASourceError
from dlas_store.loading import create
from dlas_store.processes import available_cores
from dlas_store.sampling.rng import SampleKey
from dlas_store.sampling.samplers import EpochSampler
from tests.conftest import MakeImage
from tests.support.sample_data import DATA, ROOT, noise


class Numbers(Dataset[int]):
    """A user's dataset, made from the options alone: the numbers below a length."""

    def __init__(self, opt: dict[str, Any]) -> None:
        self.length = opt.get("length", 20)

    def __len__(self) -> int:
        return int(self.length)

    def __getitem__(self, index: int) -> int:
        return index


class PaddedNumbers(Numbers):
    @staticmethod
    def collate_fn(items: list[int]) -> list[int]:
        return [*items, -1]


class Foreign(Dataset[dict[str, int]]):
    """A dataset as DL-Art-School has them: of dicts, and of no base class of this library."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"item": index}


class NoneDict(dict[str, Any]):
    """Options as DL-Art-School has them: an option that is not given reads as None."""

    def __missing__(self, key: str) -> None:
        return None


class Countdown:
    """A sampler that stores the number passed to set_epoch()."""

    epoch = -1

    def __iter__(self) -> Iterator[int]:
        return iter(range(7, -1, -1))

    def __len__(self) -> int:
        return 8

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


@pytest.fixture(autouse=True)
def registered_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create, "_MODES", dict(create._MODES))


def order(loader: Any) -> list[int]:
    return [int(number) for batch in loader for number in batch]


def sample_options(path: Path = DATA / "chunked", **options: Any) -> dict[str, Any]:
    defaults = {"mode": "single_image_extensible", "paths": str(path), "target_size": 32, "scale": 2, "need_ref": True}
    return {
        **defaults,
        "strict": True,
        "phase": "train",
        "batch_size": 8,
        "n_workers": 2,
        "pin_memory": False,
        **options,
    }


def test_train_is_shuffled_and_drops_the_incomplete_batch() -> None:
    dataset = Numbers({})
    loader = create_dataloader(dataset, {"phase": "train", "batch_size": 8, "n_workers": 0})
    assert len(loader) == 2
    assert loader.batch_size == 8
    assert loader.dataset is dataset
    numbers = order(loader)
    assert len(set(numbers)) == 16
    assert numbers != sorted(numbers)
    assert order(create_dataloader(dataset, {"phase": "train", "batch_size": 5}, shuffle=False)) == list(range(20))


@pytest.mark.parametrize("loader", ["threads", "workers"])
def test_fewer_items_than_a_batch_are_a_warning_with_the_numbers(loader: str) -> None:
    few = {"phase": "train", "batch_size": 21, "loader": loader}
    with pytest.warns(OptionWarning, match="Numbers: an epoch has 20 items, fewer than the 21 of a batch, and an"):
        assert list(create_dataloader(Numbers({}), few)) == []
    sampler = EpochSampler(20, seed=1, shuffle=True, batch_size=42, rank=0, ranks=2, drop_last=True)
    with pytest.warns(OptionWarning, match="20 items, fewer than the 42 of a batch"):
        create_dataloader(Numbers({}), few, sampler=sampler)
    with pytest.warns(OptionWarning, match="8 items, fewer than the 21 of a batch"):
        create_dataloader(Numbers({}), few, sampler=Countdown())
    with pytest.warns(OptionWarning, match="an epoch has 0 items"):
        create_dataloader(Numbers({"length": 0}), few)
    for enough in ({"batch_size": 20}, {"batch_size": 21, "drop_last": False}, {"batch_size": 21, "phase": "val"}):
        assert len(create_dataloader(Numbers({}), {"phase": "train", "loader": loader, **enough})) == 1


@pytest.mark.parametrize("loader", ["threads", "workers"])
def test_an_item_that_a_sampler_repeats_has_other_random_numbers_each_time(loader: str) -> None:
    options = sample_options(random_corruptions=["noise"], num_corrupts_per_image=1, seed=1, loader=loader)

    def epochs() -> list[Any]:
        repeating = create_dataloader(create_dataset(options), options, sampler=[5, 2, 5, 5, 2, 5, 2, 5])
        return [lq for _ in range(2) for batch in repeating for lq in batch["lq"]]

    items = epochs()
    assert len({lq.numpy().tobytes() for lq in items}) == len(items) == 16
    assert all(torch.equal(lq, other) for lq, other in zip(items, epochs(), strict=True))


def test_dist_among_the_options_of_a_dataset_is_known() -> None:
    for dist in (False, None):
        options = sample_options(dist=dist)
        assert create_dataloader(create_dataset(options), options).batch_size == 8
    options = sample_options(dist=True)
    with pytest.raises(ConfigError, match=r"dist is set, but torch\.distributed\.init_process_group"):
        create_dataloader(create_dataset(options), options)


def test_a_repr_tells_what_a_loader_reads() -> None:
    dataset = create_dataset(sample_options(seed=3))
    loader = create_dataloader(dataset, sample_options(n_threads=1))
    source = f"<ChunkedFolder {DATA / 'chunked'}: 4 images, 262 patches, layout chunked>"
    assert repr(dataset) == f"<SingleImageDataset: 262 items, seed 3, {source}>"
    assert repr(loader) == f"<ThreadsLoader: 32 batches of 8, 1 thread, {dataset!r}>"
    workers = create_dataloader(dataset, sample_options(loader="workers"))
    assert repr(workers).startswith("<WorkersLoader: 32 batches of 8, 2 worker processes of 1 thread, <Single")


@pytest.mark.parametrize("width", [np.uint8, np.int16, np.uint32, np.int64, np.uint64])
def test_an_index_of_any_integer_type_is_an_item(width: Any) -> None:
    dataset: Any = create_dataset(sample_options(paths=[DATA / "chunked"], weights=[3], seed=1))
    expected = dataset[SampleKey(255, 2)]
    dataset.set_epoch(2)
    for item in (dataset[width(255)], dataset[SampleKey(width(255), width(2))]):
        assert item["GT_path"] == expected["GT_path"]
        assert torch.equal(item["lq"], expected["lq"])
    with pytest.raises(TypeError):
        dataset[1.5]


def test_drop_last_may_be_said() -> None:
    kept = create_dataloader(Numbers({}), {"phase": "train", "batch_size": 8, "drop_last": False})
    assert (len(kept), kept.drop_last) == (3, False)
    assert sorted(order(kept)) == list(range(20))
    dropped = create_dataloader(Numbers({}), {"phase": "val", "batch_size": 8, "drop_last": True})
    assert (len(dropped), dropped.drop_last) == (2, True)
    assert order(dropped) == list(range(16))


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("loader", ["threads", "workers"])
def test_a_sampler_that_makes_batches_says_what_becomes_of_the_last(loader: str, keeps: bool) -> None:
    sampler = EpochSampler(20, seed=1, shuffle=True, batch_size=8, drop_last=not keeps)
    options = {"phase": "train", "batch_size": 8, "loader": loader}
    batches = create_dataloader(Numbers({}), options, sampler=sampler)
    assert [len(batch) for batch in batches] == [8, 8, 4][: len(batches)]
    assert (len(batches), batches.drop_last) == ((3, False) if keeps else (2, True))


@pytest.mark.parametrize(("batch_size", "length"), [(None, 20), (8, 3)])
def test_other_phases_come_in_order_whole_and_without_workers(batch_size: int | None, length: int) -> None:
    loader = create_dataloader(Numbers({}), {"phase": "val", "batch_size": batch_size, "n_workers": 4})
    assert order(loader) == list(range(20))
    assert len(loader) == length
    assert loader.num_workers == 0


def test_a_seed_fixes_the_order_of_every_epoch() -> None:
    def epochs(seed: int) -> list[list[int]]:
        loader = create_dataloader(Numbers({}), {"phase": "train", "batch_size": 4, "seed": seed})
        orders = []
        for epoch in (0, 1, 0):
            loader.set_epoch(epoch)
            orders.append(order(loader))
        return orders

    first, second, first_again = epochs(0)
    assert first == first_again != second
    assert epochs(0) == [first, second, first]
    assert first not in epochs(1)
    assert second not in epochs(1)


def test_without_set_epoch_every_pass_differs_and_without_a_seed_pytorch_draws_it() -> None:
    def epochs() -> list[list[int]]:
        torch.manual_seed(3)
        loader = create_dataloader(Numbers({}), {"phase": "train", "batch_size": 4})
        return [order(loader), order(loader)]

    first, second = epochs()
    assert first != second
    assert epochs() == [first, second]


def test_a_sampler_gives_the_order_and_is_told_the_epoch() -> None:
    sampler = Countdown()
    loader = create_dataloader(Numbers({}), {"phase": "train", "batch_size": 4}, sampler=sampler)
    assert order(loader) == list(range(7, -1, -1))
    assert loader.sampler is sampler
    loader.set_epoch(5)
    assert sampler.epoch == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phase": "train"}, "Numbers: batch_size is missing; it must be a positive integer"),
        ({"phase": "train", "batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"phase": "train", "batch_size": 4, "n_workers": -1}, "n_workers must be an integer of at least 0, got -1"),
        ({"phase": "train", "batch_size": 4, "pin_memory": 2}, "pin_memory must be true or false, got 2"),
        ({"phase": "train", "batch_size": 4, "seed": "x"}, "seed must be an integer of at least 0, got 'x'"),
        ({"phase": "train", "batch_size": 4, "loader": "fast"}, "loader must be one of threads, workers, got 'fast'"),
        ({"phase": "train", "batch_size": 4, "n_threads": 0}, "n_threads must be a positive integer, got 0"),
        ({"phase": "train", "batch_size": 4, "shuffle_window": 0}, "shuffle_window must be a positive integer, got 0"),
        (
            {"phase": "train", "batch_size": 4, "start_method": "thread"},
            "start_method must be one of fork, forkserver, spawn, got 'thread'",
        ),
        ({"phase": "train", "batch_size": 4, "drop_last": 2}, "drop_last must be true or false, got 2"),
        (
            {"phase": "train", "batch_size": 4, "uneven_ranks": True},
            "uneven_ranks is about a last batch .* set drop_last to false",
        ),
        (
            {"phase": "train", "batch_size": 4, "loader": "threads", "start_method": "spawn"},
            "start_method is of worker processes",
        ),
    ],
)
def test_a_wrong_loader_option_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_dataloader(Numbers({}), options)


def test_dist_without_a_process_group_says_so() -> None:
    with pytest.raises(ConfigError, match=r"dist is set, but torch\.distributed\.init_process_group"):
        create_dataloader(Numbers({}), {"phase": "train", "batch_size": 4}, {"dist": True})


def test_dist_divides_the_batch_size_by_the_world_size(tmp_path: Path) -> None:
    code = f"""
import json, sys
from torch import distributed
from dlas_store.datasets import create_dataloader
from dlas_store.sampling.rng import SampleKey
from dlas_store.sampling.samplers import EpochSampler
from dlas_store.errors import ConfigError
distributed.init_process_group("gloo", "file://{tmp_path}/rendezvous", rank=int(sys.argv[1]), world_size=2)
loader = create_dataloader(range(20), {{"phase": "train", "batch_size": 8}}, {{"dist": True}})
results = []
for more in ({{}}, {{"uneven_ranks": True}}):
    options = {{"phase": "train", "batch_size": 8, "drop_last": False, **more}}
    kept = create_dataloader(range(17), options, {{"dist": True}})
    results.append([len(kept), [batch.tolist() for batch in kept]])
val = create_dataloader(range(20), {{"batch_size": 8, "phase": "val"}}, {{"dist": True}})
try:
    create_dataloader(range(20), {{"phase": "train", "batch_size": 3}}, {{"dist": True}})
except ConfigError as error:
    print(json.dumps([loader.batch_size, val.batch_size, str(error), results]))
distributed.destroy_process_group()
"""
    command = [sys.executable, "-c", code]
    ranks = [subprocess.Popen([*command, rank], stdout=subprocess.PIPE, text=True) for rank in ("0", "1")]
    outputs = [json.loads(process.communicate(timeout=120)[0]) for process in ranks]
    error = "range: batch_size must be a multiple of the 2 processes, got 3"
    assert [output[:3] for output in outputs] == [[4, 8, error]] * 2
    (padded, uneven), (padded_second, uneven_second) = (output[3] for output in outputs)
    assert padded == uneven  # the last batch has one of 17 items, which the first process gets
    length, batches = padded
    assert [length, list(map(len, batches))] == [3, [4, 4, 1]]
    assert uneven_second == [2, padded_second[1][:2]]
    assert padded_second[1][2] == [batches[0][0]]
    assert sorted(number for batch in batches + uneven_second[1] for number in batch) == list(range(17))


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_workers_of_every_start_method_give_what_this_process_gives(start: str) -> None:
    options = sample_options(loader="workers", start_method=start)
    dataset = create_dataset(options)
    dataset[0]  # opens the source that a forked worker inherits
    loader = create_dataloader(dataset, options, shuffle=False)
    assert loader.num_workers == 2
    index = 0
    for batch in loader:
        for key, value in batch.items():
            if isinstance(value, torch.Tensor):
                expected = torch.stack([dataset[index + position][key] for position in range(8)])
                assert torch.equal(value, expected), key
        index += 8
        if index == 24:
            break


def test_persistent_workers_give_every_epoch_whole(chunked_source_path: Path) -> None:
    dataset = SingleImageDataset(sample_options(chunked_source_path))
    loader = DataLoader(dataset, batch_size=16, shuffle=True, num_workers=2, persistent_workers=True)
    epochs = [sorted(path for batch in loader for path in batch["GT_path"]) for _ in range(2)]
    assert len(set(epochs[0])) == len(dataset)
    assert epochs[0] == epochs[1]


def test_forked_workers_run_after_opencv_used_its_threads_here() -> None:
    big = np.zeros((4096, 4096, 3), np.float32)
    cv2.resize(big, (2000, 2000), interpolation=cv2.INTER_AREA)
    threads = cv2.getNumThreads()
    dataset = create_dataset(sample_options(target_size=1024, scale=1))
    options = sample_options(batch_size=2, loader="workers", n_workers=1, start_method="fork")
    loader = create_dataloader(dataset, options)
    assert next(iter(loader))["hq"].shape == (2, 3, 1024, 1024)
    assert cv2.getNumThreads() == threads


def test_an_error_in_a_worker_keeps_its_names(make_image: MakeImage) -> None:
    folder = make_image("a", {"1.jpg": noise(64, 64)}, reference=noise(64, 64))
    options = sample_options(folder, batch_size=1)
    loader = create_dataloader(create_dataset(options), options)
    batches = iter(loader)
    with pytest.raises(MissingMetadataError, match=r"patch 1\.jpg needs a centre, but image a has no centers\.pt"):
        next(batches)
    assert list(batches) == []


def test_create_dataset_picks_the_class_by_mode() -> None:
    assert isinstance(create_dataset(sample_options()), SingleImageDataset)
    dataset, collate = create_dataset(sample_options(), return_collate=True)
    assert isinstance(dataset, SingleImageDataset)
    assert collate is None


@pytest.mark.parametrize(
    ("opt", "message"),
    [
        ({"mode": "single"}, "mode: no mode 'single'; known are .*single_image_extensible"),
        ({"mode": "fullimages"}, "mode: no mode 'fullimages'; did you mean 'fullimage'[?] known are .*fullimage"),
        ({}, "mode: no mode None; known are"),
        ([], "the options of a dataset must be a mapping with a mode"),
    ],
)
def test_an_unknown_mode_lists_the_known_ones(opt: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_dataset(opt)


@pytest.mark.parametrize("mode", ["byol_dataset", "random_dataset", "zipfile", "unsupervised_audio"])
def test_a_mode_that_only_dl_art_school_has_is_named_as_such(mode: str) -> None:
    with pytest.raises(ConfigError, match=f"mode: '{mode}' is a mode that only DL-Art-School has; in a checkout"):
        create_dataset({"mode": mode})


def test_a_registered_class_is_made_with_the_options_alone() -> None:
    register_dataset("numbers", PaddedNumbers)
    opt = {"mode": "numbers", "length": 6, "phase": "val", "batch_size": 3}
    dataset, collate = create_dataset(opt, return_collate=True)
    assert isinstance(dataset, PaddedNumbers)
    assert order(create_dataloader(dataset, opt, collate_fn=collate)) == [0, 1, 2, -1, 3, 4, 5, -1]


def test_a_dlas_checkout_takes_known_modes_from_here_and_keeps_the_others() -> None:
    calls: list[tuple[Any, ...]] = []

    def dlas_create_dataset(dataset_opt: dict[str, Any], return_collate: bool = False) -> str:
        calls.append((dataset_opt, return_collate))
        return "their dataset"

    def dlas_create_dataloader(  # noqa: PLR0917
        dataset: Any,
        dataset_opt: Any,
        opt: Any = None,
        sampler: Any = None,
        collate_fn: Any = None,
        shuffle: Any = True,
    ) -> str:
        calls.append((dataset, dataset_opt, opt, sampler, collate_fn, shuffle))
        return "their loader"

    dataset_of, loader_of = take_over(dlas_create_dataset, dlas_create_dataloader)
    theirs = {"mode": "byol_dataset"}
    assert dataset_of(theirs, return_collate=True) == "their dataset"
    assert loader_of("their dataset", theirs, {"dist": False}, shuffle=False) == "their loader"
    assert calls == [(theirs, True), ("their dataset", theirs, {"dist": False}, None, None, False)]

    dataset, collate = dataset_of(sample_options(), return_collate=True)
    assert isinstance(dataset, SingleImageDataset)
    assert loader_of(dataset, sample_options(), {"dist": False}, collate_fn=collate).dataset is dataset
    register_dataset("byol_dataset", Numbers)
    assert isinstance(dataset_of(theirs), Numbers)


def test_members_of_combined_of_modes_that_only_dl_art_school_has_are_made_by_its_function() -> None:
    made = []

    def dlas_create_dataset(dataset_opt: dict[str, Any], return_collate: bool = False) -> Foreign:
        made.append(dataset_opt)
        return Foreign()

    dataset_of, _ = dlas_factories(dlas_create_dataset, create_dataloader)
    foreign = NoneDict({"mode": "random_dataset"})
    inner = {"mode": "combined", "noise": foreign}
    opt = {"mode": "combined", "scale": 2, "phase": "train", "default": sample_options(), "a": inner, "b": foreign}
    dataset, collate = dataset_of({**opt, "needs_collate": True}, return_collate=True)
    assert collate is zero_pad
    assert made == [{**foreign, "scale": 2, "phase": "train"}] * 2
    assert made[0]["absent"] is None
    assert foreign == {"mode": "random_dataset"}
    assert dataset[4]["b_item"] == dataset[4]["a_noise_item"] == 1
    (batch,) = islice(create_dataloader(dataset, {"phase": "val", "batch_size": 4, "pin_memory": False}), 1)
    assert batch["b_item"].tolist() == batch["a_noise_item"].tolist() == [0, 1, 2, 0]
    assert batch["hq"].shape[0] == 4


def test_a_class_registered_for_combined_is_made_with_the_options_alone_in_a_checkout_too() -> None:
    register_dataset("combined", Numbers)
    dataset_of, _ = dlas_factories(create_dataset, create_dataloader)
    assert isinstance(dataset_of({"mode": "combined"}), Numbers)


def test_a_loader_of_options_without_a_mode_is_made_by_dl_art_school() -> None:
    dataset_of, loader_of = dlas_factories(lambda *_: "theirs", lambda *_: "their loader")
    assert loader_of(Numbers({}), {"n_workers": 0}) == "their loader"
    assert dataset_of({}) == "theirs"


def test_the_example_config_reads_the_sample_without_a_warning(chunked_source_path: Path) -> None:
    datasets = load_config(ROOT / "examples" / "train.yml")["datasets"]
    for opt in datasets.values():
        opt["paths"] = str(chunked_source_path)
        loader = create_dataloader(create_dataset(opt), opt)
        assert next(iter(loader))["lq"].shape[0] == opt.get("batch_size", 1)


def test_the_read_command_shows_keys_types_shapes_and_ranges(chunked_source_path: Path, tmp_path: Path) -> None:
    config = tmp_path / "train.yml"
    common = f"mode: single_image_extensible, paths: {chunked_source_path}, scale: 2"
    config.write_text(
        f"""
        datasets:
          train: {{{common}, target_size: 64, batch_size: 4}}
          val: {{{common}, target_size: 64, eval: true}}
          val_big: {{{common}, target_size: 128}}
        """
    )
    lines = list(describe_batches(config, batches=2))
    threads = "1 thread" if available_cores() == 1 else f"{available_cores()} threads"
    assert lines[0] == f"train: single_image_extensible, 262 items, 65 batches of 4; loader threads: {threads}"
    cells = {line.split()[0]: line.split() for line in lines[1:-1]}
    assert cells["hq"][1:9] == ["float32", "4", "x", "3", "x", "64", "x", "64"]
    assert cells["gt_center"][1:] == ["int64", "4", "x", "2", "0", "..", "0"]
    assert cells["GT_path"][1:3] == ["str", "4"]
    assert "2 batches read" in lines[-1]
    assert "samples/s" in lines[-1]
    assert [line for line in describe_batches(config, phase="val", batches=1) if not line.startswith(" ")] == [
        f"val: single_image_extensible, 262 items, 262 batches of 1; loader threads: {threads}",
        f"val_big: single_image_extensible, 262 items, 262 batches of 1; loader threads: {threads}",
    ]
    with pytest.raises(ConfigError, match="no dataset of phase 'test'; there are train, val"):
        list(describe_batches(config, phase="test"))


@pytest.mark.parametrize("options", [{}, {"phase": None}, {"phase": "val"}])
def test_options_without_a_phase_are_those_of_validation(options: dict[str, Any]) -> None:
    loader = create_dataloader(Numbers({}), options)
    assert order(loader) == list(range(20))
    assert len(loader) == 20
    assert not loader.drop_last


def test_a_path_that_holds_no_data_is_named_with_its_option() -> None:
    with pytest.raises(NotASourceError, match=r"single_image_extensible: paths: .*README\.md: is no store"):
        create_dataset(sample_options(DATA / "README.md"))


def test_a_misspelt_mode_brings_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no mode 'pixls'; did you mean 'pixels'"):
        create_dataset({"mode": "pixls"})
