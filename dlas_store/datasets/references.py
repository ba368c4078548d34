"""References of images at the sizes that a dataset needs, the first few of them kept."""

from __future__ import annotations

from contextlib import suppress
from typing import Literal, NamedTuple

import numpy as np

from dlas_store.datasets.batch_memory import is_free
from dlas_store.datasets.patches import PatchOptions
from dlas_store.datasets.planes import Planes, area_resize, split_channels, to_planes, to_unit
from dlas_store.errors import ImageError
from dlas_store.pixels import decode
from dlas_store.source import Pixels, Source

CACHE_BYTES = 128 << 20
"""About 160 references of 256 x 256 pixels, for each dataset and process."""


class Reference(NamedTuple):
    """A reference, ready to be copied into batches.

    Attributes:
        size: height and width in pixels of what was decoded.
        hq: at the size of HQ, float32 (3, h, w) in [0, 1].
        lq: at the size of LQ.
    """

    size: tuple[int, int]
    hq: Planes
    lq: Planes


class References:
    """Gives the references of sources; for any number of threads. A pickled one is empty."""

    def __init__(self, options: PatchOptions) -> None:
        self._options = options
        self._capacity = max(1, CACHE_BYTES // (4 * 3 * (options.hq_size**2 + options.lq_size**2)))
        self._kept: dict[tuple[int, int, tuple[int, int]], Reference | Literal[False]] = {}

    def __reduce__(self) -> tuple[type[References], tuple[PatchOptions]]:
        return References, (self._options,)

    def get(self, source: Source, number: int, patch_size: tuple[int, int]) -> Reference | None:
        """Return the reference of an image, None where it has none.

        Args:
            source: where the image is; it must live as long as this.
            number: of the image.
            patch_size: height and width of the patch, to which a reference is resized before anything else.

        Raises:
            StoreError: it cannot be read or decoded.
        """
        key = (id(source), number, patch_size)
        kept = self._kept.get(key)
        if kept is None:
            encoded = source.read_reference(number)
            evicted = self._evicted()
            kept = encoded is not None and self._make(decode_reference(encoded, source, number), patch_size, evicted)
            self._kept[key] = kept
        return kept or None

    def _evicted(self) -> Reference | None:
        """Let the newest reference make room where there is none; return it if nobody has it any more.

        Its memory is then used again: the system clears new memory first, and lets one thread at a time ask for it.
        """
        if len(self._kept) < self._capacity:
            return None
        with suppress(KeyError):  # another thread may have taken the last one
            newest = [self._kept.popitem()[1]]
            return newest[0] or None if is_free(newest, 0) else None
        return None

    def _make(self, pixels: Pixels, patch_size: tuple[int, int], evicted: Reference | None) -> Reference:
        opt = self._options
        size, target, hq_size = pixels.shape[:2], (opt.target_size, opt.target_size), (opt.hq_size, opt.hq_size)
        if evicted is not None and size == patch_size == target == hq_size:
            to_unit(split_channels(pixels), evicted.hq)
            area_resize(evicted.hq, evicted.lq.shape[1:], out=evicted.lq)
            return evicted._replace(size=size)
        planes = to_planes(pixels)
        for wanted in (patch_size, target):
            if planes.shape[1:] != wanted:
                planes = area_resize(planes, wanted)
        hq = np.ascontiguousarray(planes[:, : opt.hq_size, : opt.hq_size])
        return Reference((size[0], size[1]), hq, area_resize(hq, (opt.lq_size, opt.lq_size)))


def decode_reference(encoded: bytes, source: Source, number: int) -> Pixels:
    """Decode a reference.

    Raises:
        ImageError: it is no picture, or damaged; the message names it.
    """
    try:
        return decode(encoded)
    except ImageError as error:
        raise ImageError(f"{source.path}: reference of image {source.image_name(number)}: {error}") from error
