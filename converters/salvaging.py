"""Salvage: copy every image of a damaged store that is whole into a new one, and list the rest."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from xxhash import xxh3_128_hexdigest

from dlas_store.atomic import check_free_space, write_json
from dlas_store.errors import ConfigError, DamagedError, NotASourceError, StoreError, TargetExistsError
from dlas_store.images.decode import Size
from dlas_store.maintenance.reindex import SkippedShard, select_published
from dlas_store.processes import Progress, count_workers, progress_bar, run_in_order
from dlas_store.sources.base import Layout
from dlas_store.storage.commit import Commit, PlannedShard, SealedShard, plan_commit, read_shard, write_shard
from dlas_store.storage.index import INDEX_FILE, Index
from dlas_store.storage.records import Kind
from dlas_store.storage.recovery import DamagedShard
from dlas_store.storage.shard import Shard, ShardHeader, shard_file_name
from dlas_store.storage.shard_writer import ShardWriter


class Lost(NamedTuple):
    """An image that was not copied, or all of a shard, and why.

    Attributes:
        shard: file name of the shard.
        image: the image's name; "" for a shard, and where the name is lost as well.
        reason: what is wrong.
    """

    shard: str
    image: str
    reason: str


@dataclass(kw_only=True)
class SalvageSummary:
    """What salvaging a store came to.

    Attributes:
        images: number of images that were copied.
        patches: number of their patches.
        payload_bytes: bytes of patches and references.
        seconds: how long it took.
        lost: what was not copied.
        notes: what was of no use but holds no image, such as a damaged index.
    """

    images: int = 0
    patches: int = 0
    payload_bytes: int = 0
    seconds: float = 0.0
    lost: list[Lost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the summary in JSON types, as the report file has it."""
        return {
            "images": self.images,
            "patches": self.patches,
            "bytes": self.payload_bytes,
            "seconds": self.seconds,
            "lost": [lost._asdict() for lost in self.lost],
            "notes": self.notes,
        }


class _DamagedFile(NamedTuple):
    """A file that images are looked for in.

    Attributes:
        path: the file.
        index_file: of the index that has an entry for it, None without one.
        number: of that entry.
        ids: those of its images, as the entry or its trailer says; None where neither can be read.
    """

    path: Path
    index_file: Path | None
    number: int
    ids: range | None

    def open(self) -> DamagedShard:
        """Open the file."""
        if self.index_file is None:
            return DamagedShard(self.path)
        index = Index.open(self.index_file)
        return DamagedShard(self.path, index=index, entry=index.shards[self.number])


class _ScanResult(NamedTuple):
    """What is whole in a file: ids, names and numbers of patches of its images; and what is not."""

    ids: list[int]
    names: list[str]
    patches: list[int]
    lost: list[Lost]


class _Job(NamedTuple):
    folder: Path
    header: ShardHeader
    sealed: Path | None
    remnant: _DamagedFile
    ids: list[int]


def salvage(
    store: Path | str, new: Path | str, *, workers: int | None = None, report: Path | None = None
) -> SalvageSummary:
    """Copy every image of which all values verify into a new store; what is lost is listed.

    The index is used where it can be read and is that of the shards. What it does not tell is found in the shards
    themselves, by all of their pages that are whole. Every value is read twice. The new store appears under its name
    when it is whole; until then it grows in ``NAME.partial``, from where the same call goes on.

    Args:
        store: the damaged store's folder; nothing is written there.
        new: the store to write, ``NAME.lmdb``.
        workers: number of processes; None takes one a core, 0 works in this process.
        report: a JSON file to write once the images were checked, whatever comes of them.

    Raises:
        ConfigError: a name that does not end in .lmdb.
        TargetExistsError: the new store exists.
        NotASourceError: no folder with shards, or no image in them that is whole.
        BusyError: another process writes the new store.
        WriteError: no room.
    """
    started = time.monotonic()
    store, new = Path(store).expanduser(), Path(new).expanduser()
    if new.suffix != ".lmdb":
        raise ConfigError(f"{new}: a store's name ends in .lmdb; use {new.with_name(new.name + '.lmdb')}")
    if os.path.lexists(new):
        raise TargetExistsError(f"{new}: exists; choose another name, or move it away")
    if not store.is_dir():
        raise NotASourceError(f"{store}: is no folder of shards")
    summary = SalvageSummary()
    try:
        layout, remnants = _remnants(store, summary)
        surveys = _survey(remnants, workers, summary)
        chosen = [(remnant, survey) for remnant, survey in zip(remnants, surveys, strict=True) if survey.ids]
        if not chosen:
            raise NotASourceError(f"{store}: holds no image that is whole; nothing was written")
        _copy(new, layout, chosen, workers, summary)
    finally:
        summary.seconds = time.monotonic() - started
        if report is not None:
            write_json(report, summary.as_dict())
    return summary


