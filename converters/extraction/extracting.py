"""Extraction: cut photos up into a new store, new shards of one, or a chunked folder.

What an extraction is asked to do, checked: where photos are, what is written, and the plan.

What an extraction will come to, found without writing anything.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dlas_store.atomic import CONTENT, StagingDirectory, write_json
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.photos import single_threaded
from dlas_store.converters.extraction.plan import ExtractPlan, Skipped, plan_extraction
from dlas_store.converters.extraction.tiles import cut_photo
from dlas_store.converters.extraction.workers import (
    FolderJob,
    GroupReport,
    Publisher,
    ShardJob,
    build_images,
    build_shard,
)
from dlas_store.errors import ConfigError, NotASourceError, TargetExistsError, write_errors
from dlas_store.processes import count_workers, progress_bar, run_in_order
from dlas_store.sources.walk import EXTRA_FILE
from dlas_store.storage.commit import Commit, plan_commit
from dlas_store.storage.index import INDEX_FILE
from dlas_store.storage.store import Store


class Task(NamedTuple):
    """A checked extraction.

    Attributes:
        dst: what is written: a store, by its name, or a folder.
        base: the store that is appended to, None for a new one.
        plan: the photos.
        workers: number of processes; 0 for this one.
    """

    dst: Path
    base: Store | None
    plan: ExtractPlan
    workers: int

    @property
    def is_store(self) -> bool:
        """Whether a store is written."""
        return names_store(self.dst)


def names_store(dst: Path) -> bool:
    """Tell from its name whether a store is written, or else a folder."""
    return dst.suffix == ".lmdb"


def prepare(
    photos: Path | str,
    dst: Path | str,
    options: ExtractOptions,
    *,
    append: bool,
    workers: int | None,
    group_size: int | None,
) -> Task:
    """Check what is asked for and list the photos.

    Args:
        photos: folder of the photos.
        dst: what is written.
        options: of the extraction.
        append: add to the store that is there.
        workers: number of processes; None takes one a core, 0 works in this process.
        group_size: bytes of tiles that a worker makes at a time; see plan_extraction.

    Raises:
        ConfigError, NotASourceError, TargetExistsError: see extract().
    """
    root, dst = Path(photos).expanduser(), Path(dst).expanduser()
    if group_size is not None and group_size < 1:
        raise ConfigError(f"shard size must be at least 1 byte, got {group_size}")
    if workers is not None and workers < 0:
        raise ConfigError(f"workers must be at least 0, got {workers}")
    _check_places(root, dst, append=append)
    base = _open_base(dst) if append else None
    with progress_bar(None, "listing", unit="photos") as bar:
        plan = plan_extraction(root, options, base=base, group_size=group_size, bar=bar)
    return Task(dst, base, plan, count_workers(workers, jobs=len(plan.groups)))


def _check_places(root: Path, dst: Path, *, append: bool) -> None:
    if append and not names_store(dst):
        raise ConfigError(f"{dst}: photos are appended to a store only, whose name ends in .lmdb")
    if not root.is_dir():
        raise NotASourceError(f"{root}: {'is no folder of photos' if root.exists() else 'does not exist'}")
    if not append and os.path.lexists(dst):  # a broken link, too, would be replaced
        (Commit.recover if names_store(dst) else StagingDirectory.recover)(dst)
        more = "add new photos with --append, " if names_store(dst) else "move it away, "
        raise TargetExistsError(f"{dst}: exists; {more}or choose another name")
    # The photos would be listed again with the tiles among them when an interrupted run goes on.
    if not names_store(dst) and dst.absolute().resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"{dst}: lies in the folder of the photos, {root}; choose a place outside of it")


def _open_base(dst: Path) -> Store:
    if not (dst / INDEX_FILE).is_file():
        raise NotASourceError(f"{dst}: is no store to append to; leave --append out to make one")
    base = Store(dst)
    if base.layout != "chunked":
        raise NotASourceError(f"{dst}: is a store of whole pictures; tiles are added to a chunked one only")
    return base


@dataclass(kw_only=True)
class ExtractSummary:
    """What an extraction came to.

    Attributes:
        images: number of images that were cut; where it is 0, nothing was written.
        patches: number of patches.
        payload_bytes: bytes of patches and references.
        seconds: how long it took.
        skipped: photos that gave no image.
        present: number of photos that the store had.
        changed: paths of those of them whose file has another size now; they were not touched.
    """

    images: int = 0
    patches: int = 0
    payload_bytes: int = 0
    seconds: float = 0.0
    skipped: list[Skipped] = field(default_factory=list)
    present: int = 0
    changed: list[str] = field(default_factory=list)

    def count(self, group: GroupReport) -> None:
        """Add a group of photos."""
        self.images += group.images
        self.patches += group.patches
        self.payload_bytes += group.payload_bytes
        self.skipped += group.skipped

    def as_dict(self) -> dict[str, Any]:
        """Return the summary in JSON types, as the report file has it."""
        return {
            "images": self.images,
            "patches": self.patches,
            "bytes": self.payload_bytes,
            "seconds": self.seconds,
            "skipped": [skipped._asdict() for skipped in self.skipped],
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
    report: Path | None = None,
) -> ExtractSummary:
    """Cut the photos below a folder up into a store, or into the folder that DL-Art-School reads.

    What is written appears under its name when it is whole; until then it grows in ``NAME.partial``, from where the
    same call goes on after it was interrupted. It is the same for any number of workers. A photo that cannot be read
    is left out and listed.

    Args:
        photos: folder of the photos, at any depth.
        dst: ``NAME.lmdb`` for a store, any other name for a folder.
        options: how they are cut up.
        append: add photos that the store does not have, in new shards; one is there when any image of its name is.
        workers: number of processes; None takes one a core, 0 works in this process.
        group_size: bytes of tiles that a worker makes at a time, which in a store is a shard; None takes a 64th of all
            as estimated, from 1 to 256 MiB.
        report: a JSON file to write once photos were listed, whatever comes of them.

    Raises:
        ConfigError: an option that cannot be.
        NotASourceError: no folder, one without photos, or nothing to append to.
        TargetExistsError: what is to be written exists, and append was not asked for.
        ImportFailedError: photos that come to one name.
        BusyError: another process writes the same.
        WriteError: no room. (Free space is not checked beforehand: what tiles will take is a guess that may be wrong by
            half, and an interrupted run goes on.)
    """
    started = time.monotonic()
    task = prepare(photos, dst, options, append=append, workers=workers, group_size=group_size)
    plan = task.plan
    summary = ExtractSummary(skipped=list(plan.skipped), present=plan.present, changed=plan.changed)
    try:
        plan.check_names()
        if plan.paths:
            (_into_store if task.is_store else _into_folder)(task, options, summary)
        elif task.base is not None:
            Commit.recover(task.dst, task.base.index)
    finally:
        summary.skipped.sort()
        summary.seconds = time.monotonic() - started
        if report is not None:
            write_json(report, summary.as_dict())
    return summary


def _into_store(task: Task, options: ExtractOptions, summary: ExtractSummary) -> None:
    plan, index = task.plan, task.base.index if task.base else None
    with Commit(task.dst, plan_commit(task.dst, "chunked", plan.groups, base=index), base=index) as commit:
        jobs = (
            ShardJob(commit.folder, header, commit.find_shard(header), plan.root, plan.photos_of(number), options)
            for number, header in enumerate(commit.plan.headers())
        )
        with single_threaded(), progress_bar(plan.expected.tiles, "extracting") as bar:
            for built in run_in_order(build_shard, jobs, workers=task.workers, bar=bar):
                commit.add(built.shard)
                summary.count(built.report)
        if summary.images:
            commit.publish()
        else:
            commit.discard()


def _into_folder(task: Task, options: ExtractOptions, summary: ExtractSummary) -> None:
    plan = task.plan
    with StagingDirectory(task.dst) as staging:
        staging.record_or_check_plan(
            {"groups": [group.fingerprint for group in plan.groups]}, inputs="photos or options"
        )
        content = staging.path / CONTENT
        with write_errors(content):
            content.mkdir(exist_ok=True)
        jobs = [
            FolderJob(staging.path, number, plan.root, plan.photos_of(number), options)
            for number in range(len(plan.groups))
        ]
        with single_threaded(), progress_bar(plan.expected.tiles, "extracting") as bar, Publisher() as settling:
            for job, report in zip(jobs, run_in_order(build_images, jobs, workers=task.workers, bar=bar), strict=True):
                summary.count(report)
                settling.add(job, report)
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


_PHOTOS_TRIED = 8


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What an extraction is expected to come to.

    Attributes:
        photos: number of photos to cut up.
        images: number of images they give.
        patches: number of patches.
        payload_bytes: bytes of patches and references, about.
        seconds: how long it will take, about.
        skipped: photos that are left out, from what their names and headers say.
        present: number of photos that the store has.
        changed: paths of those of them whose file has another size now.
    """

    photos: int
    images: int
    patches: int
    payload_bytes: int
    seconds: float
    skipped: list[Skipped]
    present: int
    changed: list[str]


