"""Import: copy sources into a new store, or into new shards of one.

What an import will do: which images are new, and which shard each goes into.
"""

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
from dlas_store.errors import ImportFailedError, NameNotFoundError
from dlas_store.maintenance.verify import differences
from dlas_store.sources.base import Listing, Source
from dlas_store.storage.commit import PlannedShard
from dlas_store.storage.store import Store

if TYPE_CHECKING:
    from dlas_store.processes import ProgressBar

import os
import time
from pathlib import Path

from dlas_store.atomic import check_free_space
from dlas_store.converters.import_worker import BuiltShard, Finding, ShardJob, build_shard
from dlas_store.errors import ConfigError, NotASourceError, TargetExistsError
from dlas_store.images.decode import MAX_PIXELS
from dlas_store.opening import open_source
from dlas_store.processes import count_workers, progress_bar, run_in_order
from dlas_store.sources.base import Layout, PickledSubset
from dlas_store.sources.folder import FolderSource
from dlas_store.sources.walk import SkippedPath
from dlas_store.storage.commit import Commit, plan_commit
from dlas_store.storage.index import INDEX_FILE

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
    missing_from_source: list[str] = field(default_factory=list)

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
    limit = shard_size or target_shard_size(sum(sizes), parts=_SHARDS_AT_LEAST, low=MIN_SHARD_SIZE, high=MAX_SHARD_SIZE)
    for start, end in split_by_size(sizes, limit):
        fingerprint = xxh3_128_hexdigest(digests[start:end].tobytes() + options.encode())
        plan.shards.append(PlannedShard(end - start, sum(patches[start:end]), sum(sizes[start:end]), fingerprint))
    if len(sources) > 1:
        _check_unique(plan.names)
    if base:
        names = (base.image(number).name for number, seen in enumerate(seen_in_base) if not seen)
        plan.missing_from_source.extend(name for name in names if images is None or fnmatchcase(name, images))
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


_FINDINGS_IN_MESSAGE = 100


@dataclass(kw_only=True)
class ImportSummary:
    """What an import came to.

    Attributes:
        images: number of images that were imported.
        patches: number of patches.
        payload_bytes: bytes of patches and references.
        shards: number of shards that were written.
        seconds: how long it took.
        left_out: what is no part of a source, and why.
        findings: bad files that were skipped.
        notes: what is odd but was kept, the first of each shard.
        note_count: how many notes there were.
        changed: images that the store has otherwise; they were not touched.
        vanished: images that the store has and no source.
    """

    images: int = 0
    patches: int = 0
    payload_bytes: int = 0
    shards: int = 0
    seconds: float = 0.0
    skipped: list[SkippedPath] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    note_count: int = 0
    changed: list[str] = field(default_factory=list)
    missing_from_source: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found that a user should look at."""
        return not (self.findings or self.changed or self.missing_from_source)

    def count(self, built: BuiltShard) -> None:
        """Add a shard."""
        assert built.shard is not None
        header = built.shard.header
        self.images += header.images
        self.patches += header.patches
        self.payload_bytes += header.payload_bytes
        self.shards += 1
        self.findings += built.report.findings
        self.notes += built.report.notes
        self.note_count += built.report.note_count


def import_store(
    sources: Sequence[Path | str | Source],
    store: Path | str,
    *,
    layout: Layout | None = None,
    append: bool = False,
    shard_size: int | None = None,
    workers: int | None = None,
    images: str | None = None,
    skip_bad: bool = False,
    decode_all: bool = False,
    compare_bytes: bool = False,
) -> ImportSummary:
    """Import folders or stores into a store.

    The store appears under its name when it is whole; until then it grows in ``NAME.partial``, from where the same
    call goes on after it was interrupted. The shards are the same for any number of workers.

    Args:
        sources: chunked folders, folders of pictures, or stores, or open sources, which stay open and are read with
            the options that they have; all of one layout.
        store: the store's folder, ``NAME.lmdb``.
        layout: how to read folders; None tells it from their contents.
        append: add images that the store does not have, in new shards; report those that changed or vanished.
        shard_size: bytes of files a shard holds at most (an image larger than that gets one of its own; no shard
            holds more than 8,192 images). None takes 1 GiB, less for a source below 8 GiB, so that several workers
            have something to do.
        workers: number of processes; None takes one a core, 0 works in this process.
        images: shell pattern that image names must match.
        skip_bad: leave bad files out and report them; else they are an error that lists those found so far.
        decode_all: decode every picture to check it.
        compare_bytes: with append, compare by content, not only by names and sizes.

    Raises:
        ConfigError: an option that cannot be.
        NotASourceError: a source that is none, is empty, or of another layout.
        TargetExistsError: the store exists, and append was not asked for.
        ImportFailedError: bad files, names that are there twice, or a source that changed meanwhile.
        BusyError: another process writes the store.
        WriteError: no room.
    """
    started = time.monotonic()
    store = Path(store).expanduser()
    _check_options(store, sources, append=append, shard_size=shard_size, workers=workers)
    opened = [open_source(source, layout) if isinstance(source, str | Path) else source for source in sources]
    base = Store(store) if append else None
    common_layout = _common_layout([*opened, *([base] if base else [])])
    with progress_bar(None, "listing", unit="images") as bar:
        plan = plan_import(
            opened,
            base=base,
            shard_size=shard_size,
            images=images,
            compare_bytes=compare_bytes,
            options=_options_of_shards(common_layout, opened, decode_all=decode_all),
            bar=bar,
        )
    summary = ImportSummary(changed=plan.changed, missing_from_source=plan.missing_from_source)
    for source in opened:
        if isinstance(source, FolderSource):
            summary.skipped += source.skipped
    if plan.names:
        index = base.index if base else None
        with Commit(store, plan_commit(store, common_layout, plan.shards, base=index), base=index) as commit:
            sealed = [commit.find_shard(header) for header in commit.plan.headers()]
            missing = [planned for planned, path in zip(plan.shards, sealed, strict=True) if path is None]
            missing_share = sum(shard.payload_bytes for shard in missing) / max(1, plan.payload_bytes)
            check_free_space(commit.folder, int(plan.disk_bytes * missing_share))
            jobs = _jobs(commit, plan, opened, sealed, skip_bad=skip_bad, decode_all=decode_all)
            _build(commit, plan, jobs, workers=count_workers(workers, jobs=len(sealed)), summary=summary)
    elif base:
        Commit.recover(store, base.index)
    else:
        where = ", ".join(str(source.path) for source in opened)
        raise NotASourceError(f"{where}: holds no image{f' that matches {images!r}' if images else ''}")
    summary.seconds = time.monotonic() - started
    return summary


def _build(commit: Commit, plan: ImportPlan, jobs: Iterator[ShardJob], *, workers: int, summary: ImportSummary) -> None:
    with progress_bar(plan.patches, "importing") as bar:
        for planned, built in zip(plan.shards, run_in_order(build_shard, jobs, workers=workers, bar=bar), strict=True):
            if built.shard is None:
                raise _bad_files(summary.findings + built.report.findings)
            skipped = len(built.report.findings)
            if not planned.patches - skipped <= built.shard.header.patches <= planned.patches:
                raise ImportFailedError(
                    f"{built.shard.header.file_name}: the source changed while it was imported, "
                    f"{built.shard.header.patches} patches where {planned.patches} were listed; run the same command "
                    "again when nothing writes there"
                )
            commit.add(built.shard)
            summary.count(built)
    if not summary.patches:
        raise _bad_files(summary.findings)
    plan.names.clear()  # most of the plan's memory, which the table of names can use
    commit.publish()


def _jobs(
    commit: Commit,
    plan: ImportPlan,
    sources: Sequence[Source],
    sealed: Sequence[Path | None],
    *,
    skip_bad: bool,
    decode_all: bool,
) -> Iterator[ShardJob]:
    """Yield the jobs; made when they are asked for, since each lists its images' names."""
    for number, (header, path) in enumerate(zip(commit.plan.headers(), sealed, strict=True)):
        parts = [PickledSubset.of(sources[origin], names) for origin, names in plan.parts(number)]
        yield ShardJob(commit.folder, header, path, parts, skip_bad=skip_bad, decode_all=decode_all)


