"""Batches of worker processes, made in memory that the parent process sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from dlas_store.datasets.raw_patches import RawPatches


class SharedBatches:
    """Gives the memory of one batch, which is then sent without a copy."""

    def __init__(self) -> None:
        self._given: dict[int, torch.Tensor] = {}

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array, contiguous, its content undefined."""
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        storage = torch.UntypedStorage._new_shared(int(np.prod(shape)) * kind.itemsize)
        tensor = torch.empty(0, dtype=kind).set_(storage).view(shape)
        self._given[tensor.data_ptr()] = tensor
        array: NDArray[Any] = tensor.numpy()
        return array

    def send(self, batch: Any) -> Any:
        """Return a batch, its tensors replaced by the shared ones that they are views of."""
        if isinstance(batch, dict):
            return {key: self._shared(value) for key, value in batch.items()}
        if isinstance(batch, RawPatches):
            return batch._replace(pixels=self._shared(batch.pixels))
        return batch

    def _shared(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        shared = self._given.get(value.data_ptr())
        return value if shared is None else shared.view(value.shape)
