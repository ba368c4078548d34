"""Import: copy sources into a new store, or into new shards of a store."""

from __future__ import annotations

import os
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from dlas_store.atomic import check_free_space, check_place
from dlas_store.converters.import_worker import BadFile, BuiltShard, ShardJob, build_shard
from dlas_store.converters.sharding import split_by_size, target_shard_size
from dlas_store.errors import ConfigError, ImportFailedError, NameNotFoundError, NotASourceError, TargetExistsError
from dlas_store.images.decode import MAX_PIXELS
from dlas_store.maintenance.verify import differences
from dlas_store.opening import open_source
from dlas_store.processes import count_workers, run_in_order
from dlas_store.progress import progress_bar
from dlas_store.sources.base import Layout, Listing, PickledSubset, Source
from dlas_store.sources.folder import FolderSource
from dlas_store.sources.walk import SkippedPath
from dlas_store.storage.commit import Commit, PlannedShard, plan_commit
from dlas_store.storage.index import INDEX_FILE
from dlas_store.storage.store import Store

if TYPE_CHECKING:
    from dlas_store.progress import ProgressBar

MIN_SHARD_SIZE = 16 << 20
MAX_SHARD_SIZE = 1 << 30

_MIN_SHARDS = 8
_PAGE_BYTES = 4096
_NAMES_IN_MESSAGE = 20
_FINDINGS_IN_MESSAGE = 100


