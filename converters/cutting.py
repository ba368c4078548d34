"""Cutting a long row of images into groups that a worker takes as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

MAX_IMAGES_A_GROUP = 1 << 13
"""So that what a worker holds of its group is bounded for tiny pictures as well, some MB."""


def cut(sizes: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """Yield first image and end of each group: images in order, as many as fit, at most MAX_IMAGES_A_GROUP.

    Args:
        sizes: bytes of each image.
        limit: bytes that a group may hold; one larger image still gets a group of its own.

    >>> list(cut([3, 3, 3, 9, 1], limit=6))
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    start, filled = 0, 0
    for position, size in enumerate(sizes):
        if position > start and (filled + size > limit or position - start == MAX_IMAGES_A_GROUP):
            yield start, position
            start, filled = position, 0
        filled += size
    if sizes:
        yield start, len(sizes)


def balanced_size(total: int, *, parts: int, low: int, high: int) -> int:
    """Return a group size that gives several workers something to do, and does not depend on their number.

    Args:
        total: bytes of all images.
        parts: how many groups that should make at least.
        low: least bytes of a group; comes before the number of parts.
        high: most bytes of a group.
    """
    return min(max(total // parts + 1, low), high)
