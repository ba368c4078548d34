"""Compare a store with what it was made from, file by file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dlas_store.errors import DamagedError, StoreError
from dlas_store.opening import opened
from dlas_store.processes import available_cores, progress_bar, report_done, run_in_order
from dlas_store.source import CENTERS_FILE, REFERENCE_FILE, PickledSubset, Source
from dlas_store.store import Store
from dlas_store.verify import Finding, VerifyReport

_IMAGES_A_JOB = 64


class _Job(NamedTuple):
    store: Path
    against: PickledSubset


def compare(path: Path, against: Path | str | Source, *, workers: int | None = None) -> VerifyReport:
    """Compare a store with the source it was made from.

    Args:
        path: the store.
        against: what it should hold: a folder or store, or an open source, which stays open.
        workers: number of processes; None takes one a core.

    Raises:
        NotASourceError: one of the two is no source.
        DamagedError: one of the two cannot be opened.
    """
    report = VerifyReport()
    place = against.path if isinstance(against, Source) else against
    with Store(path) as store, opened(against, store.layout) as source:
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
            for part in run_in_order(_compare, jobs, workers=workers or available_cores(), bar=bar):
                report.checked += part.checked
                report.findings += part.findings
    return report


def _readable_names(store: Store, report: VerifyReport) -> Iterator[str]:
    for number in range(store.image_count):
        try:
            yield store.image_name(number)
        except DamagedError as error:
            report.findings.append(Finding("", "", "", "damaged", str(error)))


def _compare(job: _Job) -> VerifyReport:
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
            report_done(patches, store.payload_bytes(number))
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