@dataclass(kw_only=True)
class ImportSummary:
    """Result of an import.

    Attributes:
        images: number of images that were imported.
        patches: number of patches.
        payload_bytes: bytes of patches and references.
        shards: number of shards that were written.
        seconds: duration.
        skipped: paths in the sources that are no images, with reasons.
        findings: bad files that were skipped.
        warnings: oddities that were imported unchanged, the first 100 of each shard.
        warning_count: number of all warnings.
        changed: images that differ between store and source; they were not touched.
        missing_from_source: images of the store that no source has.
    """

    images: int = 0
    patches: int = 0
    payload_bytes: int = 0
    shards: int = 0
    seconds: float = 0.0
    skipped: list[SkippedPath] = field(default_factory=list)
    findings: list[BadFile] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    warning_count: int = 0
    changed: list[str] = field(default_factory=list)
    missing_from_source: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether the import found nothing that a user should look at."""
        return not (self.findings or self.changed or self.missing_from_source)

    def as_dict(self) -> dict[str, Any]:
        """Return the summary in JSON types."""
        return {
            "images": self.images,
            "patches": self.patches,
            "bytes": self.payload_bytes,
            "shards": self.shards,
            "seconds": self.seconds,
            "skipped": [skipped._asdict() for skipped in self.skipped],
            "findings": [finding._asdict() for finding in self.findings],
            "warnings": self.warnings,
            "warning_count": self.warning_count,
            "changed": self.changed,
            "missing_from_source": self.missing_from_source,
        }

    def add(self, built: BuiltShard) -> None:
        """Count a shard."""
        assert built.shard is not None
        header = built.shard.header
        self.images += header.images
        self.patches += header.patches
        self.payload_bytes += header.payload_bytes
        self.shards += 1
        self.findings += built.report.findings
        self.warnings += built.report.warnings
        self.warning_count += built.report.warning_count


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

    The store gets its name when it is complete. Until then it grows in ``NAME.partial``; the same call resumes an
    interrupted import there. The shards are the same for any number of workers.

    Args:
        sources: chunked folders, folders of pictures, stores, or open sources; all of one layout. Open sources stay
            open and are read with their own options.
        store: the store's folder, ``NAME.lmdb``.
        layout: layout of the folders; None detects it from their contents.
        append: add the images that the store lacks, in new shards; report images that changed or are in no source.
        shard_size: maximum bytes of files per shard; a larger image gets a shard of its own, and no shard holds more
            than 8,192 images. None takes 1 GiB, less for sources below 8 GiB, so that several workers are busy.
        workers: number of processes; None starts one per core, 0 works in this process.
        images: shell pattern that image names must match, None for all images.
        skip_bad: skip bad files and report them; otherwise the import stops with an error that lists the bad files.
        decode_all: decode every picture to check it.
        compare_bytes: with append, compare contents, not only names and sizes.

    Raises:
        ConfigError: an option is invalid.
        NotASourceError: a path is not a source, the sources have no image, or their layouts differ.
        TargetExistsError: the store exists, and append is false.
        ImportFailedError: files are bad, a name occurs twice, or a source changed during the import.
        BusyError: another process writes the store.
        WriteError: the disk is full, or refused a write.
    """
    started = time.monotonic()
    store = Path(store).expanduser()
    _check_options(store, sources, append=append, shard_size=shard_size, workers=workers)
    open_sources = [open_source(source, layout) if isinstance(source, str | Path) else source for source in sources]
    base = Store(store) if append else None
    common_layout = _common_layout([*open_sources, *([base] if base else [])])
    with progress_bar(None, "listing", unit="images") as bar:
        plan = plan_import(
            open_sources,
            base=base,
            shard_size=shard_size,
            images=images,
            compare_bytes=compare_bytes,
            options=_shard_options(common_layout, open_sources, decode_all=decode_all),
            bar=bar,
        )
    summary = ImportSummary(changed=plan.changed, missing_from_source=plan.missing_from_source)
    for source in open_sources:
        if isinstance(source, FolderSource):
            summary.skipped += source.skipped
    if plan.names:
        index = base.index if base else None
        options = _options_by_flag(open_sources, images=images, shard_size=shard_size, decode_all=decode_all)
        commit_plan = plan_commit(store, common_layout, plan.shards, base=index, options=options)
        with Commit(store, commit_plan, base=index) as commit:
            sealed_paths = [commit.find_shard(header) for header in commit.plan.headers()]
            sizes = [shard.payload_bytes for shard in plan.shards]
            unsealed_bytes = sum(size for size, path in zip(sizes, sealed_paths, strict=True) if path is None)
            check_free_space(commit.folder, int(plan.disk_bytes * unsealed_bytes / max(1, sum(sizes))))
            jobs = _jobs(commit, plan, open_sources, sealed_paths, skip_bad=skip_bad, decode_all=decode_all)
            _build(commit, plan, jobs, workers=count_workers(workers, jobs=len(sealed_paths)), summary=summary)
    elif base:
        Commit.recover(store, base.index)
    else:
        paths = ", ".join(str(source.path) for source in open_sources)
        raise NotASourceError(f"{paths}: holds no image{f' that matches {images!r}' if images else ''}")
    summary.seconds = time.monotonic() - started
    return summary


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
    # Names are unique in a folder and in a store; in any other source they may not be.
    if len(sources) > 1:
        _check_unique(plan.names, "are in more than one source")
    elif not isinstance(sources[0], FolderSource | Store):
        _check_unique(plan.names, f"occur more than once in {sources[0].path}")
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
        raise ImportFailedError(f"{len(duplicates)} image names {problem}: {shown}; rename them, or pick with --images")


