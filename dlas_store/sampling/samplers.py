"""A base class of samplers: ranks share an order, epoch by epoch, and a state says how far they are.

The samplers: in which order items come, and how often each came before.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import distributed
from torch.utils.data import Sampler

from dlas_store.errors import ConfigError
from dlas_store.sampling.rng import Indices, Permutation, SampleKey

_AHEAD = 512
"""Keys are made for about so many positions at a time: few, for the first batch waits for them, and enough that what
numpy takes however few they are is 0.1 us a key."""


@dataclass
class Epoch:
    """One rank's way through an epoch, or through the rest of it.

    A StatefulSampler makes it, and a loader holds it while it reads the epoch. For a sampler that keeps no state a
    loader makes one without positions.

    Attributes:
        number: of the epoch, from 0.
        start: positions of the epoch's order that lay behind when it began, in all ranks together.
        stop: the position where it ends, start <= stop.
        count: items of this rank from start to stop, those that fill up a short share included.
        handed_out: how many of them the sampler handed out.
        delivered: how many batches the reader of a loader got.
    """

    number: int
    start: int = 0
    stop: int = 0
    count: int = 0
    handed_out: int = 0
    delivered: int = 0


class StatefulSampler(Sampler[SampleKey], ABC):
    """A sampler of keys that keeps a state.

    Global batch k of size B is positions kB to (k+1)B of the epoch's order; rank r takes every R-th of it from r. The
    state counts positions, for all ranks together, so it can be resumed by any number of ranks, in batches of any size.

    An epoch begins where the state says: at its position. A finished epoch leaves the state at the start of the next
    one. An epoch that is broken off leaves it where it was, for a checkpoint; but then this sampler goes on with the
    next epoch, from its start. Of two epochs at the same time, the state is that of the later.
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
        self._next: Epoch | None = self._plan(0, 0)  # None while an epoch runs, and after one was broken off

    @abstractmethod
    def keys_at(self, epoch: int) -> Callable[[Indices], list[SampleKey]]:
        """Return a function from positions in an epoch to sample keys. Positions past the end pad short ranks."""

    def __len__(self) -> int:
        """Return the number of this rank's items in a whole epoch."""
        return self._plan(0, 0).count

    def __iter__(self) -> Iterator[SampleKey]:
        return self._keys_of(self._begin())

    def batches(self) -> Iterator[list[SampleKey]]:
        """Give what __iter__ gives, each list being this rank's share of a global batch; none is empty."""
        return self._batches_of(self._begin())

    @property
    def epoch(self) -> Epoch:
        """The epoch that the state tells of: the one that began last, until it is over or another is to come."""
        epoch = self._next or self._last_begun
        assert epoch is not None
        return epoch

    @property
    def position(self) -> int:
        """How many items of the epoch were handed out, in all ranks together."""
        return int(self.state_dict()["position"])

    def set_epoch(self, epoch: int) -> None:
        """Let the next epoch be that of a number, from 0: whole, unless a loaded state stands inside this epoch."""
        if self._next is None or self._next.number != epoch:
            self._next = self._plan(epoch, 0)

    def state_dict(self) -> dict[str, int]:
        """Return where this sampler is, as integers: seed, epoch, position and length (items of the dataset)."""
        return self.state_after(self.epoch, self.epoch.handed_out)

    def state_after(self, epoch: Epoch, items: int) -> dict[str, int]:
        """Return the state after some items of an epoch, however far ahead the sampler is meanwhile.

        Args:
            epoch: that this sampler made.
            items: of this rank, from the begin of the epoch. More than it has count as all.
        """
        return self.state_at_position(epoch.number, self._position(epoch, min(items, epoch.count)))

    def state_at(self, batches: int) -> dict[str, int]:
        """Return the state after some batches; see state_after.

        Args:
            batches: of this rank, as batches() gives them, from the begin of the epoch that began last; where none
                began since the state was loaded, of the next.
        """
        return self.state_after(self._last_begun or self.epoch, batches * self.share)

    def state_at_position(self, epoch: int, position: int) -> dict[str, int]:
        """Return the state at a position of an epoch; see state_dict."""
        return {"seed": self._seed, "epoch": epoch, "position": position, "length": self._length}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next epoch go on where a state says, with its seed.

        What else makes the order must be as it was: whether it is shuffled, the window, the ratio.

        Args:
            state: from state_dict() or state_at(), in this process or another. Other keys in it are ignored.

        Raises:
            ConfigError: a value is missing or wrong, or the dataset has another number of items. Nothing has changed.
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

    @property
    def share(self) -> int:
        """This rank's items of a whole batch."""
        return self._batch_size // self._ranks

    @property
    def drop_last(self) -> bool:
        """Whether the last items of an epoch that fill no global batch are left out."""
        return self._drop_last

    @property
    def seed(self) -> int:
        """Of the order."""
        return self._seed

    def _begin(self) -> Epoch:
        if self._next is None:
            self._next = self._plan(self.epoch.number + 1, 0)
        self._last_begun, self._next = self._next, None
        return self._last_begun

    def _plan(self, number: int, start: int) -> Epoch:
        positions = self._positions - start
        if self._drop_last:
            positions -= positions % self._batch_size
        # Batches are multiples of the ranks, so only in the last one a share can be short.
        is_short = self._uneven and self._rank >= positions % self._ranks
        count = positions // self._ranks if is_short else math.ceil(positions / self._ranks)
        return Epoch(number, start, start + positions, count)

    def _position(self, epoch: Epoch, items: int) -> int:
        """Return the position after so many of this rank's items, as if the others were as far."""
        batches, items_of_batch = divmod(items, self.share)
        if items_of_batch and items == epoch.count:
            return epoch.stop
        return min(epoch.start + batches * self._batch_size + items_of_batch * self._ranks, epoch.stop)

    def _keys_of(self, epoch: Epoch) -> Iterator[SampleKey]:
        for keys in self._keys_ahead(epoch):
            for key in keys:
                epoch.handed_out += 1
                yield key

    def _batches_of(self, epoch: Epoch) -> Iterator[list[SampleKey]]:
        for keys in self._keys_ahead(epoch):
            for start in range(0, len(keys), self.share):
                batch = keys[start : start + self.share]
                epoch.handed_out += len(batch)
                yield batch

    def _keys_ahead(self, epoch: Epoch) -> Iterator[list[SampleKey]]:
        """Give the keys of an epoch, whole shares at a time."""
        keys_at = self.keys_at(epoch.number)
        step = max(1, _AHEAD // self.share) * self.share
        for first in range(0, epoch.count, step):
            numbers = np.arange(first, min(first + step, epoch.count), dtype=np.int64)
            yield keys_at(epoch.start + self._rank + numbers * self._ranks)
        if epoch is self._last_begun and self._next is None:
            self._next = self._plan(epoch.number + 1, 0)


def integer_of_state(state: Mapping[str, Any], key: str, maximum: int | None = None) -> int:
    """Return an integer of a state, from 0.

    Raises:
        ConfigError: it is missing, or no such integer.
    """
    allowed = "an integer of at least 0" if maximum is None else f"an integer from 0 to {maximum}"
    if not isinstance(state, Mapping) or key not in state:
        raise ConfigError(f"state: {key} is missing; it must be {allowed}")
    value = state[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0 or (maximum is not None and value > maximum):
        raise ConfigError(f"state: {key} must be {allowed}, got {value!r}")
    return value


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

    def keys_at(self, epoch: int) -> Callable[[Indices], list[SampleKey]]:
        """Return a function from positions in an epoch to sample keys; see StatefulSampler."""
        order = Permutation(self._length, seed=self._seed, epoch=epoch, window=self._window) if self._shuffle else None

        def keys(positions: Indices) -> list[SampleKey]:
            positions = positions % self._length
            indices = positions if order is None else order.at(positions)
            return [SampleKey(index, epoch) for index in indices.tolist()]

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

    def keys_at(self, epoch: int) -> Callable[[Indices], list[SampleKey]]:
        """Return a function from positions in an epoch to sample keys; see StatefulSampler."""
        order = Permutation(self._positions, seed=self._seed, epoch=epoch)

        def keys(positions: Indices) -> list[SampleKey]:
            is_inside = positions < self._positions
            places = positions.copy()
            places[is_inside] = order.at(positions[is_inside])
            repetitions, indices = np.divmod(places, self._length)
            repetitions += epoch * self._repetitions
            return [SampleKey(*key) for key in zip(indices.tolist(), repetitions.tolist(), strict=True)]

        return keys


def plain_indices(batches: Iterable[Sequence[SampleKey]]) -> Iterator[list[int]]:
    """Give batches of keys as batches of indices, for a dataset that knows ints only."""
    return ([key.index for key in batch] for batch in batches)
