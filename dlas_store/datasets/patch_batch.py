"""A batch of patches as HQ and LQ with their references, written straight into the tensors that the trainer gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from dlas_store.datasets.batches import Allocate, MakeItem
from dlas_store.datasets.draws import Draw, ItemRandom
from dlas_store.datasets.patches import (
    UNKNOWN_CENTER,
    PatchOptions,
    draw_mask,
    needed_center,
    rescale_center,
    rescale_square,
)
from dlas_store.datasets.planes import Planes, area_resize, split_channels, to_unit
from dlas_store.datasets.references import References
from dlas_store.errors import StoreError
from dlas_store.source import Source


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
        self._hq = allocate((*rows, 3, hq, hq), np.float32)
        self._lq = allocate((*rows, 3, lq, lq), np.float32)
        # Without references they are 0: memory that the system gives, and fills only where it is touched.
        allocate_references = allocate if options.need_ref else np.zeros
        self._hq_reference = allocate_references((*rows, 4, hq, hq), np.float32)
        self._lq_reference = allocate_references((*rows, 4, lq, lq), np.float32)
        self._centers = np.zeros((2, *rows, 2), np.int64)
        self._paths = [""] * len(items)
        # As they lie in the store.
        self._order = sorted(range(len(items)), key=lambda item: (id(items[item].source), items[item].patches[0]))

    def __len__(self) -> int:
        return len(self._items)

    def fill(self, start: int, stop: int) -> None:
        """Make a part of the items; see BatchWork."""
        size = self._options.target_size
        decoded = np.empty((size, size, 3), np.uint8)
        for item in self._order[start:stop]:
            try:
                self._fill_item(item, decoded)
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

    def _fill_item(self, item: int, decoded: np.ndarray[Any, Any]) -> None:
        source, patches = self._items[item]
        for frame, patch in enumerate(patches):
            size = self._read_patch(source, patch, decoded, self._hq[item, frame])
            if self._options.need_ref:
                self._add_reference(source, patch, size, (item, frame))
        self._make_lq(item)
        self._paths[item] = source.patch_path(patches[-1])

    def _write_item(self, item: int, values: dict[str, Any]) -> None:
        """Take over an item that was made on its own."""
        keys = ("hq", "lq", "gt_fullsize_ref", "lq_fullsize_ref", "gt_center", "lq_center")
        for key, array in zip(keys, self._arrays(), strict=True):
            array[item] = values[key].numpy()
        self._paths[item] = values["GT_path"]

    def _read_patch(self, source: Source, patch: int, decoded: np.ndarray[Any, Any], out: Planes) -> tuple[int, int]:
        """Write a patch as HQ and return its own height and width."""
        opt = self._options
        pixels = source.read_into(patch, decoded)
        size = pixels.shape[0], pixels.shape[1]
        channels = split_channels(pixels)
        if size == (opt.target_size, opt.target_size):
            to_unit(np.ascontiguousarray(channels[:, : opt.hq_size, : opt.hq_size]), out)
            return size
        planes = to_unit(channels, np.empty(channels.shape, np.float32))
        target = (opt.target_size, opt.target_size)
        resized = area_resize(planes, target, interleaved=opt.corruptions.is_active)
        out[...] = resized[:, : opt.hq_size, : opt.hq_size]
        return size

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
        hq[:3], lq[:3] = reference.hq, reference.lq
        square = UNKNOWN_CENTER
        if opt.need_metadata:
            square = rescale_square(needed_center(source, number, position), reference.size, size)
        target = (opt.target_size, opt.target_size)
        if size == target == (opt.hq_size, opt.hq_size):
            draw_mask(square, hq[3])
        else:
            mask = np.empty((1, *size), np.float32)
            draw_mask(square, mask[0])
            hq[3:] = area_resize(mask, target)[:, : opt.hq_size, : opt.hq_size]
        area_resize(hq[3:], (opt.lq_size, opt.lq_size), out=lq[3:])
        center = rescale_center((square.row, square.col), size, target)
        cropped = (opt.hq_size, opt.hq_size)
        self._centers[0][row] = center
        self._centers[1][row] = rescale_center(center, cropped, (opt.lq_size, opt.lq_size))

    def _make_lq(self, item: int) -> None:
        """Write HQ brought down by ``scale`` and corrupted; references and masks are not corrupted."""
        opt = self._options
        random = ItemRandom(self._seed, self._draws[item])
        frames: list[Planes] = list(self._hq[item])
        interleaved = opt.corruptions.is_active
        if opt.corrupt_before_downsize:
            frames, _ = opt.corruptions.apply(frames, random)
        for frame, out in zip(frames, self._lq[item], strict=True):
            area_resize(frame, (opt.lq_size, opt.lq_size), interleaved=interleaved, out=out)
        if interleaved and not opt.corrupt_before_downsize:
            corrupted, _ = opt.corruptions.apply(list(self._lq[item]), random)
            self._lq[item] = corrupted
