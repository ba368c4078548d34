"""Decoding of a batch's items: several in one call, and each alone where one of them cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from dlas_store.aligned_memory import Pixels
from dlas_store.datasets.decoding_memory import BYTES_TOGETHER, DecodingMemory
from dlas_store.datasets.roots import read_all_into
from dlas_store.errors import StoreError
from dlas_store.source import Source

OnBad = Callable[[int, StoreError], None]
"""Takes an item that cannot be read and the error: raises it, or replaces the item."""

Group = tuple[Sequence[int], list[Pixels]]
"""Items, and their decoded patches item by item: each the array that was given for it, or a new one of another size."""


def decode_groups(
    places: Sequence[tuple[Source, int]],
    items: Sequence[int],
    size: tuple[int, int],
    scratch: DecodingMemory,
    on_bad: OnBad,
    *,
    frames: int = 1,
) -> Iterator[Group]:
    """Decode items into scratch memory, as many at a time as the processor's caches hold.

    Args:
        places: source and index of each patch; those of item n are ``places[n * frames : (n + 1) * frames]``.
        items: in the order in which they are read.
        size: height and width that patches are likely to have.
        scratch: what they are decoded into; belongs to a group until the next one is asked for.
        on_bad: called for an item in place of yielding it, while the error is handled.
        frames: patches an item.
    """
    height, width = size
    count = max(1, BYTES_TOGETHER // (frames * height * width * 3))
    with scratch.patches((count * frames, height, width, 3)) as arrays:
        for first in range(0, len(items), count):
            group = items[first : first + count]
            yield from decode_items(places, group, arrays[: len(group) * frames], on_bad, frames=frames)


def decode_items(
    places: Sequence[tuple[Source, int]],
    items: Sequence[int],
    outs: list[Pixels],
    on_bad: OnBad,
    *,
    frames: int = 1,
) -> Iterator[Group]:
    """Decode items into an array for each of their patches: as one group, after an error as a group for each item.

    Args:
        places: see decode_groups, as for the others.
        items: in the order in which they are read.
        outs: ``len(items) * frames`` arrays; see Source.read_into.
        on_bad: called for an item in place of yielding it, while the error is handled.
        frames: patches an item.
    """
    try:
        pixels = read_all_into([places[row] for row in rows_of(items, frames)], outs)
    except StoreError as error:
        if len(items) == 1:
            on_bad(items[0], error)
            return
    else:
        yield items, pixels
        return
    for position, item in enumerate(items):
        yield from decode_items(
            places, [item], outs[position * frames : (position + 1) * frames], on_bad, frames=frames
        )


def rows_of(items: Sequence[int], frames: int) -> Sequence[int]:
    """Return the rows that the patches of items have in a batch, item by item."""
    if frames == 1:
        return items
    return [row for item in items for row in range(item * frames, (item + 1) * frames)]


def raise_error(_item: int, error: StoreError) -> None:
    """Raise the error of an item; an OnBad."""
    raise error
