"""Shards of a converter: the division of images into shards, and the report that a worker keeps beside each shard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dlas_store.atomic import remove_file, write_file
from dlas_store.storage.shard import ShardHeader

MAX_IMAGES_PER_SHARD = 1 << 13
"""Bounds a worker's memory for its shard to some MB, also if the pictures are tiny."""


def split_by_size(sizes: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """Yield the range of images of each shard: first image and end.

    Shards take the images in order, each as many as fit, at most MAX_IMAGES_PER_SHARD.

    Args:
        sizes: bytes of each image.
        limit: bytes that a shard may hold; a larger image gets a shard of its own.

    >>> list(split_by_size([3, 3, 3, 9, 1], limit=6))
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    start, size_of_shard = 0, 0
    for position, size in enumerate(sizes):
        if position > start and (size_of_shard + size > limit or position - start == MAX_IMAGES_PER_SHARD):
            yield start, position
            start, size_of_shard = position, 0
        size_of_shard += size
    if sizes:
        yield start, len(sizes)


def target_shard_size(total: int, *, min_shards: int, min_size: int, max_size: int) -> int:
    """Return a shard size that keeps several workers busy and does not depend on their number.

    Args:
        total: bytes of all images.
        min_shards: minimum number of shards.
        min_size: minimum bytes of a shard; takes precedence over min_shards.
        max_size: maximum bytes of a shard.
    """
    return min(max(total // min_shards + 1, min_size), max_size)


def save_report(folder: Path, header: ShardHeader, report: dict[str, Any]) -> None:
    """Write the report of a shard, before the shard is sealed; a rerun that finds the sealed shard loads the report.

    Args:
        folder: the folder in which the shard is built.
        header: header of the shard.
        report: JSON types only.

    Raises:
        WriteError: the disk refused the file.
    """
    write_file(_report_file(folder, header), json.dumps(report).encode())


def remove_report(folder: Path, header: ShardHeader) -> None:
    """Remove the report, if there is one, of a shard that is about to be rebuilt.

    Raises:
        WriteError: the disk refused to remove the file.
    """
    remove_file(_report_file(folder, header))


def load_report(folder: Path, header: ShardHeader) -> dict[str, Any] | None:
    """Return the report of a shard, None if the shard has none."""
    path = _report_file(folder, header)
    if not path.exists():
        return None
    report: dict[str, Any] = json.loads(path.read_bytes())
    return report


def _report_file(folder: Path, header: ShardHeader) -> Path:
    return folder / f"{header.file_name}.json"
