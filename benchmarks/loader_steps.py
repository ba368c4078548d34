"""Steps of the threads loader, from decoding alone to the whole loader; each step adds one part of its work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import simplejpeg

from benchmarks.contender_limit import DecodeLimit
from benchmarks.contender_store import epoch_order, prepare_loader
from benchmarks.contenders import LIMIT
from benchmarks.reading import Reading
from dlas_store.datasets import create_dataset
from dlas_store.images.decode import Size, empty_pixels
from dlas_store.images.memory import Pixels, empty_aligned
from dlas_store.loading.buffers import BufferPool
from dlas_store.loading.dataset import ItemDataset
from dlas_store.processes import available_cores
from dlas_store.sources.base import Source

_BATCHES_IN_MEMORY = 5
"""Number of batches whose buffers the loader keeps; the steps write to as many buffers."""


def loader_steps(reading: Reading, source: Source) -> dict[str, Callable[[], object]]:
    """Return title -> step. A step is a function that makes all batches of an epoch, each batch in one thread."""
    threads = available_cores()
    encoded = list(map(source.read, range(reading.items)))
    mapped = list(map(source.view, range(reading.items)))
    batches = list(epoch_order(reading).batches())
    indices = [sorted(key.index for key in batch) for batch in batches]
    shape = (reading.batch, reading.height, reading.width, 3)
    aligned_buffers = [list(empty_aligned(shape, np.uint8)) for _ in range(_BATCHES_IN_MEMORY)]
    buffers = [list(empty_pixels(shape)) for _ in range(_BATCHES_IN_MEMORY)]
    limit = DecodeLimit(encoded, size=Size(*shape[1:3]), batch=reading.batch, threads=threads)
    dataset = create_dataset(reading.options(reading.data))
    pool = BufferPool(_BATCHES_IN_MEMORY)
    loader = prepare_loader(reading, reading.data, loader="threads")()

    def for_each_patch(
        decode: Callable[[int, Pixels], object], buffers: Sequence[list[Pixels]] = buffers
    ) -> Callable[[], None]:
        def decode_batch(number: int) -> None:
            for index, patch in zip(indices[number], buffers[number % _BATCHES_IN_MEMORY], strict=True):
                decode(index, patch)

        return partial(_for_each, threads, decode_batch, range(len(indices)))

    def decode_encoded(index: int, patch: Pixels) -> None:
        simplejpeg.decode_jpeg(encoded[index], "RGB", buffer=patch)

    def decode_in_one_call(number: int) -> None:
        source.decode_many_into(indices[number], list(buffers[number % _BATCHES_IN_MEMORY]))

    def make_batch(number: int) -> None:
        _make_batch(dataset, batches[number], pool)

    return {
        LIMIT: limit.run,
        "shuffled, into several aligned buffers": for_each_patch(decode_encoded, aligned_buffers),
        "into unaligned buffers, empty_pixels": for_each_patch(decode_encoded),
        "bytes from the mapped file": for_each_patch(
            lambda index, patch: simplejpeg.decode_jpeg(mapped[index], "RGB", buffer=patch)
        ),
        "index row and checksum, Store.view": for_each_patch(
            lambda index, patch: simplejpeg.decode_jpeg(source.view(index), "RGB", buffer=patch)
        ),
        "all in one call, Store.decode_many_into": partial(_for_each, threads, decode_in_one_call, range(len(indices))),
        "whole batches, BatchBuilder": partial(_for_each, threads, make_batch, range(len(batches))),
        "threads loader": loader.run,
    }


def _for_each(threads: int, work: Callable[[int], None], numbers: Iterable[int]) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, numbers))


def _make_batch(dataset: Any, batch: Sequence[Any], pool: BufferPool) -> None:
    assert isinstance(dataset, ItemDataset)
    builder = dataset.batch_builder(batch, pool.batch_allocator())
    builder.fill(0, len(builder))
    builder.finish()
