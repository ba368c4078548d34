"""The part of an extraction into a folder that runs in worker processes: one group of photos, a folder an image."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from dlas_store.centers import write_centers
from dlas_store.converters.extraction.groups import GroupReport
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.photos import PixelBuffer
from dlas_store.converters.extraction.plan import Skipped
from dlas_store.converters.extraction.tiles import CutImage, cut_photo
from dlas_store.errors import write_errors
from dlas_store.extra_fields import extra_line
from dlas_store.folder_source import CENTERS_FILE, REFERENCE_FILE
from dlas_store.metadata import Image
from dlas_store.processes import report_done
from dlas_store.publish import TREE, sync_folder, write_file

_BUFFER = PixelBuffer()
"""This process's, which works on one photo at a time."""


class FolderJob(NamedTuple):
    """All that a worker needs to write the images of a group.

    Attributes:
        partial: the folder in which the new one grows; its images go into its TREE.
        number: the group's.
        root: folder of the photos.
        photos: paths of the group's, below it.
        options: of the extraction.
    """

    partial: Path
    number: int
    root: Path
    photos: list[str]
    options: ExtractOptions

    @property
    def extra_file(self) -> Path:
        """Where the group's lines of metadata.jsonl are kept."""
        return self.partial / f"extra-{self.number}.jsonl"


def build_images(job: FolderJob) -> GroupReport:
    """Write the images of a group beside the tree, then rename each into it; holds the pixels of one photo.

    A group that an earlier run finished is left as it is, any other begun anew.

    Raises:
        WriteError: the disk refused it.
        StoppedError: the run stops.
    """
    done = job.partial / f"done-{job.number}.json"
    if done.exists():
        report = GroupReport.of_json(json.loads(done.read_bytes()))
        report_done(report.patches, report.payload_bytes)
        return report
    report = GroupReport()
    building = job.partial / f"building-{job.number}"
    names, lines = [], []
    with write_errors(building):
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        for path in job.photos:
            for image in _write_photo(building, path, job, report):
                names.append(image.name)
                lines.append(extra_line(image.name, image.extra))
        os.sync()  # before anything has its name; once for all files, each by itself would take far longer
        for name in names:
            shutil.rmtree(job.partial / TREE / name, ignore_errors=True)  # of a run that was killed while renaming
            (building / name).rename(job.partial / TREE / name)
        building.rmdir()
        sync_folder(job.partial / TREE)
    write_file(job.extra_file, "".join(lines).encode())
    write_file(done, json.dumps(report.as_json()).encode())
    return report


def _write_photo(folder: Path, path: str, job: FolderJob, report: GroupReport) -> list[Image]:
    """Write a photo's images into a folder each, and return them."""
    images, problem = cut_photo(job.root, path, job.options, _BUFFER)
    if problem is not None:
        report.skipped.append(Skipped(path, *problem))
    for cut in images:
        _write_image(folder / cut.image.name, cut, report)
    return [cut.image for cut in images]


def _write_image(folder: Path, cut: CutImage, report: GroupReport) -> None:
    folder.mkdir()
    payload_bytes = 0
    for tile in cut.encoded():
        (folder / tile.file).write_bytes(tile.data)
        payload_bytes += len(tile.data)
        report_done(1, len(tile.data))
    reference = cut.reference()
    (folder / REFERENCE_FILE).write_bytes(reference)
    assert cut.image.centers is not None
    (folder / CENTERS_FILE).write_bytes(write_centers(cut.image.centers))
    report.count(len(cut.tiles), payload_bytes + len(reference))
