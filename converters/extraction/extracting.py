"""Extraction: split photos into the patches of a new store, new shards of a store, or a chunked folder."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dlas_store.atomic import CONTENT, StagingDirectory, check_outside, check_place, check_report_place, write_json
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.photos import single_threaded
from dlas_store.converters.extraction.plan import ExtractPlan, SkippedPhoto, plan_extraction
from dlas_store.converters.extraction.tiles import tile_photo
from dlas_store.converters.extraction.workers import (
    FolderJob,
    GroupReport,
    PhotoGroup,
    Publisher,
    ShardJob,
    build_images,
    build_shard,
)
from dlas_store.errors import ConfigError, NotASourceError, TargetExistsError, write_errors
from dlas_store.processes import count_workers, run_in_order
from dlas_store.progress import progress_bar
from dlas_store.sources.walk import EXTRA_FILE
from dlas_store.storage.commit import Commit, plan_commit
from dlas_store.storage.index import INDEX_FILE
from dlas_store.storage.store import Store

_SAMPLE_PHOTOS = 8


@dataclass(kw_only=True)
class ExtractSummary:
    """Result of an extraction.

    Attributes:
        images: number of new images; if it is 0, nothing was written.
        patches: number of patches.
        payload_bytes: bytes of patches and references.
        seconds: duration.
        skipped: photos that gave no image.
        present: number of photos that the store had.
        changed: paths of photos that the store had, but whose file has another size now; they were not touched.
    """

    images: int = 0
    patches: int = 0
    payload_bytes: int = 0
    seconds: float = 0.0
    skipped: list[SkippedPhoto] = field(default_factory=list)
    present: int = 0
    changed: list[str] = field(default_factory=list)

    def add(self, group: GroupReport) -> None:
        """Count a group of photos."""
        self.images += group.images
        self.patches += group.patches
        self.payload_bytes += group.payload_bytes
        self.skipped += group.skipped

    def as_dict(self) -> dict[str, Any]:
        """Return the summary in JSON types, with the keys of the report file."""
        return {
            "images": self.images,
            "patches": self.patches,
            "bytes": self.payload_bytes,
            "seconds": self.seconds,
            "skipped": [photo.as_dict() for photo in self.skipped],
            "present": self.present,
            "changed": self.changed,
        }


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Expected result of an extraction.

    Attributes:
        photos: number of photos to extract.
        images: number of images that they give.
        patches: number of patches.
        payload_bytes: estimated bytes of patches and references.
        seconds: estimated duration.
        skipped: photos that are skipped because of their names, headers or masks.
        present: number of photos that the store has.
        changed: paths of photos that the store has, but whose file has another size now.
    """

    photos: int
    images: int
    patches: int
    payload_bytes: int
    seconds: float
    skipped: list[SkippedPhoto]
    present: int
    changed: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the estimate in JSON types."""
        return {
            "photos": self.photos,
            "images": self.images,
            "patches": self.patches,
            "bytes": self.payload_bytes,
            "seconds": self.seconds,
            "skipped": [photo.as_dict() for photo in self.skipped],
            "present": self.present,
            "changed": self.changed,
        }


def extract(
    photos: Path | str,
    dst: Path | str,
    options: ExtractOptions,
    *,
    append: bool = False,
    workers: int | None = None,
    group_size: int | None = None,
    include_hidden: bool = False,
    report: Path | None = None,
) -> ExtractSummary:
    """Split the photos below a folder into the patches of a store, or of the folder that DL-Art-School reads.

    The store or folder gets its name when it is complete. Until then it grows in ``NAME.partial``; the same call
    resumes an interrupted extraction there. The result is the same for any number of workers. A photo that cannot be
    read is skipped and listed.

    Args:
        photos: folder of the photos, at any depth.
        dst: path to write: ``NAME.lmdb`` for a store, any other name for a folder.
        options: options of the extraction.
        append: add photos that the store does not have, in new shards; the store has a photo if it has any image of the
            photo's name.
        workers: number of processes; None starts one per core, 0 works in this process.
        group_size: estimated bytes of tiles of a group of photos, which one worker extracts; in a store a group is a
            shard. None takes a 64th of all tiles, from 1 to 256 MiB.
        include_hidden: extract hidden photos, too; see open_source.
        report: a JSON file that is written once the photos were listed, also if the extraction then fails.

    Raises:
        ConfigError: an option is invalid.
        NotASourceError: the folder is no folder or has no photos, or there is no store to append to.
        TargetExistsError: the store or folder exists, and append is false.
        ImportFailedError: images of several photos would have the same name.
        BusyError: another process writes the store or folder.
        WriteError: the disk is full, or refused a write. (Free space is not checked beforehand, because the estimate of
            the tiles' bytes may be wrong by half, and an interrupted run can be resumed.)
    """
    started = time.monotonic()
    check_report_place(report)
    task = _prepare(
        photos, dst, options, append=append, workers=workers, group_size=group_size, include_hidden=include_hidden
    )
    plan = task.plan
    summary = ExtractSummary(skipped=list(plan.skipped), present=plan.present, changed=plan.changed)
    try:
        plan.check_names()
        if plan.paths:
            (_extract_to_store if task.is_store else _extract_to_folder)(task, options, summary)
        elif task.base is not None:
            Commit.recover(task.dst, task.base.index)
    finally:
        summary.skipped.sort()
        summary.seconds = time.monotonic() - started
        if report is not None:
            write_json(report, summary.as_dict())
    return summary


def estimate(
    photos: Path | str,
    dst: Path | str,
    options: ExtractOptions,
    *,
    append: bool = False,
    workers: int | None = None,
    group_size: int | None = None,
    include_hidden: bool = False,
) -> Estimate:
    """Return the expected result of extract() with the same arguments; writes nothing.

    Extracts up to eight photos, spread over all photos, in memory, and extrapolates by the pixels of photos and tiles.

    Raises:
        StoreError: extract() would raise the same error before it writes.
    """
    task = _prepare(
        photos, dst, options, append=append, workers=workers, group_size=group_size, include_hidden=include_hidden
    )
    plan, expected = task.plan, task.plan.estimate
    plan.check_names()
    costs = _measure_costs(plan, options)
    seconds = (
        expected.photo_pixels * costs.seconds_per_photo_pixel + expected.tile_pixels * costs.seconds_per_tile_pixel
    )
    return Estimate(
        photos=len(plan.paths),
        images=expected.images,
        patches=expected.tiles,
        payload_bytes=round(expected.tile_pixels * costs.bytes_per_tile_pixel),
        seconds=seconds / max(1, task.workers),
        skipped=plan.skipped,
        present=plan.present,
        changed=plan.changed,
    )


class _Task(NamedTuple):
    """An extraction whose arguments were checked.

    Attributes:
        dst: path of the store or folder to write.
        base: the store that is appended to, None for a new store or a folder.
        plan: the photos.
        workers: number of processes; 0 works in this process.
        group_size: estimated bytes of tiles of a group, None for the default.
    """

    dst: Path
    base: Store | None
    plan: ExtractPlan
    workers: int
    group_size: int | None

    @property
    def is_store(self) -> bool:
        """Whether a store is written, otherwise a folder."""
        return _is_store_name(self.dst)

    def group(self, number: int, options: ExtractOptions) -> PhotoGroup:
        """Return a group of photos."""
        return PhotoGroup(self.plan.root, self.plan.photos_of_group(number), options)

    def options_by_flag(self, options: ExtractOptions) -> dict[str, str]:
        """Return the arguments that a rerun must have in common, by their names on the command line."""
        group_size = "default" if self.group_size is None else f"{self.group_size} bytes"
        return {"PHOTOS": str(self.plan.root), "--shard-size": group_size, **options.by_flag}


def _is_store_name(dst: Path) -> bool:
    return dst.suffix == ".lmdb"


def _prepare(
    photos: Path | str,
    dst: Path | str,
    options: ExtractOptions,
    *,
    append: bool,
    workers: int | None,
    group_size: int | None,
    include_hidden: bool,
) -> _Task:
    """Check the arguments of extract() or estimate(), and list the photos; writes nothing."""
    root, dst = Path(photos).expanduser(), Path(dst).expanduser()
    if group_size is not None and group_size < 1:
        raise ConfigError(f"shard size must be at least 1 byte, got {group_size}")
    if workers is not None and workers < 0:
        raise ConfigError(f"workers must be at least 0, got {workers}")
    _check_paths(root, dst, append=append)
    base = _open_base(dst) if append else None
    with progress_bar(None, "listing", unit="photos") as bar:
        plan = plan_extraction(root, options, base=base, group_size=group_size, include_hidden=include_hidden, bar=bar)
    return _Task(dst, base, plan, count_workers(workers, jobs=len(plan.groups)), group_size)


def _check_paths(root: Path, dst: Path, *, append: bool) -> None:
    is_store = _is_store_name(dst)
    if append and not is_store:
        raise ConfigError(f"{dst}: photos can be appended only to a store, whose name ends in .lmdb")
    if not os.path.isdir(root):  # noqa: PTH112 - Path.is_dir raises PermissionError
        problem = "is no folder of photos" if os.path.lexists(root) else "does not exist"
        raise NotASourceError(f"{root}: {problem}")
    if not append and os.path.lexists(dst):  # a broken link, too, would be replaced
        (Commit.recover if is_store else StagingDirectory.recover)(dst)
        advice = "add new photos with --append, " if is_store else "move it away, "
        raise TargetExistsError(f"{dst}: exists; {advice}or choose another name")
    check_place(dst)
    check_outside(dst, root)  # a resumed run would list the tiles among the photos


def _open_base(dst: Path) -> Store:
    if not (dst / INDEX_FILE).is_file():
        raise NotASourceError(f"{dst}: is not a store, so nothing can be appended; omit --append to create a store")
    base = Store(dst)
    if base.layout != "chunked":
        raise NotASourceError(f"{dst}: is a store of whole pictures; append the tiles to a chunked store")
    return base


def _extract_to_store(task: _Task, options: ExtractOptions, summary: ExtractSummary) -> None:
    """Build one shard per group, and publish the store."""
    plan, index = task.plan, task.base.index if task.base else None
    commit_plan = plan_commit(task.dst, "chunked", plan.groups, base=index, options=task.options_by_flag(options))
    with Commit(task.dst, commit_plan, base=index) as commit:
        jobs = (
            ShardJob(commit.folder, header, commit.find_shard(header), task.group(number, options))
            for number, header in enumerate(commit.plan.headers())
        )
        with single_threaded(), progress_bar(plan.estimate.tiles, "extracting") as bar:
            for built in run_in_order(build_shard, jobs, workers=task.workers, bar=bar):
                commit.add(built.shard)
                summary.add(built.report)
        if summary.images:
            commit.publish()
        else:
            commit.discard()


def _extract_to_folder(task: _Task, options: ExtractOptions, summary: ExtractSummary) -> None:
    """Write the images of all groups, and publish the folder."""
    plan = task.plan
    with StagingDirectory(task.dst) as staging:
        staging.record_or_check_plan(
            {"groups": [group.fingerprint for group in plan.groups]}, options=task.options_by_flag(options)
        )
        content = staging.path / CONTENT
        with write_errors(content):
            content.mkdir(exist_ok=True)
        jobs = [FolderJob(staging.path, number, task.group(number, options)) for number in range(len(plan.groups))]
        with single_threaded(), progress_bar(plan.estimate.tiles, "extracting") as bar, Publisher() as publisher:
            for job, report in zip(jobs, run_in_order(build_images, jobs, workers=task.workers, bar=bar), strict=True):
                summary.add(report)
                publisher.add(job, report)
        if not summary.images:
            staging.remove()
            return
        with write_errors(content), (content / EXTRA_FILE).open("wb") as extra:
            for job in jobs:
                with job.extra_file.open("rb") as lines:
                    shutil.copyfileobj(lines, extra)
            extra.flush()
            os.fsync(extra.fileno())
        staging.publish(content)


class _Costs(NamedTuple):
    """Costs of an extraction on this machine."""

    seconds_per_photo_pixel: float
    seconds_per_tile_pixel: float
    bytes_per_tile_pixel: float


def _measure_costs(plan: ExtractPlan, options: ExtractOptions) -> _Costs:
    """Extract up to eight photos in memory and return what a pixel costs."""
    count = min(len(plan.paths), _SAMPLE_PHOTOS)
    decoding_seconds = encoding_seconds = 0.0
    photo_pixels = tile_pixels = tile_bytes = 0
    with single_threaded(), progress_bar(count, "estimating", unit="photos") as bar:
        for number in range(count):
            started = time.perf_counter()
            images = tile_photo(plan.root, plan.paths[number * len(plan.paths) // count], options).images
            decoding_seconds += time.perf_counter() - started
            started = time.perf_counter()
            for image in images:
                tile_bytes += len(image.reference()) + sum(len(tile.data) for tile in image.encoded())
                tile_pixels += options.tile_dimension**2 + sum(tile.size**2 for tile in image.tiles)
                photo_pixels += image.photo_pixels if image is images[0] else 0
            encoding_seconds += time.perf_counter() - started
            if bar is not None:
                bar.update()
    if not tile_pixels:
        return _Costs(0, 0, plan.estimate.tile_bytes / max(1, plan.estimate.tile_pixels))
    return _Costs(decoding_seconds / photo_pixels, encoding_seconds / tile_pixels, tile_bytes / tile_pixels)
