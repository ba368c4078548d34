"""Check a store: that every value is what was written, and that index and shards agree.

Compare a store with what it was made from, file by file.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from dlas_store.errors import (
    DamagedError,
    ForeignShardError,
    NameNotFoundError,
    NotASourceError,
    PatchIndexError,
    StoreError,
)
from dlas_store.opening import open_if_path
from dlas_store.processes import Progress, count_workers, progress_bar, run_in_order
from dlas_store.sources.base import CENTERS_FILE, REFERENCE_FILE, PickledSubset, Source
from dlas_store.storage.index import INDEX_FILE
from dlas_store.storage.shard import Shard, scan_shard, shard_file_name
from dlas_store.storage.store import Store

_IMAGES_A_JOB = 64


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

    def add(self, report: VerifyReport) -> None:
        """Add what another check came to."""
        self.checked += report.checked
        self.findings += report.findings

    def as_dict(self) -> dict[str, Any]:
        """Return the report in JSON types."""
        findings = [finding._asdict() for finding in self.findings]
        return {"ok": self.ok, "checked": self.checked, "findings": findings}


class _Job(NamedTuple):
    store: Path
    against: PickledSubset


def compare(path: Path, against: Path | str | Source, *, workers: int | None = None) -> VerifyReport:
    """Compare a store with the source it was made from.

    Args:
        path: the store.
        against: what it should hold: a folder or store, or an open source, which stays open.
        workers: number of processes; None takes one a core, 0 works in this process.

    Raises:
        NotASourceError: one of the two is no source.
        DamagedError: one of the two cannot be opened.
    """
    report = VerifyReport()
    place = against.path if isinstance(against, Source) else against
    with Store(path) as store, open_if_path(against, store.layout) as source:
        source_names = list(map(source.image_name, range(source.image_count)))
        store_names = list(_readable_names(store, report))
        for name in sorted(set(store_names).difference(source_names)):
            report.findings.append(Finding("", name, "", "not in source", f"{place} has no such image"))
        for name in sorted(set(source_names).difference(store_names)):
            report.findings.append(Finding("", name, "", "not in store", f"{path} has no such image"))
        common = set(store_names).intersection(source_names)
        names = [name for name in source_names if name in common]
        parts = (names[start : start + _IMAGES_A_JOB] for start in range(0, len(names), _IMAGES_A_JOB))
        jobs = (_Job(path, PickledSubset.of(source, part)) for part in parts)
        with progress_bar(len(store), "comparing") as bar:
            for part in run_in_order(_compare, jobs, workers=count_workers(workers), bar=bar):
                report.add(part)
    return report


def _readable_names(store: Store, report: VerifyReport) -> Iterator[str]:
    for number in range(store.image_count):
        try:
            yield store.image_name(number)
        except DamagedError as error:
            report.findings.append(Finding("", "", "", "damaged", str(error)))


def _compare(job: _Job, progress: Progress) -> VerifyReport:
    report = VerifyReport()
    with Store(job.store) as store, job.against.open() as source:
        for name in job.against.names:
            number = store.find_image(name)
            try:
                for file, message in differences(store, number, source, source.find_image(name)):
                    report.findings.append(Finding("", name, file, "differs", message))
            except StoreError as error:
                report.findings.append(Finding("", name, "", "damaged", str(error)))
            patches = store.patch_count(number)
            report.checked += patches + store.has_reference(number) + (store.image(number).centers is not None)
            progress.advance(patches, store.payload_bytes(number))
    return report


def differences(store: Source, number: int, source: Source, source_number: int) -> Iterator[tuple[str, str]]:
    """Yield (file, what differs) for an image of a store and the same image of its source.

    Raises:
        StoreError: something cannot be read.
    """
    ours, theirs = store.image(number), source.image(source_number)
    if ours.files != theirs.files:
        yield from ((file, "only in the store") for file in sorted(set(ours.files).difference(theirs.files)))
        yield from ((file, "only in the source") for file in sorted(set(theirs.files).difference(ours.files)))
    if ours.centers != theirs.centers:
        yield CENTERS_FILE, "centres differ"
    if dict(ours.extra) != dict(theirs.extra):
        yield "", "further fields differ"
    if store.read_reference(number) != source.read_reference(source_number):
        yield REFERENCE_FILE, "bytes differ"
    places = {file: position for position, file in enumerate(theirs.files)}
    first, source_first = store.first_patch(number), source.first_patch(source_number)
    for position, file in enumerate(ours.files):
        if file in places and store.read(first + position) != source.read(source_first + places[file]):
            yield file, "bytes differ"


__all__ = ["Finding", "Sample", "VerifyReport", "verify"]

_IMAGES_A_PART = 256


class Sample(NamedTuple):
    """Which patches and references to check.

    Attributes:
        share: how many of them, 0 < share <= 1.
        seed: what chooses them; the same seed chooses the same.
    """

    share: float
    seed: int

    def of_image(self, number: int) -> Callable[[], bool]:
        """Return what says of each value of an image in turn whether it is to be checked."""
        draw = random.Random(f"{self.seed}:{number}")  # noqa: S311 - a sample, no secret
        return lambda: draw.random() < self.share


_ALL = Sample(1.0, 0)


class _Part(NamedTuple):
    """A range of images of one shard; the first part of a shard checks its structure too."""

    store: Path
    shard: int
    first_image: int
    end_image: int
    is_first: bool
    sample: Sample | None


def verify(
    path: Path,
    against: Path | None = None,
    *,
    workers: int | None = None,
    quick: bool = False,
    sample: Sample | None = None,
) -> VerifyReport:
    """Check every value of a store against its checksum, and its index against its shards.

    Args:
        path: the store's folder, its index.lmdb, or a single shard.
        against: a folder or store that it should be the same as; compared file by file if nothing else is wrong.
        workers: number of processes; None takes one a core, 0 works in this process.
        quick: check structure and sizes only: all of the index, that the shards are there, are the right ones and
            have the right size, and that the keys and places in their tree pages are those that the index names. No
            value is read, so that damaged ones are not found.
        sample: check only so many patches and references; all metadata and the structure are checked nevertheless.

    Raises:
        NotASourceError: no store at all, or no source to compare with. What is wrong with a store is a finding, not an
            error.
        DamagedError: the source to compare with cannot be opened.
        FormatVersionError: written by a later version.
    """
    report = _verify_store(path, None if quick else sample or _ALL, workers)
    if against is not None and report.ok:
        report.add(compare(path, against, workers=workers))
    return report


def _verify_store(path: Path, sample: Sample | None, workers: int | None) -> VerifyReport:
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
        parts = _parts(store, sample)
        with progress_bar(len(store), "verifying") as bar:
            for part in run_in_order(_verify_part, parts, workers=count_workers(workers), bar=bar):
                report.add(part)
    return report


def _verify_index(store: Store) -> Iterator[Finding]:
    for table in store.index.tables:
        for message in table.damaged_blocks():
            yield Finding(INDEX_FILE, "", "", "damaged", f"{message}; then verify again")


def _parts(store: Store, sample: Sample | None) -> Iterator[_Part]:
    for entry in store.index.shards.values():
        end = entry.first_image + entry.images
        for first in range(entry.first_image, max(end, entry.first_image + 1), _IMAGES_A_PART):
            last = min(first + _IMAGES_A_PART, end)
            yield _Part(store.path, entry.number, first, last, first == entry.first_image, sample)


def _verify_part(part: _Part, progress: Progress) -> VerifyReport:
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
            report.findings += (_verify_places if part.sample is None else _verify_structure)(store, shard)
        for number in range(part.first_image, part.end_image):
            try:
                count = store.patch_count(number)
            except DamagedError as error:
                report.findings.append(Finding(INDEX_FILE, "", "", "index", str(error)))
                continue
            if part.sample is None:
                report.checked += 1 + store.has_reference(number) + count
                progress.advance(count, 0)
            else:
                _verify_image(store, number, shard_name, report, part.sample, progress=progress)
    return report


def _kind(error: StoreError) -> str:
    if isinstance(error, NotASourceError):
        return "missing"
    return "foreign" if isinstance(error, ForeignShardError) else "damaged"


def _verify_structure(store: Store, shard: Shard) -> Iterator[Finding]:
    """Compare what a walk through the shard's tree finds with what the index says."""
    try:
        directory = scan_shard(shard)
    except DamagedError as error:
        yield Finding(shard.path.name, "", "", "damaged", str(error))
        return
    if not store.index.agrees_with(shard.header, directory):
        yield _other_places(shard)