def _disk_bytes(listing: Listing) -> int:
    """Return the estimated bytes of an image in a shard.

    A value takes 24 bytes more for checksum and key, and whole pages if it is then above half a page. Another 128 bytes
    per value cover the tree and the image's metadata.
    """
    sizes: NDArray[np.int64] = np.append(listing.sizes, listing.reference_size or 0) + 24
    pages = np.where(sizes > _PAGE_BYTES // 2, -(-sizes // _PAGE_BYTES) * _PAGE_BYTES, sizes)
    return int(pages.sum()) + 128 * len(sizes)


def _jobs(
    commit: Commit,
    plan: ImportPlan,
    sources: Sequence[Source],
    sealed_paths: Sequence[Path | None],
    *,
    skip_bad: bool,
    decode_all: bool,
) -> Iterator[ShardJob]:
    """Yield the jobs one by one, because the names of all images would take much memory."""
    for number, (header, path) in enumerate(zip(commit.plan.headers(), sealed_paths, strict=True)):
        subsets = [PickledSubset.of(sources[origin], names) for origin, names in plan.names_by_origin(number)]
        yield ShardJob(commit.folder, header, path, subsets, skip_bad=skip_bad, decode_all=decode_all)


def _build(commit: Commit, plan: ImportPlan, jobs: Iterator[ShardJob], *, workers: int, summary: ImportSummary) -> None:
    """Build the shards and publish the store."""
    with progress_bar(sum(planned.patches for planned in plan.shards), "importing") as bar:
        for planned, built in zip(plan.shards, run_in_order(build_shard, jobs, workers=workers, bar=bar), strict=True):
            if built.shard is None:
                raise _bad_files_error(summary.findings + built.report.findings)
            header = built.shard.header
            if not planned.patches - len(built.report.findings) <= header.patches <= planned.patches:
                raise ImportFailedError(
                    f"{header.file_name}: the source changed while it was imported, {header.patches} patches where "
                    f"{planned.patches} were listed; run the same command again when nothing writes there"
                )
            commit.add(built.shard)
            summary.add(built)
    if not summary.patches:
        raise _bad_files_error(summary.findings)
    plan.names.clear()  # they take most of the plan's memory; the index's table of names needs it now
    commit.publish()


def _check_options(
    store: Path, sources: Sequence[Path | str | Source], *, append: bool, shard_size: int | None, workers: int | None
) -> None:
    if store.suffix != ".lmdb":
        raise ConfigError(f"{store}: a store's name ends in .lmdb; use {store.with_name(store.name + '.lmdb')}")
    if append and not (store / INDEX_FILE).is_file():
        raise NotASourceError(f"{store}: is not a store, so nothing can be appended; omit --append to create a store")
    if not append and os.path.lexists(store):  # a broken link, too, would stop the final rename
        Commit.recover(store)
        raise TargetExistsError(f"{store}: exists; add new images with --append, or choose another name")
    check_place(store)
    if not sources:
        raise ConfigError("there is no source to import; name at least one")
    if shard_size is not None and shard_size < 1:
        raise ConfigError(f"shard size must be at least 1 byte, got {shard_size}")
    if workers is not None and workers < 0:
        raise ConfigError(f"workers must be at least 0, got {workers}")


def _common_layout(sources: Sequence[Source]) -> Layout:
    layouts = {source.layout for source in sources}
    if len(layouts) > 1:
        listed = ", ".join(f"{source.path} is {source.layout}" for source in sources)
        raise NotASourceError(f"one store has one layout, but {listed}; import them into stores of their own")
    return layouts.pop()


def _shard_options(layout: Layout, sources: Sequence[Source], *, decode_all: bool) -> str:
    """Return, as text, the options under which a rerun may reuse the shards of an interrupted run."""
    limits = {origin: source.max_pixels for origin, source in enumerate(sources) if source.max_pixels != MAX_PIXELS}
    return repr((layout, decode_all, limits) if limits else (layout, decode_all))


def _options_by_flag(
    sources: Sequence[Source], *, images: str | None, shard_size: int | None, decode_all: bool
) -> dict[str, str]:
    """Return the arguments that a rerun must have in common, by their names on the command line."""
    return {
        "SRC": ", ".join(str(source.path) for source in sources),
        "--layout": sources[0].layout,
        "--images": images or "all",
        "--decode": "on" if decode_all else "off",
        "--shard-size": "default" if shard_size is None else f"{shard_size} bytes",
    }


def _bad_files_error(findings: Sequence[BadFile]) -> ImportFailedError:
    shown = "; ".join(f"{finding.path}: {finding.message}" for finding in findings[:_FINDINGS_IN_MESSAGE])
    more = f" and {len(findings) - _FINDINGS_IN_MESSAGE} more" if len(findings) > _FINDINGS_IN_MESSAGE else ""
    return ImportFailedError(
        f"{len(findings)} bad files so far: {shown}{more}; repair or remove them, or skip them with --on-error skip"
    )
