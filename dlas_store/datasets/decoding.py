"""Decoding of a batch's items: a group of items in one call, and each item alone if that call fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from dlas_store.errors import StoreError
from dlas_store.images.memory import Pixels
from dlas_store.loading.buffers import BYTES_TOGETHER, ScratchPool
from dlas_store.sources.base import Source

OnBad = Callable[[int, StoreError], None]
"""A function called with an item that cannot be read and the item's error. It raises the error or replaces the item."""

Group = tuple[Sequence[int], list[Pixels]]
"""Items, and their decoded patches item by item. A patch is in the array that was passed for it, or in a new array if
its size differs."""


class Frames(NamedTuple):
    """The patches that make up the items of a batch. An item is a position in the batch. Each patch has a row.

    Attributes:
        source: holds the patches.
        patches: indices of the patches in the source, item by item: item n has
            ``patches[n * per_item : (n + 1) * per_item]``.
        per_item: number of patches of each item.
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
        """Return the items, ordered by where their first patches lie in the source."""
        first_patches = self.patches[:: self.per_item]
        return sorted(range(len(first_patches)), key=first_patches.__getitem__)


def decode_groups(
    frames: Frames, items: Sequence[int], size: tuple[int, int], scratch: ScratchPool, on_bad: OnBad
) -> Iterator[Group]:
    """Decode items into scratch arrays, as many at a time as the processor's caches hold.

    Args:
        frames: the patches of the batch.
        items: items to decode, in the order in which to read them.
        size: expected height and width of the patches.
        scratch: pool of the arrays. A group's arrays are overwritten when the next group is asked for.
        on_bad: called for each item that cannot be read, while its error is handled. The item is not yielded.
    """
    height, width = size
    count = max(1, BYTES_TOGETHER // (frames.per_item * height * width * 3))
    with scratch.patches((count * frames.per_item, height, width, 3)) as arrays:
        for first in range(0, len(items), count):
            group = items[first : first + count]
            yield from decode_items(frames, group, arrays[: len(group) * frames.per_item], on_bad)


def decode_items(frames: Frames, items: Sequence[int], outs: list[Pixels], on_bad: OnBad) -> Iterator[Group]:
    """Decode items into arrays. All items are one group; after an error each item is a group of its own.

    Args:
        frames: the patches of the batch.
        items: items to decode, in the order in which to read them.
        outs: an array for each patch, ``len(items) * frames.per_item`` in total; see Source.decode_into.
        on_bad: called for each item that cannot be read, while its error is handled. The item is not yielded.
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
    """Raise the error of an item that cannot be read. This is an OnBad function."""
    raise error
