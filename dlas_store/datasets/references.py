"""References of images, prepared for what they are needed for, the first few of them kept.

The reference of a patch in a batch, with the mask of where the patch lies in it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar, cast

import numpy as np

from dlas_store.datasets.patch_options import MASK_OUTSIDE, PatchOptions
from dlas_store.errors import ImageError
from dlas_store.images.decode import decode
from dlas_store.images.memory import BoundedCache, Pixels
from dlas_store.sources.base import Center, Source
from dlas_store.transforms.resize import (
    Chw,
    loops_for,
    resize_area,
    split_channels,
    to_chw_float,
    to_unit,
    write_chw,
)

CACHE_BYTES = 128 << 20
"""About 680 references of 256 x 256 pixels, or 550 at the sizes of scale 4, for each dataset and process."""


class Reference(NamedTuple):
    """A reference, ready to be written into batches.

    Attributes:
        size: height and width in pixels of what was decoded.
        hq: at the size of HQ: uint8 (3, h, w) as decoded where it had that size, which takes a quarter of the memory
            and of the time to read it; else float32 in [0, 1].
        lq: at the size of LQ, float32 (3, h / s, w / s) in [0, 1].
    """

    size: tuple[int, int]
    hq: Pixels | Chw
    lq: Chw

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return self.hq.nbytes + self.lq.nbytes


class _HasBytes(Protocol):
    @property
    def nbytes(self) -> int: ...


R = TypeVar("R", bound=_HasBytes)

Prepare = Callable[[Pixels, int, tuple[int, int] | None], R]

_Key = tuple[int, tuple[int, int] | None]


class ReferenceCache(Generic[R]):
    """Gives the references of a source, prepared for what they are needed for, the first ones kept.

    For any number of threads. A pickled one is empty.
    """

    def __init__(self, source: Source, prepare: Prepare[R], *, likely_bytes: int = 1) -> None:
        """Begin empty.

        Args:
            source: holds the images.
            prepare: makes what is kept of the decoded pixels, the number of the image, and what get() was told of the
                patch. Picklable.
            likely_bytes: of what it makes. A larger one lowers how many are kept from then on.
        """
        self._source = source
        self._prepare = prepare
        self._likely_bytes = likely_bytes
        self._cache: BoundedCache[_Key, R | Literal[False]] = BoundedCache(_capacity(likely_bytes))

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(ReferenceCache, likely_bytes=self._likely_bytes), (self._source, self._prepare)

    def get(self, number: int, patch_size: tuple[int, int] | None = None) -> R | None:
        """Return the reference of an image, None where it has none.

        Args:
            number: of the image.
            patch_size: height and width of the patch that it is prepared for; None where it is the same for all.

        Raises:
            StoreError: it cannot be read or decoded.
        """
        key = (number, patch_size)
        return self._cache.peek(key) or self._cache.get(key, self._read) or None

    def _read(self, key: _Key) -> R | Literal[False]:
        source = self._source
        number, patch_size = key
        encoded = source.read_reference(number)
        if encoded is None:
            return False
        try:
            pixels = decode(encoded)
        except ImageError as error:
            name = source.image_name(number)
            raise ImageError(f"{source.source_path(number)}: reference of image {name}: {error}") from error
        reference = self._prepare(pixels, number, patch_size)
        self._cache.capacity = min(self._cache.capacity, _capacity(reference.nbytes))
        return reference


def resized_references(source: Source, options: PatchOptions) -> ReferenceCache[Reference]:
    """Return a cache of references at the sizes of HQ and LQ, each resized to its patch's size before anything else."""
    # As if all were uint8; one that is not takes four times the room.
    likely_bytes = 3 * options.hq_size**2 + 4 * 3 * options.lq_size**2
    return ReferenceCache(source, partial(_resize, options), likely_bytes=likely_bytes)


def _resize(options: PatchOptions, pixels: Pixels, _number: int, patch_size: tuple[int, int] | None) -> Reference:
    assert patch_size is not None
    size = (pixels.shape[0], pixels.shape[1])
    target = (options.target_size, options.target_size)
    lq = np.empty((3, options.lq_size, options.lq_size), np.float32)
    if size == patch_size == target == (options.hq_size, options.hq_size):
        write_chw(pixels, lq)
        return Reference(size, split_channels(pixels), lq)
    planes = to_chw_float(pixels)
    for next_size in (patch_size, target):
        planes = resize_area(planes, next_size) if planes.shape[1:] != next_size else planes
    hq = np.ascontiguousarray(planes[:, : options.hq_size, : options.hq_size])
    return Reference(size, hq, resize_area(hq, lq.shape[1:], out=lq))


def _capacity(reference_bytes: int) -> int:
    """Return how many references of a size are kept."""
    return max(1, CACHE_BYTES // reference_bytes)


def write_reference(
    reference: Reference,
    square: Center,
    *,
    size: tuple[int, int],
    target: tuple[int, int],
    hq: Chw,
    lq: Chw,
) -> None:
    """Write a reference, with the mask of a patch as its fourth channel, as HQ and as LQ.

    Args:
        reference: of the image.
        square: where the patch lies in its reference, in pixels of a reference of ``size``.
        size: height and width of the patch.
        target: height and width that the patch is brought to, before it is cropped at the bottom and right.
        hq: float32 (4, h, w), contiguous.
        lq: float32 (4, h / s, w / s), contiguous.
    """
    _, height, width = hq.shape
    if size == target:  # then cropping the mask and clamping its square are the same
        size = target = (height, width)
    loops = loops_for(size, hq, lq)
    if loops is not None and target == (height, width):
        loops.write_reference(*loops_arguments(reference, square, size, hq=hq, lq=lq))
        return
    if reference.hq.dtype == np.uint8:
        to_unit(cast(Pixels, reference.hq), hq[:3])
    else:
        hq[:3] = reference.hq
    lq[:3] = reference.lq
    mask = np.full((1, *size), MASK_OUTSIDE, np.float32)
    top, bottom, left, right = mask_box(square, size)
    mask[:, top:bottom, left:right] = 1
    hq[3:] = resize_area(mask, target)[:, :height, :width]
    resize_area(hq[3:], lq.shape[1:], out=lq[3:])


def loops_arguments(
    reference: Reference, square: Center, size: tuple[int, int], *, hq: Chw, lq: Chw
) -> tuple[Any, ...]:
    """Return what the loops in C take to do it, where they can and nothing is cropped; see write_reference."""
    return reference.hq, reference.lq, mask_box(square, size), MASK_OUTSIDE, size, hq, lq


def mask_box(square: Center, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return where the mask of a patch's square is 1: first row, the row behind the last, and the same of columns.

    Args:
        square: its centre and side, in pixels of the reference.
        size: height and width of the reference, to which the square is clamped.
    """
    half, (height, width) = square.width // 2, size
    top, bottom = square.row - half, square.row + half
    left, right = square.col - half, square.col + half
    return (
        min(max(top, 0), height),
        min(max(bottom, 0), height),
        min(max(left, 0), width),
        min(max(right, 0), width),
    )
