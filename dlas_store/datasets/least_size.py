"""Pictures that are too small for what a dataset cuts from them, found before training where sizes are known."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dlas_store.errors import ImageError
from dlas_store.options import ConfigOptions
from dlas_store.source import Source


def check_least_sides(options: ConfigOptions, sources: Iterable[Source], side: int, *, reason: str) -> None:
    """Check the pictures of all sources that know their sizes, which stores do and folders do not.

    It reads the metadata of every image: 8 us for each of a store of pictures, measured.

    Args:
        options: of the dataset.
        sources: what it reads.
        side: pixels that both sides of a picture must have.
        reason: what asks for them.

    Raises:
        ConfigError: a picture is smaller; it is named.
    """
    if side <= 1:
        return
    for source in sources:
        for number in range(source.image_count):
            image = source.image(number)
            if image.heights is None or image.widths is None:
                break
            small = np.flatnonzero(np.minimum(image.heights, image.widths) < side)
            if len(small):
                patch = int(small[0])
                path = source.patch_path(source.first_patch(number) + patch)
                size = int(image.heights[patch]), int(image.widths[patch])
                raise options.error(f"{_too_small(path, size, side, reason)}, or set on_error to skip")


def check_least_side(path: str, size: tuple[int, ...], side: int, *, reason: str) -> None:
    """Check the height and width of one picture.

    Raises:
        ImageError: one is below ``side``.
    """
    if min(size) < side:
        raise ImageError(_too_small(path, size, side, reason))


def _too_small(path: str, size: tuple[int, ...], side: int, reason: str) -> str:
    height, width = size
    return f"{path}: {width} x {height} pixels are too few for {reason}, which needs {side} x {side}; leave it out"
