"""The dataset and the loader that a config describes, and the registry of modes."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, cast, overload

import torch
from torch import distributed
from torch.utils.data import Dataset, Sampler

from dlas_store.config import ConfigOptions, OptionWarning
from dlas_store.errors import ConfigError
from dlas_store.loading.batch import BatchTransform, Collate, zero_pad
from dlas_store.loading.dataset import ItemDataset
from dlas_store.loading.loader import Loader
from dlas_store.loading.threads import ThreadsLoader
from dlas_store.loading.workers import WorkersLoader
from dlas_store.processes import available_cores
from dlas_store.sampling.rng import new_seed
from dlas_store.sampling.samplers import EpochSampler, StatefulSampler

START_METHODS = ("fork", "forkserver", "spawn")

MakeDataset = Callable[[Any], Dataset[Any]]
"""A dataset's class: called with the options dict alone."""

_MODES: dict[str, MakeDataset] = {}

_DLAS_MODES = frozenset({
    "byol_dataset", "byol_structured_dataset", "fast_paired_voice_audio", "fast_paired_voice_audio_with_phonemes",
    "gpt_tts", "grand_conjoined_voice", "nv_tacotron", "paired_voice_audio", "preprocessed_mel", "random_aug_wrapper",
    "random_dataset", "unsupervised_audio", "unsupervised_audio_with_noise", "zipfile",
})  # fmt: skip
"""Modes of DL-Art-School that this library does not have."""


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
    """Make the dataset that options describe, of the class that is registered for ``mode``.

    Args:
        opt: the options of one dataset.
        return_collate: return the pair (dataset, collate function). The collate function is the class's own; otherwise
            zero_pad if ``needs_collate`` is true; otherwise None, which means PyTorch's own.

    Raises:
        ConfigError: the mode is unknown, or an option is missing or has a wrong value.
        StoreError: the data cannot be opened.
    """
    dataset = class_of(opt)(opt)
    return (dataset, collate_of(dataset, opt)) if return_collate else dataset


def class_of(opt: object) -> MakeDataset:
    """Return the class that is registered for the mode of a dataset's options.

    Raises:
        ConfigError: no class is registered for it.
    """
    if not isinstance(opt, Mapping):
        raise ConfigError(f"the options of a dataset must be a mapping with a mode, got {opt!r}")
    mode = opt.get("mode")
    if isinstance(mode, str) and mode in _MODES:
        return _MODES[mode]
    if isinstance(mode, str) and mode in _DLAS_MODES:
        raise ConfigError(
            f"mode: '{mode}' is a mode that only DL-Art-School has; in a checkout of DL-Art-School the create_dataset "
            "that dlas_store.datasets.dlas_factories returns makes it"
        )
    near = difflib.get_close_matches(mode, _MODES, 1) if isinstance(mode, str) else []
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"mode: no mode {mode!r}; {hint}known are {', '.join(sorted(_MODES))}")


def collate_of(dataset: Dataset[Any], opt: Mapping[str, Any]) -> Collate | None:
    """Return the collate function of a dataset: its own, or zero_pad with ``needs_collate``, or None for PyTorch's."""
    collate: Collate | None = getattr(dataset, "collate_fn", zero_pad if opt.get("needs_collate") else None)
    return collate


def register_dataset(mode: str, cls: MakeDataset) -> None:
    """Register the class whose datasets create_dataset makes for a mode, in place of an earlier class.

    Args:
        mode: the value of the option ``mode``.
        cls: called with the options dict alone. A dataset's attribute ``collate_fn``, if any, is its collate function.
    """
    _MODES[mode] = cls


def has_mode(mode: object) -> bool:
    """Return whether a class is registered for a mode."""
    return isinstance(mode, str) and mode in _MODES


