"""Cutting a long row of images into groups that a worker takes as a whole.

What a worker has to say of a shard, kept beside it, so that a rerun that finds the shard sealed can say it again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dlas_store.atomic import remove_file, write_file
from dlas_store.storage.shard import ShardHeader

MAX_IMAGES_A_GROUP = 1 << 13
"""So that what a worker holds of its group is bounded for tiny pictures as well, some MB."""


def split_by_size(sizes: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """Yield first image and end of each group: images in order, as many as fit, at most MAX_IMAGES_A_GROUP.

    Args:
        sizes: bytes of each image.
        limit: bytes that a group may hold; one larger image still gets a group of its own.

    >>> list(split_by_size([3, 3, 3, 9, 1], limit=6))
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


def target_shard_size(total: int, *, parts: int, low: int, high: int) -> int:
    """Return a group size that gives several workers something to do, and does not depend on their number.

    Args:
        total: bytes of all images.
        parts: how many groups that should make at least.
        low: least bytes of a group; comes before the number of parts.
        high: most bytes of a group.
    """
    return min(max(total // parts + 1, low), high)


def save_report(folder: Path, header: ShardHeader, report: dict[str, Any]) -> None:
    """Write the report of a shard; comes before the shard is sealed.

    Args:
        folder: where the shard is built.
        header: the shard's.
        report: JSON types only.

    Raises:
        WriteError: the disk refused it.
    """
    write_file(_report_file(folder, header), json.dumps(report).encode())


def remove_report(folder: Path, header: ShardHeader) -> None:
    """Remove the report of a shard that is about to be built anew, if there is one.

    Raises:
        WriteError: the disk refused it.
    """
    remove_file(_report_file(folder, header))


def load_report(folder: Path, header: ShardHeader) -> dict[str, Any] | None:
    """Return the report of a shard, None where there is none yet."""
    path = _report_file(folder, header)
    if not path.exists():
        return None
    report: dict[str, Any] = json.loads(path.read_bytes())
    return report


def _report_file(folder: Path, header: ShardHeader) -> Path:
    return folder / f"{header.file_name}.json"
