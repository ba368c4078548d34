"""Which dataset a mode stands for, and how a DL-Art-School checkout takes its datasets from here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, overload

from torch.utils.data import Dataset

from dlas_store.datasets.loader import Collate, create_dataloader
from dlas_store.datasets.single_image import SingleImageDataset
from dlas_store.errors import ConfigError

MakeDataset = Callable[[Any], Dataset[Any]]
"""A dataset's class: called with the options dict alone."""

_MODES: dict[str, MakeDataset] = {"single_image_extensible": SingleImageDataset}

_NOT_BUILT = (
    "multi_frame_extensible", "paired_frame", "imagefolder", "stylegan2", "multiscale", "fullimage", "torch_dataset",
    "combined",
)  # fmt: skip


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
        return_collate: return (dataset, collate function) as well; None stands for PyTorch's own.

    Raises:
        ConfigError: the mode is none, or an option is missing or of a wrong value.
        StoreError: the data cannot be opened.
    """
    mode = opt.get("mode") if isinstance(opt, Mapping) else None
    if mode not in _MODES:
        reason = f"this version does not have mode {mode!r} yet" if mode in _NOT_BUILT else f"no mode {mode!r}"
        raise ConfigError(f"mode: {reason}; known are {', '.join(sorted(_MODES))}")
    dataset = _MODES[mode](opt)
    return (dataset, getattr(dataset, "collate_fn", None)) if return_collate else dataset


def take_over(
    dlas_create_dataset: Callable[..., Any], dlas_create_dataloader: Callable[..., Any]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return DL-Art-School's create_dataset and create_dataloader with the modes known here served from here.

    Args:
        dlas_create_dataset: called as (dataset_opt, return_collate) for every other mode.
        dlas_create_dataloader: called as (dataset, dataset_opt, opt, sampler, collate_fn, shuffle) for those.
    """

    def dataset_by_mode(dataset_opt: Mapping[str, Any], return_collate: bool = False) -> Any:
        create = create_dataset if dataset_opt["mode"] in _MODES else dlas_create_dataset
        return create(dataset_opt, return_collate)

    def dataloader_by_mode(  # noqa: PLR0917 - DL-Art-School's signature
        dataset: Dataset[Any],
        dataset_opt: Mapping[str, Any],
        opt: Mapping[str, Any] | None = None,
        sampler: Any = None,
        collate_fn: Collate | None = None,
        shuffle: bool = True,
    ) -> Any:
        create = create_dataloader if dataset_opt["mode"] in _MODES else dlas_create_dataloader
        return create(dataset, dataset_opt, opt, sampler, collate_fn, shuffle)

    return dataset_by_mode, dataloader_by_mode
