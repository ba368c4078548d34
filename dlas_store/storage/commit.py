"""A commit, that is an import or append: its shards are built one by one and published together."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from dlas_store.atomic import (
    LOCK_FILE,
    PLAN_FILE,
    StagingDirectory,
    other_plan_error,
    publish_file,
    remove_file,
    staging_path,
    sync_folder,
    write_file,
)
from dlas_store.errors import BusyError, TargetExistsError, write_errors
from dlas_store.sources.base import Layout
from dlas_store.storage.index import INDEX_FILE, Index
from dlas_store.storage.index_writer import IndexWriter
from dlas_store.storage.shard import Shard, ShardEntries, ShardHeader, scan_shard, shard_file_name
from dlas_store.storage.shard_writer import ShardWriter


class PlannedShard(NamedTuple):
    """The planned content of one shard.

    Attributes:
        images: number of images.
        patches: number of patches.
        payload_bytes: bytes of all patches and references.
        fingerprint: hash that the converter computed from file names, sizes and options.
    """

    images: int
    patches: int
    payload_bytes: int
    fingerprint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CommitPlan:
    """The plan of a commit, recorded so that a rerun of the same command continues it.

    Attributes:
        store_id: id of the new or appended store, hex.
        layout: layout of the store.
        commit: number of the commit in its store, from 0.
        first_shard: number of the commit's first shard.
        first_image: id of the commit's first image.
        shards: planned content of each shard.
        shard_ids: id of each shard, hex.
        options: options of the run by their names on the command line, for the error of a run with others.
    """

    store_id: str
    layout: Layout
    commit: int
    first_shard: int
    first_image: int
    shards: tuple[PlannedShard, ...]
    shard_ids: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)

    def headers(self) -> list[ShardHeader]:
        """Return the header of each shard, with all counts zero."""
        headers = []
        first_image = self.first_image
        for position, (shard, shard_id) in enumerate(zip(self.shards, self.shard_ids, strict=True)):
            headers.append(
                ShardHeader(
                    store_id=bytes.fromhex(self.store_id),
                    shard_id=bytes.fromhex(shard_id),
                    number=self.first_shard + position,
                    layout=self.layout,
                    commit=self.commit,
                    commit_first=self.first_shard,
                    commit_shards=len(self.shards),
                    first_image=first_image,
                )
            )
            first_image += shard.images
        return headers


class SealedShard(NamedTuple):
    """A sealed shard, described by the values that IndexWriter.add() takes.

    Attributes:
        header: the shard's header.
        entries: the shard's entries as index rows.
        size: size of the shard's file in bytes.
    """

    header: ShardHeader
    entries: ShardEntries
    size: int


def plan_commit(
    store: Path,
    layout: Layout,
    shards: Sequence[PlannedShard],
    *,
    base: Index | None,
    options: Mapping[str, str] | None = None,
) -> CommitPlan:
    """Return the plan of a new store, or of new shards of a store.

    Args:
        store: the store's folder.
        layout: layout of the store.
        shards: planned content of each new shard.
        base: index of the store to append to, None for a new store.
        options: options of the run by their names on the command line.
    """
    base_shards = base.shards.values() if base else ()
    return CommitPlan(
        store_id=base.store_id.hex() if base else secrets.token_hex(16),
        layout=layout,
        commit=max((shard.commit for shard in base_shards), default=-1) + 1,
        first_shard=_next_shard_number(store, base) if base else 0,
        first_image=max((shard.first_image_id + shard.images for shard in base_shards), default=0),
        shards=tuple(shards),
        shard_ids=tuple(secrets.token_hex(16) for _ in shards),
        options=options or {},
    )


def write_shard(folder: Path, header: ShardHeader, fill: Callable[[ShardWriter], None]) -> SealedShard:
    """Build a shard under a temporary name, seal it and give it its name.

    Args:
        folder: the commit's staging directory.
        header: the shard's header from the plan.
        fill: function that adds the images.

    Raises:
        WriteError: the disk refused a write.
    """
    temporary = folder / (header.file_name + ".tmp")
    with ShardWriter(temporary, header) as writer:
        fill(writer)
        sealed_header, entries = writer.seal()
    publish_file(temporary, folder / header.file_name)
    return SealedShard(sealed_header, entries, (folder / header.file_name).stat().st_size)


def read_shard(path: Path, *, check_values: bool) -> SealedShard:
    """Return the description of a sealed shard, from a scan of its file; see scan_shard."""
    shard = Shard(path)
    return SealedShard(shard.header, scan_shard(shard, check_values=check_values), len(shard.data))


class Commit:
    """A commit in progress: it writes a new store, or new shards of an existing store.

    A commit is a context manager. If the block ends without publish(), the staging directory keeps all sealed shards,
    and a rerun of the same command continues from there. Any process may build the shards in ``folder`` with
    write_shard(); this process then passes them to add() in order.

    Attributes:
        plan: the plan. Shards that an interrupted run planned in the same way have the ids of that run.
        folder: the staging directory, in which the shards are built.
    """

    def __init__(self, store: Path, plan: CommitPlan, *, base: Index | None) -> None:
        """Take the lock, and record the plan or continue that of an interrupted run.

        Args:
            store: the store's folder.
            plan: the plan of the commit.
            base: index of the store to append to, None for a new store.

        Raises:
            BusyError: another process is writing the store, or has replaced its index since ``base`` was read.
            TargetExistsError: a new store's folder exists already.
            StoreError: an interrupted run had another source or other options.
        """
        self._store = store
        self._base = base
        self._staging = StagingDirectory(store)
        self.folder = self._staging.path
        with ExitStack() as on_failure:
            on_failure.callback(self._staging.close)
            _check_unchanged(store, base)
            self.recover(store)
            self.plan = self._record_or_continue(plan)
            self._index = IndexWriter(
                self.folder / (INDEX_FILE + ".tmp"),
                store_id=bytes.fromhex(self.plan.store_id),
                layout=self.plan.layout,
                generation=0 if base is None else base.generation + 1,
            )
            on_failure.callback(self._index.close)
            if base is not None:
                self._index.add_index(base)
            on_failure.pop_all()

    @staticmethod
    def recover(store: Path, index: Index | None = None) -> None:
        """Remove the leftovers of a run that was killed after it had published its commit.

        Args:
            store: the store's folder, which need not exist.
            index: the store's index, with which the staging directory of a published append is removed, too. With None,
                only the lock file that a new store's import left in the store's folder is removed; this takes no lock.

        Raises:
            BusyError: another process is appending to the store.
            WriteError: the disk refused the removal.
        """
        if (store / INDEX_FILE).is_file():
            with suppress(OSError):  # a lock file in a store does no harm, and the store may be read-only
                (store / LOCK_FILE).unlink(missing_ok=True)
        if index is not None:
            StagingDirectory.recover(store, partial(_is_append_published, store=store, index=index))

    def find_shard(self, header: ShardHeader) -> Path | None:
        """Return the path of a shard that an interrupted run has sealed, None if there is none."""
        for folder in (self.folder, self._store):
            path = folder / header.file_name
            if path.exists() and Shard(path).header.shard_id == header.shard_id:
                return path
        return None

    def add(self, shard: SealedShard) -> None:
        """Add a sealed shard to the index. Shards must come in the order of their numbers."""
        self._index.add(shard.header, shard.entries, size=shard.size)

    def publish(self) -> None:
        """Publish all shards durably: first the shards, then the index that names them.

        Raises:
            TargetExistsError: a new store's folder appeared meanwhile.
            WriteError: the disk refused a write.
        """
        self._index.finish()
        publish_file(self.folder / (INDEX_FILE + ".tmp"), self.folder / INDEX_FILE)
        if self._base is None:
            for file in self.folder.iterdir():
                if file.suffix == ".json":  # the plan, and records of a converter for a rerun
                    remove_file(file)
            self._staging.publish()
            return
        for header in self.plan.headers():
            if (self.folder / header.file_name).exists():
                publish_file(self.folder / header.file_name, self._store / header.file_name)
        publish_file(self.folder / INDEX_FILE, self._store / INDEX_FILE)
        self._staging.remove()

    def discard(self) -> None:
        """Remove the staging directory, for a commit that has nothing to add."""
        self._staging.remove()

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock."""
        self._index.close()
        self._staging.close()

    def _record_or_continue(self, plan: CommitPlan) -> CommitPlan:
        """Record a plan and return it, with the ids of the shards that an interrupted run planned in the same way.

        A sealed shard with such an id is kept. So after a change of one source file only its own shard is built again.
        """
        path = self.folder / PLAN_FILE
        if path.exists():
            earlier_plan = _decode_plan(path.read_bytes())
            # A plan with another number is from a published append that was killed before it removed the plan.
            if earlier_plan.commit == plan.commit:
                sealed_ids = {header.shard_id.hex() for header in earlier_plan.headers() if self.find_shard(header)}
                plan = _with_ids_of(earlier_plan, plan)
                if sealed_ids and sealed_ids.isdisjoint(plan.shard_ids):
                    raise other_plan_error(self.folder, earlier_plan.options, plan.options)
        write_file(path, json.dumps(asdict(plan)).encode())
        return plan


