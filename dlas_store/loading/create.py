"""A function that makes the loader that a config describes.

The registry of modes, and a function that makes the dataset of an options dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, cast, overload

import torch
from torch import distributed
from torch.utils.data import Dataset, Sampler

from dlas_store.config import ConfigOptions
from dlas_store.errors import ConfigError
from dlas_store.loading.batch import BatchTransform, Collate, zero_pad
from dlas_store.loading.dataset import ItemDataset
from dlas_store.loading.loader import Loader
from dlas_store.loading.threads import ThreadsLoader
from dlas_store.loading.workers import WorkersLoader
from dlas_store.processes import available_cores
from dlas_store.sampling.rng import new_seed
from dlas_store.sampling.samplers import EpochSampler

START_METHODS = ("fork", "forkserver", "spawn")


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
        dataset_opt: its options, of which are read here: ``phase``; ``batch_size``; ``drop_last`` (true in phase
            train, else false); ``loader``: threads (the default
            for the datasets of this library) or workers (for any other); ``n_workers`` (0): processes for workers,
            threads for threads, where 0 is one a core; ``n_threads``: of this process for threads, of each worker (1)
            for workers; ``start_method`` of the workers; ``device``: where HQ and LQ are made;
            ``pin_memory`` (true; it has an effect only where there is a GPU); ``needs_collate`` (false); ``seed`` (of
            the shuffle; where it is not given the one that the dataset drew, 0 with ``dist``);
            ``shuffle_window`` and ``uneven_ranks`` (false): see EpochSampler.
        opt: options of the whole training; ``dist`` divides each batch among the processes.
        sampler: gives the order in place of a shuffle.
        collate_fn: makes a batch of a list of items; by default zero_pad with ``needs_collate``, else PyTorch's own.
        shuffle: whether to shuffle in phase train.

    Raises:
        ConfigError: an option is missing or of a wrong value.
    """
    options = ConfigOptions.of_dataset(dataset_opt, mode=type(dataset).__name__)
    train = (dataset_opt.get("phase") or "train") == "train"
    drop_last = options.flag("drop_last", train)
    batch_size = options.integer("batch_size", None if train else 1, minimum=1)
    if options.flag("needs_collate", False) and collate_fn is None:
        collate_fn = zero_pad
    ranks = _processes(options, batch_size) if train and opt is not None and opt.get("dist") else 1
    order: Sampler[Any] | Iterable[Any]
    if sampler is None:
        order = _sampler(options, dataset, batch_size, ranks, shuffles=train and shuffle, drop_last=drop_last)
    else:
        for option in ("shuffle_window", "uneven_ranks"):
            if options.has(option):
                raise options.error(f"{option} is given, but a sampler gives the order; leave one of them out")
        order = sampler
    batch_size //= ranks
    workers = options.integer("n_workers", 0, minimum=0)
    pin_memory = options.flag("pin_memory", True) and torch.cuda.is_available()
    start_method = options.choice("start_method", None, START_METHODS) if options.has("start_method") else None
    to_device = _to_device(options, dataset, collate_fn)
    if _kind(options, dataset) == "threads":
        if start_method:
            raise options.error("start_method is of worker processes; set loader to workers, or leave it out")
        return ThreadsLoader(
            dataset,
            sampler=order,
            batch_size=batch_size,
            drop_last=drop_last,
            threads=_threads(options, workers),
            collate_fn=collate_fn,
            pin_memory=pin_memory,
            to_device=to_device,
        )
    return WorkersLoader(
        dataset,
        sampler=order,
        batch_size=batch_size,
        drop_last=drop_last,
        workers=workers if train else 0,
        threads=options.integer("n_threads", 1, minimum=1),
        collate_fn=collate_fn,
        pin_memory=pin_memory,
        start_method=start_method,
        to_device=to_device,
    )


def _kind(options: ConfigOptions, dataset: Dataset[Any]) -> str:
    default = "threads" if isinstance(dataset, ItemDataset) else "workers"
    return options.choice("loader", default, ("threads", "workers"))


