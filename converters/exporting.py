"""Export: copy a store back into the folder layout, byte for byte."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from dlas_store.centers import write_centers
from dlas_store.converters.export_names import ExportNames, Folding, sort_out
from dlas_store.errors import NotASourceError, TargetExistsError, WriteError, write_errors
from dlas_store.extra_fields import EXTRA_FILE, extra_line
from dlas_store.processes import Progress, count_workers, progress_bar, run_in_order
from dlas_store.publish import CONTENT, StagingDirectory, check_free_space
from dlas_store.source import CENTERS_FILE, REFERENCE_FILE, Image
from dlas_store.store import Store

_IMAGES_A_JOB = 64
_NAME_ERRORS = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ})


class Refused(NamedTuple):
    """An image that was not written, and why."""

    image: str
    reason: str


@dataclass(kw_only=True)
class ExportSummary:
    """What an export came to.

    Attributes:
        images: number of images that were written.
        patches: number of patches.
        payload_bytes: bytes of patches and references.
        seconds: how long it took.
        refused: images that were not written, since their names would leave the folder or the disk refuses them.
    """

    images: int = 0
    patches: int = 0
    payload_bytes: int = 0
    seconds: float = 0.0
    refused: list[Refused] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the summary in JSON types."""
        return {
            "images": self.images,
            "patches": self.patches,
            "bytes": self.payload_bytes,
            "seconds": self.seconds,
            "refused": [refused._asdict() for refused in self.refused],
        }


class _Job(NamedTuple):
    store: Path
    content: Path
    building: Path
    numbers: list[int]


def export_store(
    store: Path | str, folder: Path | str, *, images: str | None = None, workers: int | None = None
) -> ExportSummary:
    """Write a store's images as the folder that DL-Art-School reads.

    The folder appears under its name when it is whole; until then it grows in ``NAME.partial``, from where the same
    call goes on after it was interrupted.

    Args:
        store: the store.
        folder: the folder to write.
        images: shell pattern that image names must match.
        workers: number of processes; None takes one a core, 0 works in this process.

    Raises:
        TargetExistsError: the folder exists.
        NotASourceError: no store, or no image matches.
        DamagedError: a value of the store is not what was written.
        BusyError: another process writes the folder.
        WriteError: no room.
    """
    started = time.monotonic()
    folder = Path(folder).expanduser()
    if os.path.lexists(folder):  # a broken link, too, would be in the way, but only at the end
        StagingDirectory.recover(folder)
        raise TargetExistsError(f"{folder}: exists; choose another name, or move it away")
    with Store(Path(store).expanduser()) as source, StagingDirectory(folder) as staging:
        numbers = _select(source, images)
        check_free_space(staging.path, sum(entry.payload_bytes for entry in source.index.shards.values()))
        plan = {"store_id": source.index.store_id.hex(), "images": images, "count": source.image_count}
        staging.record_or_check_plan(plan, what="stores or images")
        content = staging.path / CONTENT
        with write_errors(content):
            content.mkdir(exist_ok=True)
        names = ExportNames(source.layout, Folding.of(staging.path))
        numbers, refused = sort_out(((number, source.image(number)) for number in numbers), names)
        jobs = [
            _Job(source.path, content, staging.path / f"building-{first}", numbers[first : first + _IMAGES_A_JOB])
            for first in range(0, len(numbers), _IMAGES_A_JOB)
        ]
        summary = ExportSummary(refused=[Refused(*image) for image in refused])
        with progress_bar(sum(map(source.patch_count, numbers)), "exporting") as bar:
            for part in run_in_order(_export, jobs, workers=count_workers(workers, jobs=len(jobs)), bar=bar):
                summary.images += part.images
                summary.patches += part.patches
                summary.payload_bytes += part.payload_bytes
                summary.refused += part.refused
        gone = {image for image, _ in summary.refused[len(refused) :]}  # by the disk, when it was written
        _write_extra_fields(content, source, [number for number in numbers if source.image(number).name not in gone])
        os.sync()
        staging.publish(content)
    summary.seconds = time.monotonic() - started
    return summary


def _select(store: Store, images: str | None) -> list[int]:
    numbers = list(range(store.image_count))
    if images is not None:
        numbers = [number for number in numbers if fnmatchcase(store.image(number).name, images)]
    if not numbers:
        raise NotASourceError(f"{store.path}: holds no image{f' that matches {images!r}' if images else ''}")
    return numbers


def _export(job: _Job, progress: Progress) -> ExportSummary:
    part = ExportSummary()
    with Store(job.store) as store:
        for number in job.numbers:
            image = store.image(number)
            reason = None
            try:
                with write_errors(job.content / image.name):
                    _write_image(store, number, image, job)
            except WriteError as error:
                if error.errno not in _NAME_ERRORS:
                    raise
                reason = f"the file system refuses a name in it ({os.strerror(error.errno)})"
            if reason is None:
                part.images += 1
                part.patches += len(image.files)
                part.payload_bytes += store.payload_bytes(number)
            else:
                part.refused.append(Refused(image.name, reason))
            progress.advance(len(image.files), 0 if reason else store.payload_bytes(number))
    return part


def _write_image(store: Store, number: int, image: Image, job: _Job) -> None:
    """Write an image's files beside CONTENT, then rename them into it in one step; keep those of an earlier run."""
    final = job.content / image.name
    files = dict(_files(store, number, image))
    if all(_is_whole(final / file, read) for file, read in files.items()):
        return
    _remove(job.building)
    _remove(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    for file, read in files.items():
        path = job.building / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(read())
    job.building.rename(final)


def _is_whole(path: Path, read: Callable[[], bytes]) -> bool:
    """Return whether an earlier run wrote a file; it may have lost power before the disk had all of it."""
    return path.is_file() and path.read_bytes() == read()


def _files(store: Store, number: int, image: Image) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the files of an image: their paths below it ("" for a picture, which is its own file), and their bytes."""
    first = store.first_patch(number)
    for position, file in enumerate(image.files):
        yield file if store.layout == "chunked" else "", partial(store.read, first + position)
    if image.has_reference:
        yield REFERENCE_FILE, partial(_read_reference, store, number)
    if image.centers is not None:
        yield CENTERS_FILE, partial(write_centers, image.centers)


def _read_reference(store: Store, number: int) -> bytes:
    reference = store.read_reference(number)
    assert reference is not None
    return reference


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_extra_fields(content: Path, store: Store, numbers: Sequence[int]) -> None:
    """Write what the layout has no file for, one line for each image that has some."""
    images = (store.image(number) for number in numbers)
    lines = (extra_line(image.name, image.extra) for image in images if image.extra)
    first = next(lines, None)
    if first is not None:
        with write_errors(content / EXTRA_FILE), (content / EXTRA_FILE).open("w", encoding="utf-8") as file:
            file.writelines(chain([first], lines))
