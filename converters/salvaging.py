"""Salvage: copy every undamaged image of a damaged store into a new store, and list the lost images."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from xxhash import xxh3_128_hexdigest

from dlas_store.atomic import check_free_space, check_outside, check_place, check_report_place, write_json
from dlas_store.errors import ConfigError, DamagedError, NotASourceError, StoreError, TargetExistsError, counted
from dlas_store.images.decode import Size
from dlas_store.maintenance.reindex import SkippedShard, select_published
from dlas_store.processes import Progress, count_workers, run_in_order
from dlas_store.progress import progress_bar
from dlas_store.sources.base import Layout
from dlas_store.storage.commit import Commit, PlannedShard, SealedShard, plan_commit, read_shard, write_shard
from dlas_store.storage.index import INDEX_FILE, Index
from dlas_store.storage.records import Kind
from dlas_store.storage.recovery import DamagedShard
from dlas_store.storage.shard import Shard, ShardHeader, shard_file_name
from dlas_store.storage.shard_writer import ShardWriter


class LostImage(NamedTuple):
    """An image that was not copied, or all images of a shard, and the reason.

    Attributes:
        shard: file name of the shard.
        image: the image's name; "" for a whole shard, or if the name cannot be read either.
        reason: description of the damage.
    """

    shard: str
    image: str
    reason: str


@dataclass(kw_only=True)
class SalvageSummary:
    """Result of a salvage.

    Attributes:
        images: number of images that were copied.
        patches: number of their patches.
        payload_bytes: bytes of patches and references.
        seconds: duration.
        lost: images and shards that were not copied.
        warnings: damage that lost no image, such as that of the index, and shards that were not used.
    """

    images: int = 0
    patches: int = 0
    payload_bytes: int = 0
    seconds: float = 0.0
    lost: list[LostImage] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the summary in JSON types, with the keys of the report file."""
        return {
            "images": self.images,
            "patches": self.patches,
            "bytes": self.payload_bytes,
            "seconds": self.seconds,
            "lost": [image._asdict() for image in self.lost],
            "notes": self.warnings,
        }


def salvage(
    store: Path | str, new: Path | str, *, workers: int | None = None, report: Path | None = None
) -> SalvageSummary:
    """Copy every image whose values are all undamaged into a new store, and list the lost images.

    Values are found through every undamaged page of a shard, and through the index if it can be read and belongs to the
    shards. Every value is read twice: to check the whole image, then to copy it. The new store gets its name when it is
    complete. Until then it grows in ``NAME.partial``; the same call resumes an interrupted salvage there.

    Args:
        store: the damaged store's folder; it is not written.
        new: the store to write, ``NAME.lmdb``.
        workers: number of processes; None starts one per core, 0 works in this process.
        report: a JSON file that is written once the images were checked, also if the salvage then fails.

    Raises:
        ConfigError: the new store's name does not end in .lmdb.
        StoreError: the new store would lie in the damaged store.
        TargetExistsError: the new store exists.
        NotASourceError: the folder has no shards, or they hold no undamaged image.
        BusyError: another process writes the new store.
        WriteError: the disk is full, or refused a write.
    """
    started = time.monotonic()
    store, new = Path(store).expanduser(), Path(new).expanduser()
    check_report_place(report)
    if new.suffix != ".lmdb":
        raise ConfigError(f"{new}: a store's name ends in .lmdb; use {new.with_name(new.name + '.lmdb')}")
    if os.path.lexists(new):
        raise TargetExistsError(f"{new}: exists; choose another name, or move it away")
    check_place(new)
    check_outside(new, store)
    if not store.is_dir():
        raise NotASourceError(f"{store}: is no folder of shards")
    summary = SalvageSummary()
    try:
        layout, damaged_files = _find_files(store, summary)
        results = _scan(damaged_files, workers, summary)
        scanned = [(file, result) for file, result in zip(damaged_files, results, strict=True) if result.ids]
        if not scanned:
            raise NotASourceError(f"{store}: holds no image that is whole; nothing was written")
        _copy(new, layout, scanned, workers, summary)
    finally:
        summary.seconds = time.monotonic() - started
        if report is not None:
            write_json(report, summary.as_dict())
    return summary