def estimate(
    photos: Path | str,
    dst: Path | str,
    options: ExtractOptions,
    *,
    append: bool = False,
    workers: int | None = None,
    group_size: int | None = None,
) -> Estimate:
    """Say what extract() of the same arguments would come to.

    Cuts up to eight photos in memory, spread over all of them, and goes on from there by pixels of photos and of tiles.

    Raises:
        StoreError: as extract(), before it writes.
    """
    task = prepare(photos, dst, options, append=append, workers=workers, group_size=group_size)
    plan = task.plan
    plan.check_names()
    tried = _try_some(plan, options)
    expected = plan.expected
    seconds = expected.photo_pixels * tried.seconds_a_photo_pixel + expected.tile_pixels * tried.seconds_a_tile_pixel
    return Estimate(
        photos=len(plan.paths),
        images=expected.images,
        patches=expected.tiles,
        payload_bytes=round(expected.tile_pixels * tried.bytes_a_tile_pixel),
        seconds=seconds / max(1, task.workers),
        skipped=plan.skipped,
        present=plan.present,
        changed=plan.changed,
    )


@dataclass(frozen=True, slots=True)
class _Tried:
    seconds_a_photo_pixel: float
    seconds_a_tile_pixel: float
    bytes_a_tile_pixel: float


def _try_some(plan: ExtractPlan, options: ExtractOptions) -> _Tried:
    count = min(len(plan.paths), _PHOTOS_TRIED)
    decoding = encoding = 0.0
    photo_pixels = tile_pixels = tile_bytes = 0
    with single_threaded(), progress_bar(count, "estimating", unit="photos") as bar:
        for number in range(count):
            started = time.perf_counter()
            images = cut_photo(plan.root, plan.paths[number * len(plan.paths) // count], options).images
            decoding += time.perf_counter() - started
            started = time.perf_counter()
            for cut in images:
                tile_bytes += len(cut.reference()) + sum(len(tile.data) for tile in cut.encoded())
                tile_pixels += options.tile_dimension**2 + sum(tile.size**2 for tile in cut.tiles)
                photo_pixels += cut.photo_pixels if cut is images[0] else 0
            encoding += time.perf_counter() - started
            if bar is not None:
                bar.update()
    if not tile_pixels:
        return _Tried(0, 0, plan.expected.tile_bytes / max(1, plan.expected.tile_pixels))
    return _Tried(decoding / photo_pixels, encoding / tile_pixels, tile_bytes / tile_pixels)
