"""In which order items come, and how often each came before."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import distributed
from torch.utils.data import Sampler

from dlas_store.datasets.draws import Draw


class EpochSampler(Sampler[Draw]):
    """Every item once an epoch, in order or shuffled by (seed, epoch); epochs count up unless set_epoch() is called."""

    def __init__(self, length: int, *, seed: int, shuffle: bool) -> None:
        """Take the number of items, and the seed of the shuffle, from 0."""
        self._length = length
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = 0

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        return self._length

    def __iter__(self) -> Iterator[Draw]:
        epoch, self._epoch = self._epoch, self._epoch + 1
        order = _permutation(self._length, self._seed, epoch) if self._shuffle else range(self._length)
        return (Draw(int(index), epoch) for index in order)

    def set_epoch(self, epoch: int) -> None:
        """Give the next pass the order of an epoch, counted from 0."""
        self._epoch = epoch


class PlainIndices(Sampler[int]):
    """The order of a sampler of draws for a dataset that knows ints only."""

    def __init__(self, draws: EpochSampler | DistIterSampler) -> None:
        """Take the sampler that gives the order."""
        self._draws = draws

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        return len(self._draws)

    def __iter__(self) -> Iterator[int]:
        return (draw.index for draw in self._draws)

    def set_epoch(self, epoch: int) -> None:
        """Give the next pass the order of an epoch, counted from 0."""
        self._draws.set_epoch(epoch)


class DistIterSampler(Sampler[Draw]):
    """DL-Art-School's distributed sampler: an epoch is enlarged ``ratio`` times, so that loaders restart rarely.

    Each of R processes gets ceil(length * ratio / R) items: every R-th of a permutation of the enlarged epoch, seeded
    by (seed, epoch), modulo the length.
    """

    def __init__(
        self,
        length: int,
        *,
        replicas: int | None = None,
        rank: int | None = None,
        ratio: int = 100,
        seed: int = 0,
    ) -> None:
        """Set up the sampler of one process.

        Args:
            length: number of items of the dataset.
            replicas: number of processes; None asks torch.distributed.
            rank: this process among them; None asks torch.distributed.
            ratio: how often each item comes in an epoch, about.
            seed: of the permutation, from 0.
        """
        self._length = length
        self._replicas = distributed.get_world_size() if replicas is None else replicas
        self._rank = distributed.get_rank() if rank is None else rank
        self._ratio = ratio
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        """Return the number of items of this process in an epoch."""
        return math.ceil(self._length * self._ratio / self._replicas)

    def __iter__(self) -> Iterator[Draw]:
        epoch, self._epoch = self._epoch, self._epoch + 1
        total = len(self) * self._replicas
        # One more than the ratio where the total is rounded up, or two epochs would share a repetition.
        repetitions = math.ceil(total / self._length)
        for position in _permutation(total, self._seed, epoch)[self._rank :: self._replicas]:
            repetition, index = divmod(int(position), self._length)
            yield Draw(index, epoch * repetitions + repetition)

    def set_epoch(self, epoch: int) -> None:
        """Give the next pass the order of an epoch, counted from 0."""
        self._epoch = epoch


def _permutation(length: int, seed: int, epoch: int) -> torch.Tensor:
    # Mixed rather than added, or epoch 1 of seed 0 would be epoch 0 of seed 1.
    mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    return torch.randperm(length, generator=torch.Generator().manual_seed(int(mixed)))
