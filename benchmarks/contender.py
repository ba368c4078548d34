"""Contenders: passes over the same patches, each of which must give every patch once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Protocol


class Pass(Protocol):
    """A pass over the data, which can be run repeatedly. It lives in a process of its own; see contender_main."""

    def run(self) -> int:
        """Run the timed pass once and return its number of items."""

    def check(self) -> int:
        """Run the pass once, check its items, and return their number.

        Raises:
            AssertionError: the pass did not give every item once.
        """


Open = Callable[[], Pass]
"""A function that opens the data; with a cold cache its time counts too."""


class BatchPass:
    """A pass over the batches of one or more epochs.

    Args:
        start: begins an epoch and returns its batches.
        epochs: number of epochs in a pass, more than one if there is little data.
        count: returns the number of items in a batch.
        identify: returns an identifier for each item of a batch.
        expected: takes the counted identifiers of an epoch and returns the counts that it should have.
    """

    def __init__(
        self,
        start: Callable[[], Iterable[Any]],
        *,
        epochs: int,
        count: Callable[[Any], int],
        identify: Callable[[Any], Iterable[Hashable]],
        expected: Callable[[Counter[Hashable]], Counter[Hashable]],
    ) -> None:
        self._start = start
        self._epochs = epochs
        self._count = count
        self._identify = identify
        self._expected = expected

    def run(self) -> int:
        """Take all batches; release each at once."""
        items = 0
        for _ in range(self._epochs):
            for batch in self._start():
                items += self._count(batch)
        return items

    def check(self) -> int:
        """Take all batches and compare each epoch with the expected counts; only the identifiers are kept."""
        items = 0
        for _ in range(self._epochs):
            counts: Counter[Hashable] = Counter()
            for batch in self._start():
                counts.update(self._identify(batch))
            assert counts == self._expected(counts), "an epoch did not give every patch once"
            items += counts.total()
        return items
