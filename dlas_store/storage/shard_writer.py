"""Writer of a shard: it adds one image after another, then seals the file."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from dlas_store.atomic import remove_file
from dlas_store.images.decode import Size
from dlas_store.sources.base import Image
from dlas_store.storage.lmdb_writer import BATCH_BYTES, LmdbWriter
from dlas_store.storage.records import Kind, PatchIds, encode_image, encode_value, pack_key
from dlas_store.storage.sealed_file import seal
from dlas_store.storage.shard import Shard, ShardEntries, ShardHeader, scan_shard

_OVERHEAD_BYTES = 256
"""Memory of a buffered value besides its payload: key, checksum and Python objects."""


class ShardWriter:
    """Writes one shard under a temporary name.

    A thread writes one batch while the next is buffered, so two or three batches of BATCH_BYTES are in memory.

    Args:
        path: the temporary name, in an existing folder.
        header: the trailer's fields, whose counts seal() sets.
    """

    def __init__(self, path: Path, header: ShardHeader) -> None:
        self._path = path
        self._header = header
        self._images = 0
        self._patches = 0
        self._payload_bytes = 0
        self._buffered: list[tuple[bytes, bytes]] = []
        self._buffered_bytes = 0
        remove_file(path)
        self._lmdb = LmdbWriter(path)
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._begin_image()

    def _begin_image(self) -> None:
        self._image_id = self._header.first_image + self._images
        self._ids = PatchIds()
        self._patch_ids: list[int] = []
        self._files: list[str] = []
        self._sizes: list[Size] = []

    def add_patch(self, file: str, data: bytes, size: Size) -> None:
        """Add the next patch of the current image. Patches of an image must come in the order of their names.

        Args:
            file: file name of the patch.
            data: encoded bytes.
            size: height and width in pixels.

        Raises:
            WriteError: the disk refused a write.
        """
        patch_id = self._ids.assign(file)
        self._put(pack_key(self._image_id, Kind.PATCH, patch_id), data)
        self._patch_ids.append(patch_id)
        self._payload_bytes += len(data)
        self._files.append(file)
        self._sizes.append(size)

    def end_image(self, image: Image, reference: bytes | None) -> None:
        """End the current image. An image without patches is skipped.

        Args:
            image: metadata of the image. The added patches replace its files, ids and sizes.
            reference: encoded bytes of the reference, None if the image has no reference.

        Raises:
            WriteError: the disk refused a write.
        """
        if not self._files:
            return
        heights, widths = np.array(self._sizes, np.uint32).T
        image = replace(
            image,
            files=tuple(self._files),
            has_reference=reference is not None,
            patch_ids=np.array(self._patch_ids, np.uint64),
            heights=heights,
            widths=widths,
        )
        if reference is not None:
            self._put(pack_key(self._image_id, Kind.REFERENCE), reference)
            self._payload_bytes += len(reference)
        # Metadata is written last because it lists all patches. A batch is sorted by key, so metadata still comes first
        # on disk if the image fits into one batch.
        self._put(pack_key(self._image_id, Kind.METADATA), encode_image(image))
        self._images += 1
        self._patches += len(self._files)
        self._begin_image()

    def seal(self) -> tuple[ShardHeader, ShardEntries]:
        """Append the trailer, sync the shard, read the shard back and check every value.

        Returns:
            The header with all counts, and the shard's entries.

        Raises:
            WriteError: the disk refused a write.
            DamagedError: a value that was read back differs from the value written.
        """
        self._flush()
        self._wait_for_write()
        self._lmdb.close()
        header = replace(self._header, images=self._images, patches=self._patches, payload_bytes=self._payload_bytes)
        seal(self._path, {"kind": "shard"} | asdict(header))
        return header, scan_shard(Shard(self._path), check_values=True)

    def _put(self, key: bytes, payload: bytes) -> None:
        self._buffered.append((key, encode_value(key, payload)))
        self._buffered_bytes += len(payload) + _OVERHEAD_BYTES
        if self._buffered_bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Wait for the previous batch, then pass the buffered values to the writing thread."""
        self._wait_for_write()
        self._writing = self._writer.submit(self._lmdb.write, self._buffered)
        self._buffered = []
        self._buffered_bytes = 0

    def _wait_for_write(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file. Without an earlier seal(), the file is unusable."""
        self._writer.shutdown()
        self._lmdb.close()
