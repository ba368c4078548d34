"""References of images at the sizes that a dataset needs, the first few of them kept."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from dlas_store.aligned_memory import Pixels
from dlas_store.bounded_cache import cached
from dlas_store.datasets.patches import PatchOptions
from dlas_store.datasets.planes import Planes, area_resize, split_channels, to_planes, write_planes
from dlas_store.errors import ImageError
from dlas_store.pixels import decode
from dlas_store.source import Source

CACHE_BYTES = 128 << 20
"""About 550 references of 256 x 256 pixels at scale 4, for each dataset and process."""


class Reference(NamedTuple):
    """A reference, ready to be written into batches.

    Attributes:
        size: height and width in pixels of what was decoded.
        hq: at the size of HQ: uint8 (3, h, w) as decoded where it had that size, which takes a quarter of the memory
            and of the time to read it; else float32 in [0, 1].
        lq: at the size of LQ, float32 (3, h / s, w / s) in [0, 1].
    """

    size: tuple[int, int]
    hq: Pixels | Planes
    lq: Planes


class References:
    """Gives the references of sources; for any number of threads. A pickled one is empty."""

    def __init__(self, options: PatchOptions) -> None:
        self._options = options
        self._kept: dict[tuple[Source, int, tuple[int, int]], Reference | Literal[False]] = {}
        # As if all were uint8; one that is not takes four times the room, and lowers it for all that come later.
        self._capacity = max(1, CACHE_BYTES // (3 * options.hq_size**2 + 4 * 3 * options.lq_size**2))

    def __reduce__(self) -> tuple[type[References], tuple[PatchOptions]]:
        return References, (self._options,)

    def get(self, source: Source, number: int, patch_size: tuple[int, int]) -> Reference | None:
        """Return the reference of an image, None where it has none.

        Args:
            source: where the image is.
            number: of the image.
            patch_size: height and width of the patch, to which a reference is resized before anything else.

        Raises:
            StoreError: it cannot be read or decoded.
        """
        return cached(self._kept, self._capacity, (source, number, patch_size), self._read) or None

    def _read(self, wanted: tuple[Source, int, tuple[int, int]]) -> Reference | Literal[False]:
        source, number, patch_size = wanted
        encoded = source.read_reference(number)
        if encoded is None:
            return False
        made = self._make(decode_reference(encoded, source, number), patch_size)
        self._capacity = max(1, min(self._capacity, CACHE_BYTES // (made.hq.nbytes + made.lq.nbytes)))
        return made

    def _make(self, pixels: Pixels, patch_size: tuple[int, int]) -> Reference:
        opt = self._options
        size = (pixels.shape[0], pixels.shape[1])
        target = (opt.target_size, opt.target_size)
        lq = np.empty((3, opt.lq_size, opt.lq_size), np.float32)
        if size == patch_size == target == (opt.hq_size, opt.hq_size):
            write_planes(pixels, lq)
            return Reference(size, split_channels(pixels), lq)
        planes = to_planes(pixels)
        for wanted in (patch_size, target):
            planes = area_resize(planes, wanted) if planes.shape[1:] != wanted else planes
        hq = np.ascontiguousarray(planes[:, : opt.hq_size, : opt.hq_size])
        return Reference(size, hq, area_resize(hq, lq.shape[1:], out=lq))


def decode_reference(encoded: bytes, source: Source, number: int) -> Pixels:
    """Decode a reference.

    Raises:
        ImageError: it is no picture, or damaged; the message names it.
    """
    try:
        return decode(encoded)
    except ImageError as error:
        raise ImageError(f"{source.path}: reference of image {source.image_name(number)}: {error}") from error
