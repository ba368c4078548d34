"""Export: copy a store back into the folder layout, byte for byte.

Which images of a store can be written below a folder by their names, and why the others cannot.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from dlas_store.atomic import CONTENT, StagingDirectory, check_free_space
from dlas_store.errors import NotASourceError, TargetExistsError, WriteError, write_errors
from dlas_store.processes import Progress, count_workers, progress_bar, run_in_order
from dlas_store.sources.base import CENTERS_FILE, REFERENCE_FILE, Image, Layout
from dlas_store.sources.centers import write_centers
from dlas_store.sources.walk import EXTRA_FILE, extra_line
from dlas_store.storage.store import Store

_SEPARATORS = frozenset({"/", "\0", os.sep, os.altsep or os.sep})
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
_WINDOWS_SEPARATORS = frozenset(r'\/:*?"<>|')


class Folding(NamedTuple):
    """Which names a file system takes for the same.

    Attributes:
        case: those that differ in case only.
        form: those that differ in their Unicode form only.
        end: those that differ in dots or spaces at their end only.
    """

    case: bool
    form: bool
    end: bool

    @classmethod
    def of(cls, folder: Path) -> Folding:
        """Find out by a file in a folder, which is removed again.

        Raises:
            WriteError: no file can be created there.
        """
        name = "Probe-\u00c9"
        with write_errors(folder / name):
            (folder / name).touch()
            variants = (name.lower(), unicodedata.normalize("NFD", name), name + ".")
            found = cls(*((folder / variant).exists() for variant in variants))
            (folder / name).unlink()
        return found

    def key(self, path: str) -> str:
        """Return what is the same for all paths that the file system takes for the same."""
        if self.form:
            path = unicodedata.normalize("NFC", path)
        if self.case:
            path = path.casefold()
        if self.end:
            path = "/".join(part.rstrip(". ") for part in path.split("/"))
        return path


class ExportNames:
    """Tells which images can be written, asked in the order of the store.

    Of two images, or files of one, that would be the same file, the first is written.

    Args:
        layout: that of the store.
        folding: that of the file system.
        windows: whether names must be such as Windows can hold.
    """

    def __init__(self, layout: Layout, folding: Folding, *, windows: bool = os.name == "nt") -> None:
        self._layout = layout
        self._folding = folding
        self._windows = windows
        self._files: set[str] = set()
        self._folders: dict[str, str] = {}

    def why_refused(self, image: Image) -> str | None:
        """Return why an image cannot be written below the folder, None where it can."""
        parts = image.name.split("/") if self._layout == "pictures" else [image.name]
        files = image.files if self._layout == "chunked" else ()
        for name in [*parts, *files]:
            if name in ("", ".", "..") or _SEPARATORS.intersection(name):
                return f"{name!r} is no file name"
            if self._windows and not _is_windows_name(name):
                return f"{name!r} is no file name on Windows"
        if self._folding.key(parts[0]) == self._folding.key(EXTRA_FILE):
            return f"{EXTRA_FILE} is the name of the file for further fields"
        own = [REFERENCE_FILE, CENTERS_FILE]
        taken = set(map(self._folding.key, own))
        for file in files:
            if self._folding.key(file) in taken:
                same = next(other for other in [*own, *files] if self._folding.key(other) == self._folding.key(file))
                return f"{file!r} would be the same file as {same!r}"
            taken.add(self._folding.key(file))
        return self._why_in_the_way(parts)

    def _why_in_the_way(self, parts: list[str]) -> str | None:
        """Return what of an earlier image is in the way of a name; keep the name where that is nothing."""
        folders = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
        name = "/".join(parts)
        for folder in folders:
            key = self._folding.key(folder)
            if key in self._files:
                return f"its folder {folder!r} is the file of another image"
            if self._folders.get(key, folder) != folder:
                return f"its folder {folder!r} would be the same as {self._folders[key]!r}"
        key = self._folding.key(name)
        if key in self._files or key in self._folders:
            return "another image has the same name on that file system, or a folder of that name"
        self._files.add(key)
        self._folders.update((self._folding.key(folder), folder) for folder in folders)
        return None


def _is_windows_name(name: str) -> bool:
    is_reserved = _WINDOWS_DEVICES.fullmatch(name) or name.endswith((".", " "))
    return not (is_reserved or _WINDOWS_SEPARATORS.intersection(name) or any(ord(each) < 32 for each in name))


def sort_out(images: Iterable[tuple[int, Image]], names: ExportNames) -> tuple[list[int], list[tuple[str, str]]]:
    """Return the numbers of the images that can be written, and name and reason of the others."""
    numbers: list[int] = []
    refused: list[tuple[str, str]] = []
    for number, image in images:
        reason = names.why_refused(image)
        if reason is None:
            numbers.append(number)
        else:
            refused.append((image.name, reason))
    return numbers, refused


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
        staging.record_or_check_plan(plan, inputs="stores or images")
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
