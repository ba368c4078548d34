"""The registry of modes, and a function that makes the dataset of an options dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, overload

from torch.utils.data import Dataset

from dlas_store.datasets.batches import Collate
from dlas_store.datasets.collate import zero_pad
from dlas_store.errors import ConfigError

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
