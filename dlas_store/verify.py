"""Check a store: that every value is what was written, and that index and shards agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dlas_store.errors import DamagedError, ForeignShardError, NameNotFoundError, NotASourceError, StoreError
from dlas_store.folder_source import REFERENCE_FILE
from dlas_store.index import INDEX_FILE
from dlas_store.processes import available_cores, progress_bar, report_done, run_in_order
from dlas_store.shard import Shard, shard_file_name
from dlas_store.shard_directory import read_directory
from dlas_store.store import Store

_IMAGES_A_JOB = 256


class Finding(NamedTuple):
    """Something wrong.

    Attributes:
        shard: file name of the shard or index, "" where it is no matter of one.
        image: the image's name, "" where it is not known.
        patch: the patch's file name (or ref.jpg, centers.pt), "" for the image or shard as a whole.
        kind: ``damaged`` (bytes are not what was written), ``missing`` or ``foreign`` (a shard is not there, or is
            another store's), ``index`` (index and shard disagree), ``differs``, ``not in store``, ``not in source``.
        message: what is wrong and what to do.
    """

    shard: str
    image: str
    patch: str
    kind: str
    message: str


@dataclass(kw_only=True)
class VerifyReport:
    """What a check came to.

    Attributes:
        checked: number of values (or files) that were compared.
        findings: what is wrong.
    """

    checked: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


class _Part(NamedTuple):
    """A range of images of one shard; the first part of a shard checks its structure too."""

    store: Path
    shard: int
    first_image: int
    end_image: int
    is_first: bool


def verify(path: Path, *, workers: int | None = None) -> VerifyReport:
    """Check every value of a store against its checksum, and its index against its shards.

    Args:
        path: the store's folder, its index.lmdb, or a single shard.
        workers: number of processes; None takes one a core.

    Raises:
        NotASourceError: no store at all. What is wrong with one is a finding, not an error.
        FormatVersionError: written by a later version.
    """
    report = VerifyReport()
    try:
        store = Store(path, check_shards=False)
    except DamagedError as error:
        name = INDEX_FILE if path.is_dir() else path.name
        report.findings.append(Finding(name, "", "", "damaged", str(error)))
        return report
    with store:
        report.findings += _verify_index(store)
        if report.findings:
            return report
        with progress_bar(len(store), "verifying") as bar:
            for part in run_in_order(_verify_part, _parts(store), workers=workers or available_cores(), bar=bar):
                report.checked += part.checked
                report.findings += part.findings
    return report


def _verify_index(store: Store) -> Iterator[Finding]:
    for table in store.index.tables:
        for message in table.damaged_blocks():
            yield Finding(INDEX_FILE, "", "", "damaged", f"{message}; then verify again")


def _parts(store: Store) -> Iterator[_Part]:
    for entry in store.index.shards.values():
        end = entry.first_image + entry.images
        for first in range(entry.first_image, max(end, entry.first_image + 1), _IMAGES_A_JOB):
            last = min(first + _IMAGES_A_JOB, end)
            yield _Part(store.path, entry.number, first, last, is_first=first == entry.first_image)


def _verify_part(part: _Part) -> VerifyReport:
    report = VerifyReport()
    shard_name = shard_file_name(part.shard)
    with Store(part.store, check_shards=False) as store:
        try:
            shard = store.shard(part.shard)
        except StoreError as error:
            if part.is_first:
                report.findings.append(Finding(shard_name, "", "", _kind(error), str(error)))
            return report
        if part.is_first:
            report.findings += _verify_structure(store, shard)
        for number in range(part.first_image, part.end_image):
            _verify_image(store, number, shard_name, report)
    return report


def _kind(error: StoreError) -> str:
    if isinstance(error, NotASourceError):
        return "missing"
    return "foreign" if isinstance(error, ForeignShardError) else "damaged"


def _verify_structure(store: Store, shard: Shard) -> Iterator[Finding]:
    """Compare what a walk through the shard's tree finds with what the index says."""
    try:
        directory = read_directory(shard)
    except DamagedError as error:
        yield Finding(shard.path.name, "", "", "damaged", str(error))
        return
    if not store.index.agrees_with(shard.header, directory):
        message = f"{INDEX_FILE} names other places than the shard's own tree; run dlas-store reindex"
        yield Finding(shard.path.name, "", "", "index", message)


def _verify_image(store: Store, number: int, shard: str, report: VerifyReport) -> None:
    first, end = store.first_patch(number), store.first_patch(number + 1)
    try:
        image = store.image(number)
        name, files = image.name, image.files
        if store.find_image(name) != number:
            report.findings.append(Finding(shard, name, "", "index", f"{INDEX_FILE} finds another image by this name"))
    except (DamagedError, NameNotFoundError) as error:
        name, files = "", ("",) * (end - first)
        report.findings.append(Finding(shard, name, "", "damaged", f"metadata of image {number}: {error}"))
    reads: list[tuple[str, Callable[[], object]]] = [(REFERENCE_FILE, partial(store.read_reference, number))]
    reads += [(file, partial(store.read, first + position)) for position, file in enumerate(files)]
    for file, read in reads:
        try:
            read()
        except DamagedError as error:
            report.findings.append(Finding(shard, name, file, "damaged", str(error)))
    report.checked += 1 + end - first + store.has_reference(number)
    report_done(end - first, store.payload_bytes(number))
