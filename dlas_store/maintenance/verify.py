"""Verification of a store: values against checksums, the index against the shards, and a store against its source."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
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
from dlas_store.opening import open_if_path, open_source
from dlas_store.processes import Progress, count_workers, run_in_order
from dlas_store.progress import progress_bar
from dlas_store.sources.base import CENTERS_FILE, REFERENCE_FILE, PickledSubset, Source
from dlas_store.storage.index import INDEX_FILE
from dlas_store.storage.shard import Shard, scan_shard, shard_file_name
from dlas_store.storage.store import Store

_IMAGES_PER_VERIFY_JOB = 256
_IMAGES_PER_COMPARE_JOB = 64


class Finding(NamedTuple):
    """A fault of a store, or a difference from its source.

    Attributes:
        shard: file name of the shard or index, "" for a finding that concerns neither.
        image: name of the image, "" if it is unknown.
        patch: file name of the patch (or ref.jpg, centers.pt), "" for an image or shard as a whole.
        kind: ``damaged`` (stored bytes differ from the bytes written), ``missing`` (no such shard), ``foreign`` (the
            file is another shard, or one of another store), ``index`` (index and shard disagree), ``differs``, ``not in
            store`` or ``not in source``.
        message: what is wrong and what to do.
    """

    shard: str
    image: str
    patch: str
    kind: str
    message: str


@dataclass(kw_only=True)
class VerifyReport:
    """The result of verify() or compare().

    Attributes:
        checked: number of checked values, or of compared files.
        findings: all faults and differences.
    """

    checked: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is no finding."""
        return not self.findings

    def add(self, report: VerifyReport) -> None:
        """Add the result of another check."""
        self.checked += report.checked
        self.findings += report.findings

    def as_dict(self) -> dict[str, Any]:
        """Return the report in JSON types."""
        findings = [finding._asdict() for finding in self.findings]
        return {"ok": self.ok, "checked": self.checked, "findings": findings}


class Sample(NamedTuple):
    """A random sample of patches and references.

    Attributes:
        share: share of all patches and references, 0 < share <= 1.
        seed: seed of the choice; the same seed chooses the same patches and references.
    """

    share: float
    seed: int

    def of_image(self, number: int) -> Callable[[], bool]:
        """Return a predicate, called once a value of the image, that says whether to check the value."""
        generator = random.Random(f"{self.seed}:{number}")  # noqa: S311 - a sample, no secret
        return lambda: generator.random() < self.share


def verify(
    path: Path,
    against: Path | None = None,
    *,
    workers: int | None = None,
    quick: bool = False,
    sample: Sample | None = None,
    include_hidden: bool = False,
) -> VerifyReport:
    """Check every value of a store against its checksum, and the store's index against its shards.

    Args:
        path: the store's folder, its index.lmdb, or a single shard.
        against: folder or store with the expected content. If the store itself is sound, it is compared with this
            source file by file.
        workers: number of processes; None starts one per core, 0 works in this process.
        quick: check only structure and sizes: every block of the index, the ids and sizes of all shards, and the keys
            and locations in the shards' trees against those in the index. No value is read, so damaged values are not
            found.
        sample: check only these patches and references, but all metadata and the whole structure.
        include_hidden: compare with the hidden files of a folder, too; see open_source.

    Raises:
        NotASourceError: ``path`` is not a store at all, or ``against`` is not a source. A fault of a store is a
            finding, not an error.
        DamagedError: ``against`` cannot be opened.
        FormatVersionError: a later version wrote the store.
    """
    report = _verify_store(path, None if quick else sample or Sample(1.0, seed=0), workers)
    if against is not None and report.ok:
        report.add(compare(path, against, workers=workers, include_hidden=include_hidden))
    return report


