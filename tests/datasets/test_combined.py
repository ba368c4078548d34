"""Mode combined: members side by side, their random numbers, and the stores they share."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from dlas_store.converters.importing import import_store
from dlas_store.datasets import (
    CombinedDataset,
    MultiScaleDataset,
    OptionWarning,
    create_dataloader,
    create_dataset,
    register_dataset,
)
from dlas_store.datasets.concat import open_cached
from dlas_store.errors import ConfigError, ImageError, NotASourceError
from dlas_store.loading import create
from dlas_store.sampling.rng import SampleKey
from dlas_store.storage.store import Store
from tests.support.picture_folders import store_of, write_pictures
from tests.support.sample_data import noise


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of 2 and of 5 pictures."""
    first = write_pictures(tmp_path / "first", {f"{n}.png": noise(40, 40, seed=n) for n in range(2)})
    return first, write_pictures(tmp_path / "second", {f"{n}.png": noise(40, 40, seed=n + 9) for n in range(5)})


def multiscale(folder: Path, **options: Any) -> dict[str, Any]:
    return {"mode": "multiscale", "paths": folder, "hq_tile_size": 8, "num_scales": 1, **options}


def full_image(folder: Path, **options: Any) -> dict[str, Any]:
    tile_options = {"min_tile_size": 16, "target_size": 16}
    return {"mode": "fullimage", "dataroot_GT": folder, **tile_options, **options}


def combined(**options: Any) -> CombinedDataset:
    return CombinedDataset({"scale": 2, "phase": "train", "seed": 1, **options})


def test_an_item_merges_those_of_the_members_under_their_names(folders: tuple[Path, Path]) -> None:
    data = combined(default=multiscale(folders[0]), other=full_image(folders[1]))
    item = data[0]
    names = ("lq", "hq", "gt_fullsize_ref", "lq_fullsize_ref", "gt_center", "lq_center", "HQ_path", "LQ_path")
    assert item.keys() == {"hq", "lq", "GT_path", *(f"other_{name}" for name in names)}
    assert item["hq"].shape == (1, 3, 8, 8)
    assert item["other_hq"].shape == (3, 16, 16)


def test_there_are_as_many_items_as_the_longest_member_has(folders: tuple[Path, Path]) -> None:
    data = combined(default=multiscale(folders[0]), other=multiscale(folders[1]))
    assert len(data) == 5
    paths = [(item["GT_path"][-5:], item["other_GT_path"][-5:]) for item in map(data.__getitem__, range(5))]
    assert paths == [("0.png", "0.png"), ("1.png", "1.png"), ("0.png", "2.png"), ("1.png", "3.png"), ("0.png", "4.png")]
    assert data.image_of(3) == f"{folders[0]}/1.png, {folders[1]}/3.png"


def test_members_take_scale_and_phase(folders: tuple[Path, Path]) -> None:
    item = combined(scale=4, phase="val", a=full_image(folders[0]))[0]
    assert item["a_hq"].shape == (3, 40, 40)
    assert item["a_lq"].shape == (3, 10, 10)


def test_a_scale_of_a_member_that_is_not_taken_is_warned_of(folders: tuple[Path, Path]) -> None:
    with pytest.warns(OptionWarning, match="combined: a has scale 4, and takes 2 from here all the same"):
        data = combined(a=multiscale(folders[0], scale=4))
    assert data[0]["a_lq"].shape == (1, 3, 4, 4)
    without_scale = CombinedDataset({"a": multiscale(folders[0], scale=4)})
    assert without_scale[0]["a_lq"].shape == (1, 3, 2, 2)


def test_items_follow_from_the_seed_the_index_and_the_repetition(folders: tuple[Path, Path]) -> None:
    def item(key: SampleKey, **options: Any) -> Mapping[str, Any]:
        return combined(a=full_image(folders[0]), b=full_image(folders[0]), c=full_image(folders[1]), **options)[key]

    first = item(SampleKey(0, 2))
    assert torch.equal(first["a_hq"], item(SampleKey(0, 2))["a_hq"])
    assert not torch.equal(first["a_hq"], first["b_hq"])
    assert not torch.equal(first["a_hq"], item(SampleKey(0, 3))["a_hq"])
    assert not torch.equal(first["a_hq"], item(SampleKey(0, 2), seed=2)["a_hq"])
    assert first["a_HQ_path"] == item(SampleKey(2, 2))["a_HQ_path"]
    assert not torch.equal(first["a_hq"], item(SampleKey(2, 2))["a_hq"])


