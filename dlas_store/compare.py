"""Compare a store with what it was made from, file by file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dlas_store.errors import DamagedError, StoreError
from dlas_store.opening import opened
from dlas_store.processes import Progress, count_workers, progress_bar, run_in_order
from dlas_store.source import CENTERS_FILE, REFERENCE_FILE, PickledSubset, Source
from dlas_store.store import Store

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
