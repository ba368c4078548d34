"""Import: copy sources into a new store, or into new shards of a store."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dlas_store.atomic import check_free_space, check_outside, check_place, check_report_place, write_json
from dlas_store.converters.import_plan import ImportPlan, plan_import
from dlas_store.converters.import_report import ImportSummary, list_bad_files
from dlas_store.converters.import_worker import ShardJob, build_shard
from dlas_store.errors import ConfigError, ImportFailedError, NotASourceError, TargetExistsError, counted
from dlas_store.images.decode import MAX_PIXELS
from dlas_store.opening import open_source
from dlas_store.processes import count_workers, run_in_order
from dlas_store.progress import progress_bar
from dlas_store.sources.base import Layout, PickledSubset, Source
from dlas_store.sources.folder import FolderSource
from dlas_store.sources.walk import SkippedPath
from dlas_store.storage.commit import Commit, plan_commit
from dlas_store.storage.index import INDEX_FILE
from dlas_store.storage.store import Store


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
    include_hidden: bool = False,
    report: Path | None = None,
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
        include_hidden: import hidden files of folders, too; see open_source.
        report: a JSON file that is written once the sources were listed, also if the import then fails.

    Raises:
        ConfigError: an option is invalid.
        StoreError: the store would lie in a source.
        NotASourceError: a path is not a source, the sources have no image, or their layouts differ.
        TargetExistsError: the store exists, and append is false.
        ImportFailedError: files are bad (with skip_bad: all of them), a name occurs twice, or a source changed during
            the import.
        BusyError: another process writes the store.
        WriteError: the disk is full, or refused a write.
    """
    started = time.monotonic()
    store = Path(store).expanduser()
    check_report_place(report)
    _check_options(store, sources, append=append, shard_size=shard_size, workers=workers)
    open_sources = [
        open_source(source, layout, include_hidden=include_hidden) if isinstance(source, str | Path) else source
        for source in sources
    ]
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
    summary.skipped = _skipped_paths(open_sources)
    try:
        if plan.names:
            index = base.index if base else None
            options = _options_by_flag(
                open_sources,
                images=images,
                shard_size=shard_size,
                decode_all=decode_all,
                include_hidden=include_hidden,
            )
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
            raise NotASourceError(f"{paths}: holds no image{f' that matches {images!r}' if images is not None else ''}")
    finally:
        summary.seconds = time.monotonic() - started
        if report is not None:
            write_json(report, summary.as_dict())
    return summary


def _skipped_paths(sources: Sequence[Source]) -> list[SkippedPath]:
    return [
        SkippedPath(f"{source.path}/{path}" if len(sources) > 1 else path, reason)
        for source in sources
        for path, reason in source.skipped
    ]


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
                summary.findings += built.report.findings
                bad_files = counted(len(summary.findings), "bad file")
                raise ImportFailedError(
                    f"{bad_files} so far: {list_bad_files(summary.findings)}; repair or remove them, or skip them with "
                    "--on-error skip"
                )
            header = built.shard.header
            if not planned.patches - len(built.report.findings) <= header.patches <= planned.patches:
                raise ImportFailedError(
                    f"{header.file_name}: the source changed while it was imported, it has "
                    f"{counted(header.patches, 'patch')} and was listed with {planned.patches:,}; run the same command "
                    "again when nothing writes there"
                )
            commit.add(built.shard)
            summary.add(header, built.report)
    if not summary.patches:
        commit.discard()
        raise ImportFailedError(
            f"nothing is left to import, and nothing was written: {counted(len(summary.findings), 'bad file')}: "
            f"{list_bad_files(summary.findings)}; repair them, or choose another source"
        )
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
    for source in sources:
        if not isinstance(source, Source):
            check_outside(store, Path(source).expanduser())
        elif isinstance(source, FolderSource | Store):  # any other source reads single files, and may lie beside them
            check_outside(store, source.path)
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
    sources: Sequence[Source], *, images: str | None, shard_size: int | None, decode_all: bool, include_hidden: bool
) -> dict[str, str]:
    """Return the arguments that a rerun must have in common, by their names on the command line."""
    return {
        "SRC": ", ".join(str(source.path) for source in sources),
        "--layout": sources[0].layout,
        "--images": "all" if images is None else images,
        "--decode": "on" if decode_all else "off",
        "--include-hidden": "on" if include_hidden else "off",
        "--shard-size": "default" if shard_size is None else f"{shard_size} bytes",
    }
