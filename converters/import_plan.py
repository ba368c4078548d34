"""What an import will do: which images are new, and which shard each goes into."""

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

from dlas_store.commit import PlannedShard
from dlas_store.compare import differences
from dlas_store.converters.cutting import balanced_size, cut
from dlas_store.errors import ImportFailedError, NameNotFoundError
from dlas_store.source import Listing, Source
from dlas_store.store import Store

if TYPE_CHECKING:
    from dlas_store.processes import ProgressBar

MIN_SHARD_SIZE = 16 << 20
MAX_SHARD_SIZE = 1 << 30

_SHARDS_AT_LEAST = 8
_PAGE_BYTES = 4096
_NAMES_IN_MESSAGE = 20


@dataclass
class ImportPlan:
    """The images to import, in order, cut into shards.

    Making one holds about 120 bytes an image and nothing a patch.

    Attributes:
        names: image names.
        origins: for each, the position of its source.
        shards: what each shard will hold; they take the images in order.
        disk_bytes: about what the shards will take.
        changed: names of images that the store has otherwise.
        vanished: names of images that the store has and no source.
    """

    names: list[str] = field(default_factory=list)
    origins: array[int] = field(default_factory=lambda: array("H"))
    shards: list[PlannedShard] = field(default_factory=list)
    disk_bytes: int = 0
    changed: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)

    @property
    def patches(self) -> int:
        """Number of patches to import."""
        return sum(shard.patches for shard in self.shards)

    @property
    def payload_bytes(self) -> int:
        """Bytes of the files to import."""
        return sum(shard.payload_bytes for shard in self.shards)

    def parts(self, shard: int) -> list[tuple[int, list[str]]]:
        """Return what goes into a shard: image names by the position of their source, in order."""
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
        sources: where images come from.
        base: the store that is appended to; images it has are compared, not imported.
        shard_size: bytes of files a shard may hold; one larger image still gets a shard of its own. None takes an
            eighth of all, from MIN_SHARD_SIZE to MAX_SHARD_SIZE.
        images: shell pattern that an image's name must match, None for all.
        compare_bytes: compare images with those of the base byte by byte, else by file names and sizes.
        options: whatever else a rerun must have in common.
        bar: where progress is shown, in images.

    Raises:
        ImportFailedError: several sources have images of one name.
    """
    plan = ImportPlan()
    patches, sizes, digests = array("Q"), array("Q"), array("Q")
    seen_in_base = bytearray(base.image_count if base else 0)
    for origin, source, listing in _select(sources, images, bar):
        number = _find(base, listing.name)
        if base and number is not None:
            seen_in_base[number] = 1
            if not _same(source, listing, base, number, compare_bytes=compare_bytes):
                plan.changed.append(listing.name)
            continue
        plan.names.append(listing.name)
        plan.origins.append(origin)
        plan.disk_bytes += _disk_bytes(listing)
        patches.append(len(listing.files))
        sizes.append(listing.total_bytes)
        digests.append(xxh3_64_intdigest(repr((listing.name, listing.files, listing.sizes.tobytes())).encode()))
    limit = shard_size or balanced_size(sum(sizes), parts=_SHARDS_AT_LEAST, low=MIN_SHARD_SIZE, high=MAX_SHARD_SIZE)
    for start, end in cut(sizes, limit):
        fingerprint = xxh3_128_hexdigest(digests[start:end].tobytes() + options.encode())
        plan.shards.append(PlannedShard(end - start, sum(patches[start:end]), sum(sizes[start:end]), fingerprint))
    if len(sources) > 1:
        _check_unique(plan.names)
    if base:
        names = (base.image(number).name for number, seen in enumerate(seen_in_base) if not seen)
        plan.vanished.extend(name for name in names if images is None or fnmatchcase(name, images))
    return plan


def _select(
    sources: Sequence[Source], images: str | None, bar: ProgressBar | None
) -> Iterator[tuple[int, Source, Listing]]:
    for origin, source in enumerate(sources):
        for listing in source.listings():
            if bar is not None:
                bar.update()
            if images is None or fnmatchcase(listing.name, images):
                yield origin, source, listing


def _find(base: Store | None, name: str) -> int | None:
    try:
        return None if base is None else base.find_image(name)
    except NameNotFoundError:
        return None


def _same(source: Source, listing: Listing, base: Store, number: int, *, compare_bytes: bool) -> bool:
    image = base.image(number)
    if image.files != listing.files or not np.array_equal(base.patch_sizes(number), listing.sizes):
        return False
    if not compare_bytes:
        reference = base.read_reference(number)
        return (None if reference is None else len(reference)) == listing.reference_size
    return next(differences(base, number, source, source.find_image(listing.name)), None) is None


def _check_unique(names: list[str]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        shown = ", ".join(map(repr, twice[:_NAMES_IN_MESSAGE]))
        raise ImportFailedError(
            f"{len(twice)} image names are in more than one source: {shown}; rename them, or pick with --images"
        )


def _disk_bytes(listing: Listing) -> int:
    """Return about what an image takes in a shard: whole pages for what is larger than half of one, tree, metadata."""
    sizes: NDArray[np.int64] = np.append(listing.sizes, listing.reference_size or 0) + 24
    pages = np.where(sizes > _PAGE_BYTES // 2, -(-sizes // _PAGE_BYTES) * _PAGE_BYTES, sizes)
    return int(pages.sum()) + 128 * len(sizes)
