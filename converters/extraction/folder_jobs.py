"""Groups of photos as folders of images: written by worker processes, settled by the one that has started them."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from dlas_store.centers import write_centers
from dlas_store.converters.extraction.groups import GroupReport
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.photos import PixelBuffer
from dlas_store.converters.extraction.plan import Skipped
from dlas_store.converters.extraction.tiles import CutImage, cut_photo
from dlas_store.errors import write_errors
from dlas_store.extra_fields import extra_line
from dlas_store.processes import Progress
from dlas_store.publish import CONTENT, sync_folder, write_file
from dlas_store.source import CENTERS_FILE, REFERENCE_FILE, Image

_BUFFER = PixelBuffer()
"""This process's, which works on one photo at a time."""


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


class Settling:
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
        self._settled = self._thread.submit(_settle, self._built)
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


def _settle(groups: list[tuple[FolderJob, GroupReport]]) -> None:
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
