"""In which order items come, and how often each came before."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import distributed
from torch.utils.data import Sampler

from dlas_store.datasets.draws import Draw
from dlas_store.datasets.permutation import Indices, Permutation
from dlas_store.errors import ConfigError

_AHEAD = 4096
"""Draws are made for about so many positions at a time: 1 ms of work, 0.5 MB."""


@dataclass
class _Pass:
    """One rank's way through the rest of an epoch.

    Attributes:
        epoch: from 0.
        start: positions of the epoch's order that lay behind when the pass began, in all ranks together.
        stop: where the pass ends, start <= stop.
        count: items of this rank from start to stop, those that fill up a short share included.
        handed: how many of them were handed out.
    """

    epoch: int
    start: int
    stop: int
    count: int
    handed: int = 0


class _OrderSampler(Sampler[Draw], ABC):
    """What the samplers here have in common: ranks share an order, epoch by epoch, and a state says how far they are.

    Global batch k of size B is positions kB to (k+1)B of the epoch's order; rank r takes every R-th of it from r. The
    state counts positions, for all ranks together, so it can be resumed by any number of ranks, in batches of any size.

    A pass begins where the state says: at its position in its epoch. A finished pass leaves the state at the start of
    the next epoch. One that is broken off leaves it where the pass was, for a checkpoint; but the next pass of this
    sampler is of the next epoch, from its start. Of two passes at the same time, the state is that of the later.
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
        self._pass: _Pass | None = None
        # Where the next pass begins, (epoch, position); None while one runs, and after one was broken off.
        self._next: tuple[int, int] | None = (0, 0)

    @abstractmethod
    def _drawer(self, epoch: int) -> Callable[[Indices], list[Draw]]:
        """Return what makes draws of positions of an epoch's order; those beyond its end fill up short shares."""

    def __len__(self) -> int:
        """Return the number of this rank's items in a whole epoch."""
        return self._plan(0, 0).count

    def __iter__(self) -> Iterator[Draw]:
        return self._items(self._begin())

    def batches(self) -> Iterator[list[Draw]]:
        """Give what __iter__ gives, each list being this rank's share of a global batch; none is empty."""
        return self._shares(self._begin())

    @property
    def position(self) -> int:
        """How many items of the epoch were handed out, in all ranks together."""
        return int(self.state_dict()["position"])

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be of an epoch, counted from 0: whole, unless a loaded state stands inside this epoch."""
        if self._next is None or self._next[0] != epoch:
            self._next = (epoch, 0)

    def state_dict(self) -> dict[str, int]:
        """Return where this sampler is, as integers: seed, epoch, position and length (items of the dataset)."""
        if self._next is not None:
            return self._state(*self._next)
        assert self._pass is not None
        return self._state(self._pass.epoch, self._position(self._pass, self._pass.handed))

    def state_at(self, batches: int) -> dict[str, int]:
        """Return the state after some batches of a pass, however far ahead the sampler is meanwhile.

        Args:
            batches: of this rank, of those that batches() gives, from the begin of the pass that began last; where none
                began since the state was loaded, of the next. More than it has count as all.
        """
        this = self._pass or self._plan(*(self._next or (0, 0)))
        return self._state(this.epoch, self._position(this, min(batches * self._share, this.count)))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass go on where a state says, with its seed.

        What else makes the order must be as it was: whether it is shuffled, the window, the ratio.

        Args:
            state: from state_dict() or state_at(), in this process or another. Other keys in it are ignored.

        Raises:
            ConfigError: a value is missing or wrong, or the dataset has another number of items. Nothing has changed.
        """
        length = _count(state, "length")
        seed, epoch = _count(state, "seed"), _count(state, "epoch")
        if length != self._length:
            verb = "grown" if length < self._length else "shrunk"
            raise ConfigError(
                f"state: length: the data has {verb} from {length} to {self._length} items since, which makes the "
                f"order of epoch {epoch} another; open the data as it was, or load no state and call "
                f"set_epoch({epoch + 1}) to go on with a new epoch"
            )
        position = _count(state, "position", self._positions)
        self._seed, self._next, self._pass = seed, (epoch, position), None

    @property
    def _share(self) -> int:
        return self._batch_size // self._ranks

    def _state(self, epoch: int, position: int) -> dict[str, int]:
        return {"seed": self._seed, "epoch": epoch, "position": position, "length": self._length}

    def _begin(self) -> _Pass:
        if self._next is None:
            assert self._pass is not None
            self._next = (self._pass.epoch + 1, 0)
        self._pass, self._next = self._plan(*self._next), None
        return self._pass

    def _plan(self, epoch: int, start: int) -> _Pass:
        rest = self._positions - start
        if self._drop_last:
            rest -= rest % self._batch_size
        # Batches are multiples of the ranks, so only in the last one a share can be short.
        short = self._uneven and self._rank >= rest % self._ranks
        return _Pass(epoch, start, start + rest, rest // self._ranks if short else math.ceil(rest / self._ranks))

    def _position(self, this: _Pass, handed: int) -> int:
        """Return the position after so many of this rank's items, as if the others were as far."""
        batches, items = divmod(handed, self._share)
        if items and handed == this.count:
            return this.stop
        return min(this.start + batches * self._batch_size + items * self._ranks, this.stop)

    def _items(self, this: _Pass) -> Iterator[Draw]:
        for draws in self._ahead(this):
            for draw in draws:
                this.handed += 1
                yield draw

    def _shares(self, this: _Pass) -> Iterator[list[Draw]]:
        for draws in self._ahead(this):
            for start in range(0, len(draws), self._share):
                share = draws[start : start + self._share]
                this.handed += len(share)
                yield share

    def _ahead(self, this: _Pass) -> Iterator[list[Draw]]:
        """Give the draws of a pass, whole shares at a time."""
        make = self._drawer(this.epoch)
        step = max(1, _AHEAD // self._share) * self._share
        for first in range(0, this.count, step):
            numbers = np.arange(first, min(first + step, this.count), dtype=np.int64)
            yield make(this.start + self._rank + numbers * self._ranks)
        if this is self._pass and self._next is None:
            self._next = (this.epoch + 1, 0)


class EpochSampler(_OrderSampler):
    """Every item once an epoch, in order or shuffled by (seed, epoch); epochs count up unless set_epoch() is called.

    A draw's repetition is its epoch. The order takes no memory, and a pass that resumes does not walk through what lies
    behind. How ranks share an epoch, and how a pass begins and ends, says _OrderSampler.
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

    def _drawer(self, epoch: int) -> Callable[[Indices], list[Draw]]:
        order = Permutation(self._length, seed=self._seed, epoch=epoch, window=self._window) if self._shuffle else None

        def make(positions: Indices) -> list[Draw]:
            positions = positions % self._length
            indices = positions if order is None else order.at(positions)
            return [Draw(index, epoch) for index in indices.tolist()]

        return make


class DistIterSampler(_OrderSampler):
    """DL-Art-School's distributed sampler: an epoch is enlarged ``ratio`` times, so that loaders restart rarely.

    Each of R processes gets ceil(length * ratio / R) items: every R-th of a permutation of the enlarged epoch, seeded
    by (seed, epoch), modulo the length. The last few of short ranks go on counting beyond the enlarged epoch, so the
    permutation is the same for any R. The state counts positions of the enlarged epoch; its batches are one item a
    rank. How a pass begins and ends says _OrderSampler.
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
        # for as many replicas as items: then the number, and with it every draw, is the same for any of them.
        self._repetitions = ratio + max(1, math.ceil((replicas - 1) / max(1, length)))

    def _drawer(self, epoch: int) -> Callable[[Indices], list[Draw]]:
        order = Permutation(self._positions, seed=self._seed, epoch=epoch)

        def make(positions: Indices) -> list[Draw]:
            inside = positions < self._positions
            places = positions.copy()
            places[inside] = order.at(positions[inside])
            repetitions, indices = np.divmod(places, self._length)
            repetitions += epoch * self._repetitions
            return [Draw(*draw) for draw in zip(indices.tolist(), repetitions.tolist(), strict=True)]

        return make


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

    def batches(self) -> Iterator[list[int]]:
        """Give this rank's share of each global batch."""
        return ([draw.index for draw in share] for share in self._draws.batches())

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be of an epoch, counted from 0."""
        self._draws.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Return the state of the sampler of draws."""
        return self._draws.state_dict()

    def state_at(self, batches: int) -> dict[str, int]:
        """Return the state of the sampler of draws after some batches of the pass that began last."""
        return self._draws.state_at(batches)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state into the sampler of draws."""
        self._draws.load_state_dict(state)


def _count(state: Mapping[str, Any], key: str, maximum: int | None = None) -> int:
    """Return an integer of a state, from 0."""
    allowed = "an integer of at least 0" if maximum is None else f"an integer from 0 to {maximum}"
    if not isinstance(state, Mapping) or key not in state:
        raise ConfigError(f"state: {key} is missing; it must be {allowed}")
    value = state[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0 or (maximum is not None and value > maximum):
        raise ConfigError(f"state: {key} must be {allowed}, got {value!r}")
    return value
