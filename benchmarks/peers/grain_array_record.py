"""Grain with ArrayRecord: threads of one process read and decode records in the order of a permutation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
from array_record.python.array_record_module import ArrayRecordWriter

from benchmarks.peers import Peer
from benchmarks.peers.data_loader_peer import decode, decode_batch
from dlas_store.images.memory import Pixels
from dlas_store.processes import available_cores

_FILE = "patches.array_record"


class GrainPeer:
    """Peer that reads through a MapDataset, whose threads start in each epoch.

    Args:
        name: name in tables.
        decode_in_batches: whether a thread decodes the bytes of a batch into one array, by ``batch_fn``. If false,
            patches are mapped one by one and stacked, as in the documentation's examples.
    """

    # Shares of the decode limit, measured as in web_dataset.py:
    # - map, with reading threads that also stack the batches: 2 threads 0.67-0.72, 4 threads 0.58;
    # - map, with batches stacked outside of the threads: 1, 2, 4, 16 (the default) threads 0.35, 0.53, 0.54, 0.23;
    # - batch_fn: 1 thread 0.41; 2 threads with 2, 4, 8, 16 batches ahead 0.73, 0.77, 0.80, 0.81; 4 threads 0.75-0.79;
    #   in a later run 0.68, no more than map;
    # - mp_prefetch, with 0 to 2 threads a process: 0.15-0.22 if processes start in each epoch, 0.3 without the start.
    # Compressed records and index_storage_option in_memory made no difference beyond the noise.
    _BATCHES_AHEAD_A_THREAD = 4

    def __init__(self, name: str, *, decode_in_batches: bool) -> None:
        self.name = name
        self._decode_in_batches = decode_in_batches
        self._source: tuple[Path, Any] | None = None
        self._epoch = 0

    def write(self, payloads: Sequence[bytes], folder: Path) -> None:
        """Write one file with one record a group, as Grain requires, so that a record can be read alone."""
        folder.mkdir()
        writer = ArrayRecordWriter(str(folder / _FILE), "group_size:1")
        for payload in payloads:
            writer.write(payload)
        writer.close()

    def batches(self, folder: Path, *, batch_size: int, seed: int) -> Iterator[Pixels]:
        """Read one epoch."""
        if self._source is None or self._source[0] != folder:
            self.close()
            self._source = (folder, grain.sources.ArrayRecordDataSource([str(folder / _FILE)]))
        dataset = grain.MapDataset.source(self._source[1]).seed(seed + self._epoch).shuffle()
        self._epoch += 1
        if self._decode_in_batches:
            dataset = dataset.batch(batch_size, batch_fn=decode_batch)
        else:
            dataset = dataset.map(decode).batch(batch_size)
        threads = available_cores()
        reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=self._BATCHES_AHEAD_A_THREAD * threads)
        batches = iter(dataset.to_iter_dataset(reading))
        try:
            yield from batches
        finally:
            batches.close()

    def close(self) -> None:
        """Close the file."""
        if self._source is not None:
            self._source[1].__exit__(None, None, None)
        self._source = None
        self._epoch = 0


PEERS: tuple[Peer, ...] = (
    GrainPeer("Grain + ArrayRecord", decode_in_batches=False),
    GrainPeer("Grain + ArrayRecord, batch_fn", decode_in_batches=True),
)
