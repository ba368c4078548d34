"""What is compared: passes over the same patches, each of which must give every patch once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Protocol


class Pass(Protocol):
    """Something that can be run again and again. It lives in a process of its own; see contender_main."""

    def run(self) -> int:
        """Run it once, which is what the clock sees, and return how many items that were."""

    def check(self) -> int:
        """Run it once, look at what it gives, and return how many items that were.

        Raises:
            AssertionError: it did not give every item once.
        """


Open = Callable[[], Pass]
"""Opens the data; for a cold cache the clock sees that too."""


class BatchPass:
    """A pass over batches, of some epochs.

    Args:
        start: begins an epoch and returns its batches.
        epochs: how many make a pass: more than one where there is little data.
        count: returns the number of items in a batch.
        identify: returns for each item of a batch what tells it from others.
        expected: returns how often each of those comes in an epoch.
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
        """Take all batches, and let go of each at once."""
        items = 0
        for _ in range(self._epochs):
            for batch in self._start():
                items += self._count(batch)
        return items

    def check(self) -> int:
        """Take all batches, and compare each epoch with what is expected; the fingerprints are all that is kept."""
        items = 0
        for _ in range(self._epochs):
            seen: Counter[Hashable] = Counter()
            for batch in self._start():
                seen.update(self._identify(batch))
            assert seen == self._expected(seen), "an epoch did not give every patch once"
            items += seen.total()
        return items
