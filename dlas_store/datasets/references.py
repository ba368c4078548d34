"""References of images: a cache of prepared references, and writing one into a batch with the mask of a patch."""

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
"""Capacity of the cache of each dataset and process: about 680 references of 256 x 256 pixels, or 550 prepared for
scale 4."""


class _HasBytes(Protocol):
    @property
    def nbytes(self) -> int: ...


R = TypeVar("R", bound=_HasBytes)

Prepare = Callable[[Pixels, int, tuple[int, int] | None], R]
"""A function of a decoded reference, the number of its image, and the patch size given to ReferenceCache.get(). It
returns what the cache keeps."""

_Key = tuple[int, tuple[int, int] | None]
"""Number of the image, and patch size."""


class Reference(NamedTuple):
    """A reference, prepared to be written into batches.

    Attributes:
        size: height and width of the decoded reference in pixels.
        hq: the reference at the size of HQ. It is uint8 (3, h, w) if it was decoded at that size, which takes a quarter
            of the memory and of the time to read it; else float32 (3, h, w) in [0, 1].
        lq: the reference at the size of LQ, float32 (3, h / s, w / s) in [0, 1].
    """

    size: tuple[int, int]
    hq: Pixels | Chw
    lq: Chw

    @property
    def nbytes(self) -> int:
        """Size of both arrays in bytes."""
        return self.hq.nbytes + self.lq.nbytes


class ReferenceCache(Generic[R]):
    """A cache of a source's references, each prepared for its use.

    Any number of threads may use it. A pickled cache is empty.
    """

    def __init__(self, source: Source, prepare: Prepare[R], *, likely_bytes: int = 1) -> None:
        """Make an empty cache.

        Args:
            source: holds the images.
            prepare: prepares a decoded reference; picklable.
            likely_bytes: expected size of a prepared reference in bytes. A larger reference lowers the number of
                references that are kept from then on.
        """
        self._source = source
        self._prepare = prepare
        self._likely_bytes = likely_bytes
        self._cache: BoundedCache[_Key, R | Literal[False]] = BoundedCache(_capacity(likely_bytes))

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(ReferenceCache, likely_bytes=self._likely_bytes), (self._source, self._prepare)

    def get(self, number: int, patch_size: tuple[int, int] | None = None) -> R | None:
        """Return the prepared reference of an image, None if the image has no reference.

        Args:
            number: number of the image.
            patch_size: height and width of the patch to prepare the reference for; None if references are prepared
                alike for all patches.

        Raises:
            StoreError: the reference cannot be read or decoded.
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
    """Return a cache of references at the sizes of HQ and LQ. Each reference is first resized to its patch's size."""
    # The estimate is for HQ as uint8. HQ as float32 takes four times as much.
    likely_bytes = 3 * options.hq_size**2 + 4 * 3 * options.lq_size**2
    return ReferenceCache(source, partial(_resize, options), likely_bytes=likely_bytes)


def write_reference(
    reference: Reference,
    square: Center,
    *,
    size: tuple[int, int],
    target: tuple[int, int],
    hq: Chw,
    lq: Chw,
) -> None:
    """Write a reference at the sizes of HQ and LQ, with the mask of a patch as its fourth channel.

    Args:
        reference: reference of the patch's image.
        square: square that the patch covers in the reference, in pixels of a reference of ``size``.
        size: height and width of the patch.
        target: height and width that the patch is resized to, before it is cropped at the bottom and right.
        hq: array that receives the reference at the size of HQ, float32 (4, h, w), contiguous.
        lq: array that receives the reference at the size of LQ, float32 (4, h / s, w / s), contiguous.
    """
    _, height, width = hq.shape
    if size == target:  # without a resize, cropping the mask equals clamping its square
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
    """Return the arguments by which the C loops do the work of write_reference(), if nothing is cropped."""
    return reference.hq, reference.lq, mask_box(square, size), MASK_OUTSIDE, size, hq, lq


def mask_box(square: Center, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the rows and columns where the mask of a patch is 1: first row, end of rows, first column, end of columns.

    Args:
        square: centre and side of the square that the patch covers, in pixels of the reference.
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


def _capacity(reference_bytes: int) -> int:
    """Return how many references of a size in bytes the cache keeps."""
    return max(1, CACHE_BYTES // reference_bytes)


def _resize(options: PatchOptions, pixels: Pixels, _number: int, patch_size: tuple[int, int] | None) -> Reference:
    """Resize a decoded reference for patches of a size. This is a Prepare function."""
    assert patch_size is not None
    size = (pixels.shape[0], pixels.shape[1])
    target = (options.target_size, options.target_size)
    lq = np.empty((3, options.lq_size, options.lq_size), np.float32)
    if size == patch_size == target == (options.hq_size, options.hq_size):
        write_chw(pixels, lq)
        return Reference(size, split_channels(pixels), lq)
    chw = to_chw_float(pixels)
    for next_size in (patch_size, target):
        chw = resize_area(chw, next_size) if chw.shape[1:] != next_size else chw
    hq = np.ascontiguousarray(chw[:, : options.hq_size, : options.hq_size])
    return Reference(size, hq, resize_area(hq, lq.shape[1:], out=lq))
