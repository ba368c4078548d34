"""One import or append: planned shards, built one by one, become visible together."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from dlas_store.atomic import LOCK_FILE, PLAN_FILE, StagingDirectory, publish_file, remove_file, sync_folder, write_file
from dlas_store.errors import BusyError, StoreError, TargetExistsError, write_errors
from dlas_store.sources.base import Layout
from dlas_store.storage.index import INDEX_FILE, Index
from dlas_store.storage.index_writer import IndexWriter
from dlas_store.storage.shard import Shard, ShardEntries, ShardHeader, scan_shard, shard_file_name
from dlas_store.storage.shard_writer import ShardWriter


class PlannedShard(NamedTuple):
    """What one shard is to hold.

    Attributes:
        images: number of images.
        patches: number of patches.
        payload_bytes: bytes of their files.
        fingerprint: what its names, sizes and the options came to, as the converter computed it.
    """

    images: int
    patches: int
    payload_bytes: int
    fingerprint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CommitPlan:
    """Everything about a commit that a rerun of its command must find again.

    Attributes:
        store_id: of the store that is written or appended to, hex.
        layout: that of the store.
        commit: its number, from 0.
        first_shard: number of its first shard.
        first_image: id of its first image.
        shards: what each shard is to hold.
        shard_ids: their ids, hex.
    """

    store_id: str
    layout: Layout
    commit: int
    first_shard: int
    first_image: int
    shards: tuple[PlannedShard, ...]
    shard_ids: tuple[str, ...]

    def headers(self) -> list[ShardHeader]:
        """Return the header of each shard, its counts still zero."""
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


def plan_commit(store: Path, layout: Layout, shards: Sequence[PlannedShard], *, base: Index | None) -> CommitPlan:
    """Return the plan of a new store, or of new shards of one.

    Args:
        store: the store's folder.
        layout: that of the store.
        shards: what each new shard is to hold.
        base: the index of the store that is appended to, None for a new one.
    """
    earlier = base.shards.values() if base else ()
    return CommitPlan(
        store_id=base.store_id.hex() if base else secrets.token_hex(16),
        layout=layout,
        commit=max((shard.commit for shard in earlier), default=-1) + 1,
        first_shard=_next_shard_number(store, base) if base else 0,
        first_image=max((shard.first_image_id + shard.images for shard in earlier), default=0),
        shards=tuple(shards),
        shard_ids=tuple(secrets.token_hex(16) for _ in shards),
    )


class SealedShard(NamedTuple):
    """What the index needs of a sealed shard; size in bytes."""

    header: ShardHeader
    directory: ShardEntries
    size: int


class Commit:
    """Writes a new store, or new shards of one that is there.

    A context manager: left without publish(), it keeps what is sealed, and the same command goes on from there. Shards
    are built by write_shard() in ``folder``, by this or other processes, and handed to add() in order.

    Attributes:
        plan: the plan, with the ids that an interrupted run gave the shards that are the same.
        folder: where the shards are built.
    """

    def __init__(self, store: Path, plan: CommitPlan, *, base: Index | None) -> None:
        """Take the lock and agree on a plan.

        Args:
            store: the store's folder.
            plan: what is to be written.
            base: the index of the store that is appended to, None for a new one.

        Raises:
            BusyError: another process writes the store, or did since its index was read.
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
            self.plan = self._agree(plan)
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
        """Remove what a run left in or beside a store, if it was killed right after it had published.

        Args:
            store: the store's folder; it need not be there.
            index: the store's, to look for what an append left beside it; None looks into the folder only, which needs
                no lock.

        Raises:
            BusyError: another process appends to the store.
            WriteError: the disk refused it.
        """
        if (store / INDEX_FILE).is_file():
            with suppress(OSError):  # a new store's lock harms nobody, and the store may be read-only
                (store / LOCK_FILE).unlink(missing_ok=True)
        if index is not None:
            StagingDirectory.recover(store, partial(_is_append_published, store=store, index=index))

    def find_shard(self, header: ShardHeader) -> Path | None:
        """Return where a shard lies that an earlier run sealed, None where it did not get that far."""
        for folder in (self.folder, self._store):
            path = folder / header.file_name
            if path.exists() and Shard(path).header.shard_id == header.shard_id:
                return path
        return None

    def add(self, shard: SealedShard) -> None:
        """Add a sealed shard to the index; shards come in order."""
        self._index.add(shard.header, shard.directory, size=shard.size)

    def publish(self) -> None:
        """Make all shards visible, durably: first they, then the index that names them."""
        self._index.finish()
        publish_file(self.folder / (INDEX_FILE + ".tmp"), self.folder / INDEX_FILE)
        if self._base is None:
            for file in self.folder.iterdir():
                if file.suffix == ".json":
                    remove_file(file)
            self._staging.publish()
            return
        for header in self.plan.headers():
            if (self.folder / header.file_name).exists():
                publish_file(self.folder / header.file_name, self._store / header.file_name)
        publish_file(self.folder / INDEX_FILE, self._store / INDEX_FILE)
        self._staging.remove()

    def discard(self) -> None:
        """Remove all that was built; of use where that is nothing."""
        self._staging.remove()

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of the lock."""
        self._index.close()
        self._staging.close()

    def _agree(self, wanted: CommitPlan) -> CommitPlan:
        """Return the wanted plan with the ids of those shards that an interrupted run may have sealed, and record it.

        So a file that was mended costs its own shard only.
        """
        path = self.folder / PLAN_FILE
        if path.exists():
            earlier = _decode_plan(path.read_bytes())
            # An append of an earlier number was published, and killed before it had cleaned up.
            if earlier.commit == wanted.commit:
                sealed = [header for header in earlier.headers() if self.find_shard(header)]
                wanted = _with_ids_of(earlier, wanted)
                if sealed and not set(wanted.shard_ids).intersection(header.shard_id.hex() for header in sealed):
                    raise StoreError(
                        f"{self.folder}: holds shards of an interrupted run with other files or options; run it again "
                        "with those, or remove that folder to start over"
                    )
        write_file(path, json.dumps(asdict(wanted)).encode())
        return wanted


def _is_append_published(staging: Path, *, store: Path, index: Index) -> bool:
    """Tell whether an index names what an append built; make that durable, as the append may not have come to it."""
    with write_errors(store):
        sync_folder(store)
    path = staging / PLAN_FILE
    plan = _decode_plan(path.read_bytes()) if path.exists() else None
    # Without its plan nobody can go on with what is there: it was being removed.
    return plan is None or plan.commit in {shard.commit for shard in index.shards.values()}


def _check_unchanged(store: Path, base: Index | None) -> None:
    if base is None and store.exists():
        raise TargetExistsError(f"{store}: appeared meanwhile; move it away and run the same command again")
    if base is not None and Index.open(base.place).generation != base.generation:
        raise BusyError(f"{store}: another process changed it meanwhile; run the same command again")


def _with_ids_of(earlier: CommitPlan, wanted: CommitPlan) -> CommitPlan:
    """Return the wanted plan with the store and shard ids of an earlier one, wherever the shards are the same."""
    wanted = replace(wanted, store_id=earlier.store_id, first_shard=earlier.first_shard)
    pairs = zip(earlier.headers(), earlier.shards, wanted.headers(), wanted.shards, strict=False)
    ids = list(wanted.shard_ids)
    for position, (old_header, old_shard, header, shard) in enumerate(pairs):
        if old_shard == shard and replace(old_header, shard_id=header.shard_id) == header:
            ids[position] = earlier.shard_ids[position]
    return replace(wanted, shard_ids=tuple(ids))


def write_shard(folder: Path, header: ShardHeader, fill: Callable[[ShardWriter], None]) -> SealedShard:
    """Build a shard under a temporary name and seal it.

    Args:
        folder: a commit's folder.
        header: one of its plan's.
        fill: adds the images.

    Raises:
        WriteError: the disk refused it.
    """
    temporary = folder / (header.file_name + ".tmp")
    with ShardWriter(temporary, header) as writer:
        fill(writer)
        sealed, directory = writer.seal()
    publish_file(temporary, folder / header.file_name)
    return SealedShard(sealed, directory, (folder / header.file_name).stat().st_size)


def read_shard(path: Path, *, check_values: bool) -> SealedShard:
    """Return what the index needs of a shard, found by a walk through it; see scan_shard."""
    shard = Shard(path)
    return SealedShard(shard.header, scan_shard(shard, check_values=check_values), len(shard.data))


def _next_shard_number(store: Path, base: Index) -> int:
    """Return the first number that no shard of a store has, named by its index or not."""
    number = max(base.shards, default=-1) + 1
    while (store / shard_file_name(number)).exists():
        number += 1
    return number


def _decode_plan(data: bytes) -> CommitPlan:
    fields = json.loads(data)
    shards = tuple(PlannedShard(*shard) for shard in fields["shards"])
    return CommitPlan(**fields | {"shards": shards, "shard_ids": tuple(fields["shard_ids"])})