class _DamagedFile(NamedTuple):
    """A shard file that is searched for images; it may be undamaged.

    Attributes:
        path: the file.
        index_file: the index that has an entry for the shard, None without one.
        number: the shard's number in that entry.
        ids: ids of the shard's images, from the entry or the file's trailer; None if neither can be read.
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
    """Undamaged images of a file (ids, names, and numbers of patches, in parallel lists), and its lost images."""

    ids: list[int]
    names: list[str]
    patches: list[int]
    lost: list[LostImage]


class _Job(NamedTuple):
    """All that a worker needs to copy the undamaged images of a file into a new shard.

    Attributes:
        folder: the commit's folder.
        header: the new shard's header.
        sealed: the new shard if an earlier run sealed it.
        damaged_file: the file to copy from.
        ids: ids of the images to copy.
    """

    folder: Path
    header: ShardHeader
    sealed: Path | None
    damaged_file: _DamagedFile
    ids: list[int]


def _find_files(store: Path, summary: SalvageSummary) -> tuple[Layout, list[_DamagedFile]]:
    """Return the files to search, and add a warning about each that cannot be used."""
    shards: list[Shard] = []
    damaged: dict[str, str] = {}
    for path in sorted(store.glob("shard-*.lmdb")):
        try:
            shards.append(Shard(path))
        except StoreError as error:
            damaged[path.name] = str(error)
    index = _usable_index(store, shards, summary)
    if index is None and not shards:
        reasons = "; ".join(damaged.values())
        raise NotASourceError(f"{store}: neither its index nor any shard can be opened ({reasons or 'there is none'})")
    if index is None:
        return shards[0].header.layout, list(_files_without_index(store, shards, damaged, summary))
    return index.layout, list(_files_of_index(store, index, shards, damaged, summary))


def _usable_index(store: Path, shards: Sequence[Shard], summary: SalvageSummary) -> Index | None:
    """Return the store's index, None if it cannot be read or belongs to another store."""
    try:
        index = Index.open(store / INDEX_FILE)
    except StoreError as error:
        summary.warnings.append(f"the index is not used: {error}")
        return None
    counts = Counter(shard.header.store_id for shard in shards)
    if shards and counts[index.store_id] < max(counts.values()):
        summary.warnings.append(f"the index is not used: {index.path}: is that of another store")
        return None
    for table in index.tables:
        summary.warnings += table.damaged_blocks()
    return index


def _files_of_index(
    store: Path, index: Index, shards: Sequence[Shard], damaged: dict[str, str], summary: SalvageSummary
) -> Iterator[_DamagedFile]:
    """Yield the files of the shards that an index names.

    Args:
        store: the store's folder.
        index: its index.
        shards: shards with an intact trailer, which identifies them under any file name.
        damaged: file names of shards with a damaged trailer, with reasons; the file name identifies them.
        summary: gets the missing shards and the shards that the index does not name.
    """
    shard_of_id = {shard.header.shard_id: shard for shard in reversed(shards)}
    for entry in index.shards.values():
        name = shard_file_name(entry.number)
        shard = shard_of_id.get(entry.shard_id)
        ids = range(entry.first_image_id, entry.first_image_id + entry.images)
        if shard is not None or name in damaged:
            yield _DamagedFile(store / name if shard is None else shard.path, index.path, entry.number, ids)
        else:
            problem = "is another shard" if (store / name).exists() else "is missing"
            summary.lost.append(
                LostImage(name, "", f"{problem}: {counted(entry.images, 'image')}, {counted(entry.patches, 'patch')}")
            )
    named_ids = {entry.shard_id for entry in index.shards.values()}
    for shard in shards:
        if shard.header.shard_id not in named_ids:
            summary.warnings.append(f"{shard.path.name}: is not a shard that the index names")


def _files_without_index(
    store: Path, shards: Sequence[Shard], damaged: dict[str, str], summary: SalvageSummary
) -> Iterator[_DamagedFile]:
    """Yield the shards that were published, as far as their trailers tell, and every file with a damaged trailer.

    Args:
        store: the store's folder.
        shards: shards with an intact trailer.
        damaged: file names of shards with a damaged trailer, with reasons.
        summary: gets the missing shards and the shards that were never published.
    """
    skipped: list[SkippedShard] = []
    unique = {shard.header.shard_id: shard for shard in reversed(shards)}
    published = select_published(sorted(unique.values(), key=lambda shard: shard.header.number), None, skipped)
    summary.warnings += [f"{path.name}: {reason}" for path, reason in skipped]
    for shard in published:
        header = shard.header
        ids = range(header.first_image, header.first_image + header.images)
        yield _DamagedFile(shard.path, None, header.number, ids)
    for name in damaged:
        yield _DamagedFile(store / name, None, -1, None)
    numbers = {shard.header.number for shard in published}
    commits = {(shard.header.commit_first, shard.header.commit_shards) for shard in published}
    for first, count in sorted(commits):
        missing = [number for number in range(first, first + count) if number not in numbers]
        names = [name for name in map(shard_file_name, missing) if name not in damaged]
        summary.lost += [LostImage(name, "", "is missing, with all of its images") for name in names]


