"""Export: copy a store back into the folder layout, byte for byte."""

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

from dlas_store.atomic import CONTENT, StagingDirectory, check_free_space, check_outside, check_place
from dlas_store.errors import NotASourceError, TargetExistsError, WriteError, write_errors
from dlas_store.processes import Progress, count_workers, run_in_order
from dlas_store.progress import progress_bar
from dlas_store.sources.base import CENTERS_FILE, REFERENCE_FILE, Image, Layout
from dlas_store.sources.centers import write_centers
from dlas_store.sources.walk import EXTRA_FILE, FILE_NAMES_ARE_UTF8, extra_line, locale_problem
from dlas_store.storage.store import Store

_IMAGES_PER_JOB = 64
_NAME_ERRORS = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ})
_SEPARATORS = frozenset({"/", "\0", os.sep, os.altsep or os.sep})
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
_WINDOWS_SEPARATORS = frozenset(r'\/:*?"<>|')


class RefusedImage(NamedTuple):
    """An image that was not written, and the reason."""

    image: str
    reason: str


@dataclass(kw_only=True)
class ExportSummary:
    """Result of an export.

    Attributes:
        images: number of images that were written.
        patches: number of patches.
        payload_bytes: bytes of patches and references.
        seconds: duration.
        refused: images that were not written, because no file can have their names or the disk refuses them.
    """

    images: int = 0
    patches: int = 0
    payload_bytes: int = 0
    seconds: float = 0.0
    refused: list[RefusedImage] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the summary in JSON types."""
        return {
            "images": self.images,
            "patches": self.patches,
            "bytes": self.payload_bytes,
            "seconds": self.seconds,
            "refused": [image._asdict() for image in self.refused],
        }

    def add(self, summary: ExportSummary) -> None:
        """Add the images of another summary; the duration stays."""
        self.images += summary.images
        self.patches += summary.patches
        self.payload_bytes += summary.payload_bytes
        self.refused += summary.refused


def export_store(
    store: Path | str, folder: Path | str, *, images: str | None = None, workers: int | None = None
) -> ExportSummary:
    """Write a store's images as the folder that DL-Art-School reads.

    The folder gets its name when it is complete. Until then it grows in ``NAME.partial``; the same call resumes an
    interrupted export there.

    Args:
        store: the store.
        folder: the folder to write.
        images: shell pattern that image names must match, None for all images.
        workers: number of processes; None starts one per core, 0 works in this process.

    Raises:
        StoreError: the folder would lie in the store.
        TargetExistsError: the folder exists.
        NotASourceError: the path is not a store, or no image matches.
        DamagedError: a value of the store differs from what was written.
        BusyError: another process writes the folder.
        WriteError: the disk is full, or refused a write.
    """
    started = time.monotonic()
    folder = Path(folder).expanduser()
    if os.path.lexists(folder):  # a broken link, too, would stop the final rename
        StagingDirectory.recover(folder)
        raise TargetExistsError(f"{folder}: exists; choose another name, or move it away")
    check_place(folder)
    check_outside(folder, Path(store).expanduser())
    with Store(Path(store).expanduser()) as source, StagingDirectory(folder) as staging:
        numbers = _matching_images(source, images)
        check_free_space(staging.path, sum(entry.payload_bytes for entry in source.index.shards.values()))
        plan = {"store_id": source.index.store_id.hex(), "images": images, "count": source.image_count}
        options = {"STORE": f"store {source.index.store_id.hex()}", "--images": "all" if images is None else images}
        staging.record_or_check_plan(plan, options=options)
        content = staging.path / CONTENT
        with write_errors(content):
            content.mkdir(exist_ok=True)
        names = ExportNames(source.layout, Folding.probe(staging.path))
        _check_locale(source, numbers)
        numbers, refused = select_writable(((number, source.image(number)) for number in numbers), names)
        jobs = [
            _Job(source.path, content, staging.path / f"building-{first}", numbers[first : first + _IMAGES_PER_JOB])
            for first in range(0, len(numbers), _IMAGES_PER_JOB)
        ]
        summary = ExportSummary(refused=refused.copy())
        with progress_bar(sum(map(source.patch_count, numbers)), "exporting") as bar:
            for job_summary in run_in_order(_export, jobs, workers=count_workers(workers, jobs=len(jobs)), bar=bar):
                summary.add(job_summary)
        refused_by_disk = {image.image for image in summary.refused[len(refused) :]}
        written_numbers = [number for number in numbers if source.image(number).name not in refused_by_disk]
        _write_extra_fields(content, source, written_numbers)
        os.sync()
        staging.publish(content)
    summary.seconds = time.monotonic() - started
    return summary


class Folding(NamedTuple):
    """Rules by which a file system takes two different names for the same file.

    Attributes:
        case: names that differ only in case are the same.
        form: names that differ only in their Unicode form are the same.
        end: names that differ only in dots or spaces at their end are the same.
    """

    case: bool
    form: bool
    end: bool

    @classmethod
    def probe(cls, folder: Path) -> Folding:
        """Detect the rules with a file in a folder; the file is removed afterwards.

        Raises:
            WriteError: the folder takes no file.
        """
        name = "Probe-\u00c9"
        with write_errors(folder / name):
            (folder / name).touch()
            variants = (name.lower(), unicodedata.normalize("NFD", name), name + ".")
            folding = cls(*((folder / variant).exists() for variant in variants))
            (folder / name).unlink()
        return folding

    def key(self, path: str) -> str:
        """Return a key that is equal for all paths that the file system takes for the same."""
        if self.form:
            path = unicodedata.normalize("NFC", path)
        if self.case:
            path = path.casefold()
        if self.end:
            path = "/".join(name.rstrip(". ") for name in path.split("/"))
        return path


class ExportNames:
    """Checks whether images can be written below one folder; asked once per image, in the order of the store.

    If two images, or two files of an image, would be the same file, the first is written.

    Args:
        layout: layout of the store.
        folding: rules of the file system.
        windows: require names that Windows allows.
    """

    def __init__(self, layout: Layout, folding: Folding, *, windows: bool = os.name == "nt") -> None:
        self._layout = layout
        self._folding = folding
        self._windows = windows
        self._files: set[str] = set()
        self._folders: dict[str, str] = {}

    def refusal(self, image: Image) -> str | None:
        """Return the reason why an image cannot be written below the folder, None if it can."""
        path = image.name.split("/") if self._layout == "pictures" else [image.name]
        files = image.files if self._layout == "chunked" else ()
        for name in [*path, *files]:
            if name in ("", ".", "..") or _SEPARATORS.intersection(name):
                return f"{name!r} is no file name"
            if self._windows and not _is_windows_name(name):
                return f"{name!r} is no file name on Windows"
        if self._folding.key(path[0]) == self._folding.key(EXTRA_FILE):
            return f"{EXTRA_FILE} is the name of the file for further fields"
        return self._file_conflict(files) or self._image_conflict(path)

    def _file_conflict(self, files: Sequence[str]) -> str | None:
        """Return which two files of one image would be the same file, None if all differ."""
        file_of_key = {self._folding.key(file): file for file in (REFERENCE_FILE, CENTERS_FILE)}
        for file in files:
            key = self._folding.key(file)
            if key in file_of_key:
                return f"{file!r} would be the same file as {file_of_key[key]!r}"
            file_of_key[key] = file
        return None

    def _image_conflict(self, path: Sequence[str]) -> str | None:
        """Return the conflict of an image's path with earlier images.

        If there is none, record the path for later images and return None.
        """
        folders = ["/".join(path[:depth]) for depth in range(1, len(path))]
        for folder in folders:
            key = self._folding.key(folder)
            if key in self._files:
                return f"its folder {folder!r} is the file of another image"
            if self._folders.get(key, folder) != folder:
                return f"its folder {folder!r} would be the same as {self._folders[key]!r}"
        key = self._folding.key("/".join(path))
        if key in self._files or key in self._folders:
            return "another image has the same name on that file system, or a folder of that name"
        self._files.add(key)
        self._folders.update((self._folding.key(folder), folder) for folder in folders)
        return None


def select_writable(images: Iterable[tuple[int, Image]], names: ExportNames) -> tuple[list[int], list[RefusedImage]]:
    """Return the numbers of the images that can be written, and the images that cannot."""
    numbers: list[int] = []
    refused: list[RefusedImage] = []
    for number, image in images:
        reason = names.refusal(image)
        if reason is None:
            numbers.append(number)
        else:
            refused.append(RefusedImage(image.name, reason))
    return numbers, refused


def _is_windows_name(name: str) -> bool:
    is_reserved = _WINDOWS_DEVICES.fullmatch(name) or name.endswith((".", " "))
    return not (is_reserved or _WINDOWS_SEPARATORS.intersection(name) or any(ord(character) < 32 for character in name))


def _matching_images(store: Store, pattern: str | None) -> list[int]:
    """Return the numbers of the images whose names match a shell pattern."""
    numbers = list(range(store.image_count))
    if pattern is not None:
        numbers = [number for number in numbers if fnmatchcase(store.image(number).name, pattern)]
    if not numbers:
        raise NotASourceError(
            f"{store.path}: holds no image{f' that matches {pattern!r}' if pattern is not None else ''}"
        )
    return numbers


def _check_locale(store: Store, numbers: Iterable[int]) -> None:
    """Check that this process writes the names of images and their files as UTF-8.

    Raises:
        WriteError: the locale makes Python write names otherwise.
    """
    if FILE_NAMES_ARE_UTF8:
        return
    for number in numbers:
        image = store.image(number)
        if not all(name.isascii() for name in (image.name, *image.files)):
            raise WriteError(f"{store.path}: names such as {image.name!r} are {locale_problem()}")


class _Job(NamedTuple):
    """Images that one worker writes.

    Attributes:
        store: path of the store.
        content: the folder that gets the images.
        building: the folder in which an image's files are written before they are renamed into content.
        numbers: numbers of the images.
    """

    store: Path
    content: Path
    building: Path
    numbers: list[int]


def _export(job: _Job, progress: Progress) -> ExportSummary:
    """Write the images of a job."""
    summary = ExportSummary()
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
                summary.images += 1
                summary.patches += len(image.files)
                summary.payload_bytes += store.payload_bytes(number)
            else:
                summary.refused.append(RefusedImage(image.name, reason))
            progress.advance(len(image.files), 0 if reason else store.payload_bytes(number))
    return summary


def _write_image(store: Store, number: int, image: Image, job: _Job) -> None:
    """Write an image's files beside CONTENT, then rename them into it in one step.

    An image that an earlier run wrote completely stays.
    """
    image_path = job.content / image.name
    files = dict(_files(store, number, image))
    if all(_is_complete(image_path / file, read) for file, read in files.items()):
        return
    _remove(job.building)
    _remove(image_path)
    image_path.parent.mkdir(parents=True, exist_ok=True)
    for file, read in files.items():
        path = job.building / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(read())
    job.building.rename(image_path)


def _is_complete(path: Path, read: Callable[[], bytes]) -> bool:
    """Return whether an earlier run wrote a file; after a power loss the disk may have only a part of the file."""
    return path.is_file() and path.read_bytes() == read()


def _files(store: Store, number: int, image: Image) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the files of an image: path below the image ("" for a picture, which is its own file), and reader."""
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
    """Write the fields that the layout has no file for, one line per image; write no file if there are none."""
    images = (store.image(number) for number in numbers)
    lines = (extra_line(image.name, image.extra) for image in images if image.extra)
    first = next(lines, None)
    if first is not None:
        with write_errors(content / EXTRA_FILE), (content / EXTRA_FILE).open("w", encoding="utf-8") as file:
            file.writelines(chain([first], lines))