def create_dataloader(  # noqa: PLR0917 - DL-Art-School's signature
    dataset: Dataset[Any],
    dataset_opt: Mapping[str, Any],
    opt: Mapping[str, Any] | None = None,
    sampler: Sampler[int] | Iterable[int] | None = None,
    collate_fn: Collate | None = None,
    shuffle: bool = True,
) -> Loader:
    """Make the loader of a dataset, as DL-Art-School's function of this name does.

    In phase train items are shuffled, unless a sampler determines the order, and an incomplete last batch is dropped.
    In other phases, or without a phase, items come in order, and ``batch_size`` is 1 by default; a WorkersLoader then
    makes batches in this process.

    Options that are read from ``dataset_opt``, with their defaults in parentheses:
        phase: train, or any other word (val).
        batch_size: items of a batch, in phase train of all processes together (required in phase train, otherwise 1).
        drop_last: drop an incomplete last batch (true in phase train, otherwise false).
        loader: threads (for the datasets of this library) or workers (for any other dataset).
        n_workers: number of processes of a workers loader (0: this process makes the batches), or of threads of a
            threads loader, at most one a core (0: one a core).
        n_threads: number of threads of this process (n_workers), or of each worker process (1).
        start_method: of the worker processes (the system's).
        device: a device on which HQ and LQ are made (none).
        pin_memory: put batches into page-locked memory (true; without a GPU the option has no effect).
        needs_collate: pad tensors to one size (false).
        seed: of the shuffle (the dataset's seed, or else a random one; 0 if several processes share the epoch, also
            for items whose dataset has no seed).
        dist: share each epoch among the processes of torch.distributed (those of ``opt``; else true in phase train, if
            torch.distributed is initialized and no sampler determines the order, otherwise false). In phase train the
            processes divide each batch. In other phases each process has batches of ``batch_size``, every item comes
            once, and processes may differ by a batch in number.
        shuffle_window, uneven_ranks: see EpochSampler (none, false).

    An OptionWarning says so if an epoch has no batch, because it has fewer items than a batch.

    Args:
        dataset: any PyTorch dataset with a length.
        dataset_opt: options of the dataset.
        opt: options of the training: ``dist``, unless the dataset's options have it.
        sampler: determines the order in place of a shuffle.
        collate_fn: makes a batch from a list of items; by default zero_pad with ``needs_collate``, otherwise PyTorch's
            own.
        shuffle: whether to shuffle in phase train.

    Raises:
        ConfigError: an option is missing or has a wrong value.
    """
    options = ConfigOptions.of_dataset(dataset_opt, mode=type(dataset).__name__)
    train = dataset_opt.get("phase") == "train"
    drop_last = options.flag("drop_last", train)
    batch_size = options.integer("batch_size", None if train else 1, minimum=1)
    if options.flag("needs_collate", False) and collate_fn is None:
        collate_fn = zero_pad
    ranks = _ranks(options, opt, shares_by_default=train and sampler is None)
    if not train:
        batch_size *= ranks
    elif batch_size % ranks:
        advice = "" if _dist(options, opt) else "; dist: false lets every process read the whole epoch"
        raise options.error(f"batch_size must be a multiple of the {ranks} processes, got {batch_size}{advice}")
    order: Sampler[Any] | Iterable[Any]
    if sampler is None:
        uneven = ranks > 1 and not train and not drop_last
        order = _sampler(
            options, dataset, batch_size, ranks, shuffles=train and shuffle, drop_last=drop_last, uneven=uneven
        )
    else:
        for option in ("shuffle_window", "uneven_ranks"):
            if options.has(option):
                raise options.error(
                    f"{option} has no effect, because a sampler gives the order; remove {option} or the sampler"
                )
        order = sampler
    batch_size //= ranks
    loader = _make_loader(options, dataset, order, batch_size, collate_fn, train=train, drop_last=drop_last)
    if warning := _no_batch_warning(loader):
        warnings.warn(str(options.error(warning)), OptionWarning, stacklevel=2)
    return loader


def _make_loader(
    options: ConfigOptions,
    dataset: Dataset[Any],
    order: Sampler[Any] | Iterable[Any],
    batch_size: int,
    collate_fn: Collate | None,
    *,
    train: bool,
    drop_last: bool,
) -> Loader:
    """Make the loader of the kind that the options name; ``batch_size`` is this process's."""
    workers = options.integer("n_workers", 0, minimum=0)
    pin_memory = options.flag("pin_memory", True) and torch.cuda.is_available()
    start_method = options.choice("start_method", None, START_METHODS) if options.has("start_method") else None
    to_device = _to_device(options, dataset, collate_fn)
    if _loader_kind(options, dataset) == "threads":
        if start_method:
            raise options.error("start_method is of worker processes; set loader to workers, or remove start_method")
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


def _no_batch_warning(loader: Loader) -> str | None:
    """Return the warning that a loader drops all its items as an incomplete batch; None if it has batches."""
    sampler, batch_size, items = loader.sampler, loader.batch_size, len(cast("Any", loader.dataset))
    if not loader.drop_last or not hasattr(sampler, "__len__") or len(loader):
        return None
    if isinstance(sampler, StatefulSampler):
        batch_size *= sampler.ranks
    else:
        items = len(sampler)
    return (
        f"an epoch has {items} items, fewer than the {batch_size} of a batch, and an incomplete batch is dropped, so "
        "that there is no batch; lower batch_size, or set drop_last to false"
    )


def _ranks(options: ConfigOptions, opt: Mapping[str, Any] | None, *, shares_by_default: bool) -> int:
    """Return the number of processes that share each epoch."""
    is_initialized = distributed.is_available() and distributed.is_initialized()
    dist = _dist(options, opt)
    if not (shares_by_default and is_initialized if dist is None else dist):
        return 1
    if not is_initialized:
        raise options.error("dist is set, but torch.distributed.init_process_group has not been called")
    return distributed.get_world_size()


def _dist(options: ConfigOptions, opt: Mapping[str, Any] | None) -> bool | None:
    """Return the option ``dist`` of the dataset, or else of the training; None if neither has it."""
    if options.has("dist"):
        return options.flag("dist")
    of_training = None if opt is None else opt.get("dist")
    return None if of_training is None else bool(of_training)


def _sampler(
    options: ConfigOptions,
    dataset: Dataset[Any],
    batch_size: int,
    ranks: int,
    *,
    shuffles: bool,
    drop_last: bool,
    uneven: bool,
) -> EpochSampler:
    uneven = options.flag("uneven_ranks", uneven)
    if uneven and drop_last:
        raise options.error(
            "uneven_ranks is about a last batch that is kept, but drop_last drops the last batch; set drop_last to "
            "false, or remove uneven_ranks"
        )
    if options.has("seed"):
        seed = options.integer("seed", minimum=0)
    elif ranks > 1:
        seed = 0  # all processes need the same order
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


def _loader_kind(options: ConfigOptions, dataset: Dataset[Any]) -> str:
    default = "threads" if isinstance(dataset, ItemDataset) else "workers"
    return options.choice("loader", default, ("threads", "workers"))


def _threads(options: ConfigOptions, workers: int) -> int:
    if options.has("n_threads"):
        return options.integer("n_threads", minimum=1)
    cores = available_cores()
    return min(workers or cores, cores)