def _to_device(options: ConfigOptions, dataset: Dataset[Any], collate_fn: Collate | None) -> BatchTransform | None:
    if not options.has("device"):
        return None
    name = options.text("device")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise options.error(f"device must be cpu, cuda, cuda:1 or the like, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise options.error(f"device is {device}, but PyTorch finds no GPU; leave device out")
    transform = None
    if isinstance(dataset, ItemDataset) and collate_fn is None:
        try:
            transform = dataset.device_transform(device)
        except ConfigError as error:
            raise options.error(str(error)) from error
    if transform is None:
        raise options.error(
            "device is for single_image_extensible, multi_frame_extensible and paired_frame, without needs_collate"
        )
    return transform


def _threads(options: ConfigOptions, workers: int) -> int:
    if options.has("n_threads"):
        return options.integer("n_threads", minimum=1)
    cores = available_cores()
    return min(workers or cores, cores)


def _sampler(
    options: ConfigOptions, dataset: Dataset[Any], batch_size: int, ranks: int, *, shuffles: bool, drop_last: bool
) -> EpochSampler:
    uneven = options.flag("uneven_ranks", False)
    if uneven and drop_last:
        raise options.error(
            "uneven_ranks is about a last batch that is kept, but it is dropped; set drop_last to false, or leave "
            "uneven_ranks out"
        )
    if options.has("seed"):
        seed = options.integer("seed", minimum=0)
    elif ranks > 1:
        seed = 0  # each process must have the same order
    else:
        seed = dataset.seed if isinstance(dataset, ItemDataset) else new_seed()
    return EpochSampler(
        len(cast("Any", dataset)),
        seed=seed,
        shuffle=shuffles,
        batch_size=batch_size,
        drop_last=drop_last,
        rank=distributed.get_rank() if ranks > 1 else 0,
        ranks=ranks,
        uneven=uneven,
        window=options.integer("shuffle_window", minimum=1) if options.has("shuffle_window") else None,
    )


def _processes(options: ConfigOptions, batch_size: int) -> int:
    """Return how many processes share each batch."""
    if not distributed.is_initialized():
        raise options.error("dist is set, but torch.distributed.init_process_group has not been called")
    processes = distributed.get_world_size()
    if batch_size % processes:
        raise options.error(f"batch_size must be a multiple of the {processes} processes, got {batch_size}")
    return processes


MakeDataset = Callable[[Any], Dataset[Any]]
"""A dataset's class: called with the options dict alone."""

_MODES: dict[str, MakeDataset] = {}


def register_dataset(mode: str, cls: MakeDataset) -> None:
    """Let create_dataset make datasets of a class for a mode, in place of what it made for that mode before.

    Args:
        mode: what ``mode`` says in the options.
        cls: called with the options dict alone; where it has an attribute ``collate_fn``, that is its collate function.
    """
    _MODES[mode] = cls


@overload
def create_dataset(opt: Mapping[str, Any], return_collate: Literal[False] = False) -> Dataset[Any]: ...
@overload
def create_dataset(opt: Mapping[str, Any], return_collate: Literal[True]) -> tuple[Dataset[Any], Collate | None]: ...
@overload
def create_dataset(
    opt: Mapping[str, Any], return_collate: bool
) -> Dataset[Any] | tuple[Dataset[Any], Collate | None]: ...
def create_dataset(
    opt: Mapping[str, Any], return_collate: bool = False
) -> Dataset[Any] | tuple[Dataset[Any], Collate | None]:
    """Make the dataset that options describe, of the class that ``mode`` stands for.

    Args:
        opt: the options of one dataset.
        return_collate: return (dataset, collate function) as well: the class's own, else zero_pad where
            ``needs_collate`` is true, else None, which stands for PyTorch's own.

    Raises:
        ConfigError: the mode is none, or an option is missing or of a wrong value.
        StoreError: the data cannot be opened.
    """
    mode = opt.get("mode") if isinstance(opt, Mapping) else None
    if not isinstance(mode, str) or mode not in _MODES:
        raise ConfigError(f"mode: no mode {mode!r}; known are {', '.join(sorted(_MODES))}")
    dataset = _MODES[mode](opt)
    if not return_collate:
        return dataset
    return dataset, getattr(dataset, "collate_fn", zero_pad if opt.get("needs_collate") else None)


def has_mode(mode: object) -> bool:
    """Return whether a class is registered for a mode."""
    return mode in _MODES