def discard_interrupted(store: Path) -> None:
    """Remove all that an interrupted run left for a store, so that a run starts over.

    An append that was interrupted while it published has moved shards into the store's folder. Those that the index
    does not name are removed, too; no reader knows them.

    Args:
        store: the store's folder, which need not exist.

    Raises:
        BusyError: another process is writing the store.
        StoreError: the folder is not one of an interrupted run, or the store's index is damaged.
        WriteError: the disk refused the removal.
    """
    plan_file = staging_path(store) / PLAN_FILE
    if (store / INDEX_FILE).is_file() and plan_file.is_file():
        with StagingDirectory(store):
            named = Index.open(store / INDEX_FILE).shards
            for header in _decode_plan(plan_file.read_bytes()).headers():
                path = store / header.file_name
                if header.number not in named and path.exists() and Shard(path).header.shard_id == header.shard_id:
                    remove_file(path)
    StagingDirectory.discard(store)


def _is_append_published(staging: Path, *, store: Path, index: Index) -> bool:
    """Return whether an index names the shards of an append, after making their renames durable.

    The append may have been killed before it made them durable itself.
    """
    with write_errors(store):
        sync_folder(store)
    path = staging / PLAN_FILE
    plan = _decode_plan(path.read_bytes()) if path.exists() else None
    # A staging directory without a plan was being removed, and no run can continue it.
    return plan is None or plan.commit in {shard.commit for shard in index.shards.values()}