def compare(
    path: Path, against: Path | str | Source, *, workers: int | None = None, include_hidden: bool = False
) -> VerifyReport:
    """Compare a store with its source, file by file.

    Args:
        path: the store's folder, its index.lmdb, or a single shard.
        against: the source with the expected content: a folder or store, or an open source, which stays open.
        workers: number of processes; None starts one per core, 0 works in this process.
        include_hidden: compare with the hidden files of a folder, too; see open_source.

    Raises:
        NotASourceError: ``path`` is not a store, or ``against`` is not a source or one of the other layout.
        DamagedError: the store or the source cannot be opened.
    """
    report = VerifyReport()
    source_path = against.path if isinstance(against, Source) else against
    with Store(path) as store, _open_against(store, against, include_hidden=include_hidden) as source:
        source_names = list(map(source.image_name, range(source.image_count)))
        store_names = list(_readable_names(store, report))
        if not isinstance(against, Source) and set(store_names).isdisjoint(source_names):
            _check_layout(store, against, include_hidden=include_hidden)
        for name in sorted(set(store_names).difference(source_names)):
            report.findings.append(Finding("", name, "", "not in source", f"{source_path} has no such image"))
        for name in sorted(set(source_names).difference(store_names)):
            report.findings.append(Finding("", name, "", "not in store", f"{path} has no such image"))
        common_names = set(store_names).intersection(source_names)
        names = [name for name in source_names if name in common_names]
        starts = range(0, len(names), _IMAGES_PER_COMPARE_JOB)
        jobs = (
            _CompareJob(path, PickledSubset.of(source, names[start : start + _IMAGES_PER_COMPARE_JOB]))
            for start in starts
        )
        with progress_bar(len(store), "comparing") as bar:
            for job_report in run_in_order(
                _compare_images, jobs, workers=count_workers(workers, jobs=len(starts)), bar=bar
            ):
                report.add(job_report)
    return report


def _open_against(
    store: Store, against: Path | str | Source, *, include_hidden: bool
) -> AbstractContextManager[Source]:
    try:
        return open_if_path(against, store.layout, include_hidden=include_hidden)
    except NotASourceError:
        if not isinstance(against, Source):
            _check_layout(store, against, include_hidden=include_hidden)
        raise


def _check_layout(store: Store, against: Path | str, *, include_hidden: bool) -> None:
    """Raise NotASourceError if a source has another layout than the store by itself."""
    with open_source(against, include_hidden=include_hidden) as source:
        if source.layout != store.layout:
            kinds = {"chunked": "image folders of patches", "pictures": "pictures"}
            raise NotASourceError(
                f"{against}: holds {kinds[source.layout]} (layout {source.layout}), and {store.path} holds "
                f"{kinds[store.layout]} (layout {store.layout}); compare the store with the source that it came from"
            )


def differences(store: Source, number: int, source: Source, source_number: int) -> Iterator[tuple[str, str]]:
    """Yield (file, difference) for an image of a store and the same image of its source.

    Raises:
        StoreError: a file cannot be read.
    """
    stored_image, source_image = store.image(number), source.image(source_number)
    stored_files, source_files = stored_image.files, source_image.files
    if stored_files != source_files:
        yield from ((file, "only in the store") for file in sorted(set(stored_files).difference(source_files)))
        yield from ((file, "only in the source") for file in sorted(set(source_files).difference(stored_files)))
    if stored_image.centers != source_image.centers:
        yield CENTERS_FILE, "centres differ"
    if dict(stored_image.extra) != dict(source_image.extra):
        yield "", "further fields differ"
    if store.read_reference(number) != source.read_reference(source_number):
        yield REFERENCE_FILE, "bytes differ"
    first, source_first = store.first_patch(number), source.first_patch(source_number)
    source_index = {file: source_first + position for position, file in enumerate(source_files)}
    for position, file in enumerate(stored_files):
        if file in source_index and store.read(first + position) != source.read(source_index[file]):
            yield file, "bytes differ"


class _VerifyJob(NamedTuple):
    """A range of images of one shard. The first job of a shard checks the shard's structure, too."""

    store: Path
    shard: int
    first_image: int
    end_image: int
    is_first: bool
    sample: Sample | None


class _CompareJob(NamedTuple):
    """A store, and images of the source to compare it with."""

    store: Path
    against: PickledSubset


def _verify_store(path: Path, sample: Sample | None, workers: int | None) -> VerifyReport:
    """Check a store; ``sample`` None checks only structure and sizes."""
    report = VerifyReport()
    try:
        store = Store(path, check_shards=False)
    except DamagedError as error:
        name = INDEX_FILE if path.is_dir() else path.name
        report.findings.append(Finding(name, "", "", "damaged", str(error)))
        return report
    with store:
        report.findings += _damaged_blocks(store)
        if report.findings:
            return report
        jobs = _verify_jobs(store, sample)
        with progress_bar(len(store), "verifying") as bar:
            for job_report in run_in_order(
                _verify_images, jobs, workers=count_workers(workers, jobs=store.image_count), bar=bar
            ):
                report.add(job_report)
    return report


