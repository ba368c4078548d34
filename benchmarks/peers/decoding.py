"""Decoding of JPEG bytes to pixels, the same for every peer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import simplejpeg
import torch

from dlas_store.aligned_memory import Pixels
from dlas_store.pixels import image_size


def decode(encoded: bytes) -> Pixels:
    """Decode a JPEG to uint8 (height, width, 3), RGB."""
    pixels: Pixels = simplejpeg.decode_jpeg(encoded, "RGB")
    return pixels


def decode_tensor(encoded: bytes) -> torch.Tensor:
    """Decode a JPEG to a tensor, uint8 (height, width, 3), RGB.

    PyTorch's collation stacks tensors straight into shared memory. A batch that a worker decodes into its own memory
    would be copied to shared memory; LitData's workers then grew by 600 MB each in an epoch of 6,000 patches, against
    16 to 33 MB.
    """
    return torch.from_numpy(decode(encoded))


def decode_batch(encoded: Sequence[bytes | memoryview]) -> Pixels:
    """Decode JPEGs of one size, at least one, to uint8 (n, height, width, 3), RGB."""
    size = image_size(bytes(encoded[0]))
    batch = np.empty((len(encoded), size.height, size.width, 3), np.uint8)
    for data, pixels in zip(encoded, batch, strict=True):
        simplejpeg.decode_jpeg(data, "RGB", buffer=pixels)
    return batch
