"""Stores with the keys of large datasets and values of 16 bytes: what opening costs does not depend on values."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dlas_store.commit import Commit, CommitPlan, PlannedShard, SealedShard, write_shard
from dlas_store.metadata import Image
from dlas_store.pixels import Size
from dlas_store.processes import available_cores, progress_bar, report_done, run_in_order
from dlas_store.shard import ShardHeader
from dlas_store.shard_writer import ShardWriter

_PATCHES_AN_IMAGE = 1000
_PATCHES_A_SHARD = 85_000
"""As many patches of 12.6 kB as a shard of 1 GiB holds, so that a store has as many shards as a real one."""

_VALUE_BYTES = 16


class _Job(NamedTuple):
    folder: Path
    header: ShardHeader
    planned: PlannedShard


def write_tiny_store(store: Path, *, patches: int) -> None:
    """Write a store whose patches are no pictures."""
    shards = tuple(_plan(patches))
    plan = CommitPlan(
        store_id=secrets.token_hex(16),
        layout="chunked",
        commit=0,
        first_shard=0,
        first_image=0,
        shards=shards,
        shard_ids=tuple(secrets.token_hex(16) for _ in shards),
    )
    with Commit(store, plan, base=None) as commit, progress_bar(patches, f"writing {store.name}") as bar:
        jobs = [_Job(commit.folder, *pair) for pair in zip(commit.plan.headers(), shards, strict=True)]
        for sealed in run_in_order(_write, jobs, workers=min(len(jobs), available_cores()), bar=bar):
            commit.add(sealed)
        commit.publish()


def _plan(patches: int) -> Iterator[PlannedShard]:
    for first in range(0, patches, _PATCHES_A_SHARD):
        count = min(_PATCHES_A_SHARD, patches - first)
        yield PlannedShard(-(-count // _PATCHES_AN_IMAGE), count, count * _VALUE_BYTES, fingerprint="")


def _write(job: _Job) -> SealedShard:
    def fill(writer: ShardWriter) -> None:
        for first in range(0, job.planned.patches, _PATCHES_AN_IMAGE):
            count = min(_PATCHES_AN_IMAGE, job.planned.patches - first)
            for number in range(count):
                writer.add_patch(f"{number:08d}.jpg", number.to_bytes(_VALUE_BYTES), Size(256, 256))
            name = f"image_{job.header.first_image + first // _PATCHES_AN_IMAGE:08d}"
            writer.end_image(Image(name, (), centers=None, has_reference=False), None)
            report_done(count, count * _VALUE_BYTES)

    return write_shard(job.folder, job.header, fill)
