"""Import: copy sources into a new store, or into new shards of one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dlas_store.commit import Commit, plan_commit
from dlas_store.converters.import_plan import ImportPlan, plan_import
from dlas_store.converters.import_shards import BuiltShard, Finding, ShardJob, build_shard
from dlas_store.errors import ConfigError, ImportFailedError, NotASourceError, TargetExistsError
from dlas_store.folder_source import FolderSource
from dlas_store.folder_walk import LeftOut
from dlas_store.index import INDEX_FILE
from dlas_store.opening import open_source
from dlas_store.pixels import MAX_PIXELS
from dlas_store.processes import count_workers, progress_bar, run_in_order
from dlas_store.publish import check_free_space
from dlas_store.source import Layout, PickledSubset, Source
from dlas_store.store import Store

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
    left_out: list[LeftOut] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    note_count: int = 0
    changed: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found that a user should look at."""
        return not (self.findings or self.changed or self.vanished)

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
    summary = ImportSummary(changed=plan.changed, vanished=plan.vanished)
    for source in opened:
        if isinstance(source, FolderSource):
            summary.left_out += source.left_out
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
