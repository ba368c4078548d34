"""A folder and a store behind PyTorch's DataLoader: uint8 batches (n, H, W, 3), RGB."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import simplejpeg
import torch
from torch.utils.data import DataLoader, Dataset

from dlas_store.source import Pixels, Source


class FilePatches(Dataset[torch.Tensor]):
    """What there is without a store, at its fastest: an item is one file, read and decoded by TurboJPEG."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, position: int) -> torch.Tensor:
        return torch.from_numpy(simplejpeg.decode_jpeg(self._paths[position].read_bytes(), "RGB"))


class SourcePatches(Dataset[torch.Tensor]):
    """Patches of an open source, read a batch at a time."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self._source = source
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitems__(self, positions: Sequence[int]) -> Pixels | list[Pixels]:
        return self._source.read_pixels([self._indices[position] for position in positions])


class LoaderRun:
    """Runs through a DataLoader again and again, with the same worker processes.

    Args:
        dataset: what it reads.
        batch: patches a batch.
        workers: processes.
        collate: makes a batch; PyTorch's own, which stacks items, by default.
    """

    def __init__(
        self, dataset: Dataset[torch.Tensor], *, batch: int, workers: int, collate: Callable[[Any], Any] | None = None
    ) -> None:
        self._loader = DataLoader(
            dataset, batch_size=batch, num_workers=workers, persistent_workers=True, collate_fn=collate
        )

    def run(self) -> int:
        """Take all batches and return how many patches they held."""
        return sum(len(batch) for batch in self._loader)