def _verify_places(store: Store, shard: Shard) -> Iterator[Finding]:
    """Compare the keys and places in the shard's tree with those of the index, without reading any value."""
    entry = store.index.shards[shard.header.number]
    numbers = range(entry.first_image, entry.first_image + entry.images)
    named = chain.from_iterable(map(store.index.places, numbers))
    found = ((key, place.offset, place.length) for key, place in shard.values())
    try:
        is_same = all(ours == theirs for ours, theirs in zip_longest(named, found))
    except DamagedError as error:
        yield Finding(shard.path.name, "", "", "damaged", str(error))
        return
    if not is_same:
        yield _other_places(shard)


def _other_places(shard: Shard) -> Finding:
    message = f"{INDEX_FILE} names other places than the shard's own tree; run dlas-store reindex"
    return Finding(shard.path.name, "", "", "index", message)


def _verify_image(
    store: Store, number: int, shard: str, report: VerifyReport, sample: Sample, *, progress: Progress
) -> None:
    is_chosen = sample.of_image(number)
    first, count = store.first_patch(number), store.patch_count(number)
    try:
        image = store.image(number)
        name, files = image.name, image.files
        if store.find_image(name) != number:
            report.findings.append(Finding(shard, name, "", "index", f"{INDEX_FILE} finds another image by this name"))
    except (DamagedError, NameNotFoundError) as error:
        name, files = "", ("",) * count
        report.findings.append(Finding(shard, name, "", "damaged", f"metadata of image {number}: {error}"))
    reads: list[tuple[str, Callable[[], object]]] = []
    if store.has_reference(number):
        reads.append((REFERENCE_FILE, partial(store.read_reference, number)))
    reads += [(file, partial(store.read, first + position)) for position, file in enumerate(files)]
    chosen = [read for read in reads if is_chosen()]
    for file, read in chosen:
        try:
            read()
        except (DamagedError, PatchIndexError) as error:
            report.findings.append(Finding(shard, name, file, "damaged", str(error)))
    report.checked += 1 + len(chosen)
    progress.advance(count, store.payload_bytes(number))
