"""A batch of patches as HQ and LQ with their references, written straight into the tensors that the trainer gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from dlas_store.datasets.batches import Allocate, MakeItem
from dlas_store.datasets.draws import Draw, ItemRandom
from dlas_store.datasets.masked_reference import write_reference
from dlas_store.datasets.patches import (
    UNKNOWN_CENTER,
    PatchOptions,
    needed_center,
    rescale_center,
    rescale_square,
)
from dlas_store.datasets.planes import Planes, area_resize, to_planes, write_planes
from dlas_store.datasets.references import References
from dlas_store.datasets.roots import reading_order
from dlas_store.errors import StoreError
from dlas_store.pixels import empty_pixels
from dlas_store.source import Pixels, Source


class ItemPatches(NamedTuple):
    """What an item is made of.

    Attributes:
        source: where its patches are.
        patches: their indices there, one a frame.
    """

    source: Source
    patches: Sequence[int]


class PatchBatch:
    """Patches, corrupted by the random numbers of their items; see BatchWork.

    Tensors are (items, ...), with ``framed`` (items, frames, ...); PatchDataset says what they hold.
    """

    def __init__(
        self,
        draws: Sequence[Draw],
        items: Sequence[ItemPatches],
        options: PatchOptions,
        references: References,
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
            seed: of the random numbers.
            framed: whether tensors have a dimension for the frames.
            allocate: gives the memory of the tensors.
            replace: gives the item in place of one that cannot be read; None lets the error be raised.
        """
        self._draws = draws
        self._items = items
        self._options = options
        self._references = references
        self._seed = seed
        self._replace = replace
        frames = len(items[0].patches)
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
        self._centers = np.zeros((2, *rows, 2), np.int64)  # of HQ, and of LQ
        self._paths = [""] * len(items)
        self._order = reading_order([(source, patches[0]) for source, patches in items])

    def __len__(self) -> int:
        return len(self._items)

    def fill(self, start: int, stop: int) -> None:
        """Make a part of the items; see BatchWork."""
        decoded = empty_pixels((*self._target, 3))
        for item in self._order[start:stop]:
            try:
                decoded = self._fill_item(item, decoded)
            except StoreError:
                if self._replace is None:
                    raise
                self._write_item(item, self._replace(self._draws[item]))

    def finish(self) -> dict[str, Any]:
        """Return the batch; see BatchWork."""
        names = ("hq", "lq", "gt_fullsize_ref", "lq_fullsize_ref", "gt_center", "lq_center")
        batch: dict[str, Any] = {
            name: torch.from_numpy(array.reshape(*self._shape, *array.shape[2:]))
            for name, array in zip(names, self._arrays(), strict=True)
        }
        batch["GT_path"] = self._paths
        if len(self._shape) == 1:
            batch["LQ_path"] = list(self._paths)
        return batch

    def _arrays(self) -> tuple[Any, ...]:
        """Return the arrays of (items, frames, ...), in the order of an item's keys."""
        return self._hq, self._lq, self._hq_reference, self._lq_reference, *self._centers

    def _fill_item(self, item: int, decoded: Pixels) -> Pixels:
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
            self._write_patch(decoded, (item, frame))
            if self._options.need_ref:
                self._add_reference(source, patch, (decoded.shape[0], decoded.shape[1]), (item, frame))
        if self._options.corruptions.is_active:
            self._corrupt(item)
        self._paths[item] = source.patch_path(patches[-1])
        return decoded

    def _write_item(self, item: int, values: dict[str, Any]) -> None:
        """Take over an item that was made on its own."""
        keys = ("hq", "lq", "gt_fullsize_ref", "lq_fullsize_ref", "gt_center", "lq_center")
        for key, array in zip(keys, self._arrays(), strict=True):
            array[item] = values[key].numpy()
        self._paths[item] = values["GT_path"]

    def _write_patch(self, pixels: Pixels, row: tuple[int, int]) -> None:
        """Write a patch as HQ, and as LQ where nothing is corrupted."""
        opt, hq, lq = self._options, self._hq[row], self._lq[row]
        is_cropped, is_corrupted = self._hq_size != self._target, opt.corruptions.is_active
        if not (is_cropped or is_corrupted):
            write_planes(pixels, hq, lq)
            return
        whole = np.empty((3, *self._target), np.float32) if is_cropped else hq
        if is_corrupted and pixels.shape[:2] != self._target:
            area_resize(to_planes(pixels), self._target, interleaved=True, out=whole)
        else:
            write_planes(pixels, whole)
        if is_cropped:
            hq[...] = whole[:, : hq.shape[1], : hq.shape[2]]
        if not is_corrupted:
            area_resize(hq, lq.shape[1:], out=lq)

    def _add_reference(self, source: Source, patch: int, size: tuple[int, int], row: tuple[int, int]) -> None:
        """Write reference, mask and centre of a patch of a size."""
        opt = self._options
        number, position = source.locate(patch)
        reference = self._references.get(source, number, size)
        hq, lq = self._hq_reference[row], self._lq_reference[row]
        if reference is None:
            hq.fill(0)
            lq.fill(0)
            return
        square = UNKNOWN_CENTER
        if opt.need_metadata:
            square = rescale_square(needed_center(source, number, position), reference.size, size)
        write_reference(reference, square, size=size, target=self._target, hq=hq, lq=lq)
        center = rescale_center((square.row, square.col), size, self._target)
        self._centers[:, row[0], row[1]] = center, rescale_center(center, self._hq_size, self._lq_size)

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
