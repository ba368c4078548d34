"""Output of ``dlas-store read CONFIG``: the contents of a config's batches, and the speed of its loaders."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from dlas_store.config import load_config
from dlas_store.datasets import create_dataloader, create_dataset
from dlas_store.errors import ConfigError


@dataclass(slots=True)
class _Values:
    """Summary of the values of one key in all batches: the range of numbers, or an example of other values."""

    type: str
    shape: tuple[int, ...]
    low: float = 0
    high: float = 0
    example: str | None = None

    @classmethod
    def of(cls, value: Any) -> _Values:
        """Summarise the value of one batch: a tensor or a list."""
        if isinstance(value, torch.Tensor):
            dtype = str(value.dtype).removeprefix("torch.")
            if not value.numel():
                return cls(dtype, tuple(value.shape), example="empty")
            return cls(dtype, tuple(value.shape), value.min().item(), value.max().item())
        return cls(type(value[0]).__name__, (len(value),), example=str(value[0]))

    def widen(self, other: _Values) -> None:
        """Extend the range by the range of another batch."""
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)

    @property
    def content(self) -> str:
        """The range as text, or the example."""
        return f"{self.low:.4g} .. {self.high:.4g}" if self.example is None else self.example


def describe_batches(config_path: str | Path, *, phase: str = "train", batches: int = 10) -> Iterator[str]:
    """Read the first batches of every dataset of a phase and yield lines about their contents and speed.

    Args:
        config_path: a YAML config, as load_config takes it.
        phase: the part of a dataset's key before the first ``_``.
        batches: maximum number of batches to read of each dataset, from 1.

    Raises:
        ConfigError: the config is wrong, or has no dataset of the phase.
        StoreError: a patch cannot be read.
    """
    for key, opt in datasets_of_phase(config_path, phase).items():
        yield from _describe_dataset(key, opt, batches)


def datasets_of_phase(config_path: str | Path, phase: str) -> dict[str, dict[str, Any]]:
    """Return the options of every dataset of a phase by the dataset's key.

    Raises:
        ConfigError: the config is wrong, or has no dataset of the phase.
    """
    datasets = load_config(config_path)["datasets"]
    chosen = {key: opt for key, opt in datasets.items() if opt["phase"] == phase}
    if not chosen:
        phases = ", ".join(sorted({opt["phase"] for opt in datasets.values()}))
        raise ConfigError(f"{config_path}: no dataset of phase '{phase}'; there are {phases}")
    return chosen


def _describe_dataset(key: str, opt: Mapping[str, Any], batches: int) -> Iterator[str]:
    dataset, collate = create_dataset(opt, return_collate=True)
    loader = create_dataloader(dataset, opt, collate_fn=collate)
    yield f"{key}: {opt['mode']}, {len(loader):,} batches of {loader.batch_size}, {loader.num_workers} worker processes"
    values_of: dict[str, _Values] = {}
    counts: list[int] = []
    times = [time.perf_counter()]
    for batch in islice(loader, batches):
        times.append(time.perf_counter())
        counts.append(len(next(iter(batch.values()))))
        for name, value in batch.items():
            values = _Values.of(value)
            values_of.setdefault(name, values).widen(values)
    yield from _table(values_of)
    yield _speed(counts, times)


def _table(values_of: Mapping[str, _Values]) -> Iterator[str]:
    rows = [("key", "type", "shape", "range")]
    for key, values in values_of.items():
        rows.append((key, values.type, " x ".join(map(str, values.shape)), values.content))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _speed(counts: list[int], times: list[float]) -> str:
    """Return a line about the speed. The first batch, which waits for workers to start, counts only if it is alone."""
    if not counts:
        return "  no batch: the dataset has fewer items than batch_size"
    skipped = 1 if len(counts) > 1 else 0
    rate = sum(counts[skipped:]) / max(times[-1] - times[skipped], 1e-9)
    return f"  {len(counts)} batches read, the first after {times[1] - times[0]:.2f} s; {rate:,.0f} samples/s"
