"""References of images at the sizes that a dataset needs, the first few of them kept."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dlas_store.bounded_cache import cached
from dlas_store.datasets.patches import PatchOptions
from dlas_store.datasets.planes import Planes, area_resize, to_planes
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
        self._kept: dict[tuple[int, int, tuple[int, int]], Reference | bool] = {}

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

        def read(_: object) -> Reference | bool:
            encoded = source.read_reference(number)
            return encoded is not None and self._make(decode_reference(encoded, source, number), patch_size)

        kept = cached(self._kept, self._capacity, (id(source), number, patch_size), read)
        return kept if isinstance(kept, Reference) else None

    def _make(self, pixels: Pixels, patch_size: tuple[int, int]) -> Reference:
        opt = self._options
        planes = to_planes(pixels)
        for size in (patch_size, (opt.target_size, opt.target_size)):
            if planes.shape[1:] != size:
                planes = area_resize(planes, size)
        hq = np.ascontiguousarray(planes[:, : opt.hq_size, : opt.hq_size])
        return Reference((pixels.shape[0], pixels.shape[1]), hq, area_resize(hq, (opt.lq_size, opt.lq_size)))


def decode_reference(encoded: bytes, source: Source, number: int) -> Pixels:
    """Decode a reference.

    Raises:
        ImageError: it is no picture, or damaged; the message names it.
    """
    try:
        return decode(encoded)
    except ImageError as error:
        raise ImageError(f"{source.path}: reference of image {source.image_name(number)}: {error}") from error
