"""Patches as they are decoded, with all that is needed to make HQ and LQ of them elsewhere."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from dlas_store.aligned_memory import Pixels
from dlas_store.datasets.batches import NO_REFERENCE, Allocate, RawPatches, ReferenceName, check_one_size
from dlas_store.datasets.decoding import decode_items, raise_error, rows_of
from dlas_store.datasets.patch_batch import ItemPatches
from dlas_store.datasets.patches import PatchOptions, square_in_reference
from dlas_store.datasets.references import ReferenceCache
from dlas_store.datasets.roots import reading_order
from dlas_store.source import Center, Source

_NO_SQUARE = Center(0, 0, 0)


class NamedReference(NamedTuple):
    """A reference, uint8 (h, w, 3), RGB, its name, and its height and width."""

    name: ReferenceName
    pixels: torch.Tensor
    size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return self.pixels.nbytes


def name_reference(pixels: Pixels, source: Source, number: int, _patch_size: tuple[int, int] | None) -> NamedReference:
    """Return a reference as it was decoded; what a ReferenceCache is told to keep."""
    height, width, _ = pixels.shape
    return NamedReference(ReferenceName(str(source.path), number), torch.from_numpy(pixels), (height, width))


class RawPatchBatch:
    """A batch of patches that are decoded and nothing else; see BatchWork."""

    def __init__(
        self,
        items: Sequence[ItemPatches],
        options: PatchOptions,
        references: ReferenceCache[NamedReference],
        *,
        framed: bool,
        allocate: Allocate,
    ) -> None:
        """Begin a batch; see PatchBatch."""
        self._options = options
        self._references = references
        self._frames = len(items[0].patches)
        self._shape = (len(items), self._frames) if framed else (len(items),)
        self._places = [(source, patch) for source, patches in items for patch in patches]
        source, patch = self._places[0]
        size = source.claimed_size(patch)
        self._pixels = allocate((len(items), self._frames, *size, 3), np.uint8)
        self._rows = list(self._pixels.reshape(-1, *size, 3))
        self._squares = [_NO_SQUARE] * len(self._rows)
        self._found: list[NamedReference | None] = [None] * len(self._rows)
        self._paths = [""] * len(items)
        self._order = reading_order([(source, patches[0]) for source, patches in items])

    def __len__(self) -> int:
        return len(self._paths)

    def fill(self, start: int, stop: int) -> None:
        """Decode a part of the items; see BatchWork."""
        part = self._order[start:stop]
        outs = [self._rows[row] for row in rows_of(part, self._frames)]
        for items, pixels in decode_items(self._places, part, outs, raise_error, frames=self._frames):
            self._write(rows_of(items, self._frames), pixels)

    def finish(self) -> RawPatches:
        """Return the batch."""
        distinct = {reference.name: reference.pixels for reference in self._found if reference is not None}
        places = {name: place for place, name in enumerate(distinct)}
        squares = np.fromiter(chain.from_iterable(self._squares), np.int64)
        images = [NO_REFERENCE if reference is None else places[reference.name] for reference in self._found]
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
            paths = ["", *(source.patch_path(patch) for source, patch in (self._places[row] for row in rows))]
            check_one_size(paths.__getitem__, sizes, advice="leave the option device out")
        self._look_up(rows)

    def _look_up(self, rows: Sequence[int]) -> None:
        """Find out the paths of patches, and their references and where they lie in those."""
        options, patch_size = self._options, self._pixels.shape[2:4]
        for row in rows:
            source, patch = self._places[row]
            number, position = source.locate(patch)
            self._paths[row // self._frames] = source.path_of(number, position)  # that of the last frame stays
            if options.need_ref and (reference := self._references.get(source, number)) is not None:
                self._squares[row] = square_in_reference(
                    source, number, position, options, reference_size=reference.size, patch_size=patch_size
                )
                self._found[row] = reference
