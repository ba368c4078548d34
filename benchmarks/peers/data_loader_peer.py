"""DataLoader peers, whose loader is PyTorch's DataLoader or a subclass, and the decoding that all peers share."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch

from dlas_store.images.decode import image_size
from dlas_store.images.memory import Pixels


class Start(NamedTuple):
    """Arguments of a loader's start.

    Attributes:
        folder: folder of the peer's data.
        batch_size: patches a batch.
        seed: seed of the shuffling.
    """

    folder: Path
    batch_size: int
    seed: int


class DataLoaderPeer:
    """Peer that keeps a DataLoader and its worker processes from epoch to epoch.

    Args:
        name: name in tables.
        write: writes patches into a new folder.
        start: makes a loader of uint8 batches that keeps its workers. The loader can be iterated repeatedly, in another
            order each time.
    """

    def __init__(
        self,
        name: str,
        *,
        write: Callable[[Sequence[bytes], Path], None],
        start: Callable[[Start], Iterable[torch.Tensor]],
    ) -> None:
        self.name = name
        self._write = write
        self._start = start
        self._started: tuple[Start, Iterable[torch.Tensor]] | None = None

    def write(self, payloads: Sequence[bytes], folder: Path) -> None:
        """Write patches in the peer's format."""
        self._write(payloads, folder)

    def batches(self, folder: Path, *, batch_size: int, seed: int) -> Iterator[Pixels]:
        """Read one epoch."""
        start = Start(folder, batch_size, seed)
        if self._started is None or self._started[0] != start:
            self.close()
            self._started = (start, self._start(start))
        for batch in self._started[1]:
            yield batch.numpy()

    def close(self) -> None:
        """End the worker processes."""
        self._started = None
        gc.collect()  # frees the cycle of loader and iterator; workers end with the iterator


def decode(encoded: bytes) -> Pixels:
    """Decode a JPEG to uint8 (height, width, 3), RGB."""
    pixels: Pixels = simplejpeg.decode_jpeg(encoded, "RGB")
    return pixels


def decode_tensor(encoded: bytes) -> torch.Tensor:
    """Decode a JPEG to a tensor, uint8 (height, width, 3), RGB.

    PyTorch's collation stacks tensors straight into shared memory. A batch that a worker decodes into memory of its own
    must be copied to shared memory: LitData's workers then grew by 600 MB each in an epoch of 6,000 patches, with
    tensors by 16 to 33 MB.
    """
    return torch.from_numpy(decode(encoded))


def decode_batch(encoded: Sequence[bytes | memoryview]) -> Pixels:
    """Decode one or more JPEGs of one size to uint8 (n, height, width, 3), RGB."""
    size = image_size(bytes(encoded[0]))
    batch = np.empty((len(encoded), size.height, size.width, 3), np.uint8)
    for data, pixels in zip(encoded, batch, strict=True):
        simplejpeg.decode_jpeg(data, "RGB", buffer=pixels)
    return batch
