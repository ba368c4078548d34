"""Memory that patches are decoded into before they are written elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dlas_store.aligned_memory import Pixels
from dlas_store.pixels import empty_pixels

BYTES_TOGETHER = 1 << 20
"""Patches up to so many bytes are decoded before they are written: they stay in the processor's caches."""


class DecodingMemory:
    """Gives arrays, and gives those again that were given back last, which a processor's caches may still hold.

    For any number of threads; it keeps as many as were in use at a time. A pickled one is empty.
    """

    def __init__(self) -> None:
        self._free: list[tuple[tuple[int, ...], list[Pixels]]] = []

    def __reduce__(self) -> tuple[type[DecodingMemory], tuple[()]]:
        return DecodingMemory, ()

    @contextmanager
    def patches(self, shape: tuple[int, ...]) -> Iterator[list[Pixels]]:
        """Lend the arrays of a shape (N, H, W, 3), uint8, one a patch, their content undefined.

        Nothing may refer to them behind the block.
        """
        try:
            kept, arrays = self._free.pop()
        except IndexError:
            kept, arrays = (), []
        if kept != shape:  # those of another shape are let go of
            arrays = list(empty_pixels(shape))
        yield arrays
        self._free.append((shape, arrays))