def _remnants(store: Path, summary: SalvageSummary) -> tuple[Layout, list[_DamagedFile]]:
    """Return the files to look in, and note what cannot be used."""
    whole: list[Shard] = []
    damaged: dict[str, str] = {}
    for path in sorted(store.glob("shard-*.lmdb")):
        try:
            whole.append(Shard(path))
        except StoreError as error:
            damaged[path.name] = str(error)
    index = _usable_index(store, whole, summary)
    if index is None and not whole:
        reasons = "; ".join(damaged.values())
        raise NotASourceError(f"{store}: neither its index nor any shard can be opened ({reasons or 'there is none'})")
    if index is None:
        return whole[0].header.layout, list(_without_index(store, whole, damaged, summary))
    return index.layout, list(_by_index(store, index, whole, damaged, summary))


def _usable_index(store: Path, shards: Sequence[Shard], summary: SalvageSummary) -> Index | None:
    try:
        index = Index.open(store / INDEX_FILE)
    except StoreError as error:
        summary.notes.append(f"the index is not used: {error}")
        return None
    counts = Counter(shard.header.store_id for shard in shards)
    if shards and counts[index.store_id] < max(counts.values()):
        summary.notes.append(f"the index is not used: {index.path}: is that of another store")
        return None
    for table in index.tables:
        summary.notes += table.damaged_blocks()
    return index


def _by_index(
    store: Path, index: Index, whole: Sequence[Shard], damaged: dict[str, str], summary: SalvageSummary
) -> Iterator[_DamagedFile]:
    """Yield the shards that an index names, wherever they lie, and those of their names whose trailer is damaged."""
    by_id = {shard.header.shard_id: shard for shard in reversed(whole)}
    for entry in index.shards.values():
        name = shard_file_name(entry.number)
        shard = by_id.get(entry.shard_id)
        ids = range(entry.first_image_id, entry.first_image_id + entry.images)
        if shard is not None or name in damaged:
            yield _DamagedFile(store / name if shard is None else shard.path, index.path, entry.number, ids)
        else:
            found = "is another shard" if (store / name).exists() else "is missing"
            summary.lost.append(Lost(name, "", f"{found}: {entry.images:,} images, {entry.patches:,} patches"))
    named = {entry.shard_id for entry in index.shards.values()}
    for shard in whole:
        if shard.header.shard_id not in named:
            summary.notes.append(f"{shard.path.name}: is not a shard that the index names")


def _without_index(
    store: Path, whole: Sequence[Shard], damaged: dict[str, str], summary: SalvageSummary
) -> Iterator[_DamagedFile]:
    """Yield the shards that were published, as far as can be told, and all whose trailer is damaged."""
    skipped: list[SkippedShard] = []
    once = {shard.header.shard_id: shard for shard in reversed(whole)}
    published = select_published(sorted(once.values(), key=lambda shard: shard.header.number), None, skipped)
    summary.notes += [f"{path.name}: {reason}" for path, reason in skipped]
    for shard in published:
        header = shard.header
        yield _DamagedFile(
            shard.path, None, header.number, range(header.first_image, header.first_image + header.images)
        )
    for name in damaged:
        yield _DamagedFile(store / name, None, -1, None)
    numbers = {shard.header.number for shard in published}
    commits = {(shard.header.commit_first, shard.header.commit_shards) for shard in published}
    for first, count in sorted(commits):
        missing = [number for number in range(first, first + count) if number not in numbers]
        names = [name for name in map(shard_file_name, missing) if name not in damaged]
        summary.lost += [Lost(name, "", "is missing, with all of its images") for name in names]