def test_no_repetition_of_a_shorter_member_comes_twice(folders: tuple[Path, Path]) -> None:
    data = combined(a=multiscale(folders[0]), b=multiscale(folders[1]))
    keys = [data._member_key("a", index, repetition) for repetition in range(3) for index in range(5)]
    assert len(set(keys)) == len(keys)


def test_a_seed_of_a_member_is_its_own(folders: tuple[Path, Path]) -> None:
    data = combined(a=full_image(folders[0], seed=7), b=full_image(folders[0], seed=7))
    assert torch.equal(data[SampleKey(0, 0)]["a_hq"], data[SampleKey(0, 0)]["b_hq"])


def test_reset_random_resets_all_members(folders: tuple[Path, Path]) -> None:
    data = combined(a=full_image(folders[0]), inner={"mode": "combined", "b": full_image(folders[1])})
    data.reset_random()
    item, again = data[0], data[0]
    for key in ("a_hq", "inner_b_hq"):
        assert torch.equal(item[key], again[key])
    data.set_epoch(1)
    assert not torch.equal(item["a_hq"], data[0]["a_hq"])


def test_members_without_a_phase_are_those_of_validation(folders: tuple[Path, Path]) -> None:
    data = CombinedDataset({"scale": 2, "a": full_image(folders[0])})
    assert data[0]["a_hq"].shape == (3, 40, 40)


def test_loaders_of_workers_and_of_none_give_the_same(folders: tuple[Path, Path]) -> None:
    def batches(workers: int) -> list[Any]:
        opt = {"seed": 3, "batch_size": 2, "n_workers": workers}
        data = combined(default=multiscale(folders[0]), other=full_image(folders[1]), **opt)
        loader = create_dataloader(data, {"phase": "train", **opt})
        return [batch for _ in range(2) for batch in loader]

    expected, by_workers = batches(0), batches(2)
    assert len(expected) == 4
    for expected_batch, batch in zip(expected, by_workers, strict=True):
        assert torch.equal(batch["hq"], expected_batch["hq"])
        assert torch.equal(batch["other_hq"], expected_batch["other_hq"])
        assert batch["GT_path"] == expected_batch["GT_path"]
    assert not torch.equal(expected[0]["hq"], expected[2]["hq"])


def test_a_combined_dataset_may_hold_another_and_pickles(folders: tuple[Path, Path]) -> None:
    inner = {"mode": "combined", "default": multiscale(folders[0]), "b": multiscale(folders[1])}
    data = create_dataset({"mode": "combined", "scale": 2, "seed": 1, "x": inner})
    item, unpickled_item = data[SampleKey(1, 1)], pickle.loads(pickle.dumps(data))[SampleKey(1, 1)]
    assert item.keys() == {"x_hq", "x_lq", "x_GT_path", "x_b_hq", "x_b_lq", "x_b_GT_path"}
    assert torch.equal(item["x_b_hq"], unpickled_item["x_b_hq"])


class Plain(Dataset[dict[str, Any]]):
    """A dataset class of a user, which takes int indices only."""

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.opt = opt

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": [0, 1, 2][index], "type": type(index).__name__}


def test_a_registered_class_may_be_a_member(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create, "_MODES", dict(create._MODES))
    register_dataset("plain", Plain)
    item = combined(default=multiscale(folders[1]), p={"mode": "plain"})[SampleKey(4, 2)]
    assert (item["p_index"], item["p_type"]) == (1, "int")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "^combined: holds no dataset; each option that is a mapping is one"),
        ({"a": {"mode": "abc"}}, "no mode 'abc'"),
        ({"a": {}}, "no mode None"),
        ({"a": {"mode": "multiscale"}}, "^multiscale 'a': hq_tile_size is missing"),
        ({"a": {"mode": "multiscale", "name": "x"}}, "^multiscale 'x': hq_tile_size is missing"),
    ],
)
def test_a_wrong_member_is_refused_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        combined(**options)


