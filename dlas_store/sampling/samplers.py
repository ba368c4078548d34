"""Samplers of sample keys: each epoch's order, its division among ranks, and a state to resume from."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
from torch import distributed
from torch.utils.data import Sampler

from dlas_store.errors import ConfigError
from dlas_store.sampling.rng import Indices, Permutation, SampleKey

_MAX_KEYS_AT_ONCE = 2048
"""Approximate number of keys that are computed at once, at most: NumPy's calls then cost little a key."""

_GROWTH = 4
"""How many times as many keys each computation makes: few at first, because the first batches wait for them."""


@dataclass
class Epoch:
    """One rank's progress through an epoch, or through the remainder of an epoch that resumes.

    A StatefulSampler makes the Epoch, and a loader holds it while it reads the epoch. A loader makes the Epoch itself,
    without positions, if its sampler keeps no state.

    Attributes:
        number: of the epoch, 0 or more.
        start: first position of the epoch's order that is read; positions count the items of all ranks together.
        stop: position after the last one, start <= stop.
        count: number of this rank's items from start to stop, including items that pad a short rank.
        yielded: how many of these items the sampler has yielded.
        delivered: how many batches the loader has given to its reader.
    """

    number: int
    start: int = 0
    stop: int = 0
    count: int = 0
    yielded: int = 0
    delivered: int = 0


