"""Rebuilding of a store's index from its shards alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dlas_store.atomic import StagingDirectory, publish_file
from dlas_store.errors import NotASourceError, StoreError
from dlas_store.processes import Progress, count_workers, run_in_order
from dlas_store.progress import progress_bar
from dlas_store.storage.commit import Commit, SealedShard, read_shard
from dlas_store.storage.index import INDEX_FILE, Index
from dlas_store.storage.index_writer import IndexWriter
from dlas_store.storage.shard import Shard


class SkippedShard(NamedTuple):
    """A shard that is not in the new index, and the reason."""

    path: Path
    reason: str


@dataclass(kw_only=True)
class ReindexSummary:
    """The result of reindex().

    Attributes:
        shards: number of shards in the new index.
        images: number of images in the new index.
        patches: number of patches in the new index.
        skipped: shards that are not in the new index.
    """

    shards: int = 0
    images: int = 0
    patches: int = 0
    skipped: list[SkippedShard] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the summary in JSON types."""
        return {
            "shards": self.shards,
            "images": self.images,
            "patches": self.patches,
            "skipped": [{"shard": path.name, "reason": reason} for path, reason in self.skipped],
        }


def reindex(store: Path, *, workers: int | None = None) -> ReindexSummary:
    """Write a new index for the shards in a store's folder, and replace the old index.

    The new index skips shards with damaged pages or metadata, shards of another store, and shards of an append that did
    not end. Payloads are not checked: a read, or verify, finds a damaged patch. Open sources keep the old index.

    Args:
        store: the store's folder.
        workers: number of processes; None starts one per core, 0 works in this process.

    Raises:
        NotASourceError: the folder does not exist or holds no usable shard.
        BusyError: another process is writing the store.
        WriteError: the disk refused a write.
    """
    if not store.is_dir():
        raise NotASourceError(f"{store}: is no folder of shards")
    with StagingDirectory(store):
        Commit.recover(store)
        summary = ReindexSummary()
        old_index = _open_old_index(store)
        shards = select_published(_open_shards(store, summary), old_index, summary.skipped)
        if shards:
            _write_index(store, shards, old_index, workers, summary)
    if not summary.shards:
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in summary.skipped)
        raise NotASourceError(f"{store}: holds no shard that can be used{f' ({reasons})' if reasons else ''}")
    return summary


def select_published(shards: Sequence[Shard], old_index: Index | None, skipped: list[SkippedShard]) -> list[Shard]:
    """Return the shards of published commits, and add all other shards to ``skipped``.

    Args:
        shards: shards in a store's folder, in the order of their numbers.
        old_index: the store's index, if it can be read; it proves that its shards were published.
        skipped: list to which the other shards are added, with the reasons.
    """
    counts = Counter(shard.header.store_id for shard in shards)
    if old_index and old_index.store_id not in counts:
        old_index = None  # the index of another store, copied here by mistake
    most_frequent_id = next((store_id for store_id, _ in counts.most_common(1)), b"")
    store_id = old_index.store_id if old_index else most_frequent_id
    published_ids = {entry.shard_id for entry in old_index.shards.values()} if old_index else set()
    commits: dict[tuple[int, int], list[Shard]] = defaultdict(list)
    for shard in shards:
        if shard.header.store_id == store_id:
            commits[shard.header.commit, shard.header.commit_first].append(shard)
        else:
            skipped.append(SkippedShard(shard.path, "is a shard of another store"))
    shards_of: dict[int, list[Shard]] = {}
    newest_commit = max((commit for commit, _ in commits), default=0)
    # Two commits of one number are an append that was given up, and the same append done again with higher shard
    # numbers. The sort puts a commit of the old index last, else that with higher shard numbers; the last one counts.
    ordered_commits = sorted(commits.items(), key=lambda item: (_is_published(item[1], published_ids), item[0]))
    for (commit, _), members in ordered_commits:
        # The first import is published as a whole, and an append follows only a published commit. If shards of such a
        # commit are missing, they were lost after it was published.
        was_published = commit in range(newest_commit) or commit == 0 or _is_published(members, published_ids)
        if was_published or len(members) == members[0].header.commit_shards:
            replaced_shards = shards_of.get(commit, [])
            shards_of[commit] = members
            skipped.extend(SkippedShard(shard.path, "is of an append done again later") for shard in replaced_shards)
        else:
            reason = (
                f"is of an append of which {len(members)} of {members[0].header.commit_shards} shards are here; "
                "run it again"
            )
            skipped.extend(SkippedShard(shard.path, reason) for shard in members)
    return [shard for commit in sorted(shards_of) for shard in shards_of[commit]]


def _write_index(
    store: Path, shards: Sequence[Shard], old_index: Index | None, workers: int | None, summary: ReindexSummary
) -> None:
    """Scan shards, write and publish their index, and add its numbers of shards, images and patches to the summary."""
    temporary = store / (INDEX_FILE + ".tmp")
    header = shards[0].header
    generation = 0 if old_index is None else old_index.generation + 1
    writer = IndexWriter(temporary, store_id=header.store_id, layout=header.layout, generation=generation)
    try:
        paths = [shard.path for shard in shards]
        with progress_bar(sum(shard.header.patches for shard in shards), "reading shards") as bar:
            worker_count = count_workers(workers, jobs=len(paths))
            for shard in run_in_order(_read_shard, paths, workers=worker_count, bar=bar):
                if isinstance(shard, SkippedShard):
                    summary.skipped.append(shard)
                    continue
                writer.add(shard.header, shard.entries, size=shard.size)
                summary.shards += 1
                summary.images += shard.header.images
                summary.patches += shard.header.patches
        if summary.shards:
            writer.finish()
            publish_file(temporary, store / INDEX_FILE)
    finally:
        writer.close()
        with suppress(OSError):  # must not hide an earlier error, and the next reindex replaces the file
            temporary.unlink()


def _read_shard(path: Path, progress: Progress) -> SealedShard | SkippedShard:
    try:
        shard = read_shard(path, check_values=False)
    except StoreError as error:
        return SkippedShard(path, str(error))
    progress.advance(shard.header.patches, shard.header.payload_bytes)
    return shard


def _open_old_index(store: Path) -> Index | None:
    """Return the index of a store, None if it is missing or damaged."""
    try:
        return Index.open(store / INDEX_FILE)
    except StoreError:
        return None


def _open_shards(store: Path, summary: ReindexSummary) -> list[Shard]:
    """Return the readable shards of a store in the order of their numbers, and list the others as skipped."""
    shards = []
    for path in sorted(store.glob("shard-*.lmdb")):
        try:
            shard = Shard(path)
        except StoreError as error:
            summary.skipped.append(SkippedShard(path, str(error)))
            continue
        if path.name == shard.header.file_name:
            shards.append(shard)
        else:
            reason = f"is {shard.header.file_name} under another name"
            summary.skipped.append(SkippedShard(path, reason))
    return sorted(shards, key=lambda shard: shard.header.number)


def _is_published(members: Sequence[Shard], published_ids: set[bytes]) -> bool:
    """Return whether an index names a shard of a commit."""
    return any(shard.header.shard_id in published_ids for shard in members)
