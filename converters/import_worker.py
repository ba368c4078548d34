"""The part of an import that runs in worker processes: read, check, write one shard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dlas_store.converters.sharding import load_report, save_report
from dlas_store.errors import CentersError, DamagedError, ImageError, ImportFailedError
from dlas_store.images.decode import Size, check_picture
from dlas_store.processes import Progress
from dlas_store.sources.base import (
    CENTERS_FILE,
    REFERENCE_FILE,
    Image,
    PickledSubset,
    Source,
    file_number,
    relative_path,
)
from dlas_store.storage.commit import SealedShard, read_shard, write_shard
from dlas_store.storage.shard import ShardHeader
from dlas_store.storage.shard_writer import ShardWriter

_NOTES_KEPT = 100


class ShardJob(NamedTuple):
    """All that a worker needs to build a shard.

    Attributes:
        folder: the commit's folder.
        header: the shard's header.
        sealed: the shard that an earlier run sealed, if any.
        parts: where its images come from.
        skip_bad: leave bad files out and report them; else they stop the import.
        decode_all: decode every picture to check it.
    """

    folder: Path
    header: ShardHeader
    sealed: Path | None
    parts: list[PickledSubset]
    skip_bad: bool
    decode_all: bool


class Finding(NamedTuple):
    """A file that cannot be imported."""

    path: str
    message: str


@dataclass
class ShardReport:
    """What importing a shard came to.

    Attributes:
        findings: the files that are bad.
        notes: what is odd but kept as it is: one line an image, the first 100.
        note_count: how many there were.
    """

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    note_count: int = 0

    def note(self, message: str) -> None:
        """Count something odd."""
        self.note_count += 1
        if len(self.notes) < _NOTES_KEPT:
            self.notes.append(message)


class BuiltShard(NamedTuple):
    """A worker's answer; without a shard where bad files stopped it."""

    shard: SealedShard | None
    report: ShardReport


def build_shard(job: ShardJob, progress: Progress) -> BuiltShard:
    """Build a shard, or read the one that an earlier run sealed."""
    report = _as_report(load_report(job.folder, job.header))
    if job.sealed is not None and (job.skip_bad or not report.findings):
        shard = read_shard(job.sealed, check_values=True)
        progress.advance(shard.header.patches, shard.header.payload_bytes)
        return BuiltShard(shard, report)
    report = ShardReport()

    def fill(writer: ShardWriter) -> None:
        # To the end of the shard, so that all its bad files are found at once.
        for source, number in _images(job):
            _copy_image(source, number, writer, job, report, progress=progress)
        if report.findings and not job.skip_bad:
            raise ImportFailedError("bad files")
        save_report(job.folder, job.header, asdict(report))

    try:
        return BuiltShard(write_shard(job.folder, job.header, fill), report)
    except ImportFailedError:
        return BuiltShard(None, report)


def _as_report(fields: dict[str, Any] | None) -> ShardReport:
    if fields is None:
        return ShardReport()
    return ShardReport(**fields | {"findings": [Finding(*finding) for finding in fields["findings"]]})


def _images(job: ShardJob) -> Iterator[tuple[Source, int]]:
    for part in job.parts:
        with part.open() as source:
            for name in part.names:
                yield source, source.find_image(name)


def _copy_image(
    source: Source, number: int, writer: ShardWriter, job: ShardJob, report: ShardReport, *, progress: Progress
) -> None:
    """Add an image to the shard, less what is bad; holds one file at a time."""
    findings: list[Finding] = []
    image = _read_image(source, number, findings)
    first = source.first_patch(number)
    for position, file in enumerate(image.files):
        try:
            data = source.read(first + position)
            size = _check_picture(data, source, job)
        except (ImageError, DamagedError) as error:
            findings.append(_finding(source, image.name, file, error))
        else:
            writer.add_patch(file, data, size)
            progress.advance(1, len(data))
    reference = _read_reference(source, number, findings, job)
    report.findings.extend(findings)
    _note_centers(image, report)
    writer.end_image(image, reference)


def _read_image(source: Source, number: int, findings: list[Finding]) -> Image:
    try:
        return source.image(number)
    except CentersError as error:
        image = source.image_without_centers(number)
        findings.append(_finding(source, image.name, CENTERS_FILE, error))
        return image


def _read_reference(source: Source, number: int, findings: list[Finding], job: ShardJob) -> bytes | None:
    try:
        reference = source.read_reference(number)
        if reference is not None:
            _check_picture(reference, source, job)
    except (ImageError, DamagedError) as error:
        findings.append(_finding(source, source.image(number).name, REFERENCE_FILE, error))
        return None
    return reference


def _check_picture(data: bytes, source: Source, job: ShardJob) -> Size:
    return check_picture(data, decode_all=job.decode_all, max_pixels=source.max_pixels, decoder=source.decoder)


def _finding(source: Source, image: str, file: str, error: Exception) -> Finding:
    path = source.path / relative_path(source.layout, image, file)
    return Finding(str(path), str(error).removeprefix(f"{path}: "))


def _note_centers(image: Image, report: ShardReport) -> None:
    if image.centers is None:
        return
    numbers = {file_number(file) for file in image.files}
    without_patch = len(image.centers.keys() - numbers)
    without_center = len(numbers - image.centers.keys())
    if without_patch or without_center:
        report.note(
            f"{image.name}: {CENTERS_FILE} names {without_patch} patches that are not there and lacks "
            f"{without_center} that are; kept as it is"
        )
