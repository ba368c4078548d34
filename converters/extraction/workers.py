"""Workers of an extraction: each writes the images of one group of photos, into a shard or into a folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from dlas_store.atomic import CONTENT, sync_folder, write_file
from dlas_store.converters.extraction.headers import Rejection
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.photos import PixelBuffer
from dlas_store.converters.extraction.plan import SkippedPhoto
from dlas_store.converters.extraction.tiles import TiledImage, tile_photo
from dlas_store.converters.sharding import load_report, remove_report, save_report
from dlas_store.errors import write_errors
from dlas_store.processes import Progress
from dlas_store.sources.base import CENTERS_FILE, REFERENCE_FILE
from dlas_store.sources.centers import write_centers
from dlas_store.sources.walk import extra_line
from dlas_store.storage.commit import SealedShard, read_shard, write_shard
from dlas_store.storage.shard import ShardHeader
from dlas_store.storage.shard_writer import ShardWriter

_BUFFER = PixelBuffer()
"""Buffer of this process, which works on one photo at a time."""


class PhotoGroup(NamedTuple):
    """Photos that one worker splits into tiles.

    Attributes:
        root: folder of the photos.
        paths: paths of the group's photos below the folder.
        options: options of the extraction.
    """

    root: Path
    paths: list[str]
    options: ExtractOptions

    def write_images(self, write_image: Callable[[TiledImage], None]) -> list[SkippedPhoto]:
        """Write the images of all photos, and return the photos that gave none; holds the pixels of one photo."""
        skipped = []
        for path in self.paths:
            rejection = self._write_images_of(path, write_image)
            if rejection is not None:
                skipped.append(SkippedPhoto(path, *rejection))
        return skipped

    def _write_images_of(self, path: str, write_image: Callable[[TiledImage], None]) -> Rejection | None:
        """Write the images of one photo; its pixels are freed when the function returns."""
        images, rejection = tile_photo(self.root, path, self.options, _BUFFER)
        for image in images:
            write_image(image)
        return rejection


@dataclass(slots=True)
class GroupReport:
    """Result of a group of photos.

    Attributes:
        images: number of images.
        patches: number of patches.
        payload_bytes: bytes of patches and references.
        skipped: photos of the group that gave no image.
    """

    images: int = 0
    patches: int = 0
    payload_bytes: int = 0
    skipped: list[SkippedPhoto] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the report in JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Return the report that as_dict was called on."""
        return cls(**fields | {"skipped": [SkippedPhoto(*photo) for photo in fields["skipped"]]})


class ShardJob(NamedTuple):
    """All that a worker needs to build a shard.

    Attributes:
        folder: the commit's folder.
        header: the shard's header.
        sealed: the shard that an earlier run sealed, if any.
        group: the photos of the shard.
    """

    folder: Path
    header: ShardHeader
    sealed: Path | None
    group: PhotoGroup


class BuiltShard(NamedTuple):
    """Result of a job that builds a shard."""

    shard: SealedShard
    report: GroupReport


def build_shard(job: ShardJob, progress: Progress) -> BuiltShard:
    """Build a shard, or read the shard that an earlier run sealed; holds the pixels of one photo.

    Raises:
        WriteError: the disk refused a write.
        StoppedError: the run stops.
    """
    if job.sealed is not None:
        shard = read_shard(job.sealed, check_values=True)
        progress.advance(shard.header.patches, shard.header.payload_bytes)
        fields = load_report(job.folder, job.header) or {"skipped": []}
        return _built_shard(shard, [SkippedPhoto(*photo) for photo in fields["skipped"]])
    skipped: list[SkippedPhoto] = []

    def fill(writer: ShardWriter) -> None:
        skipped.extend(job.group.write_images(lambda image: _add_image(writer, image, progress)))
        # Save the report before the shard is sealed. Most shards skip no photo, and save the sync of a report.
        remove_report(job.folder, job.header)
        if skipped:
            save_report(job.folder, job.header, {"skipped": skipped})

    return _built_shard(write_shard(job.folder, job.header, fill), skipped)


