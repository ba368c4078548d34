"""Groups of photos as folders of images: written by worker processes, settled by the one that has started them.

What a group of photos came to, in a form that lasts until a rerun.

The part of an extraction into a store that runs in worker processes: one group of photos, one shard.
"""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from dlas_store.atomic import CONTENT, sync_folder, write_file
from dlas_store.converters.extraction.headers import Rejection
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.photos import PixelBuffer
from dlas_store.converters.extraction.plan import Skipped
from dlas_store.converters.extraction.tiles import CutImage, cut_photo
from dlas_store.converters.sharding import load_report, remove_report, save_report
from dlas_store.errors import write_errors
from dlas_store.processes import Progress
from dlas_store.sources.base import CENTERS_FILE, REFERENCE_FILE, Image
from dlas_store.sources.centers import write_centers
from dlas_store.sources.walk import extra_line
from dlas_store.storage.commit import SealedShard, read_shard, write_shard
from dlas_store.storage.shard import ShardHeader
from dlas_store.storage.shard_writer import ShardWriter


@dataclass(slots=True)
class GroupReport:
    """What a worker made of a group of photos.

    Attributes:
        images: number of images.
        patches: number of patches.
        payload_bytes: bytes of patches and references.
        skipped: photos of the group that gave no image.
    """

    images: int = 0
    patches: int = 0
    payload_bytes: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def count(self, patches: int, payload_bytes: int) -> None:
        """Add an image."""
        self.images += 1
        self.patches += patches
        self.payload_bytes += payload_bytes

    def as_dict(self) -> dict[str, Any]:
        """Return the report in JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Return the report that as_dict was called on."""
        return cls(**fields | {"skipped": [Skipped(*skipped) for skipped in fields["skipped"]]})


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


def _add_photo(writer: ShardWriter, path: str, job: ShardJob, progress: Progress) -> Rejection | None:
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


class FolderJob(NamedTuple):
    """All that a worker needs to write the images of a group.

    Attributes:
        staging: the folder in which the new one grows; its images go into its CONTENT.
        number: the group's.
        root: folder of the photos.
        photos: paths of the group's, below it.
        options: of the extraction.
    """

    staging: Path
    number: int
    root: Path
    photos: list[str]
    options: ExtractOptions

    @property
    def building(self) -> Path:
        """The folder in which the group's images are written before they have their names."""
        return self.staging / f"building-{self.number}"

    @property
    def extra_file(self) -> Path:
        """Where the group's lines of metadata.jsonl are kept."""
        return self.staging / f"extra-{self.number}.jsonl"

    @property
    def done_file(self) -> Path:
        """What says that the group's images have their names, and what they came to."""
        return self.staging / f"done-{self.number}.json"


def build_images(job: FolderJob, progress: Progress) -> GroupReport:
    """Write the images of a group beside CONTENT; holds the pixels of one photo.

    A group that an earlier run settled is left as it is, any other begun anew.

    Raises:
        WriteError: the disk refused it.
        StoppedError: the run stops.
    """
    if job.done_file.exists():
        report = GroupReport.from_dict(json.loads(job.done_file.read_bytes()))
        progress.advance(report.patches, report.payload_bytes)
        return report
    report = GroupReport()
    with write_errors(job.building):
        shutil.rmtree(job.building, ignore_errors=True)
        job.building.mkdir()
        with job.extra_file.open("w", encoding="utf-8", newline="") as lines:
            for path in job.photos:
                for image in _write_photo(path, job, report, progress):
                    lines.write(extra_line(image.name, image.extra))
    return report


class Publisher:
    """Makes groups durable and moves their images into CONTENT, in a thread of its own.

    Syncing takes long, and as long for one group as for several: it settles what was built while it settled the ones
    before, and no worker waits for it.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._built: list[tuple[FolderJob, GroupReport]] = []
        self._settled: Future[None] | None = None

    def add(self, job: FolderJob, report: GroupReport) -> None:
        """Take a group that was built, or was settled already.

        Raises:
            WriteError: the disk refused those before.
        """
        if not job.done_file.exists():
            self._built.append((job, report))
        if self._settled is None or self._settled.done():
            self._go_on()

    def _go_on(self) -> None:
        self._wait()
        self._settled = self._thread.submit(_publish_groups, self._built)
        self._built = []

    def _wait(self) -> None:
        if self._settled is not None:
            self._settled.result()

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Settle all groups; after an error only those of which it has begun."""
        with self._thread:
            if error is None:
                self._go_on()
                self._wait()


def _publish_groups(groups: list[tuple[FolderJob, GroupReport]]) -> None:
    """Move the images of groups into CONTENT, durably."""
    if not groups:
        return
    content = groups[0][0].staging / CONTENT
    with write_errors(content):
        os.sync()  # before anything has its name; once for all files, each by itself would take far longer
        for job, _ in groups:
            for image in job.building.iterdir():
                shutil.rmtree(content / image.name, ignore_errors=True)  # of a run that was killed while renaming
                image.rename(content / image.name)
            job.building.rmdir()
        sync_folder(content)
    for job, report in groups:
        write_file(job.done_file, json.dumps(report.as_dict()).encode())


def _write_photo(path: str, job: FolderJob, report: GroupReport, progress: Progress) -> list[Image]:
    """Write a photo's images into a folder each, and return them."""
    images, problem = cut_photo(job.root, path, job.options, _BUFFER)
    if problem is not None:
        report.skipped.append(Skipped(path, *problem))
    for cut in images:
        _write_image(job.building / cut.image.name, cut, report, progress)
    return [cut.image for cut in images]


def _write_image(folder: Path, cut: CutImage, report: GroupReport, progress: Progress) -> None:
    folder.mkdir()
    payload_bytes = 0
    for tile in cut.encoded():
        (folder / tile.file).write_bytes(tile.data)
        payload_bytes += len(tile.data)
        progress.advance(1, len(tile.data))
    reference = cut.reference()
    (folder / REFERENCE_FILE).write_bytes(reference)
    assert cut.image.centers is not None
    (folder / CENTERS_FILE).write_bytes(write_centers(cut.image.centers))
    report.count(len(cut.tiles), payload_bytes + len(reference))
