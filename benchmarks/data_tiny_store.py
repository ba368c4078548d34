"""Tiny stores: as many keys as a large dataset, with small values, since values do not affect the cost of opening."""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image as Pillow

from benchmarks.data import synthetic_picture
from dlas_store.images.decode import Size
from dlas_store.processes import Progress, available_cores, run_in_order
from dlas_store.progress import progress_bar
from dlas_store.sources.base import Image
from dlas_store.storage.commit import Commit, CommitPlan, PlannedShard, SealedShard, write_shard
from dlas_store.storage.shard import ShardHeader
from dlas_store.storage.shard_writer import ShardWriter

_PATCHES_AN_IMAGE = 1000
_PATCHES_A_SHARD = 85_000
"""Number of 12.6 kB patches in a shard of 1 GiB, so that a tiny store has as many shards as a real store."""

_VALUE_BYTES = 16

_DISTINCT_PICTURES = 211
"""Number of pictures that patches repeat; a prime, so that neighbouring images differ."""

_SIZE_WITHOUT_PICTURES = Size(256, 256)


class SmallPictures(NamedTuple):
    """Pictures that the patches of a store repeat in turn.

    Attributes:
        encoded: the JPEGs.
        size: size of every picture, in pixels.
    """

    encoded: tuple[bytes, ...]
    size: Size


class _Job(NamedTuple):
    folder: Path
    header: ShardHeader
    planned: PlannedShard
    pictures: SmallPictures | None


def write_tiny_store(store: Path, *, patches: int, pictures: SmallPictures | None = None) -> None:
    """Write a store of images that have no reference and no centres.

    Args:
        store: the store to make.
        patches: number of patches.
        pictures: the pictures that the patches repeat; None makes patches of 16 bytes that are not pictures.
    """
    value_bytes = _VALUE_BYTES if pictures is None else -(-sum(map(len, pictures.encoded)) // len(pictures.encoded))
    shards = tuple(_plan(patches, value_bytes))
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
        jobs = [_Job(commit.folder, *pair, pictures) for pair in zip(commit.plan.headers(), shards, strict=True)]
        for sealed in run_in_order(_write, jobs, workers=min(len(jobs), available_cores()), bar=bar):
            commit.add(sealed)
        commit.publish()


def small_pictures(*, size: int, quality: int) -> SmallPictures:
    """Return square JPEGs of ``size`` pixels; optimised Huffman tables save bytes, so that 32 pixels take 0.5 kB."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(_DISTINCT_PICTURES):
        file = io.BytesIO()
        picture = Pillow.fromarray(synthetic_picture(rng, size))
        picture.save(file, "JPEG", quality=quality, optimize=True)
        encoded.append(file.getvalue())
    return SmallPictures(tuple(encoded), Size(size, size))


def _plan(patches: int, value_bytes: int) -> Iterator[PlannedShard]:
    for first in range(0, patches, _PATCHES_A_SHARD):
        count = min(_PATCHES_A_SHARD, patches - first)
        yield PlannedShard(-(-count // _PATCHES_AN_IMAGE), count, count * value_bytes, fingerprint="")


def _patch(number: int, pictures: SmallPictures | None) -> tuple[bytes, Size]:
    if pictures is None:
        return number.to_bytes(_VALUE_BYTES), _SIZE_WITHOUT_PICTURES
    return pictures.encoded[number % len(pictures.encoded)], pictures.size


def _write(job: _Job, progress: Progress) -> SealedShard:
    def fill(writer: ShardWriter) -> None:
        for first in range(0, job.planned.patches, _PATCHES_AN_IMAGE):
            count = min(_PATCHES_AN_IMAGE, job.planned.patches - first)
            image = job.header.first_image + first // _PATCHES_AN_IMAGE
            for number in range(count):
                patch = _patch(image * _PATCHES_AN_IMAGE + number, job.pictures)
                writer.add_patch(f"{number:08d}.jpg", *patch)
            name = f"image_{image:08d}"
            writer.end_image(Image(name, (), centers=None, has_reference=False), None)
            progress.advance(count, job.planned.payload_bytes * count // job.planned.patches)

    return write_shard(job.folder, job.header, fill)