def _add_image(writer: ShardWriter, image: TiledImage, progress: Progress) -> None:
    """Add an image to a shard."""
    for tile in image.encoded():
        writer.add_patch(*tile)
        progress.advance(1, len(tile.data))
    writer.end_image(image.image, image.reference())


def _built_shard(shard: SealedShard, skipped: list[SkippedPhoto]) -> BuiltShard:
    header = shard.header
    return BuiltShard(shard, GroupReport(header.images, header.patches, header.payload_bytes, skipped))


class FolderJob(NamedTuple):
    """All that a worker needs to write the images of a group into a folder.

    Attributes:
        staging: the staging directory of the folder; the images go into its CONTENT.
        number: number of the group.
        group: the photos.
    """

    staging: Path
    number: int
    group: PhotoGroup

    @property
    def building(self) -> Path:
        """Folder in which the group's images are written before they are renamed into CONTENT."""
        return self.staging / f"building-{self.number}"

    @property
    def extra_file(self) -> Path:
        """File with the group's lines of metadata.jsonl."""
        return self.staging / f"extra-{self.number}.jsonl"

    @property
    def done_file(self) -> Path:
        """File with the group's report; it exists once the group's images are in CONTENT."""
        return self.staging / f"done-{self.number}.json"


def build_images(job: FolderJob, progress: Progress) -> GroupReport:
    """Write the images of a group beside CONTENT; holds the pixels of one photo.

    A group that an earlier run published is not built again; any other group is built from the start.

    Raises:
        WriteError: the disk refused a write.
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

            def write_image(image: TiledImage) -> None:
                _write_image(job.building / image.image.name, image, report, progress)
                lines.write(extra_line(image.image.name, image.image.extra))

            report.skipped = job.group.write_images(write_image)
    return report


def _write_image(folder: Path, image: TiledImage, report: GroupReport, progress: Progress) -> None:
    """Write an image into a new folder, and count it in the report."""
    folder.mkdir()
    payload_bytes = 0
    for tile in image.encoded():
        (folder / tile.file).write_bytes(tile.data)
        payload_bytes += len(tile.data)
        progress.advance(1, len(tile.data))
    reference = image.reference()
    (folder / REFERENCE_FILE).write_bytes(reference)
    assert image.image.centers is not None
    (folder / CENTERS_FILE).write_bytes(write_centers(image.image.centers))
    report.images += 1
    report.patches += len(image.tiles)
    report.payload_bytes += payload_bytes + len(reference)


class Publisher:
    """Thread that makes groups durable and moves their images into CONTENT; no worker waits for it.

    A sync takes as long for one group as for several. The thread therefore publishes together all groups that were
    built while it published the groups before.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._built: list[tuple[FolderJob, GroupReport]] = []
        self._publishing: Future[None] | None = None

    def add(self, job: FolderJob, report: GroupReport) -> None:
        """Add a group that was built, or that an earlier run published.

        Raises:
            WriteError: the disk refused to publish an earlier group.
        """
        if not job.done_file.exists():
            self._built.append((job, report))
        if self._publishing is None or self._publishing.done():
            self._publish_built()

    def _publish_built(self) -> None:
        self._wait()
        self._publishing = self._thread.submit(_publish_groups, self._built)
        self._built = []

    def _wait(self) -> None:
        if self._publishing is not None:
            self._publishing.result()

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Publish the remaining groups; after an error only finish the groups that are being published."""
        with self._thread:
            if error is None:
                self._publish_built()
                self._wait()


def _publish_groups(groups: list[tuple[FolderJob, GroupReport]]) -> None:
    """Move the images of groups into CONTENT, durably."""
    if not groups:
        return
    content = groups[0][0].staging / CONTENT
    with write_errors(content):
        os.sync()  # before the first rename; one sync for all files, because one per file would take far longer
        for job, _ in groups:
            for image in job.building.iterdir():
                shutil.rmtree(content / image.name, ignore_errors=True)  # of a run that was killed while renaming
                image.rename(content / image.name)
            job.building.rmdir()
        sync_folder(content)
    for job, report in groups:
        write_file(job.done_file, json.dumps(report.as_dict()).encode())
