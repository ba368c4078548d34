"""Collation with zero padding: its result, and the options that choose it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlas_store.datasets import create_dataloader, create_dataset, register_dataset, zero_pad
from dlas_store.errors import ConfigError, StoreError
from dlas_store.loading import create
from tests.support.picture_folders import write_pictures
from tests.support.sample_data import noise


def test_tensors_are_padded_at_the_end_of_each_dimension() -> None:
    first, second = torch.ones(2, 3, dtype=torch.int64), torch.full((1, 5), 7)
    batch = zero_pad([{"x": first}, {"x": second}])["x"]
    assert batch.dtype == torch.int64
    assert batch.tolist() == [[[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]], [[7, 7, 7, 7, 7], [0, 0, 0, 0, 0]]]


def test_tensors_of_one_size_and_scalars_are_stacked_and_the_rest_listed() -> None:
    items: list[dict[str, Any]] = [
        {"x": torch.rand(2, 2), "n": torch.tensor(n), "name": str(n), "pair": (n, n), "is": n > 0} for n in (0, 1)
    ]
    batch = zero_pad(items)
    assert torch.equal(batch["x"], torch.stack([item["x"] for item in items]))
    assert torch.equal(batch["n"], torch.tensor([0, 1]))
    assert batch["name"] == ["0", "1"]
    assert batch["pair"] == [(0, 0), (1, 1)]
    assert torch.equal(batch["is"], torch.tensor([False, True]))


def test_an_empty_tensor_is_padded_too() -> None:
    assert zero_pad([{"x": torch.ones(0)}, {"x": torch.ones(2)}])["x"].tolist() == [[0, 0], [1, 1]]


def test_items_that_do_not_fit_together_are_an_error() -> None:
    with pytest.raises(StoreError, match="x of different dimensions: \\(2, 2\\) and \\(2,\\)"):
        zero_pad([{"x": torch.ones(2)}, {"x": torch.ones(2, 2)}])
    with pytest.raises(StoreError, match="differ in their keys: y"):
        zero_pad([{"x": 1}, {"x": 1, "y": 2}])


def options(tmp_path: Path, **more: Any) -> dict[str, Any]:
    sizes = {"a.png": noise(20, 32), "b.png": noise(32, 24)}
    defaults = {
        "mode": "imagefolder",
        "paths": write_pictures(tmp_path / "photos", sizes),
        "scale": 2,
        "phase": "train",
        "batch_size": 2,
    }
    return {**defaults, "force_square": False, "disable_flip": True, "pin_memory": False, **more}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_config_asks_for_it_by_needs_collate(tmp_path: Path, workers: int) -> None:
    opt = options(tmp_path, needs_collate=True, n_workers=workers)
    dataset, collate = create_dataset(opt, return_collate=True)
    assert collate is zero_pad
    for collate_fn in (collate, None):
        (batch,) = create_dataloader(dataset, opt, collate_fn=collate_fn, shuffle=False)
        assert batch["hq"].shape == (2, 3, 32, 32)
        assert batch["lq"].shape == (2, 3, 16, 16)
        assert torch.equal(batch["hq"][0, :, :20], dataset[0]["hq"])
        assert not batch["hq"][0, :, 20:].any()
        assert [Path(path).name for path in batch["HQ_path"]] == ["a.png", "b.png"]


def test_without_it_batches_are_pytorchs_own(tmp_path: Path) -> None:
    opt = options(tmp_path, target_size=16)
    dataset, collate = create_dataset(opt, return_collate=True)
    assert collate is None
    (batch,) = create_dataloader(dataset, opt, shuffle=False)
    assert batch["has_alt"].tolist() == [False, False]
    with pytest.raises(ConfigError, match="needs_collate must be true or false, got 'yes'"):
        create_dataloader(dataset, {**opt, "needs_collate": "yes"})


def test_a_class_has_its_own_collate_function_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(list[int]):
        collate_fn = staticmethod(np.stack)

    monkeypatch.setattr(create, "_MODES", dict(create._MODES))
    register_dataset("own", Own)  # type: ignore[arg-type]
    assert create_dataset({"mode": "own", "needs_collate": True}, return_collate=True)[1] is Own.collate_fn
