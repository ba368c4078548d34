"""WebDataset: tar shards, each read in order by one worker process, and a shuffle buffer behind the shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import webdataset
from torch.utils.data import default_collate

from benchmarks.peers import Peer
from benchmarks.peers.data_loader_peer import DataLoaderPeer, Start, decode_tensor
from dlas_store.processes import available_cores

# Shares of the decode limit, two cores, 6,000 patches, medians of 4 or 5 rounds, on a shared machine:
# - 1, 2, 4 workers: 0.25, 0.33-0.36, 0.35;
# - a shuffle buffer of 5,000 is no better than 1,000, and a prefetch factor of 4 no better than 2;
# - batches that this process splits, shuffles and batches again, as the documentation proposes for a better shuffle:
#   0.06, because every patch is copied here.
_SHUFFLE_BUFFER = 1000
_SHARDS_A_WORKER = 4
"""Shards a worker. Workers get whole shards, and with so many shards every worker gets nearly as many patches."""


def _write(payloads: Sequence[bytes], folder: Path) -> None:
    folder.mkdir()
    shards = min(len(payloads), _SHARDS_A_WORKER * available_cores())
    for shard in range(shards):
        with webdataset.TarWriter(str(folder / f"{shard:06d}.tar")) as tar:
            for number in range(shard, len(payloads), shards):
                tar.write({"__key__": f"{number:08d}", "jpg": payloads[number]})


def _start(start: Start) -> Iterable[torch.Tensor]:
    shards = sorted(map(str, start.folder.glob("*.tar")))
    # detshuffle counts epochs; shuffle with a seed gives every epoch the same order.
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), detshuffle=True, seed=start.seed)
        .compose(webdataset.detshuffle(_SHUFFLE_BUFFER, seed=start.seed))
        .to_tuple("jpg")
        .map_tuple(decode_tensor)
        .batched(start.batch_size, collation_fn=_collate)
    )
    workers = min(available_cores(), len(shards))
    loader: Iterable[torch.Tensor] = webdataset.WebLoader(
        dataset, batch_size=None, num_workers=workers, persistent_workers=True
    )
    return loader


def _collate(samples: Sequence[tuple[torch.Tensor]]) -> torch.Tensor:
    batch: torch.Tensor = default_collate([picture for (picture,) in samples])
    return batch


PEERS: tuple[Peer, ...] = (DataLoaderPeer("WebDataset", write=_write, start=_start),)
