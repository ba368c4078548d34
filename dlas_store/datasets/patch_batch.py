"""A batch of patches as HQ and LQ with their references, written straight into the tensors that the trainer gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dlas_store.datasets.decoding import Frames, decode_groups
from dlas_store.datasets.patch_options import (
    UNKNOWN_CENTER,
    PatchOptions,
    rescale_center,
    rescale_centers,
    square_in_reference,
)
from dlas_store.datasets.references import Reference, ReferenceCache, loops_arguments, write_reference
from dlas_store.errors import StoreError
from dlas_store.images.memory import Pixels
from dlas_store.loading.batch import Allocate, MakeItem
from dlas_store.loading.buffers import ScratchPool
from dlas_store.sampling.rng import SampleKey, SampleRng
from dlas_store.sources.base import Center
from dlas_store.transforms.resize import Chw, loops_for, resize_area, to_chw_float, write_pair

_NO_CENTER = (0, 0)

_SHAPE = attrgetter("shape")

_PLANES = ("hq", "lq", "gt_fullsize_ref", "lq_fullsize_ref")


class _PatchInfo(NamedTuple):
    """What is known of a patch before it is read, and where it goes.

    Attributes:
        row: of the batch that it becomes.
        path: its own.
        reference: of its image; None without one, or where none is needed.
        square: where it lies in the reference, in pixels of a reference of its size.
        center: row and column of its centre in HQ.
    """

    row: int
    path: str
    reference: Reference | None
    square: Center
    center: tuple[int, int]


class PatchBatchBuilder:
    """Patches, corrupted by the random numbers of their items; see BatchBuilder.

    Tensors are (items, ...), with ``has_frame_axis`` (items, frames, ...); PatchDataset says what they hold.
    """

    def __init__(
        self,
        draws: Sequence[SampleKey],
        frames: Frames,
        options: PatchOptions,
        references: ReferenceCache[Reference],
        memory: ScratchPool,
        *,
        seed: int,
        has_frame_axis: bool,
        allocate: Allocate,
        replace: MakeItem | None,
    ) -> None:
        """Begin a batch.

        Args:
            draws: the items asked for.
            frames: their patches.
            options: how a patch becomes HQ and LQ.
            references: where references come from.
            memory: what patches are decoded into, where several are.
            seed: of the random numbers.
            has_frame_axis: whether tensors have a dimension for the frames.
            allocate: gives the memory of the tensors.
            replace: gives the item in place of one that cannot be read; None lets the error be raised.
        """
        self._draws = draws
        self._options = options
        self._references = references
        self._memory = memory
        self._seed = seed
        self._replace = replace
        self._frames = frames
        self._count = frames.per_item
        self._shape = (len(draws), frames.per_item) if has_frame_axis else (len(draws),)
        # Of a batch everything but paths has a row a patch, item by item.
        items_and_frames = (len(draws), frames.per_item)
        hq, lq = options.hq_size, options.lq_size
        self._target, self._hq_size, self._lq_size = ((side, side) for side in (options.target_size, hq, lq))
        self._hq, self._lq = (
            allocate((*items_and_frames, 3, side, side), np.float32).reshape(-1, 3, side, side) for side in (hq, lq)
        )
        # Without references they are 0: memory that the system gives, and fills only where it is touched.
        allocate_references = allocate if options.need_ref else np.zeros
        self._hq_reference, self._lq_reference = (
            allocate_references((*items_and_frames, 4, side, side), np.float32).reshape(-1, 4, side, side)
            for side in (hq, lq)
        )
        self._centers = [_NO_CENTER] * len(frames.patches)  # in HQ
        self._paths = [""] * len(draws)
        self._order = frames.argsort_on_disk()
        self._patch_size = self._likely_size()
        is_whole = self._hq_size == self._target and not options.corruptions.is_active
        self._loops = loops_for(self._patch_size, self._hq[0], self._lq[0]) if is_whole else None

    def __len__(self) -> int:
        return len(self._paths)

    def fill(self, start: int, stop: int) -> None:
        """Make a part of the items; see BatchBuilder."""
        part = self._order[start:stop]
        info_of: Mapping[int, Sequence[_PatchInfo]] = dict.fromkeys(part, ())
        if self._loops is not None:
            # All are looked up first, for decoding leaves nothing that this needs in the processor's caches.
            info_of = {item: self._find_item(item) for item in part}
        for items, pixels in decode_groups(self._frames, part, self._patch_size, self._memory, self._replace_item):
            self._write(items, pixels, info_of)

    def finish(self) -> dict[str, Any]:
        """Return the batch; see BatchBuilder."""
        centers = np.array(self._centers, np.int64)
        arrays: tuple[NDArray[Any], ...] = (
            *self._planes(),
            centers,
            rescale_centers(centers, self._hq_size, self._lq_size),
        )
        batch: dict[str, Any] = {
            name: torch.from_numpy(array.reshape(*self._shape, *array.shape[1:]))
            for name, array in zip((*_PLANES, "gt_center", "lq_center"), arrays, strict=True)
        }
        batch["GT_path"] = self._paths
        if len(self._shape) == 1:
            batch["LQ_path"] = list(self._paths)
        return batch

    def _likely_size(self) -> tuple[int, int]:
        """Return the height and width of the first patch, which the others are likely to have."""
        with suppress(StoreError):  # to be raised, or replaced, when it is read
            return self._frames.source.header_size(self._frames.patches[0])
        return self._target

    def _planes(self) -> tuple[Chw, ...]:
        """Return the arrays (rows, C, h, w) in the order of _PLANES."""
        return self._hq, self._lq, self._hq_reference, self._lq_reference

    def _find_item(self, item: int) -> list[_PatchInfo]:
        """Return what is known of an item's patches if they have the likely size; nothing after an error."""
        rows = range(item * self._count, (item + 1) * self._count)
        try:
            return [self._find_patch(row, self._patch_size) for row in rows]
        except StoreError:  # to be raised, or replaced, when the item is written
            return []

    def _find_patch(self, row: int, size: tuple[int, int]) -> _PatchInfo:
        """Look up what is known of a patch of a size."""
        source = self._frames.source
        number, position = source.locate(self._frames.patches[row])
        path = source.path_at(number, position)
        if not self._options.need_ref or (reference := self._references.get(number, size)) is None:
            return _PatchInfo(row, path, None, UNKNOWN_CENTER, _NO_CENTER)
        square = square_in_reference(
            source, number, position, self._options, reference_size=reference.size, patch_size=size
        )
        center = rescale_center((square.row, square.col), size, self._target)
        return _PatchInfo(row, path, reference, square, center)

    def _write(self, items: Sequence[int], pixels: list[Pixels], info_of: Mapping[int, Sequence[_PatchInfo]]) -> None:
        """Write decoded items: together where all is known of them and their size is the likely one, else one by one.

        Args:
            items: their places in the batch.
            pixels: of their patches, item by item.
            info_of: what is known of each item's patches if they have the likely size, or nothing.
        """
        patches = [patch for item in items for patch in info_of[item]]
        shapes = set(map(_SHAPE, pixels))
        if self._loops is not None and len(patches) == len(pixels) and shapes == {(*self._patch_size, 3)}:
            self._write_together(patches, pixels, self._loops)
            return
        for position, item in enumerate(items):
            item_pixels = pixels[position * self._count : (position + 1) * self._count]
            try:
                self._write_item(item, item_pixels, info_of[item])
            except StoreError as error:
                self._replace_item(item, error)

    def _write_together(self, patches: Sequence[_PatchInfo], pixels: list[Pixels], loops: ModuleType) -> None:
        """Write patches of the likely size with one call of C."""
        planes, references = [], []
        for patch, decoded in zip(patches, pixels, strict=True):
            self._note(patch)
            row = patch.row
            planes.append((decoded, self._hq[row], self._lq[row]))
            if patch.reference is not None:
                hq, lq = self._hq_reference[row], self._lq_reference[row]
                references.append(loops_arguments(patch.reference, patch.square, self._patch_size, hq=hq, lq=lq))
        loops.write_patches(tuple(planes), tuple(references))

    def _write_item(self, item: int, pixels: Sequence[Pixels], infos: Sequence[_PatchInfo]) -> None:
        """Write the patches of an item, which may have any size; see _write."""
        for frame, decoded in enumerate(pixels):
            size, row = (decoded.shape[0], decoded.shape[1]), item * self._count + frame
            patch = infos[frame] if infos and size == self._patch_size else self._find_patch(row, size)
            self._write_patch(decoded, row)
            self._note(patch)
            if patch.reference is not None:
                hq, lq = self._hq_reference[row], self._lq_reference[row]
                write_reference(patch.reference, patch.square, size=size, target=self._target, hq=hq, lq=lq)
        if self._options.corruptions.is_active:
            self._corrupt(item)

    def _note(self, patch: _PatchInfo) -> None:
        """Take over the path and the centre of a patch, and leave no reference where it has none."""
        row = patch.row
        self._paths[row // self._count] = patch.path  # that of the last frame stays
        self._centers[row] = patch.center
        if patch.reference is None and self._options.need_ref:
            self._hq_reference[row] = self._lq_reference[row] = 0

    def _replace_item(self, item: int, error: StoreError) -> None:
        """Take over another item that was made on its own, or raise the error where none is to be."""
        if self._replace is None:
            raise error
        replacement = self._replace(self._draws[item])
        rows = self._rows_of(item)
        for key, array in zip(_PLANES, self._planes(), strict=True):
            array[rows] = replacement[key].numpy()
        self._centers[rows] = map(tuple, replacement["gt_center"].reshape(-1, 2).tolist())
        self._paths[item] = replacement["GT_path"]

    def _rows_of(self, item: int) -> slice:
        return slice(item * self._count, (item + 1) * self._count)

    def _write_patch(self, pixels: Pixels, row: int) -> None:
        """Write a patch as HQ, and as LQ where nothing is corrupted."""
        opt, hq, lq = self._options, self._hq[row], self._lq[row]
        if not opt.corruptions.is_active:
            write_pair(pixels, self._target, hq, lq)
        elif pixels.shape[:2] == self._target:
            write_pair(pixels, self._target, hq)
        else:
            whole = resize_area(to_chw_float(pixels), self._target, interleaved=True)
            hq[...] = whole[:, : hq.shape[1], : hq.shape[2]]

    def _corrupt(self, item: int) -> None:
        """Write HQ brought down by ``scale`` and corrupted as LQ; references and masks are not corrupted."""
        opt = self._options
        random = SampleRng(self._seed, self._draws[item])
        hq, lq = (planes[self._rows_of(item)] for planes in (self._hq, self._lq))
        frames: list[Chw] = list(hq)
        if opt.corrupt_before_downsize:
            frames, _ = opt.corruptions.apply(frames, random)
        for frame, out in zip(frames, lq, strict=True):
            resize_area(frame, self._lq_size, interleaved=True, out=out)
        if not opt.corrupt_before_downsize:
            corrupted, _ = opt.corruptions.apply(list(lq), random)
            lq[...] = corrupted
