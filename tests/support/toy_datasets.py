"""Toy datasets for tests of loaders; each item contains its index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from dlas_store.config import ConfigOptions
from dlas_store.errors import ImageError
from dlas_store.loading.batch import Allocate, BatchBuilder
from dlas_store.loading.dataset import ItemDataset
from dlas_store.sampling.rng import SampleKey, SampleRng

ITEMS = 40


class Rolls(ItemDataset):
    """Dataset whose items contain their index and a random number. ``begun`` records the indices of each batch."""

    def __init__(self, *, length: int = ITEMS, bad: Sequence[int] = (), seed: int | None = 5) -> None:
        super().__init__(ConfigOptions.of_dataset({} if seed is None else {"seed": seed}, mode="rolls"))
        self.length = length
        self.bad = set(bad)
        self.begun: list[list[int]] = []

    def __len__(self) -> int:
        return self.length

    def image_of(self, index: int) -> str:
        return f"image{index}"

    def make_item(self, index: int, random: SampleRng) -> dict[str, Any]:
        if index in self.bad:
            raise ImageError(f"item {index} is damaged")
        return {"index": index, "roll": int(random.generator.integers(1 << 40)), "side": torch.ones(1 + index % 3)}

    def batch_builder(self, keys: Sequence[SampleKey], allocate: Allocate) -> BatchBuilder:
        self.begun.append([key.index for key in keys])
        return super().batch_builder(keys, allocate)


class Squares(Dataset[int]):
    """Plain dataset of PyTorch, as users write it; an index must be an int."""

    def __init__(self, length: int = 10) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        if type(index) is not int:
            raise TypeError(index)
        if index == 13:
            raise ValueError("13 is unlucky")
        return index * index


def indices_and_rolls(items: Sequence[Mapping[str, Any]]) -> Any:
    """Collate items into a batch: a pair of index and random number for each item."""
    return [(item["index"], item["roll"]) for item in items]