def _check_options(
    store: Path, sources: Sequence[Path | str | Source], *, append: bool, shard_size: int | None, workers: int | None
) -> None:
    if store.suffix != ".lmdb":
        raise ConfigError(f"{store}: a store's name ends in .lmdb; use {store.with_name(store.name + '.lmdb')}")
    if append and not (store / INDEX_FILE).is_file():
        raise NotASourceError(f"{store}: is no store to append to; leave --append out to make one")
    if not append and os.path.lexists(store):  # a broken link, too, would be in the way, but only at the end
        Commit.recover(store)
        raise TargetExistsError(f"{store}: exists; add new images with --append, or choose another name")
    if not sources:
        raise ConfigError("no source to import was given")
    if shard_size is not None and shard_size < 1:
        raise ConfigError(f"shard size must be at least 1 byte, got {shard_size}")
    if workers is not None and workers < 0:
        raise ConfigError(f"workers must be at least 0, got {workers}")


def _common_layout(sources: Sequence[Source]) -> Layout:
    layouts = {source.layout for source in sources}
    if len(layouts) > 1:
        named = ", ".join(f"{source.path} is {source.layout}" for source in sources)
        raise NotASourceError(f"one store has one layout, but {named}; import them into stores of their own")
    return layouts.pop()


def _options_of_shards(layout: Layout, sources: Sequence[Source], *, decode_all: bool) -> str:
    """Return the options that a shard of an interrupted run must have been built with to be taken over."""
    limits = {origin: source.max_pixels for origin, source in enumerate(sources) if source.max_pixels != MAX_PIXELS}
    return repr((layout, decode_all, limits) if limits else (layout, decode_all))


def _bad_files(findings: Sequence[Finding]) -> ImportFailedError:
    shown = "; ".join(f"{finding.path}: {finding.message}" for finding in findings[:_FINDINGS_IN_MESSAGE])
    more = f" and {len(findings) - _FINDINGS_IN_MESSAGE} more" if len(findings) > _FINDINGS_IN_MESSAGE else ""
    return ImportFailedError(
        f"{len(findings)} bad files so far: {shown}{more}; mend or remove them, or leave them out with --on-error skip"
    )
