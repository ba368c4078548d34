"""Extraction: cut photos up into a new store, new shards of one, or a chunked folder."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlas_store.commit import Commit, plan_commit
from dlas_store.converters.extraction.folder_jobs import FolderJob, Settling, build_images
from dlas_store.converters.extraction.groups import GroupReport
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.photos import single_threaded
from dlas_store.converters.extraction.plan import Skipped
from dlas_store.converters.extraction.shard_jobs import ShardJob, build_shard
from dlas_store.converters.extraction.task import Task, prepare
from dlas_store.errors import write_errors
from dlas_store.extra_fields import EXTRA_FILE
from dlas_store.processes import progress_bar, run_in_order
from dlas_store.publish import CONTENT, StagingDirectory, write_json


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
        staging.record_or_check_plan({"groups": [group.fingerprint for group in plan.groups]}, what="photos or options")
        content = staging.path / CONTENT
        with write_errors(content):
            content.mkdir(exist_ok=True)
        jobs = [
            FolderJob(staging.path, number, plan.root, plan.photos_of(number), options)
            for number in range(len(plan.groups))
        ]
        with single_threaded(), progress_bar(plan.expected.tiles, "extracting") as bar, Settling() as settling:
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
