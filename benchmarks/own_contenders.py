"""This library's datasets behind its own loaders, and behind PyTorch's DataLoader item by item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from benchmarks.contender import BatchPass, Open
from benchmarks.reading import Reading
from dlas_store.datasets import create_dataloader, create_dataset
from dlas_store.datasets.device_patches import DevicePatches
from dlas_store.datasets.patch_dataset import PatchDataset
from dlas_store.datasets.raw_patches import RawPatches
from dlas_store.datasets.samplers import EpochSampler
from dlas_store.datasets.threads_loader import ThreadsLoader
from dlas_store.processes import available_cores

_PATHS = ("GT_path", "HQ_path")


def prepare_loader(reading: Reading, path: str, *, loader: str) -> Open:
    """Return what makes dataset and loader as a config of a training does; each epoch has another order.

    Args:
        reading: what to read.
        path: a store or a folder.
        loader: threads, as many as by default, or workers, one a core; both start anew in every epoch.
    """

    def opening() -> BatchPass:
        opt = reading.options(path) | {"batch_size": reading.batch, "loader": loader}
        if loader == "workers":
            opt["n_workers"] = available_cores()
        dataset, collate = create_dataset(opt, return_collate=True)
        sampler: Sampler[Any] = epoch_order(reading)
        made = create_dataloader(dataset, opt, sampler=sampler, collate_fn=collate)
        return _batch_pass(reading, dataset, made)

    return opening


def prepare_raw(reading: Reading, path: str) -> Open:
    """Return what makes the threads loader as with the option ``device``, but leaves its batches as they come there."""

    def opening() -> BatchPass:
        dataset = create_dataset(reading.options(path))
        assert isinstance(dataset, PatchDataset)
        loader = ThreadsLoader(
            dataset,
            sampler=epoch_order(reading),
            batch_size=reading.batch,
            drop_last=True,
            threads=available_cores(),
            to_device=_NoDevice(dataset.patch_options, torch.device("cpu")),
        )
        return _batch_pass(reading, dataset, loader)

    return opening


def prepare_items(reading: Reading, path: str) -> Open:
    """Return what makes PyTorch's DataLoader, which asks for one item at a time, as DL-Art-School's own does.

    It has one worker a core; other than DL-Art-School's they stay from epoch to epoch.
    """

    def opening() -> BatchPass:
        dataset, collate = create_dataset(reading.options(path), return_collate=True)
        loader: Iterable[Any] = DataLoader(
            _FirstItems(dataset, reading.items),
            batch_size=reading.batch,
            shuffle=True,
            num_workers=available_cores(),
            persistent_workers=True,
            collate_fn=collate,
        )
        return _batch_pass(reading, dataset, loader)

    return opening


class _NoDevice(DevicePatches):
    """A device that makes nothing of what comes to it."""

    def make(self, raw: RawPatches) -> Any:
        """Return what came."""
        return raw


class _FirstItems(Dataset[Any]):
    """The first items of a dataset, one at a time; it has no __getitems__, so a loader cannot ask for batches."""

    def __init__(self, dataset: Dataset[Any], count: int) -> None:
        self._dataset = dataset
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]


def epoch_order(reading: Reading) -> EpochSampler:
    """Return the sampler that create_dataloader makes, for the first items only."""
    return EpochSampler(reading.items, seed=0, shuffle=True, batch_size=reading.batch, drop_last=True)


def _batch_pass(reading: Reading, dataset: Dataset[Any], loader: Iterable[Any]) -> BatchPass:
    return BatchPass(
        lambda: loader,
        epochs=reading.epochs,
        count=_count,
        identify=_identify,
        expected=lambda seen: _expected(reading, dataset, seen),
    )


def _count(batch: Any) -> int:
    if isinstance(batch, RawPatches):
        return batch.shape[0]
    first = next(value for value in batch.values() if isinstance(value, torch.Tensor))
    return len(first)


def _identify(batch: Any) -> Sequence[Hashable]:
    """Return the index of each item, or its path."""
    if isinstance(batch, RawPatches):
        return batch.paths
    if "index" in batch:
        indices: list[int] = batch["index"].tolist()
        return indices
    paths: Sequence[str] = next(batch[key] for key in _PATHS if key in batch)
    return paths


def _expected(reading: Reading, dataset: Dataset[Any], seen: Counter[Hashable]) -> Counter[Hashable]:
    """Return how often each index or path comes in an epoch; of pictures there must be as many as items."""
    if reading.mode == "pixels":
        return Counter(range(reading.items))
    if isinstance(dataset, PatchDataset):
        return Counter(dataset.source.patch_path(dataset.patches_of(item)[-1]) for item in range(reading.items))
    return Counter(list(seen)) if len(seen) == reading.items else Counter()
