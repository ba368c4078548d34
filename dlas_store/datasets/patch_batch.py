"""A batch of patches as HQ and LQ with their references, written straight into the tensors that the trainer gets."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dlas_store.aligned_memory import Pixels
from dlas_store.datasets.batches import Allocate, MakeItem
from dlas_store.datasets.decoding_memory import BYTES_TOGETHER, DecodingMemory
from dlas_store.datasets.draws import Draw, ItemRandom
from dlas_store.datasets.masked_reference import loops_arguments, write_reference
from dlas_store.datasets.patches import (
    UNKNOWN_CENTER,
    PatchOptions,
    rescale_center,
    rescale_centers,
    square_in_reference,
)
from dlas_store.datasets.planes import Planes, area_resize, loops_for, to_planes, write_pair
from dlas_store.datasets.references import Reference, ReferenceCache
from dlas_store.datasets.roots import read_all_into, reading_order
from dlas_store.errors import StoreError
from dlas_store.pixels import empty_pixels
from dlas_store.source import Center, Source

_NO_CENTER = (0, 0)

_PLANES = ("hq", "lq", "gt_fullsize_ref", "lq_fullsize_ref")


class ItemPatches(NamedTuple):
    """What an item is made of.

    Attributes:
        source: where its patches are.
        patches: their indices there, one a frame.
    """

    source: Source
    patches: Sequence[int]


class _FoundPatch(NamedTuple):
    """What is known of a patch before it is read, and where it goes.

    Attributes:
        place: its source, and its index there.
        row: item and frame that it becomes.
        path: its own.
        reference: of its image; None without one, or where none is needed.
        square: where it lies in the reference, in pixels of a reference of its size.
        center: row and column of its centre in HQ.
    """

    place: tuple[Source, int]
    row: tuple[int, int]
    path: str
    reference: Reference | None
    square: Center
    center: tuple[int, int]


class PatchBatch:
    """Patches, corrupted by the random numbers of their items; see BatchWork.

    Tensors are (items, ...), with ``framed`` (items, frames, ...); PatchDataset says what they hold.
    """

    def __init__(
        self,
        draws: Sequence[Draw],
        items: Sequence[ItemPatches],
        options: PatchOptions,
        references: ReferenceCache[Reference],
        memory: DecodingMemory,
        *,
        seed: int,
        framed: bool,
        allocate: Allocate,
        replace: MakeItem | None,
    ) -> None:
        """Begin a batch.

        Args:
            draws: the items asked for.
            items: for each, its patches; all have the same number of them.
            options: how a patch becomes HQ and LQ.
            references: where references come from.
            memory: what patches are decoded into, where several are.
            seed: of the random numbers.
            framed: whether tensors have a dimension for the frames.
            allocate: gives the memory of the tensors.
            replace: gives the item in place of one that cannot be read; None lets the error be raised.
        """
        self._draws = draws
        self._items = items
        self._options = options
        self._references = references
        self._memory = memory
        self._seed = seed
        self._replace = replace
        self._frames = frames = len(items[0].patches)
        self._shape = (len(items), frames) if framed else (len(items),)
        rows = (len(items), frames)
        hq, lq = options.hq_size, options.lq_size
        self._target, self._hq_size, self._lq_size = ((side, side) for side in (options.target_size, hq, lq))
        self._hq = allocate((*rows, 3, hq, hq), np.float32)
        self._lq = allocate((*rows, 3, lq, lq), np.float32)
        # Without references they are 0: memory that the system gives, and fills only where it is touched.
        allocate_references = allocate if options.need_ref else np.zeros
        self._hq_reference = allocate_references((*rows, 4, hq, hq), np.float32)
        self._lq_reference = allocate_references((*rows, 4, lq, lq), np.float32)
        self._centers = [[_NO_CENTER] * frames for _ in items]  # in HQ
        self._paths = [""] * len(items)
        self._order = reading_order([(source, patches[0]) for source, patches in items])
        self._patch_size = self._likely_size()
        is_whole = self._hq_size == self._target and not options.corruptions.is_active
        self._loops = loops_for(self._patch_size, self._hq[0, 0], self._lq[0, 0]) if is_whole else None

    def __len__(self) -> int:
        return len(self._items)

    def fill(self, start: int, stop: int) -> None:
        """Make a part of the items; see BatchWork."""
        left = part = self._order[start:stop]
        if self._loops is not None:
            left = self._make_together(part, self._loops)
        decoded = empty_pixels((*self._patch_size, 3) if left else (0,))
        for item in left:
            try:
                decoded = self._make(item, decoded)
            except StoreError:
                if self._replace is None:
                    raise
                self._write_item(item, self._replace(self._draws[item]))

    def finish(self) -> dict[str, Any]:
        """Return the batch; see BatchWork."""
        centers = np.array(self._centers, np.int64)
        arrays: tuple[NDArray[Any], ...] = (
            *self._planes(),
            centers,
            rescale_centers(centers, self._hq_size, self._lq_size),
        )
        batch: dict[str, Any] = {
            name: torch.from_numpy(array.reshape(*self._shape, *array.shape[2:]))
            for name, array in zip((*_PLANES, "gt_center", "lq_center"), arrays, strict=True)
        }
        batch["GT_path"] = self._paths
        if len(self._shape) == 1:
            batch["LQ_path"] = list(self._paths)
        return batch

    def _likely_size(self) -> tuple[int, int]:
        """Return the height and width of the first patch, which the others are likely to have."""
        source, patches = self._items[0]
        with suppress(StoreError):  # to be raised, or replaced, when it is read
            return source.claimed_size(patches[0])
        return self._target

    def _planes(self) -> tuple[Planes, ...]:
        """Return the arrays (items, frames, C, h, w) in the order of _PLANES."""
        return self._hq, self._lq, self._hq_reference, self._lq_reference

    def _make_together(self, part: Sequence[int], loops: ModuleType) -> list[int]:
        """Make items several at a time, with two calls of C, where that can be done.

        Args:
            part: their places in the batch.
            loops: in C, which can write what patches of the likely size become.

        Returns:
            Those that were not made; whoever makes them one by one meets what is wrong.
        """
        # All are looked up first, for decoding leaves nothing that this needs in the processor's caches.
        found = {item: patches for item in part if (patches := self._find_item(item))}
        height, width = self._patch_size
        count = max(1, BYTES_TOGETHER // (self._frames * height * width * 3))
        left = [item for item in part if item not in found]
        whole = list(found)
        with self._memory.patches((count * self._frames, height, width, 3)) as decoded:
            for first in range(0, len(whole), count):
                items = whole[first : first + count]
                patches = [patch for item in items for patch in found[item]]
                if not self._make_patches(patches, decoded[: len(patches)], loops):
                    left += items
        return left

    def _find_item(self, item: int) -> list[_FoundPatch]:
        """Return what is known of an item's patches if they have the likely size; nothing after an error."""
        source, patches = self._items[item]
        try:
            return [
                self._find_patch(source, patch, self._patch_size, (item, frame)) for frame, patch in enumerate(patches)
            ]
        except StoreError:
            return []

    def _find_patch(self, source: Source, patch: int, size: tuple[int, int], row: tuple[int, int]) -> _FoundPatch:
        """Look up what is known of a patch of a size."""
        number, position = source.locate(patch)
        path = source.path_of(number, position)
        if not self._options.need_ref or (reference := self._references.get(source, number, size)) is None:
            return _FoundPatch((source, patch), row, path, None, UNKNOWN_CENTER, _NO_CENTER)
        square = square_in_reference(
            source, number, position, self._options, reference_size=reference.size, patch_size=size
        )
        center = rescale_center((square.row, square.col), size, self._target)
        return _FoundPatch((source, patch), row, path, reference, square, center)

    def _make_patches(self, patches: Sequence[_FoundPatch], decoded: list[Pixels], loops: ModuleType) -> bool:
        """Make patches of the likely size, decoded into arrays that are given; return whether all have that size."""
        try:
            pixels = read_all_into([patch.place for patch in patches], decoded)
        except StoreError:
            return False
        if not all(map(operator.is_, pixels, decoded)):
            return False
        planes, references = [], []
        for patch, out in zip(patches, decoded, strict=True):
            self._note(patch)
            row = patch.row
            planes.append((out, self._hq[row], self._lq[row]))
            if patch.reference is not None:
                hq, lq = self._hq_reference[row], self._lq_reference[row]
                references.append(loops_arguments(patch.reference, patch.square, self._patch_size, hq=hq, lq=lq))
        loops.write_patches(tuple(planes), tuple(references))
        return True

    def _make(self, item: int, decoded: Pixels) -> Pixels:
        """Make an item.

        Args:
            item: its place in the batch.
            decoded: what patches are decoded into, where it has their size.

        Returns:
            What is likely to have the size of the patches to come: the pixels of the last one.
        """
        source, patches = self._items[item]
        for frame, patch in enumerate(patches):
            decoded = source.read_into(patch, decoded)
            size, row = (decoded.shape[0], decoded.shape[1]), (item, frame)
            self._write_patch(decoded, row)
            found = self._find_patch(source, patch, size, row)
            self._note(found)
            if found.reference is not None:
                hq, lq = self._hq_reference[row], self._lq_reference[row]
                write_reference(found.reference, found.square, size=size, target=self._target, hq=hq, lq=lq)
        if self._options.corruptions.is_active:
            self._corrupt(item)
        return decoded

    def _note(self, patch: _FoundPatch) -> None:
        """Take over the path and the centres of a patch, and leave no reference where it has none."""
        item, frame = patch.row
        self._paths[item] = patch.path  # that of the last frame stays
        self._centers[item][frame] = patch.center
        if patch.reference is None and self._options.need_ref:
            self._hq_reference[patch.row] = self._lq_reference[patch.row] = 0

    def _write_item(self, item: int, values: dict[str, Any]) -> None:
        """Take over an item that was made on its own."""
        for key, array in zip(_PLANES, self._planes(), strict=True):
            array[item] = values[key].numpy()
        self._centers[item] = values["gt_center"].reshape(-1, 2).tolist()
        self._paths[item] = values["GT_path"]

    def _write_patch(self, pixels: Pixels, row: tuple[int, int]) -> None:
        """Write a patch as HQ, and as LQ where nothing is corrupted."""
        opt, hq, lq = self._options, self._hq[row], self._lq[row]
        if not opt.corruptions.is_active:
            write_pair(pixels, self._target, hq, lq)
        elif pixels.shape[:2] == self._target:
            write_pair(pixels, self._target, hq)
        else:
            whole = area_resize(to_planes(pixels), self._target, interleaved=True)
            hq[...] = whole[:, : hq.shape[1], : hq.shape[2]]

    def _corrupt(self, item: int) -> None:
        """Write HQ brought down by ``scale`` and corrupted as LQ; references and masks are not corrupted."""
        opt = self._options
        random = ItemRandom(self._seed, self._draws[item])
        frames: list[Planes] = list(self._hq[item])
        if opt.corrupt_before_downsize:
            frames, _ = opt.corruptions.apply(frames, random)
        for frame, out in zip(frames, self._lq[item], strict=True):
            area_resize(frame, self._lq_size, interleaved=True, out=out)
        if not opt.corrupt_before_downsize:
            corrupted, _ = opt.corruptions.apply(list(self._lq[item]), random)
            self._lq[item] = corrupted
