"""A batch of patches as HQ and LQ with their references, written straight into the tensors that the trainer gets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import torch

from dlas_store.datasets.batches import Allocate, MakeItem, fill_in_groups
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
from dlas_store.datasets.roots import read_each_into
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
        self._replaced_by = replace
        frames = len(items[0].patches)
        self._shape = (len(items), frames) if framed else (len(items),)
        rows = (len(items), frames)
        hq, lq = options.hq_size, options.lq_size
        self._hq = allocate((*rows, 3, hq, hq), np.float32)
        self._lq = allocate((*rows, 3, lq, lq), np.float32)
        # Without references they are 0: memory that the system gives, and fills only where it is touched.
        allocate_references = allocate if options.need_ref else np.zeros
        self._hq_reference = allocate_references((*rows, 4, hq, hq), np.float32)
        self._lq_reference = allocate_references((*rows, 4, lq, lq), np.float32)
        self._centers = np.zeros((2, *rows, 2), np.int64)  # of HQ, and of LQ
        self._paths = [""] * len(items)
        # As they lie in the store.
        self._order = sorted(range(len(items)), key=lambda item: (id(items[item].source), items[item].patches[0]))

    def __len__(self) -> int:
        return len(self._items)

    def fill(self, start: int, stop: int) -> None:
        """Make a part of the items; see BatchWork."""
        decoded = np.empty((self._options.target_size, self._options.target_size, 3), np.uint8)

        def fill(items: Sequence[int]) -> None:
            nonlocal decoded
            decoded = self._fill_items(items, decoded)

        fill_in_groups(self._order[start:stop], fill, replace=self._replaced_by and self._write_replacement)

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

    def _fill_items(self, items: Sequence[int], decoded: Pixels) -> Pixels:
        """Make a few items.

        Args:
            items: places in the batch.
            decoded: what patches are decoded into, where it has their size.

        Returns:
            What is likely to have the size of the patches to come.
        """
        patches = [(self._items[item].source, patch) for item in items for patch in self._items[item].patches]
        places: Iterable[tuple[int, int] | None] = repeat(None)
        if self._options.need_ref:
            places = [source.locate(patch) for source, patch in patches]
        for item in items:
            source, frames = self._items[item]
            self._paths[item] = source.patch_path(frames[-1])
        rows = [(item, frame) for item in items for frame in range(len(self._items[item].patches))]
        read = read_each_into(patches, repeat(decoded))
        for row, (source, _), pixels, place in zip(rows, patches, read, places, strict=False):
            self._write_patch(pixels, row)
            if place is not None:
                self._add_reference(source, place, (pixels.shape[0], pixels.shape[1]), row)
            decoded = pixels
        if self._options.corruptions.is_active:
            for item in items:
                self._corrupt(item)
        return decoded

    def _write_replacement(self, item: int) -> None:
        """Take over an item that is made on its own in place of another."""
        assert self._replaced_by is not None
        values = self._replaced_by(self._draws[item])
        keys = ("hq", "lq", "gt_fullsize_ref", "lq_fullsize_ref", "gt_center", "lq_center")
        for key, array in zip(keys, self._arrays(), strict=True):
            array[item] = values[key].numpy()
        self._paths[item] = values["GT_path"]

    def _write_patch(self, pixels: Pixels, row: tuple[int, int]) -> None:
        """Write a patch as HQ, and as LQ where nothing is corrupted."""
        opt, hq, lq = self._options, self._hq[row], self._lq[row]
        is_cropped, is_corrupted = opt.hq_size != opt.target_size, opt.corruptions.is_active
        if not (is_cropped or is_corrupted):
            write_planes(pixels, hq, lq)
            return
        target = (opt.target_size, opt.target_size)
        whole = np.empty((3, *target), np.float32) if is_cropped else hq
        if is_corrupted and pixels.shape[:2] != target:
            area_resize(to_planes(pixels), target, interleaved=True, out=whole)
        else:
            write_planes(pixels, whole)
        if is_cropped:
            hq[...] = whole[:, : opt.hq_size, : opt.hq_size]
        if not is_corrupted:
            area_resize(hq, lq.shape[1:], out=lq)

    def _add_reference(
        self, source: Source, place: tuple[int, int], size: tuple[int, int], row: tuple[int, int]
    ) -> None:
        """Write reference, mask and centre of a patch.

        Args:
            source: where it is.
            place: its image, and its position there.
            size: its height and width.
            row: its item and frame.
        """
        opt = self._options
        number, position = place
        reference = self._references.get(source, number, size)
        hq, lq = self._hq_reference[row], self._lq_reference[row]
        if reference is None:
            hq.fill(0)
            lq.fill(0)
            return
        square = UNKNOWN_CENTER
        if opt.need_metadata:
            square = rescale_square(needed_center(source, number, position), reference.size, size)
        target = (opt.target_size, opt.target_size)
        write_reference(reference, square, size=size, target=target, hq=hq, lq=lq)
        center = rescale_center((square.row, square.col), size, target)
        cropped = (opt.hq_size, opt.hq_size)
        self._centers[:, row[0], row[1]] = center, rescale_center(center, cropped, (opt.lq_size, opt.lq_size))

    def _corrupt(self, item: int) -> None:
        """Write HQ brought down by ``scale`` and corrupted as LQ; references and masks are not corrupted."""
        opt = self._options
        random = ItemRandom(self._seed, self._draws[item])
        frames: list[Planes] = list(self._hq[item])
        if opt.corrupt_before_downsize:
            frames, _ = opt.corruptions.apply(frames, random)
        for frame, out in zip(frames, self._lq[item], strict=True):
            area_resize(frame, (opt.lq_size, opt.lq_size), interleaved=True, out=out)
        if not opt.corrupt_before_downsize:
            corrupted, _ = opt.corruptions.apply(list(self._lq[item]), random)
            self._lq[item] = corrupted
