"""Summary of a store: numbers of images and patches, sizes in bytes, and sizes in pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlas_store.sources.base import Layout
from dlas_store.storage.index import INDEX_FILE, ImageRow, PatchRow
from dlas_store.storage.sealed_file import FORMAT_VERSION, Table
from dlas_store.storage.store import Store

BLOCK_BYTES = 4096
"""Bytes of a block in which file systems usually store files, and of a page in which a shard stores values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreInfo:
    """The summary of a store's content.

    Attributes:
        images: number of images.
        patches: number of patches.
        references: number of images with a reference.
        bytes: size of all patches and references in bytes.
        disk_bytes: size of the store's files in bytes.
        block_bytes: size of all patches and references in bytes, if each were a file in whole blocks of BLOCK_BYTES.
        shards: number of shards.
        layout: layout of the store, chunked or pictures.
        format_version: version of the store's format.
        store_id: id of the store, 32 hexadecimal digits.
        generation: number of times that the index was replaced.
        sizes: "WIDTHxHEIGHT" in pixels -> number of patches of that size, the most frequent size first.
    """

    images: int
    patches: int
    references: int
    bytes: int
    disk_bytes: int
    block_bytes: int
    shards: int
    layout: Layout
    format_version: int
    store_id: str
    generation: int
    sizes: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return the summary in JSON types."""
        return asdict(self)


def info(path: Path) -> StoreInfo:
    """Return the summary of a store, from the index and the metadata of every image.

    Args:
        path: the store's folder, its index.lmdb, or a single shard.

    Raises:
        NotASourceError: the path is not a store.
        DamagedError: the index, a shard or the metadata of an image is damaged.
        FormatVersionError: a later version wrote the store.
    """
    with Store(path) as store:
        entries = store.index.shards.values()
        index_file = store.path / INDEX_FILE
        index_size = index_file.stat().st_size if store.path.is_dir() else 0
        sizes: Counter[tuple[int, int]] = Counter()
        for number in range(store.image_count):
            image = store.image(number)
            assert image.heights is not None
            assert image.widths is not None
            sizes.update(zip(image.widths.tolist(), image.heights.tolist(), strict=True))
        return StoreInfo(
            images=store.image_count,
            patches=len(store),
            references=sum(map(store.has_reference, range(store.image_count))),
            bytes=sum(entry.payload_bytes for entry in entries),
            disk_bytes=sum(entry.size for entry in entries) + index_size,
            block_bytes=_block_bytes(store),
            shards=len(entries),
            layout=store.layout,
            format_version=FORMAT_VERSION,
            store_id=store.index.store_id.hex(),
            generation=store.index.generation,
            sizes={f"{width}x{height}": count for (width, height), count in sizes.most_common()},
        )


def _block_bytes(store: Store) -> int:
    """Return the size of all patches and references in whole blocks."""
    patches = _column(store.index.patches, PatchRow, "length")
    references = _column(store.index.images, ImageRow, "reference_length")
    blocks = (int((-(-lengths // BLOCK_BYTES)).sum()) for lengths in chain(patches, references))
    return sum(blocks) * BLOCK_BYTES


def _column(table: Sequence[Any], row_class: type[PatchRow | ImageRow], name: str) -> Iterator[NDArray[np.int64]]:
    """Yield the values of a column: of a store block by block, of a single shard, whose rows are in memory, at once."""
    if isinstance(table, Table):
        yield from (rows[name].astype(np.int64) for rows in table.arrays())
    else:
        yield np.array([getattr(row_class._make(row), name) for row in table], np.int64)
