"""LitData: ``optimize`` writes chunks; worker processes map chunks, and shuffle chunks and the blocks inside."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch

from benchmarks.peers import Peer
from benchmarks.peers.data_loader_peer import DataLoaderPeer, Start, decode_tensor
from dlas_store.processes import available_cores

os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")  # read by the import; unset, every use asks the network

import litdata

# Shares of the decode limit, measured as in web_dataset.py:
# - 1, 2, 4 workers: 0.50, 0.45, 0.48, equal within the noise;
# - decoding in the collation: 0.41-0.54; item_shuffle_window="full": 0.30-0.43; batch_decode=0: 0.46-0.53.
# Patches are bytes; LitData's own type for JPEGs would decode with torchvision.
_CHUNK_BYTES = 8_000_000
"""Size of a chunk. The recommended 64 MB would leave workers of a small benchmark with one chunk or none."""


def _write(payloads: Sequence[bytes], folder: Path) -> None:
    with TemporaryDirectory(prefix="litdata-", dir=folder.parent) as scratch:
        caches = {
            "DATA_OPTIMIZER_CACHE_FOLDER": str(Path(scratch, "chunks")),
            "DATA_OPTIMIZER_DATA_CACHE_FOLDER": str(Path(scratch, "data")),
        }
        with patch.dict(os.environ, caches):
            litdata.optimize(
                fn=bytes,
                inputs=payloads,
                output_dir=str(folder),
                chunk_bytes=_CHUNK_BYTES,
                num_workers=min(available_cores(), len(payloads)),
                verbose=False,
            )


def _start(start: Start) -> Iterable[torch.Tensor]:
    dataset = litdata.StreamingDataset(str(start.folder), shuffle=True, seed=start.seed, transform=decode_tensor)
    loader: Iterable[torch.Tensor] = litdata.StreamingDataLoader(
        dataset, batch_size=start.batch_size, num_workers=available_cores(), persistent_workers=True
    )
    return loader


PEERS: tuple[Peer, ...] = (DataLoaderPeer("LitData", write=_write, start=_start),)