def _scan(files: Sequence[_DamagedFile], workers: int | None, summary: SalvageSummary) -> list[_ScanResult]:
    """Find the undamaged images of each file; if several images have one name, take the first."""
    results = []
    names: set[str] = set()
    with progress_bar(None, "checking") as bar:
        for result in run_in_order(_scan_file, files, workers=count_workers(workers, jobs=len(files)), bar=bar):
            new_positions = []
            for position, name in enumerate(result.names):
                if name not in names:
                    new_positions.append(position)
                    names.add(name)
                else:
                    summary.warnings.append(
                        f"image {result.ids[position]} is skipped: an earlier image is also called {name!r}"
                    )
            results.append(
                _ScanResult(
                    [result.ids[position] for position in new_positions],
                    [result.names[position] for position in new_positions],
                    [result.patches[position] for position in new_positions],
                    result.lost,
                )
            )
            summary.lost += result.lost
    return results


def _scan_file(file: _DamagedFile, progress: Progress) -> _ScanResult:
    """Check all values of all images of a file."""
    result = _ScanResult([], [], [], [])
    shard_name = file.path.name
    try:
        shard = file.open()
    except StoreError as error:
        result.lost.append(LostImage(shard_name, "", str(error)))
        return result
    readable_ids = shard.image_ids()
    if not readable_ids:
        result.lost.append(LostImage(shard_name, "", "nothing in it can be read"))
        return result
    for image_id in readable_ids if file.ids is None else file.ids:
        try:
            image = shard.check(image_id)
        except DamagedError as error:
            result.lost.append(LostImage(shard_name, _image_name(shard, image_id), f"image {image_id}: {error}"))
            continue
        result.ids.append(image_id)
        result.names.append(image.name)
        result.patches.append(len(image.files))
        progress.advance(len(image.files), 0)
    return result


def _image_name(shard: DamagedShard, image_id: int) -> str:
    """Return an image's name, "" if it cannot be read."""
    try:
        return shard.image(image_id).name
    except DamagedError:
        return ""


def _copy(
    new: Path,
    layout: Layout,
    scanned: Sequence[tuple[_DamagedFile, _ScanResult]],
    workers: int | None,
    summary: SalvageSummary,
) -> None:
    """Copy the undamaged images of each file into a shard of the new store, and publish it."""
    planned_shards = []
    for file, result in scanned:
        size = file.path.stat().st_size
        fingerprint = xxh3_128_hexdigest(repr((file.path.name, size, result.ids, result.names)).encode())
        planned_shards.append(PlannedShard(len(result.ids), sum(result.patches), size, fingerprint))
    with Commit(new, plan_commit(new, layout, planned_shards, base=None), base=None) as commit:
        jobs = [
            _Job(commit.folder, header, commit.find_shard(header), file, result.ids)
            for header, (file, result) in zip(commit.plan.headers(), scanned, strict=True)
        ]
        check_free_space(
            commit.folder,
            sum(shard.payload_bytes for shard, job in zip(planned_shards, jobs, strict=True) if not job.sealed),
        )
        with progress_bar(sum(shard.patches for shard in planned_shards), "copying") as bar:
            for shard in run_in_order(_copy_shard, jobs, workers=count_workers(workers, jobs=len(jobs)), bar=bar):
                commit.add(shard)
                summary.images += shard.header.images
                summary.patches += shard.header.patches
                summary.payload_bytes += shard.header.payload_bytes
        commit.publish()


def _copy_shard(job: _Job, progress: Progress) -> SealedShard:
    """Write the new shard of a job, or read the shard that an earlier run sealed."""
    if job.sealed is not None:
        return read_shard(job.sealed, check_values=True)
    shard = job.damaged_file.open()

    def fill(writer: ShardWriter) -> None:
        for image_id in job.ids:
            _copy_image(shard, image_id, writer, progress)

    return write_shard(job.folder, job.header, fill)


def _copy_image(shard: DamagedShard, image_id: int, writer: ShardWriter, progress: Progress) -> None:
    image = shard.image(image_id)
    assert image.patch_ids is not None
    assert image.heights is not None
    assert image.widths is not None
    sizes = map(Size, image.heights.tolist(), image.widths.tolist())
    for file, patch_id, size in zip(image.files, image.patch_ids.tolist(), sizes, strict=True):
        data = shard.read(image_id, Kind.PATCH, patch_id)
        writer.add_patch(file, data, size)
        progress.advance(1, len(data))
    writer.end_image(image, shard.read(image_id, Kind.REFERENCE) if image.has_reference else None)
