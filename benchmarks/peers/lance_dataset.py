"""Lance: a column of bytes, read by row numbers with Lance's loader for PyTorch or with threads of one process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow
import torch
from lance.torch.data import SafeLanceDataset, get_safe_loader
from torch.utils.data import default_collate

from benchmarks.peers import Peer
from benchmarks.peers.data_loader_peer import DataLoaderPeer, Start, decode_batch, decode_tensor
from dlas_store.images.memory import Pixels
from dlas_store.processes import available_cores

# Shares of the decode limit, measured as in web_dataset.py:
# - get_safe_loader: 1, 2, 4 workers 0.23, 0.38, 0.39;
# - take: 1, 2, 4 threads 0.55, 0.81, 0.84; two later runs with 4 threads 0.75, 0.94;
# - LanceDataset with ShardedBatchSampler(randomize=True): 0.61, but this sampler shuffles whole batches of neighbouring
#   rows, and one thread decodes.
# Blob columns were not tried.
_COLUMN = "jpg"
_THREADS_A_CORE = 2
_BATCHES_AHEAD_A_THREAD = 2


def _write(payloads: Sequence[bytes], folder: Path) -> None:
    table = pyarrow.table({_COLUMN: pyarrow.array(payloads, pyarrow.large_binary())})
    lance.write_dataset(table, str(folder))


def _start(start: Start) -> Iterable[torch.Tensor]:
    loader: Iterable[torch.Tensor] = get_safe_loader(
        SafeLanceDataset(str(start.folder)),
        batch_size=start.batch_size,
        num_workers=available_cores(),
        shuffle=True,
        generator=torch.Generator().manual_seed(start.seed),
        collate_fn=_collate,
    )
    return loader


def _collate(rows: Sequence[Mapping[str, bytes]]) -> torch.Tensor:
    batch: torch.Tensor = default_collate([decode_tensor(row[_COLUMN]) for row in rows])
    return batch


class LanceTakePeer:
    """Peer whose threads take the rows of a batch in one call, and decode the bytes in Lance's memory.

    Lance has no such loader: a user of Lance would write the threads around ``take``.
    """

    name = "Lance, take in threads"

    def __init__(self) -> None:
        self._dataset: tuple[Path, Any] | None = None
        self._epoch = 0

    def write(self, payloads: Sequence[bytes], folder: Path) -> None:
        """Write one column."""
        _write(payloads, folder)

    def batches(self, folder: Path, *, batch_size: int, seed: int) -> Iterator[Pixels]:
        """Read one epoch."""
        if self._dataset is None or self._dataset[0] != folder:
            self.close()
            self._dataset = (folder, lance.dataset(str(folder)))
        dataset = self._dataset[1]
        order = np.random.default_rng((seed, self._epoch)).permutation(dataset.count_rows())
        self._epoch += 1
        threads = _THREADS_A_CORE * available_cores()
        futures: deque[Future[Pixels]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            for first in range(0, len(order), batch_size):
                futures.append(pool.submit(_take, dataset, order[first : first + batch_size].tolist()))
                if len(futures) > _BATCHES_AHEAD_A_THREAD * threads:
                    yield futures.popleft().result()
            while futures:
                yield futures.popleft().result()

    def close(self) -> None:
        """Release the dataset."""
        self._dataset = None
        self._epoch = 0


def _take(dataset: Any, rows: Sequence[int]) -> Pixels:
    column = dataset.take(rows, columns=[_COLUMN]).column(_COLUMN)
    return decode_batch([memoryview(value.as_buffer()).cast("B") for value in column])


PEERS: tuple[Peer, ...] = (DataLoaderPeer("Lance, get_safe_loader", write=_write, start=_start), LanceTakePeer())