def _survey(remnants: Sequence[_DamagedFile], workers: int | None, summary: SalvageSummary) -> list[_ScanResult]:
    """Find the images that are whole; of several of one name the first counts."""
    surveys = []
    taken: set[str] = set()
    with progress_bar(None, "checking") as bar:
        for survey in run_in_order(_survey_one, remnants, workers=count_workers(workers, jobs=len(remnants)), bar=bar):
            new = []
            for position, name in enumerate(survey.names):
                if name not in taken:
                    new.append(position)
                    taken.add(name)
                else:
                    summary.notes.append(f"image {survey.ids[position]} is left out, an earlier one is called {name!r}")
            surveys.append(
                _ScanResult(
                    [survey.ids[position] for position in new],
                    [survey.names[position] for position in new],
                    [survey.patches[position] for position in new],
                    survey.lost,
                )
            )
            summary.lost += survey.lost
    return surveys


def _survey_one(remnant: _DamagedFile, progress: Progress) -> _ScanResult:
    survey = _ScanResult([], [], [], [])
    shard = remnant.path.name
    try:
        remains = remnant.open()
    except StoreError as error:
        survey.lost.append(Lost(shard, "", str(error)))
        return survey
    found = remains.image_ids()
    if not found:
        survey.lost.append(Lost(shard, "", "nothing in it can be read"))
        return survey
    for image_id in found if remnant.ids is None else remnant.ids:
        try:
            image = remains.check(image_id)
        except DamagedError as error:
            survey.lost.append(Lost(shard, _name(remains, image_id), f"image {image_id}: {error}"))
            continue
        survey.ids.append(image_id)
        survey.names.append(image.name)
        survey.patches.append(len(image.files))
        progress.advance(len(image.files), 0)
    return survey


def _name(remains: DamagedShard, image_id: int) -> str:
    try:
        return remains.image(image_id).name
    except DamagedError:
        return ""


def _copy(
    new: Path,
    layout: Layout,
    chosen: Sequence[tuple[_DamagedFile, _ScanResult]],
    workers: int | None,
    summary: SalvageSummary,
) -> None:
    planned = []
    for remnant, survey in chosen:
        size = remnant.path.stat().st_size
        fingerprint = xxh3_128_hexdigest(repr((remnant.path.name, size, survey.ids, survey.names)).encode())
        planned.append(PlannedShard(len(survey.ids), sum(survey.patches), size, fingerprint))
    with Commit(new, plan_commit(new, layout, planned, base=None), base=None) as commit:
        jobs = [
            _Job(commit.folder, header, commit.find_shard(header), remnant, survey.ids)
            for header, (remnant, survey) in zip(commit.plan.headers(), chosen, strict=True)
        ]
        check_free_space(
            commit.folder, sum(plan.payload_bytes for plan, job in zip(planned, jobs, strict=True) if not job.sealed)
        )
        with progress_bar(sum(plan.patches for plan in planned), "copying") as bar:
            for shard in run_in_order(_copy_one, jobs, workers=count_workers(workers, jobs=len(jobs)), bar=bar):
                commit.add(shard)
                summary.images += shard.header.images
                summary.patches += shard.header.patches
                summary.payload_bytes += shard.header.payload_bytes
        commit.publish()


def _copy_one(job: _Job, progress: Progress) -> SealedShard:
    if job.sealed is not None:
        return read_shard(job.sealed, check_values=True)
    remains = job.remnant.open()

    def fill(writer: ShardWriter) -> None:
        for image_id in job.ids:
            _copy_image(remains, image_id, writer, progress)

    return write_shard(job.folder, job.header, fill)


def _copy_image(remains: DamagedShard, image_id: int, writer: ShardWriter, progress: Progress) -> None:
    image = remains.image(image_id)
    assert image.patch_ids is not None
    assert image.heights is not None
    assert image.widths is not None
    sizes = map(Size, image.heights.tolist(), image.widths.tolist())
    for file, patch_id, size in zip(image.files, image.patch_ids.tolist(), sizes, strict=True):
        data = remains.read(image_id, Kind.PATCH, patch_id)
        writer.add_patch(file, data, size)
        progress.advance(1, len(data))
    writer.end_image(image, remains.read(image_id, Kind.REFERENCE) if image.has_reference else None)
