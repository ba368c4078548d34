"""Patches as they are decoded, with all that is needed to make HQ and LQ of them elsewhere."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
import torch

from dlas_store.bounded_cache import cached
from dlas_store.datasets.batches import NO_REFERENCE, Allocate, RawPatches, ReferenceName, check_one_size
from dlas_store.datasets.patch_batch import ItemPatches
from dlas_store.datasets.patches import PatchOptions, square_in_reference
from dlas_store.datasets.references import decode_reference
from dlas_store.datasets.roots import read_all_into, reading_order
from dlas_store.source import Center, Source

CACHE_BYTES = 128 << 20
"""About 680 references of 256 x 256 pixels, for each dataset and process."""

_NO_SQUARE = Center(0, 0, 0)


class NamedReference(NamedTuple):
    """A reference, uint8 (h, w, 3), RGB, its name, and its height and width."""

    name: ReferenceName
    pixels: torch.Tensor
    size: tuple[int, int]


class PixelReferences:
    """Gives the references of sources as they are decoded, the first ones kept; for any number of threads."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Source, int], NamedReference | Literal[False]] = {}
        self._capacity = CACHE_BYTES  # as many as may be, until the size of the first one is known

    def __reduce__(self) -> tuple[type[PixelReferences], tuple[()]]:
        return PixelReferences, ()

    def get(self, source: Source, number: int) -> NamedReference | None:
        """Return the reference of an image, None where it has none.

        Args:
            source: where the image is.
            number: of the image.

        Raises:
            StoreError: it cannot be read or decoded.
        """
        return cached(self._kept, self._capacity, (source, number), self._read) or None

    def _read(self, image: tuple[Source, int]) -> NamedReference | Literal[False]:
        source, number = image
        encoded = source.read_reference(number)
        if encoded is None:
            return False
        pixels = decode_reference(encoded, source, number)
        self._capacity = max(1, min(self._capacity, CACHE_BYTES // pixels.nbytes))
        height, width, _ = pixels.shape
        return NamedReference(ReferenceName(str(source.path), number), torch.from_numpy(pixels), (height, width))


class RawPatchBatch:
    """A batch of patches that are decoded and nothing else; see BatchWork."""

    def __init__(
        self,
        items: Sequence[ItemPatches],
        options: PatchOptions,
        references: PixelReferences,
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
        rows = [row for item in part for row in range(item * self._frames, (item + 1) * self._frames)]
        self._decode(rows)
        self._look_up(rows)

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

    def _decode(self, rows: Sequence[int]) -> None:
        places = [self._places[row] for row in rows]
        outs = [self._rows[row] for row in rows]
        pixels = read_all_into(places, outs)
        if not all(map(operator.is_, pixels, outs)):
            sizes = [outs[0].shape[:2], *(decoded.shape[:2] for decoded in pixels)]
            paths = ["", *(source.patch_path(patch) for source, patch in places)]
            check_one_size(paths.__getitem__, sizes, advice="leave the option device out")

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
