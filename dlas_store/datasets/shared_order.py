"""What the samplers have in common: ranks share an order, epoch by epoch, and a state says how far they are."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from dlas_store.datasets.draws import Draw
from dlas_store.datasets.permutation import Indices
from dlas_store.errors import ConfigError

_AHEAD = 512
"""Draws are made for about so many positions at a time: few, for the first batch waits for them, and enough that what
numpy takes however few they are is 0.1 us a draw."""


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


class OrderSampler(Sampler[Draw], ABC):
    """A sampler of draws that keeps a state.

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
    def drawer(self, epoch: int) -> Callable[[Indices], list[Draw]]:
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
        return self._state(this.epoch, self._position(this, min(batches * self.share, this.count)))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass go on where a state says, with its seed.

        What else makes the order must be as it was: whether it is shuffled, the window, the ratio.

        Args:
            state: from state_dict() or state_at(), in this process or another. Other keys in it are ignored.

        Raises:
            ConfigError: a value is missing or wrong, or the dataset has another number of items. Nothing has changed.
        """
        length = integer_of_state(state, "length")
        seed, epoch = integer_of_state(state, "seed"), integer_of_state(state, "epoch")
        if length != self._length:
            verb = "grown" if length < self._length else "shrunk"
            raise ConfigError(
                f"state: length: the data has {verb} from {length} to {self._length} items since, which makes the "
                f"order of epoch {epoch} another; open the data as it was, or load no state and call "
                f"set_epoch({epoch + 1}) to go on with a new epoch"
            )
        position = integer_of_state(state, "position", self._positions)
        self._seed, self._next, self._pass = seed, (epoch, position), None

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
        batches, items = divmod(handed, self.share)
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
            for start in range(0, len(draws), self.share):
                share = draws[start : start + self.share]
                this.handed += len(share)
                yield share

    def _ahead(self, this: _Pass) -> Iterator[list[Draw]]:
        """Give the draws of a pass, whole shares at a time."""
        make = self.drawer(this.epoch)
        step = max(1, _AHEAD // self.share) * self.share
        for first in range(0, this.count, step):
            numbers = np.arange(first, min(first + step, this.count), dtype=np.int64)
            yield make(this.start + self._rank + numbers * self._ranks)
        if this is self._pass and self._next is None:
            self._next = (this.epoch + 1, 0)


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
