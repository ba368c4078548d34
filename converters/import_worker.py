"""Worker of an import: read, check and write the images of one shard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dlas_store.converters.import_report import BadFile, ShardReport
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
from dlas_store.storage.records import MAX_PAYLOAD_BYTES
from dlas_store.storage.shard import ShardHeader
from dlas_store.storage.shard_writer import ShardWriter


class ShardJob(NamedTuple):
    """All that a worker needs to build a shard.

    Attributes:
        folder: the commit's folder.
        header: the shard's header.
        sealed: the shard that an earlier run sealed, if any.
        subsets: the images of the shard, by source.
        skip_bad: skip bad files and report them; otherwise they stop the import.
        decode_all: decode every picture to check it.
    """

    folder: Path
    header: ShardHeader
    sealed: Path | None
    subsets: list[PickledSubset]
    skip_bad: bool
    decode_all: bool


class BuiltShard(NamedTuple):
    """Result of a job; ``shard`` is None if bad files stopped the import."""

    shard: SealedShard | None
    report: ShardReport


def build_shard(job: ShardJob, progress: Progress) -> BuiltShard:
    """Build a shard, or read the shard that an earlier run sealed."""
    fields = load_report(job.folder, job.header)
    report = ShardReport() if fields is None else ShardReport.from_dict(fields)
    if job.sealed is not None and (job.skip_bad or not report.findings):
        shard = read_shard(job.sealed, check_values=True)
        progress.advance(shard.header.patches, shard.header.payload_bytes)
        return BuiltShard(shard, report)
    report = ShardReport()

    def fill(writer: ShardWriter) -> None:
        # Bad files stop the import only at the end of the shard, so that all of its bad files are reported at once.
        for source, number in _images(job):
            _copy_image(source, number, writer, job, report, progress=progress)
        if report.findings and not job.skip_bad:
            raise ImportFailedError("bad files")
        save_report(job.folder, job.header, report.as_dict())

    try:
        return BuiltShard(write_shard(job.folder, job.header, fill), report)
    except ImportFailedError:
        return BuiltShard(None, report)


def _images(job: ShardJob) -> Iterator[tuple[Source, int]]:
    """Yield source and number of each image."""
    for subset in job.subsets:
        with subset.open() as source:
            for name in subset.names:
                yield source, source.find_image(name)


def _copy_image(
    source: Source, number: int, writer: ShardWriter, job: ShardJob, report: ShardReport, *, progress: Progress
) -> None:
    """Add an image to the shard, without its bad files; hold the bytes of one file at a time."""
    findings: list[BadFile] = []
    image = _read_image(source, number, findings)
    first = source.first_patch(number)
    for position, file in enumerate(image.files):
        try:
            data = source.read(first + position)
            size = _check_picture(data, source, job)
        except (ImageError, DamagedError) as error:
            findings.append(_bad_file(source, image.name, file, error))
        else:
            writer.add_patch(file, data, size)
            progress.advance(1, len(data))
    reference = _read_reference(source, number, findings, job)
    report.findings.extend(findings)
    _check_centers(image, report)
    writer.end_image(image, reference)


def _read_image(source: Source, number: int, findings: list[BadFile]) -> Image:
    """Return an image; without centers if its centers.pt is bad."""
    try:
        return source.image(number)
    except CentersError as error:
        image = source.image_without_centers(number)
        findings.append(_bad_file(source, image.name, CENTERS_FILE, error))
        return image


def _read_reference(source: Source, number: int, findings: list[BadFile], job: ShardJob) -> bytes | None:
    """Return an image's reference, None if it has none or a bad one."""
    try:
        reference = source.read_reference(number)
        if reference is not None:
            _check_picture(reference, source, job)
    except (ImageError, DamagedError) as error:
        findings.append(_bad_file(source, source.image(number).name, REFERENCE_FILE, error))
        return None
    return reference


def _check_picture(data: bytes, source: Source, job: ShardJob) -> Size:
    if len(data) > MAX_PAYLOAD_BYTES:
        raise ImageError(f"the file has {len(data)} bytes, a store holds at most {MAX_PAYLOAD_BYTES} bytes of a file")
    return check_picture(data, decode_all=job.decode_all, max_pixels=source.max_pixels, decoder=source.decoder)


def _bad_file(source: Source, image: str, file: str, error: Exception) -> BadFile:
    path = source.path / relative_path(source.layout, image, file)
    return BadFile(str(path), str(error).removeprefix(f"{path}: "))


def _check_centers(image: Image, report: ShardReport) -> None:
    """Warn if an image's centers do not match its patches."""
    if image.centers is None:
        return
    numbers = {file_number(file) for file in image.files}
    without_patch = len(image.centers.keys() - numbers)
    without_center = len(numbers - image.centers.keys())
    if without_patch or without_center:
        report.warn(
            f"{image.name}: {CENTERS_FILE} names {without_patch} missing patches and lacks {without_center} existing "
            "ones; imported unchanged"
        )