class StatefulSampler(Sampler[SampleKey], ABC):
    """A sampler of keys that keeps a state, in the same form for every rank.

    Global batch k of size B holds positions kB to (k+1)B of the epoch's order. Of R ranks, rank r takes every R-th
    position of the batch, beginning with the r-th. The state counts the positions of all ranks together, so that any
    number of ranks can resume, with batches of any size.

    An epoch begins at the state's position. A finished epoch leaves the state at the start of the next epoch. An
    interrupted epoch leaves the state at the last position, for a checkpoint; the sampler itself begins the next epoch
    then, from its start. If two epochs run at a time, the state describes the later epoch.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        positions: int,
        batch_size: int,
        rank: int,
        ranks: int,
        drop_last: bool,
        uneven: bool,
    ) -> None:
        """Set up the sampler of one rank.

        Args:
            length: number of items of the dataset.
            seed: seed of the order, 0 or more.
            positions: number of positions in an epoch's order.
            batch_size: items of a global batch, that is, of all ranks together; a multiple of ranks.
            rank: number of this process, 0 <= rank < ranks.
            ranks: number of processes that divide each batch.
            drop_last: whether to drop the last positions of an epoch that fill no global batch.
            uneven: whether ranks that are short in the last batch stay short.

        Raises:
            ConfigError: batch_size or rank does not fit ranks.
        """
        if ranks < 1 or batch_size < 1 or batch_size % ranks:
            raise ConfigError(
                f"batch_size must be a positive multiple of ranks, got batch_size {batch_size} and ranks {ranks}"
            )
        if not 0 <= rank < ranks:
            raise ConfigError(f"rank must be from 0 to {ranks - 1}, got {rank}")
        self._length = length
        self._seed = seed
        self._positions = positions
        self._batch_size = batch_size
        self._rank = rank
        self._ranks = ranks
        self._drop_last = drop_last
        self._uneven = uneven
        self._last_begun: Epoch | None = None
        self._next: Epoch | None = self._plan(0, 0)  # None while an epoch runs, and after one was interrupted

    @abstractmethod
    def keys_at(self, epoch: int) -> Callable[[Indices], list[SampleKey]]:
        """Return a function from positions in an epoch to sample keys. Positions past the end pad short ranks."""

    def __len__(self) -> int:
        """Return the number of this rank's items in a full epoch."""
        return self._plan(0, 0).count

    def __iter__(self) -> Iterator[SampleKey]:
        return self._keys_of(self._begin())

    def batches(self) -> Iterator[list[SampleKey]]:
        """Begin an epoch and yield its keys in lists: this rank's items of each global batch. No list is empty."""
        return self._batches_of(self._begin())

    @property
    def epoch(self) -> Epoch:
        """The epoch that the state describes: the next epoch if it is planned, otherwise the epoch that began last."""
        epoch = self._next or self._last_begun
        assert epoch is not None
        return epoch

    @property
    def position(self) -> int:
        """Number of the epoch's items that were yielded, in all ranks together."""
        return int(self.state_dict()["position"])

    @property
    def local_batch_size(self) -> int:
        """Number of this rank's items in a full batch."""
        return self._batch_size // self._ranks

    @property
    def ranks(self) -> int:
        """Number of processes that divide each batch."""
        return self._ranks

    @property
    def drop_last(self) -> bool:
        """Whether the last items of an epoch that fill no global batch are dropped."""
        return self._drop_last

    @property
    def seed(self) -> int:
        """The seed of the order."""
        return self._seed

    def set_epoch(self, epoch: int) -> None:
        """Choose the number of the next epoch, 0 or more.

        The epoch begins at its start, unless a loaded state has a position in the epoch of this number.
        """
        if self._next is None or self._next.number != epoch:
            self._next = self._plan(operator.index(epoch), 0)

    def state_dict(self) -> dict[str, int]:
        """Return the sampler's state, as integers: seed, epoch, position and length (items of the dataset)."""
        return self.state_after(self.epoch, self.epoch.yielded)

    def state_after(self, epoch: Epoch, items: int) -> dict[str, int]:
        """Return the state after some items of an epoch, even if the sampler is further ahead.

        Args:
            epoch: an epoch of this sampler.
            items: number of this rank's items since the epoch's start. A number above the epoch's count means all.
        """
        return self.state_at_position(epoch.number, self._position(epoch, min(items, epoch.count)))

    def state_at(self, batches: int) -> dict[str, int]:
        """Return the state after some batches; see state_after.

        Args:
            batches: number of this rank's batches, as batches() yields them, since the start of the epoch that began
                last. If no epoch has begun since a state was loaded, the count refers to the next epoch.
        """
        return self.state_after(self._last_begun or self.epoch, batches * self.local_batch_size)

    def state_at_position(self, epoch: int, position: int) -> dict[str, int]:
        """Return the state at a position of an epoch; see state_dict."""
        return {"seed": self._seed, "epoch": epoch, "position": position, "length": self._length}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume: the next epoch begins at a state's position, with the state's seed.

        The order's other parameters (shuffle, window, ratio) must equal those of the sampler that gave the state.

        Args:
            state: from state_dict() or state_at(), in any process. Further keys are ignored.

        Raises:
            ConfigError: a value is missing or wrong, or the dataset has another number of items. The sampler is
                unchanged then.
        """
        length = integer_of_state(state, "length")
        seed, number = integer_of_state(state, "seed"), integer_of_state(state, "epoch")
        if length != self._length:
            verb = "grown" if length < self._length else "shrunk"
            raise ConfigError(
                f"state: length: the data has {verb} from {length} to {self._length} items since, which makes the "
                f"order of epoch {number} another; open the data as it was, or load no state and call "
                f"set_epoch({number + 1}) to go on with a new epoch"
            )
        position = integer_of_state(state, "position", self._positions)
        self._seed, self._next, self._last_begun = seed, self._plan(number, position), None

    def _begin(self) -> Epoch:
        if self._next is None:
            self._next = self._plan(self.epoch.number + 1, 0)
        self._last_begun, self._next = self._next, None
        return self._last_begun

    def _plan(self, number: int, start: int) -> Epoch:
        positions = self._positions - start
        if self._drop_last:
            positions -= positions % self._batch_size
        # Batches are multiples of the ranks, so that a rank can be short only in the last batch.
        is_short = self._uneven and self._rank >= positions % self._ranks
        count = positions // self._ranks if is_short else math.ceil(positions / self._ranks)
        return Epoch(number, start, start + positions, count)

    def _position(self, epoch: Epoch, items: int) -> int:
        """Return the position after a number of this rank's items, as if all ranks had come equally far."""
        batches, items_of_batch = divmod(items, self.local_batch_size)
        if items_of_batch and items == epoch.count:
            return epoch.stop
        return min(epoch.start + batches * self._batch_size + items_of_batch * self._ranks, epoch.stop)

    def _keys_of(self, epoch: Epoch) -> Iterator[SampleKey]:
        for keys in self._chunks_of(epoch):
            for key in keys:
                epoch.yielded += 1
                yield key

    def _batches_of(self, epoch: Epoch) -> Iterator[list[SampleKey]]:
        for keys in self._chunks_of(epoch):
            for start in range(0, len(keys), self.local_batch_size):
                batch = keys[start : start + self.local_batch_size]
                epoch.yielded += len(batch)
                yield batch

    def _chunks_of(self, epoch: Epoch) -> Iterator[list[SampleKey]]:
        """Yield the keys of an epoch in lists: the first has one batch, later ones several, none of them divided."""
        keys_at = self.keys_at(epoch.number)
        first, batches = 0, 1
        while first < epoch.count:
            stop = min(first + batches * self.local_batch_size, epoch.count)
            numbers = np.arange(first, stop, dtype=np.int64)
            yield keys_at(epoch.start + self._rank + numbers * self._ranks)
            first, batches = stop, min(_GROWTH * batches, max(1, _MAX_KEYS_AT_ONCE // self.local_batch_size))
        if epoch is self._last_begun and self._next is None:
            self._next = self._plan(epoch.number + 1, 0)


class EpochSampler(StatefulSampler):
    """A sampler that yields every item once an epoch, in order or shuffled by (seed, epoch).

    Epochs count up from 0 unless set_epoch() chooses a number. A key's repetition is its epoch. The order takes no
    memory, and an epoch that is resumed does not iterate over its earlier items. StatefulSampler describes how ranks
    divide an epoch, and how epochs begin and end.
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
        """Set up the sampler of one rank.

        Args:
            length: number of items, 0 or more.
            seed: of the shuffle, 0 or more.
            shuffle: whether to shuffle; otherwise items come in order.
            batch_size: items of a global batch, that is, of all ranks together; a multiple of ranks.
            drop_last: whether to drop the last items of an epoch that fill no global batch.
            rank: number of this process, 0 <= rank < ranks.
            ranks: number of processes that divide each batch.
            uneven: whether ranks that are short in the last batch stay short; otherwise the first items of the epoch's
                order pad them.
            window: number of consecutive items in a window. The shuffle permutes the windows, and the items inside each
                window (see Permutation). None shuffles all items together.

        Raises:
            ConfigError: batch_size, rank or window is out of range.
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

    def keys_at(self, epoch: int) -> Callable[[Indices], list[SampleKey]]:
        """Return a function from positions in an epoch to sample keys; see StatefulSampler."""
        order = Permutation(self._length, seed=self._seed, epoch=epoch, window=self._window) if self._shuffle else None

        def keys(positions: Indices) -> list[SampleKey]:
            positions = positions % self._length
            indices = positions if order is None else order.at(positions)
            return list(map(SampleKey._make, zip(indices.tolist(), repeat(epoch))))

        return keys


class DistIterSampler(StatefulSampler):
    """DL-Art-School's distributed sampler: an epoch is enlarged ``ratio`` times, so that loaders restart rarely.

    Each of R processes gets ceil(length * ratio / R) items: every R-th item of a permutation of the enlarged epoch,
    seeded by (seed, epoch), modulo the length. Short ranks are padded by positions past the enlarged epoch, so that the
    permutation is the same for any R. The state counts positions of the enlarged epoch. A batch of the state is one
    item a rank. StatefulSampler describes how an epoch begins and ends.
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
            rank: number of this process among them; None asks torch.distributed.
            ratio: about how often each item comes in an epoch.
            seed: of the permutation, 0 or more.

        Raises:
            ConfigError: replicas or rank is out of range.
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
        # Padding of short ranks repeats items beyond the ratio. Each epoch reserves numbers of repetitions for the
        # padding, because two epochs must not use the same ones. One number is enough for up to length + 1 replicas, so
        # that any number of replicas up to there gets the same keys.
        self._repetitions = ratio + max(1, math.ceil((replicas - 1) / max(1, length)))

    def keys_at(self, epoch: int) -> Callable[[Indices], list[SampleKey]]:
        """Return a function from positions in an epoch to sample keys; see StatefulSampler."""
        order = Permutation(self._positions, seed=self._seed, epoch=epoch)

        def keys(positions: Indices) -> list[SampleKey]:
            is_inside = positions < self._positions
            places = positions.copy()
            places[is_inside] = order.at(positions[is_inside])
            repetitions, indices = np.divmod(places, self._length)
            repetitions += epoch * self._repetitions
            return list(map(SampleKey._make, zip(indices.tolist(), repetitions.tolist(), strict=True)))

        return keys


def integer_of_state(state: Mapping[str, Any], key: str, maximum: int | None = None) -> int:
    """Return the integer that a state holds for a key: 0 or more, at most ``maximum`` unless that is None.

    Raises:
        ConfigError: the value is missing, no integer, or out of range.
    """
    allowed = "an integer of at least 0" if maximum is None else f"an integer from 0 to {maximum}"
    if not isinstance(state, Mapping) or key not in state:
        raise ConfigError(f"state: {key} is missing; it must be {allowed}")
    value = state[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0 or (maximum is not None and value > maximum):
        raise ConfigError(f"state: {key} must be {allowed}, got {value!r}")
    return value
