"""The samplers: in which order items come, and how often each came before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from torch import distributed

from dlas_store.datasets.draws import Draw
from dlas_store.datasets.permutation import Indices, Permutation
from dlas_store.datasets.shared_order import StatefulSampler
from dlas_store.errors import ConfigError


class EpochSampler(StatefulSampler):
    """Every item once an epoch, in order or shuffled by (seed, epoch); epochs count up unless set_epoch() is called.

    A key's repetition is its epoch. The order takes no memory, and an epoch that resumes does not walk through the
    items that lie behind. StatefulSampler says how ranks share an epoch, and how one begins and ends.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        shuffle: bool,
        batch_size: int = 1,
        drop_last: bool = False,
        rank: int = 0,
        ranks: int = 1,
        uneven: bool = False,
        window: int | None = None,
    ) -> None:
        """Set up the sampler of one process.

        Args:
            length: number of items, from 0.
            seed: of the shuffle, from 0.
            shuffle: whether to shuffle; else items come in order.
            batch_size: of the global batch, all ranks together: a multiple of ranks.
            drop_last: whether to leave out the last items of an epoch that fill no global batch.
            rank: this process, 0 <= rank < ranks.
            ranks: number of processes that share each batch.
            uneven: whether ranks whose share of the last batch is short leave it so; else they repeat the first items
                of the epoch's order.
            window: shuffles windows of so many consecutive items, and the items inside each (see Permutation).

        Raises:
            ConfigError: a value is not as said here.
        """
        if window is not None and window < 1:
            raise ConfigError(f"window must be a positive integer, got {window}")
        super().__init__(
            length,
            seed=seed,
            positions=length,
            batch_size=batch_size,
            rank=rank,
            ranks=ranks,
            drop_last=drop_last,
            uneven=uneven,
        )
        self._shuffle = shuffle
        self._window = window

    def keys_at(self, epoch: int) -> Callable[[Indices], list[Draw]]:
        """Return a function from positions in an epoch to sample keys; see StatefulSampler."""
        order = Permutation(self._length, seed=self._seed, epoch=epoch, window=self._window) if self._shuffle else None

        def keys(positions: Indices) -> list[Draw]:
            positions = positions % self._length
            indices = positions if order is None else order.at(positions)
            return [Draw(index, epoch) for index in indices.tolist()]

        return keys


class DistIterSampler(StatefulSampler):
    """DL-Art-School's distributed sampler: an epoch is enlarged ``ratio`` times, so that loaders restart rarely.

    Each of R processes gets ceil(length * ratio / R) items: every R-th of a permutation of the enlarged epoch, seeded
    by (seed, epoch), modulo the length. The last few of short ranks go on counting beyond the enlarged epoch, so the
    permutation is the same for any R. The state counts positions of the enlarged epoch; its batches are one item a
    rank. StatefulSampler says how an epoch begins and ends.
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

        Raises:
            ConfigError: a value is out of range.
        """
        replicas = distributed.get_world_size() if replicas is None else replicas
        rank = distributed.get_rank() if rank is None else rank
        super().__init__(
            length,
            seed=seed,
            positions=length * ratio,
            batch_size=replicas,
            rank=rank,
            ranks=replicas,
            drop_last=False,
            uneven=False,
        )
        # Beyond the ratio, for what fills up short ranks; or two epochs would share a repetition. One more is enough
        # for as many replicas as items: then the number, and with it every key, is the same for any of them.
        self._repetitions = ratio + max(1, math.ceil((replicas - 1) / max(1, length)))

    def keys_at(self, epoch: int) -> Callable[[Indices], list[Draw]]:
        """Return a function from positions in an epoch to sample keys; see StatefulSampler."""
        order = Permutation(self._positions, seed=self._seed, epoch=epoch)

        def keys(positions: Indices) -> list[Draw]:
            is_inside = positions < self._positions
            places = positions.copy()
            places[is_inside] = order.at(positions[is_inside])
            repetitions, indices = np.divmod(places, self._length)
            repetitions += epoch * self._repetitions
            return [Draw(*key) for key in zip(indices.tolist(), repetitions.tolist(), strict=True)]

        return keys


def plain_indices(batches: Iterable[Sequence[Draw]]) -> Iterator[list[int]]:
    """Give batches of keys as batches of indices, for a dataset that knows ints only."""
    return ([key.index for key in batch] for batch in batches)
