"""From a dataset to batches: the PyTorch loader that a config describes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import cv2
import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset, Sampler

from dlas_store.datasets.collate import zero_pad
from dlas_store.datasets.draws import draw_seed
from dlas_store.datasets.item_dataset import ItemDataset
from dlas_store.datasets.options import Options
from dlas_store.datasets.samplers import DistIterSampler, EpochSampler, PlainIndices

_LOG = logging.getLogger(__name__)

Collate = Callable[[list[Any]], Any]


class Loader(DataLoader[Any]):
    """A DataLoader whose order and random numbers follow from a seed and the epoch.

    Passes count as epochs 0, 1, 2, ... unless set_epoch() says otherwise; ``set_epoch(n)`` gives epoch n's again at any
    time. Samples that were skipped are reported at the end of a pass.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        seed: int,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        sampler: Sampler[Any] | Iterable[Any] | None = None,
        collate_fn: Collate | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        """Take what DataLoader takes, and the seed of the shuffle, from 0."""
        if sampler is None:
            sampler = EpochSampler(len(dataset), seed=seed, shuffle=shuffle)  # type: ignore[arg-type]
        if isinstance(sampler, EpochSampler | DistIterSampler) and not isinstance(dataset, ItemDataset):
            sampler = PlainIndices(sampler)
        super().__init__(
            dataset,
            batch_size=batch_size,
            drop_last=drop_last,
            sampler=sampler,
            collate_fn=collate_fn,
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
        )
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Give the next pass the order of an epoch, counted from 0; a sampler with a set_epoch is told as well."""
        self._epoch = epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Give the batches of an epoch."""
        if isinstance(self.dataset, ItemDataset):
            self.dataset.set_epoch(self._epoch)
        self._epoch += 1
        yield from super().__iter__()
        if isinstance(self.dataset, ItemDataset) and (skipped := self.dataset.take_skipped()):
            _LOG.warning("%d samples of this epoch could not be read and were replaced", skipped)


def create_dataloader(  # noqa: PLR0917 - DL-Art-School's signature
    dataset: Dataset[Any],
    dataset_opt: Mapping[str, Any],
    opt: Mapping[str, Any] | None = None,
    sampler: Sampler[int] | Iterable[int] | None = None,
    collate_fn: Collate | None = None,
    shuffle: bool = True,
) -> Loader:
    """Make the loader of a dataset, as DL-Art-School's function of this name does.

    In phase train (the default) batches are shuffled, unless a sampler gives the order, and an incomplete last one is
    dropped. In other phases they come in order from this process, one item each where no ``batch_size`` is given.

    Args:
        dataset: any PyTorch dataset with a length.
        dataset_opt: its options, of which ``phase``, ``batch_size``, ``n_workers`` (0), ``pin_memory`` (true; it has
            an effect only where there is a GPU), ``needs_collate`` (false) and ``seed`` (of the shuffle; drawn from
            PyTorch's own generator where it is not given) are read here.
        opt: options of the whole training; ``dist`` divides the batch size by the number of processes.
        sampler: gives the order in place of a shuffle.
        collate_fn: makes a batch of a list of items; by default zero_pad with ``needs_collate``, else PyTorch's own.
        shuffle: whether to shuffle in phase train.

    Raises:
        ConfigError: an option is missing or of a wrong value.
    """
    options = Options(dataset_opt, mode=type(dataset).__name__)
    train = (dataset_opt.get("phase") or "train") == "train"
    batch_size = options.integer("batch_size", None if train else 1, minimum=1)
    workers = options.integer("n_workers", 0, minimum=0)
    pin_memory = options.flag("pin_memory", True)
    if options.flag("needs_collate", False) and collate_fn is None:
        collate_fn = zero_pad
    if train and opt is not None and opt.get("dist"):
        batch_size = _share_of_process(options, batch_size)
    return Loader(
        dataset,
        seed=options.integer("seed", minimum=0) if options.has("seed") else draw_seed(),
        batch_size=batch_size,
        shuffle=train and shuffle and sampler is None,
        drop_last=train,
        sampler=sampler,
        collate_fn=collate_fn,
        num_workers=workers if train else 0,
        pin_memory=pin_memory and torch.cuda.is_available(),
    )


def _share_of_process(options: Options, batch_size: int) -> int:
    if not distributed.is_initialized():
        raise options.error("dist is set, but torch.distributed.init_process_group has not been called")
    processes = distributed.get_world_size()
    if batch_size % processes:
        raise options.error(f"batch_size must be a multiple of the {processes} processes, got {batch_size}")
    return batch_size // processes


def _start_worker(_: int) -> None:
    # One worker a core is the aim; a pool of OpenCV threads in each would fight over the cores.
    cv2.setNumThreads(0)
