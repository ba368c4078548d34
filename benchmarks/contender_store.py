"""Contenders of ``read`` from this library: its datasets behind its own loaders and behind PyTorch's DataLoader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from benchmarks.process import BatchWorkload, OpenWorkload
from benchmarks.reading import Reading
from dlas_store.datasets import create_dataloader, create_dataset
from dlas_store.datasets.device import DeviceTransform
from dlas_store.datasets.single_image import PatchDataset
from dlas_store.loading.batch import RawBatch
from dlas_store.loading.threads import ThreadsLoader
from dlas_store.processes import available_cores
from dlas_store.sampling.samplers import EpochSampler

_PATHS = ("GT_path", "HQ_path")


def prepare_loader(reading: Reading, path: str, *, loader: str) -> OpenWorkload:
    """Return a function that makes dataset and loader as a training config does; each epoch is shuffled anew.

    Args:
        reading: the patches to read.
        path: path of a store or a folder.
        loader: ``threads`` for the default number of threads, or ``workers`` for one worker a core. Threads and workers
            start anew in every epoch.
    """

    def open_data() -> BatchWorkload:
        opt = reading.options(path) | {"batch_size": reading.batch, "loader": loader}
        if loader == "workers":
            opt["n_workers"] = available_cores()
        dataset, collate = create_dataset(opt, return_collate=True)
        sampler: Sampler[Any] = epoch_order(reading)
        data_loader = create_dataloader(dataset, opt, sampler=sampler, collate_fn=collate)
        return _batch_workload(reading, dataset, data_loader)

    return open_data


def prepare_raw(reading: Reading, path: str) -> OpenWorkload:
    """Return a function that makes the threads loader of the option ``device``, without the device's work.

    The loader's batches stay raw.
    """

    def open_data() -> BatchWorkload:
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
        return _batch_workload(reading, dataset, loader)

    return open_data


def prepare_items(reading: Reading, path: str) -> OpenWorkload:
    """Return a function that makes PyTorch's DataLoader, which reads one item at a time, as in DL-Art-School.

    The loader has one worker a core. Unlike DL-Art-School's workers, these live from epoch to epoch.
    """

    def open_data() -> BatchWorkload:
        dataset, collate = create_dataset(reading.options(path), return_collate=True)
        loader: Iterable[Any] = DataLoader(
            _FirstItems(dataset, reading.items),
            batch_size=reading.batch,
            shuffle=True,
            num_workers=available_cores(),
            persistent_workers=True,
            collate_fn=collate,
        )
        return _batch_workload(reading, dataset, loader)

    return open_data


def epoch_order(reading: Reading) -> EpochSampler:
    """Return the sampler of create_dataloader, restricted to the reading's items."""
    return EpochSampler(reading.items, seed=0, shuffle=True, batch_size=reading.batch, drop_last=True)


class _NoDevice(DeviceTransform):
    """A device transform that leaves raw batches as they are."""

    def make(self, raw: RawBatch) -> Any:
        """Return the raw batch."""
        return raw


class _FirstItems(Dataset[Any]):
    """First items of a dataset, read one at a time: without __getitems__, no loader can ask for whole batches."""

    def __init__(self, dataset: Dataset[Any], count: int) -> None:
        self._dataset = dataset
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]


def _batch_workload(reading: Reading, dataset: Dataset[Any], loader: Iterable[Any]) -> BatchWorkload:
    return BatchWorkload(
        lambda: loader,
        epochs=reading.epochs,
        count=_count,
        identify=_identify,
        expected=lambda counts: _expected(reading, dataset, counts),
    )


def _count(batch: Any) -> int:
    if isinstance(batch, RawBatch):
        return batch.shape[0]
    first = next(value for value in batch.values() if isinstance(value, torch.Tensor))
    return len(first)


def _identify(batch: Any) -> Sequence[Hashable]:
    """Return the index of each item, or its path if it has no index."""
    if isinstance(batch, RawBatch):
        return batch.paths
    if "index" in batch:
        indices: list[int] = batch["index"].tolist()
        return indices
    paths: Sequence[str] = next(batch[key] for key in _PATHS if key in batch)
    return paths


def _expected(reading: Reading, dataset: Dataset[Any], counts: Counter[Hashable]) -> Counter[Hashable]:
    """Return how often an epoch must give each index or path. For modes of pictures, only their number is checked."""
    if reading.mode == "pixels":
        return Counter(range(reading.items))
    if isinstance(dataset, PatchDataset):
        return Counter(dataset.source.patch_path(dataset.patches_of(item)[-1]) for item in range(reading.items))
    return Counter(list(counts)) if len(counts) == reading.items else Counter()
