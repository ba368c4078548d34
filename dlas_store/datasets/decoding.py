"""Decoding of a batch's items: several in one call, and each alone where one of them cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from dlas_store.errors import StoreError
from dlas_store.images.memory import Pixels
from dlas_store.loading.buffers import BYTES_TOGETHER, ScratchPool
from dlas_store.sources.base import Source

OnBad = Callable[[int, StoreError], None]
"""Takes an item that cannot be read and the error: raises it, or replaces the item."""

Group = tuple[Sequence[int], list[Pixels]]
"""Items, and their decoded patches item by item: each the array that was given for it, or a new one of another size."""


class Frames(NamedTuple):
    """The patches that the items of a batch are made of. Each has a row of the batch.

    Attributes:
        source: holds the patches.
        patches: their indices in it, item by item; those of item n are ``patches[n * per_item : (n + 1) * per_item]``.
        per_item: how many an item has.
    """

    source: Source
    patches: Sequence[int]
    per_item: int = 1

    def rows_of(self, items: Sequence[int]) -> Sequence[int]:
        """Return the rows of items, item by item."""
        if self.per_item == 1:
            return items
        return [row for item in items for row in range(item * self.per_item, (item + 1) * self.per_item)]

    def argsort_on_disk(self) -> list[int]:
        """Return the items in the order in which their first patches lie in the source."""
        firsts = self.patches[:: self.per_item]
        return sorted(range(len(firsts)), key=firsts.__getitem__)


def decode_groups(
    frames: Frames, items: Sequence[int], size: tuple[int, int], scratch: ScratchPool, on_bad: OnBad
) -> Iterator[Group]:
    """Decode items into scratch memory, as many at a time as the processor's caches hold.

    Args:
        frames: the patches of the batch.
        items: in the order in which they are read.
        size: height and width that patches are likely to have.
        scratch: what they are decoded into; belongs to a group until the next one is asked for.
        on_bad: called for an item in place of yielding it, while the error is handled.
    """
    height, width = size
    count = max(1, BYTES_TOGETHER // (frames.per_item * height * width * 3))
    with scratch.patches((count * frames.per_item, height, width, 3)) as arrays:
        for first in range(0, len(items), count):
            group = items[first : first + count]
            yield from decode_items(frames, group, arrays[: len(group) * frames.per_item], on_bad)


def decode_items(frames: Frames, items: Sequence[int], outs: list[Pixels], on_bad: OnBad) -> Iterator[Group]:
    """Decode items into an array for each of their patches: as one group, after an error as a group for each item.

    Args:
        frames: the patches of the batch.
        items: in the order in which they are read.
        outs: ``len(items) * frames.per_item`` arrays; see Source.decode_into.
        on_bad: called for an item in place of yielding it, while the error is handled.
    """
    try:
        pixels = frames.source.decode_many_into([frames.patches[row] for row in frames.rows_of(items)], outs)
    except StoreError as error:
        if len(items) == 1:
            on_bad(items[0], error)
            return
    else:
        yield items, pixels
        return
    for position, item in enumerate(items):
        first = position * frames.per_item
        yield from decode_items(frames, [item], outs[first : first + frames.per_item], on_bad)


def raise_error(_item: int, error: StoreError) -> None:
    """Raise the error of an item; an OnBad."""
    raise error
