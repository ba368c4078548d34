"""Patches as they are decoded, with all that is needed to make HQ and LQ of them elsewhere."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from dlas_store.aligned_memory import Pixels
from dlas_store.datasets.batches import NO_REFERENCE, Allocate, RawPatches, check_one_size
from dlas_store.datasets.decoding import Frames, decode_items, raise_error
from dlas_store.datasets.patches import PatchOptions, square_in_reference
from dlas_store.datasets.references import ReferenceCache
from dlas_store.source import Center

_NO_SQUARE = Center(0, 0, 0)


class NamedReference(NamedTuple):
    """A reference, uint8 (h, w, 3), RGB, the number of its image, and its height and width."""

    image: int
    pixels: torch.Tensor
    size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return self.pixels.nbytes


def name_reference(pixels: Pixels, number: int, _patch_size: tuple[int, int] | None) -> NamedReference:
    """Return a reference as it was decoded; what a ReferenceCache is told to keep."""
    height, width, _ = pixels.shape
    return NamedReference(number, torch.from_numpy(pixels), (height, width))


class RawPatchBatch:
    """A batch of patches that are decoded and nothing else; see BatchWork."""

    def __init__(
        self,
        frames: Frames,
        options: PatchOptions,
        references: ReferenceCache[NamedReference],
        *,
        framed: bool,
        allocate: Allocate,
    ) -> None:
        """Begin a batch; see PatchBatch."""
        self._options = options
        self._references = references
        self._frames = frames
        count = len(frames.patches) // frames.per_item
        self._shape = (count, frames.per_item) if framed else (count,)
        size = frames.source.claimed_size(frames.patches[0])
        self._pixels = allocate((count, frames.per_item, *size, 3), np.uint8)
        self._rows = list(self._pixels.reshape(-1, *size, 3))
        self._squares = [_NO_SQUARE] * len(self._rows)
        self._found: list[NamedReference | None] = [None] * len(self._rows)
        self._paths = [""] * count
        self._order = frames.argsort_on_disk()

    def __len__(self) -> int:
        return len(self._paths)

    def fill(self, start: int, stop: int) -> None:
        """Decode a part of the items; see BatchWork."""
        part = self._order[start:stop]
        outs = [self._rows[row] for row in self._frames.rows_of(part)]
        for items, pixels in decode_items(self._frames, part, outs, raise_error):
            self._write(self._frames.rows_of(items), pixels)

    def finish(self) -> RawPatches:
        """Return the batch."""
        distinct = {reference.image: reference.pixels for reference in self._found if reference is not None}
        places = {image: place for place, image in enumerate(distinct)}
        squares = np.fromiter(chain.from_iterable(self._squares), np.int64)
        images = [NO_REFERENCE if reference is None else places[reference.image] for reference in self._found]
        return RawPatches(
            pixels=torch.from_numpy(self._pixels.reshape(-1, *self._pixels.shape[2:])),
            references=list(distinct.items()),
            images=torch.from_numpy(np.array(images, np.int64)),
            squares=torch.from_numpy(squares.reshape(-1, len(_NO_SQUARE))),
            paths=self._paths,
            shape=self._shape,
        )

    def _write(self, rows: Sequence[int], pixels: Sequence[Pixels]) -> None:
        """Check that patches were decoded in place, and look up what else the batch says of them."""
        if not all(map(operator.is_, pixels, map(self._rows.__getitem__, rows))):
            sizes = [self._rows[0].shape[:2], *(decoded.shape[:2] for decoded in pixels)]
            paths = ["", *(self._frames.source.patch_path(self._frames.patches[row]) for row in rows)]
            check_one_size(paths.__getitem__, sizes, advice="leave the option device out")
        self._look_up(rows)

    def _look_up(self, rows: Sequence[int]) -> None:
        """Find out the paths of patches, and their references and where they lie in those."""
        options, patch_size = self._options, self._pixels.shape[2:4]
        source, patches, frames = self._frames
        for row in rows:
            number, position = source.locate(patches[row])
            self._paths[row // frames] = source.path_of(number, position)  # that of the last frame stays
            if options.need_ref and (reference := self._references.get(number)) is not None:
                self._squares[row] = square_in_reference(
                    source, number, position, options, reference_size=reference.size, patch_size=patch_size
                )
                self._found[row] = reference