def test_an_option_of_no_effect_is_warned_of(folders: tuple[Path, Path]) -> None:
    with pytest.warns(OptionWarning, match="combined: option 'target_size' is not known"):
        combined(a=multiscale(folders[0]), target_size=3)


@pytest.mark.parametrize("where", ["here", "member"])
def test_bad_samples_are_skipped_and_counted_here_or_in_a_member(folders: tuple[Path, Path], where: str) -> None:
    (folders[1] / "1.png").write_bytes(b"no picture")
    options = {"default": multiscale(folders[0]), "other": multiscale(folders[1])}
    with pytest.raises(ImageError, match=r"second/1\.png"):
        combined(**options)[1]
    if where == "here":
        options["on_error"] = "skip"  # type: ignore[assignment]
    else:
        options["other"]["on_error"] = "skip"
    data = combined(**options)
    item = data[1]
    assert item["other_GT_path"].endswith("second/2.png")
    assert item["GT_path"].endswith("first/0.png" if where == "here" else "first/1.png")
    assert (data.take_skipped(), data.take_skipped()) == (1, 0)


# Stores that several datasets share


def stores_of(*datasets: MultiScaleDataset) -> list[Any]:
    """Return the open stores of datasets, one for each dataset."""
    return [source for data in datasets for source in data._pictures.sources]


def test_members_train_and_val_share_an_open_store(folders: tuple[Path, Path]) -> None:
    store = store_of(folders[0])
    data = combined(a=multiscale(store), b=multiscale(store))
    train, val = (MultiScaleDataset({**multiscale(store), "scale": 2, "phase": phase}) for phase in ("train", "val"))
    members = [data._members["a"], data._members["b"]]
    stores = stores_of(*members, train, val)  # type: ignore[arg-type]
    assert len(stores) == 4
    assert len(set(map(id, stores))) == 1
    unpickled = pickle.loads(pickle.dumps(data))
    assert len(set(map(id, stores_of(*unpickled._members.values())))) == 1


def test_a_store_is_let_go_of_with_its_last_dataset(folders: tuple[Path, Path]) -> None:
    def map_count() -> int:
        """Return the number of memory maps of the store's files in this process."""
        return Path("/proc/self/maps").read_text().count(str(store))

    store = store_of(folders[0])
    data = [MultiScaleDataset({**multiscale(store), "scale": 2}) for _ in range(2)]
    before = map_count()
    assert before
    del data[0]
    assert map_count() == before
    del data[0]
    assert map_count() == 0


def test_an_append_is_seen_by_what_is_opened_after_it(folders: tuple[Path, Path]) -> None:
    store = store_of(folders[0])
    before = open_cached(store, layout="pictures")
    import_store([folders[1]], store, append=True)
    after = open_cached(store, layout="pictures")
    assert (len(before), len(after)) == (2, 5)
    assert open_cached(store, layout="pictures") is after


def test_a_store_at_another_path_or_in_another_layout_is_another(folders: tuple[Path, Path], tmp_path: Path) -> None:
    store = store_of(folders[0])
    assert isinstance(open_cached(store, layout="pictures"), Store)
    (tmp_path / "link.lmdb").symlink_to(store)
    assert open_cached(tmp_path / "link.lmdb", layout="pictures").path == tmp_path / "link.lmdb"
    with pytest.raises(NotASourceError, match="whole pictures where a chunked one is needed"):
        open_cached(store, layout="chunked")


def test_a_folder_is_listed_anew(folders: tuple[Path, Path]) -> None:
    first = open_cached(folders[0], layout="pictures")
    assert len(first) == 2
    (folders[1] / "4.png").rename(folders[0] / "4.png")
    assert len(open_cached(folders[0], layout="pictures")) == 3
