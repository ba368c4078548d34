"""Steps from decoding alone to a batch of the threads loader, each of which adds one part of the loader."""

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

_BATCHES_HELD = 5
"""Number of batches whose memory the loader keeps; results go to as many places."""


def loader_steps(reading: Reading, source: Source) -> dict[str, Callable[[], object]]:
    """Return a pass over all patches for each step. It makes the loader's batches, each in one thread."""
    threads = available_cores()
    encoded = list(map(source.read, range(reading.items)))
    mapped = list(map(source.view, range(reading.items)))
    batches = list(epoch_order(reading).batches())
    indices = [sorted(draw.index for draw in batch) for batch in batches]
    shape = (reading.batch, reading.height, reading.width, 3)
    aligned = [list(empty_aligned(shape, np.uint8)) for _ in range(_BATCHES_HELD)]
    places = [list(empty_pixels(shape)) for _ in range(_BATCHES_HELD)]
    limit = DecodeLimit(encoded, size=Size(*shape[1:3]), batch=reading.batch, threads=threads)
    dataset = create_dataset(reading.options(reading.data))
    memory = BufferPool(_BATCHES_HELD)
    loader = prepare_loader(reading, reading.data, loader="threads")()

    def over_patches(
        decode: Callable[[int, Pixels], object], places: Sequence[list[Pixels]] = places
    ) -> Callable[[], None]:
        def decode_batch(number: int) -> None:
            for index, place in zip(indices[number], places[number % _BATCHES_HELD], strict=True):
                decode(index, place)

        return partial(_each, threads, decode_batch, range(len(indices)))

    def decode_encoded(index: int, place: Pixels) -> None:
        simplejpeg.decode_jpeg(encoded[index], "RGB", buffer=place)

    def decode_in_one_call(number: int) -> None:
        source.decode_many_into(indices[number], list(places[number % _BATCHES_HELD]))

    def make_batch(number: int) -> None:
        _make(dataset, batches[number], memory)

    return {
        LIMIT: limit.run,
        "in the loader's order, to as many places": over_patches(decode_encoded, aligned),
        "that are not aligned, as empty_pixels": over_patches(decode_encoded),
        "of bytes in the map": over_patches(
            lambda index, place: simplejpeg.decode_jpeg(mapped[index], "RGB", buffer=place)
        ),
        "found and checked, Store.view": over_patches(
            lambda index, place: simplejpeg.decode_jpeg(source.view(index), "RGB", buffer=place)
        ),
        "decoded as well, Store.decode_many_into": partial(_each, threads, decode_in_one_call, range(len(indices))),
        "batches begun and finished": partial(_each, threads, make_batch, range(len(batches))),
        "threads loader": loader.run,
    }


def _each(threads: int, work: Callable[[int], None], numbers: Iterable[int]) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, numbers))


def _make(dataset: Any, batch: Sequence[Any], memory: BufferPool) -> None:
    assert isinstance(dataset, ItemDataset)
    work = dataset.batch_builder(batch, memory.batch_allocator())
    work.fill(0, len(work))
    work.finish()
