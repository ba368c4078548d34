"""The part of an extraction into a store that runs in worker processes: one group of photos, one shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from dlas_store.commit import SealedShard, read_shard, write_shard
from dlas_store.converters.extraction.fitness import Problem
from dlas_store.converters.extraction.groups import GroupReport
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.photos import PixelBuffer
from dlas_store.converters.extraction.plan import Skipped
from dlas_store.converters.extraction.tiles import cut_photo
from dlas_store.converters.shard_reports import load_report, remove_report, save_report
from dlas_store.processes import Progress
from dlas_store.shard import ShardHeader
from dlas_store.shard_writer import ShardWriter

_BUFFER = PixelBuffer()
"""This process's, which works on one photo at a time."""


class ShardJob(NamedTuple):
    """All that a worker needs to build a shard.

    Attributes:
        folder: the commit's folder.
        header: the shard's header.
        sealed: the shard that an earlier run sealed, if any.
        root: folder of the photos.
        photos: paths of the group's, below it.
        options: of the extraction.
    """

    folder: Path
    header: ShardHeader
    sealed: Path | None
    root: Path
    photos: list[str]
    options: ExtractOptions


class BuiltShard(NamedTuple):
    """A worker's answer."""

    shard: SealedShard
    report: GroupReport


def build_shard(job: ShardJob, progress: Progress) -> BuiltShard:
    """Build a shard, or read the one that an earlier run sealed; holds the pixels of one photo.

    Raises:
        WriteError: the disk refused it.
        StoppedError: the run stops.
    """
    if job.sealed is not None:
        shard = read_shard(job.sealed, check_values=True)
        progress.advance(shard.header.patches, shard.header.payload_bytes)
        return BuiltShard(shard, _report(shard.header, load_report(job.folder, job.header)))
    skipped: list[Skipped] = []

    def fill(writer: ShardWriter) -> None:
        for path in job.photos:
            problem = _add_photo(writer, path, job, progress)
            skipped.extend([] if problem is None else [Skipped(path, *problem)])
        # Before the shard is sealed. Most have nothing to report, and need not wait for the disk once more.
        remove_report(job.folder, job.header)
        if skipped:
            save_report(job.folder, job.header, {"skipped": skipped})

    shard = write_shard(job.folder, job.header, fill)
    return BuiltShard(shard, _report(shard.header, {"skipped": skipped}))


def _add_photo(writer: ShardWriter, path: str, job: ShardJob, progress: Progress) -> Problem | None:
    """Add a photo's images, or return why there are none."""
    images, problem = cut_photo(job.root, path, job.options, _BUFFER)
    for cut in images:
        for tile in cut.encoded():
            writer.add_patch(*tile)
            progress.advance(1, len(tile.data))
        writer.end_image(cut.image, cut.reference())
    return problem


def _report(header: ShardHeader, kept: dict[str, Any] | None) -> GroupReport:
    counts = {"images": header.images, "patches": header.patches, "payload_bytes": header.payload_bytes}
    return GroupReport.from_dict({"skipped": []} | (kept or {}) | counts)