def _check_unchanged(store: Path, base: Index | None) -> None:
    """Check that a new store's folder does not exist, or that a store's index is still the one that was read."""
    if base is None and store.exists():
        raise TargetExistsError(f"{store}: appeared meanwhile; move it away and run the same command again")
    if base is not None and Index.open(base.path).generation != base.generation:
        raise BusyError(f"{store}: another process changed it meanwhile; run the same command again")


def _with_ids_of(earlier_plan: CommitPlan, plan: CommitPlan) -> CommitPlan:
    """Return a plan with the store id of an earlier plan, and its shard ids where both plan the same shard."""
    plan = replace(plan, store_id=earlier_plan.store_id, first_shard=earlier_plan.first_shard)
    pairs = zip(earlier_plan.headers(), earlier_plan.shards, plan.headers(), plan.shards, strict=False)
    ids = list(plan.shard_ids)
    for position, (earlier_header, earlier_shard, header, shard) in enumerate(pairs):
        if earlier_shard == shard and replace(earlier_header, shard_id=header.shard_id) == header:
            ids[position] = earlier_plan.shard_ids[position]
    return replace(plan, shard_ids=tuple(ids))


def _next_shard_number(store: Path, base: Index) -> int:
    """Return the lowest number above all shards of the index that no shard file in the store's folder has."""
    number = max(base.shards, default=-1) + 1
    while (store / shard_file_name(number)).exists():
        number += 1
    return number


def _decode_plan(data: bytes) -> CommitPlan:
    fields = json.loads(data)
    shards = tuple(PlannedShard(*shard) for shard in fields["shards"])
    return CommitPlan(**fields | {"shards": shards, "shard_ids": tuple(fields["shard_ids"])})
