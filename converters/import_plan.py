"""Plan of an import: the images of all sources, compared with the store, and their division into shards."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from dlas_store.converters.sharding import split_by_size, target_shard_size
from dlas_store.errors import ImportFailedError, NameNotFoundError, counted
from dlas_store.maintenance.verify import differences
from dlas_store.sources.base import Listing, Source
from dlas_store.sources.folder import FolderSource
from dlas_store.sources.records import RecordSource
from dlas_store.storage.commit import PlannedShard
from dlas_store.storage.records import MAX_PAYLOAD_BYTES
from dlas_store.storage.store import Store

if TYPE_CHECKING:
    from dlas_store.progress import ProgressBar

MIN_SHARD_SIZE = 16 << 20
MAX_SHARD_SIZE = 1 << 30

_MIN_SHARDS = 8
_PAGE_BYTES = 4096
_NAMES_IN_MESSAGE = 20


@dataclass
class ImportPlan:
    """Images to import, in order, and their division into shards.

    Planning holds about 120 bytes per image and nothing per patch.

    Attributes:
        names: image names.
        origins: position of each image's source among the sources.
        shards: expected content of each shard; shards take the images in order.
        disk_bytes: estimated size of the shards on disk.
        changed: names of images that differ between store and source.
        missing_from_source: names of images of the store that no source has.
    """

    names: list[str] = field(default_factory=list)
    origins: array[int] = field(default_factory=lambda: array("H"))
    shards: list[PlannedShard] = field(default_factory=list)
    disk_bytes: int = 0
    changed: list[str] = field(default_factory=list)
    missing_from_source: list[str] = field(default_factory=list)

    def names_by_origin(self, shard: int) -> list[tuple[int, list[str]]]:
        """Return the images of a shard, in order: position of their source, and their names."""
        start = sum(planned.images for planned in self.shards[:shard])
        positions = range(start, start + self.shards[shard].images)
        groups = groupby(positions, key=self.origins.__getitem__)
        return [(origin, [self.names[position] for position in group]) for origin, group in groups]


def plan_import(
    sources: Sequence[Source],
    *,
    base: Store | None,
    shard_size: int | None,
    images: str | None,
    compare_bytes: bool,
    options: str,
    bar: ProgressBar | None = None,
) -> ImportPlan:
    """List all sources and plan the import.

    Args:
        sources: the open sources.
        base: the store that is appended to, None for a new store; its images are compared, not imported.
        shard_size: maximum bytes of files per shard; a larger image gets a shard of its own. None takes an eighth of
            all bytes, from MIN_SHARD_SIZE to MAX_SHARD_SIZE.
        images: shell pattern that image names must match, None for all images.
        compare_bytes: compare images with the base byte by byte; otherwise by file names and sizes.
        options: further options that a rerun must have in common, as text.
        bar: progress bar that counts images.

    Raises:
        ImportFailedError: several images have the same name.
    """
    plan = ImportPlan()
    patches, sizes, digests = array("Q"), array("Q"), array("Q")
    seen_in_base = bytearray(base.image_count if base else 0)
    for origin, source, listing in _matching_images(sources, images, bar):
        number = _find_image(base, listing.name)
        if base and number is not None:
            seen_in_base[number] = 1
            if not _is_same_image(source, listing, base, number, compare_bytes=compare_bytes):
                plan.changed.append(listing.name)
            continue
        plan.names.append(listing.name)
        plan.origins.append(origin)
        plan.disk_bytes += _disk_bytes(listing)
        patches.append(len(listing.files))
        sizes.append(listing.total_bytes)
        digests.append(xxh3_64_intdigest(repr((listing.name, listing.files, listing.sizes.tobytes())).encode()))
    limit = shard_size or target_shard_size(
        sum(sizes), min_shards=_MIN_SHARDS, min_size=MIN_SHARD_SIZE, max_size=MAX_SHARD_SIZE
    )
    for start, end in split_by_size(sizes, limit):
        fingerprint = xxh3_128_hexdigest(digests[start:end].tobytes() + options.encode())
        plan.shards.append(PlannedShard(end - start, sum(patches[start:end]), sum(sizes[start:end]), fingerprint))
    # Names are unique in a folder, an archive and a store; in any other source they may not be.
    if len(sources) > 1:
        _check_unique(plan.names, "in more than one source")
    elif not isinstance(sources[0], FolderSource | RecordSource | Store):
        _check_unique(plan.names, f"more than once in {sources[0].path}")
    if base:
        names = (base.image(number).name for number, is_seen in enumerate(seen_in_base) if not is_seen)
        plan.missing_from_source.extend(name for name in names if images is None or fnmatchcase(name, images))
    return plan


def _matching_images(
    sources: Sequence[Source], pattern: str | None, bar: ProgressBar | None
) -> Iterator[tuple[int, Source, Listing]]:
    """Yield the images whose names match a shell pattern: position of the source, source, and listing."""
    for origin, source in enumerate(sources):
        for listing in source.listings():
            if bar is not None:
                bar.update()
            if pattern is None or fnmatchcase(listing.name, pattern):
                yield origin, source, listing


def _find_image(base: Store | None, name: str) -> int | None:
    try:
        return None if base is None else base.find_image(name)
    except NameNotFoundError:
        return None


def _is_same_image(source: Source, listing: Listing, base: Store, number: int, *, compare_bytes: bool) -> bool:
    image = base.image(number)
    if image.files != listing.files or not np.array_equal(base.patch_sizes(number), listing.sizes):
        return False
    if not compare_bytes:
        reference = base.read_reference(number)
        return (None if reference is None else len(reference)) == listing.reference_size
    return next(differences(base, number, source, source.find_image(listing.name)), None) is None


def _check_unique(names: list[str], problem: str) -> None:
    """Raise ImportFailedError if names are not unique: the second image of a name could not be found."""
    duplicates = sorted(name for name, count in Counter(names).items() if count > 1)
    if duplicates:
        shown = ", ".join(map(repr, duplicates[:_NAMES_IN_MESSAGE]))
        found = f"found {counted(len(duplicates), 'image name')} {problem}: {shown}"
        raise ImportFailedError(f"{found}; rename the images, or pick with --images")


def _disk_bytes(listing: Listing) -> int:
    """Return the estimated bytes of an image in a shard.

    A value takes 24 bytes more for checksum and key, and whole pages if it is then above half a page. Another 128 bytes
    per value cover the tree and the image's metadata. A file that is too large for a value is refused and takes none.
    """
    files = np.append(listing.sizes, listing.reference_size or 0)
    sizes: NDArray[np.int64] = np.where(files > MAX_PAYLOAD_BYTES, 0, files) + 24
    pages = np.where(sizes > _PAGE_BYTES // 2, -(-sizes // _PAGE_BYTES) * _PAGE_BYTES, sizes)
    return int(pages.sum()) + 128 * len(sizes)
