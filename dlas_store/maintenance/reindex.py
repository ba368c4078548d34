"""Rebuild a store's index from its shards alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dlas_store.atomic import StagingDirectory, publish_file
from dlas_store.errors import NotASourceError, StoreError
from dlas_store.processes import Progress, count_workers, progress_bar, run_in_order
from dlas_store.storage.commit import Commit, SealedShard, read_shard
from dlas_store.storage.index import INDEX_FILE, Index
from dlas_store.storage.index_writer import IndexWriter
from dlas_store.storage.shard import Shard


class SkippedShard(NamedTuple):
    """A shard that is not in the new index, and why."""

    path: Path
    reason: str


@dataclass(kw_only=True)
class ReindexSummary:
    """What rebuilding an index came to.

    Attributes:
        shards: number of shards in the new index.
        images: number of images.
        patches: number of patches.
        left_out: what is not in it.
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
    """Write a new index for the shards in a store's folder, in place of the one that is there.

    Left out are shards whose pages or metadata are damaged, shards of another store, and those of an append that never
    ended. Payloads are not checked: a damaged patch is found when it is read, and by verify. Sources that are open
    keep the old index.

    Args:
        store: the store's folder.
        workers: number of processes; None takes one a core, 0 works in this process.

    Raises:
        NotASourceError: no folder, or no usable shard in it.
        BusyError: another process writes the store.
        WriteError: no room.
    """
    if not store.is_dir():
        raise NotASourceError(f"{store}: is no folder of shards")
    with StagingDirectory(store):
        Commit.recover(store)
        summary = ReindexSummary()
        old = _old_index(store)
        shards = select_published(_open_shards(store, summary), old, summary.skipped)
        if shards:
            _write_index(store, shards, old, workers, summary)
    if not summary.shards:
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in summary.skipped)
        raise NotASourceError(f"{store}: holds no shard that can be used{f' ({reasons})' if reasons else ''}")
    return summary


def _write_index(
    store: Path, shards: Sequence[Shard], old: Index | None, workers: int | None, summary: ReindexSummary
) -> None:
    temporary = store / (INDEX_FILE + ".tmp")
    header = shards[0].header
    generation = 0 if old is None else old.generation + 1
    writer = IndexWriter(temporary, store_id=header.store_id, layout=header.layout, generation=generation)
    try:
        paths = [shard.path for shard in shards]
        with progress_bar(sum(shard.header.patches for shard in shards), "reading shards") as bar:
            for read in run_in_order(_read_shard, paths, workers=count_workers(workers, jobs=len(paths)), bar=bar):
                if isinstance(read, SkippedShard):
                    summary.skipped.append(read)
                    continue
                writer.add(read.header, read.directory, size=read.size)
                summary.shards += 1
                summary.images += read.header.images
                summary.patches += read.header.patches
        if summary.shards:
            writer.finish()
            publish_file(temporary, store / INDEX_FILE)
    finally:
        writer.close()
        with suppress(OSError):  # what went wrong before must not be hidden; the next one replaces the file
            temporary.unlink()


def _read_shard(path: Path, progress: Progress) -> SealedShard | SkippedShard:
    try:
        shard = read_shard(path, check_values=False)
    except StoreError as error:
        return SkippedShard(path, str(error))
    progress.advance(shard.header.patches, shard.header.payload_bytes)
    return shard


def _old_index(store: Path) -> Index | None:
    try:
        return Index.open(store / INDEX_FILE)
    except StoreError:
        return None


def _open_shards(store: Path, summary: ReindexSummary) -> list[Shard]:
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


def select_published(shards: Sequence[Shard], old: Index | None, skipped: list[SkippedShard]) -> list[Shard]:
    """Return the shards of a store that were published, as far as can be told, and add the others to a list."""
    counts = Counter(shard.header.store_id for shard in shards)
    if old and old.store_id not in counts:
        old = None  # that of another store, copied here by mistake
    store_id = old.store_id if old else next((store_id for store_id, _ in counts.most_common(1)), b"")
    published = {entry.shard_id for entry in old.shards.values()} if old else set()
    commits: dict[tuple[int, int], list[Shard]] = defaultdict(list)
    for shard in shards:
        if shard.header.store_id == store_id:
            commits[shard.header.commit, shard.header.commit_first].append(shard)
        else:
            skipped.append(SkippedShard(shard.path, "is a shard of another store"))
    selected: dict[int, list[Shard]] = {}
    newest = max((commit for commit, _ in commits), default=0)
    # An append that was given up, and done again under higher numbers, comes first here; the published one stays.
    for (commit, _), members in sorted(commits.items(), key=lambda item: (_is_published(item[1], published), item[0])):
        # A first import becomes visible as a whole, and no append follows one that was not published: if some of their
        # shards are missing, they were lost later.
        was_published = commit in range(newest) or commit == 0 or _is_published(members, published)
        if was_published or len(members) == members[0].header.commit_shards:
            selected, replaced = selected | {commit: members}, selected.get(commit, [])
            skipped.extend(SkippedShard(shard.path, "is of an append done again later") for shard in replaced)
        else:
            skipped.extend(
                SkippedShard(
                    shard.path,
                    f"is of an append of which {len(members)} of {shard.header.commit_shards} "
                    "shards are here; run it again",
                )
                for shard in members
            )
    return [shard for commit in sorted(selected) for shard in selected[commit]]


def _is_published(members: Sequence[Shard], published: set[bytes]) -> bool:
    return any(shard.header.shard_id in published for shard in members)