def _damaged_blocks(store: Store) -> Iterator[Finding]:
    """Yield a finding for each damaged block of the index."""
    for table in store.index.tables:
        for message in table.damaged_blocks():
            yield Finding(INDEX_FILE, "", "", "damaged", f"{message}; then verify again")


def _verify_jobs(store: Store, sample: Sample | None) -> Iterator[_VerifyJob]:
    for entry in store.index.shards.values():
        end = entry.first_image + entry.images
        # A shard without images has one job, too, for its structure.
        for first in range(entry.first_image, max(end, entry.first_image + 1), _IMAGES_PER_VERIFY_JOB):
            job_end = min(first + _IMAGES_PER_VERIFY_JOB, end)
            yield _VerifyJob(store.path, entry.number, first, job_end, first == entry.first_image, sample)


def _verify_images(job: _VerifyJob, progress: Progress) -> VerifyReport:
    report = VerifyReport()
    shard_name = shard_file_name(job.shard)
    with Store(job.store, check_shards=False) as store:
        try:
            shard = store.shard(job.shard)
        except StoreError as error:
            if job.is_first:
                report.findings.append(Finding(shard_name, "", "", _kind_of(error), str(error)))
            return report
        if job.is_first:
            report.findings += (_verify_locations if job.sample is None else _verify_structure)(store, shard)
        for number in range(job.first_image, job.end_image):
            try:
                count = store.patch_count(number)
            except DamagedError as error:
                report.findings.append(Finding(INDEX_FILE, "", "", "index", str(error)))
                continue
            if job.sample is None:
                report.checked += 1 + store.has_reference(number) + count
                progress.advance(count, 0)
            else:
                _verify_image(store, number, shard_name, report, job.sample, progress=progress)
    return report


def _kind_of(error: StoreError) -> str:
    """Return the kind of finding for a shard that cannot be opened."""
    if isinstance(error, NotASourceError):
        return "missing"
    return "foreign" if isinstance(error, ForeignShardError) else "damaged"


def _verify_structure(store: Store, shard: Shard) -> Iterator[Finding]:
    """Compare a shard's tree and metadata, as a scan finds them, with the index."""
    try:
        scanned_entries = scan_shard(shard)
    except DamagedError as error:
        yield Finding(shard.path.name, "", "", "damaged", str(error))
        return
    if not store.index.agrees_with(shard.header, scanned_entries):
        yield _location_finding(shard)


def _verify_locations(store: Store, shard: Shard) -> Iterator[Finding]:
    """Compare the keys and locations in a shard's tree with those in the index, without reading a value."""
    entry = store.index.shards[shard.header.number]
    numbers = range(entry.first_image, entry.first_image + entry.images)
    index_values = chain.from_iterable(map(store.index.values_of, numbers))
    tree_values = ((key, payload.offset, payload.length) for key, payload in shard.values())
    try:
        is_same = all(value == tree_value for value, tree_value in zip_longest(index_values, tree_values))
    except DamagedError as error:
        yield Finding(shard.path.name, "", "", "damaged", str(error))
        return
    if not is_same:
        yield _location_finding(shard)


def _location_finding(shard: Shard) -> Finding:
    message = f"{INDEX_FILE} locates values elsewhere than the shard's own tree; run dlas-store reindex"
    return Finding(shard.path.name, "", "", "index", message)


def _verify_image(
    store: Store, number: int, shard: str, report: VerifyReport, sample: Sample, *, progress: Progress
) -> None:
    """Check the metadata of an image, and its sampled patches and reference, against their checksums."""
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
    chosen_reads = [(file, read) for file, read in reads if is_chosen()]
    for file, read in chosen_reads:
        try:
            read()
        except (DamagedError, PatchIndexError) as error:
            report.findings.append(Finding(shard, name, file, "damaged", str(error)))
    report.checked += 1 + len(chosen_reads)
    progress.advance(count, store.payload_bytes(number))


def _readable_names(store: Store, report: VerifyReport) -> Iterator[str]:
    """Yield the names of all images, and report each image whose metadata is damaged."""
    for number in range(store.image_count):
        try:
            yield store.image_name(number)
        except DamagedError as error:
            report.findings.append(Finding("", "", "", "damaged", str(error)))


def _compare_images(job: _CompareJob, progress: Progress) -> VerifyReport:
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
