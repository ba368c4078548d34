"""Builder of batches of patches: HQ and LQ with their references, written straight into the batch's tensors."""

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
from dlas_store.loading.batch import Allocate, MakeItem, new_zeros
from dlas_store.loading.buffers import ScratchPool
from dlas_store.sampling.rng import SampleKey, SampleRng
from dlas_store.sources.base import Center
from dlas_store.transforms.resize import Chw, loops_for, resize_area, to_chw_float, write_pair

_NO_CENTER = (0, 0)

_SHAPE = attrgetter("shape")


class _Images(NamedTuple):
    """The image tensors of a batch as arrays, float32 (patches, C, h, w): one row a patch, item by item.

    The fields have the names of the batch's keys.
    """

    hq: Chw
    lq: Chw
    gt_fullsize_ref: Chw
    lq_fullsize_ref: Chw


class _PatchInfo(NamedTuple):
    """Facts about a patch that are known before it is decoded.

    Attributes:
        row: row of the patch in the batch.
        path: path of the patch.
        reference: reference of the patch's image; None if the image has no reference, or none is needed.
        square: square that the patch covers in the reference, in pixels of a reference of the patch's size.
        center: row and column of the square's centre in HQ.
    """

    row: int
    path: str
    reference: Reference | None
    square: Center
    center: tuple[int, int]


class PatchBatchBuilder:
    """Builder of a batch of patches, whose corruptions follow from the items' own random numbers; see BatchBuilder.

    Tensors are (items, ...), with ``has_frame_axis`` (items, frames, ...); SingleImageDataset describes them.
    """

    def __init__(
        self,
        keys: Sequence[SampleKey],
        frames: Frames,
        options: PatchOptions,
        references: ReferenceCache[Reference],
        scratch: ScratchPool,
        *,
        seed: int,
        has_frame_axis: bool,
        allocate: Allocate,
        replace: MakeItem | None,
    ) -> None:
        """Begin a batch.

        Args:
            keys: the items of the batch.
            frames: the patches of the items.
            options: the options by which a patch becomes HQ and LQ.
            references: cache of the references.
            scratch: pool of the arrays that patches are decoded into.
            seed: seed of the items' random numbers.
            has_frame_axis: whether tensors have a dimension for the frames of an item.
            allocate: returns the memory of the batch's tensors.
            replace: makes the replacement of an item that cannot be read; None raises the error.
        """
        self._keys = keys
        self._frames = frames
        self._options = options
        self._references = references
        self._scratch = scratch
        self._seed = seed
        self._replace = replace
        self._shape = (len(keys), frames.per_item) if has_frame_axis else (len(keys),)
        self._target = (options.target_size, options.target_size)
        self._images = _allocate_images((len(keys), frames.per_item), options, allocate)
        self._centers = [_NO_CENTER] * len(frames.patches)  # in HQ
        self._paths = [""] * len(keys)
        self._order = frames.argsort_on_disk()
        self._patch_size = self._likely_size()
        is_uncropped = options.hq_size == options.target_size
        can_use_loops = is_uncropped and not options.corruptions.is_active
        self._loops = loops_for(self._patch_size, self._images.hq[0], self._images.lq[0]) if can_use_loops else None

    def __len__(self) -> int:
        return len(self._paths)

    def fill(self, start: int, stop: int) -> None:
        """Make some of the items; see BatchBuilder."""
        items = self._order[start:stop]
        infos_of: Mapping[int, Sequence[_PatchInfo]] = dict.fromkeys(items, ())
        if self._loops is not None:
            # All patches are looked up before any is decoded, because decoding evicts the data of the look-up from the
            # processor's caches.
            infos_of = {item: self._look_up_item(item) for item in items}
        for group, pixels in decode_groups(self._frames, items, self._patch_size, self._scratch, self._replace_item):
            self._write(group, pixels, infos_of)

    def finish(self) -> dict[str, Any]:
        """Return the batch; see BatchBuilder."""
        options = self._options
        hq_size, lq_size = (options.hq_size, options.hq_size), (options.lq_size, options.lq_size)
        hq_centers = np.array(self._centers, np.int64)
        arrays: dict[str, NDArray[Any]] = {
            **self._images._asdict(),
            "gt_center": hq_centers,
            "lq_center": rescale_centers(hq_centers, hq_size, lq_size),
        }
        batch: dict[str, Any] = {
            key: torch.from_numpy(array.reshape(*self._shape, *array.shape[1:])) for key, array in arrays.items()
        }
        batch["GT_path"] = self._paths
        if len(self._shape) == 1:
            batch["LQ_path"] = list(self._paths)
        return batch

    def _likely_size(self) -> tuple[int, int]:
        """Return the height and width of the first patch, which all other patches are likely to have."""
        with suppress(StoreError):  # fill() raises the error, or replaces the item
            return self._frames.source.header_size(self._frames.patches[0])
        return self._target

    def _look_up_item(self, item: int) -> list[_PatchInfo]:
        """Look up the patches of an item for the likely size. After an error the list is empty."""
        try:
            return [self._look_up(row, self._patch_size) for row in self._frames.rows_of([item])]
        except StoreError:  # _write_item() looks up again, and raises the error
            return []

    def _look_up(self, row: int, size: tuple[int, int]) -> _PatchInfo:
        """Look up a patch for a height and width of it.

        Raises:
            StoreError: the reference cannot be read, or the source lacks a centre that is needed.
        """
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

    def _write(self, items: Sequence[int], pixels: list[Pixels], infos_of: Mapping[int, Sequence[_PatchInfo]]) -> None:
        """Write decoded items: with one call if all were looked up and have the likely size, else one by one.

        Args:
            items: positions of the items in the batch.
            pixels: decoded patches of the items, item by item.
            infos_of: for each item, facts about its patches for the likely size, or nothing.
        """
        infos = [info for item in items for info in infos_of[item]]
        shapes = set(map(_SHAPE, pixels))
        if self._loops is not None and len(infos) == len(pixels) and shapes == {(*self._patch_size, 3)}:
            self._write_together(infos, pixels, self._loops)
            return
        per_item = self._frames.per_item
        for position, item in enumerate(items):
            item_pixels = pixels[position * per_item : (position + 1) * per_item]
            try:
                self._write_item(item, item_pixels, infos_of[item])
            except StoreError as error:
                self._replace_item(item, error)

    def _write_together(self, infos: Sequence[_PatchInfo], pixels: list[Pixels], loops: ModuleType) -> None:
        """Write patches of the likely size with one call of C."""
        images = self._images
        patches, references = [], []
        for info, patch_pixels in zip(infos, pixels, strict=True):
            self._record(info)
            row = info.row
            patches.append((patch_pixels, images.hq[row], images.lq[row]))
            if info.reference is not None:
                hq, lq = images.gt_fullsize_ref[row], images.lq_fullsize_ref[row]
                references.append(loops_arguments(info.reference, info.square, self._patch_size, hq=hq, lq=lq))
        loops.write_patches(tuple(patches), tuple(references))

    def _write_item(self, item: int, pixels: Sequence[Pixels], infos: Sequence[_PatchInfo]) -> None:
        """Write the patches of an item, which may have any size; see _write."""
        for frame, patch_pixels in enumerate(pixels):
            size, row = (patch_pixels.shape[0], patch_pixels.shape[1]), item * len(pixels) + frame
            info = infos[frame] if infos and size == self._patch_size else self._look_up(row, size)
            self._write_patch(patch_pixels, row)
            self._record(info)
            if info.reference is not None:
                hq, lq = self._images.gt_fullsize_ref[row], self._images.lq_fullsize_ref[row]
                write_reference(info.reference, info.square, size=size, target=self._target, hq=hq, lq=lq)
        if self._options.corruptions.is_active:
            self._corrupt(item)

    def _record(self, info: _PatchInfo) -> None:
        """Put the path and the centre of a patch into the batch, and zeros for a missing reference."""
        row = info.row
        self._paths[row // self._frames.per_item] = info.path  # The last frame's path stays.
        self._centers[row] = info.center
        if info.reference is None and self._options.need_ref:
            self._images.gt_fullsize_ref[row] = self._images.lq_fullsize_ref[row] = 0

    def _replace_item(self, item: int, error: StoreError) -> None:
        """Copy another item into the batch in place of an item that cannot be read, or raise the error."""
        if self._replace is None:
            raise error
        replacement = self._replace(self._keys[item])
        rows = self._rows_of(item)
        for key, array in self._images._asdict().items():
            array[rows] = replacement[key].numpy()
        self._centers[rows] = map(tuple, replacement["gt_center"].reshape(-1, 2).tolist())
        self._paths[item] = replacement["GT_path"]

    def _rows_of(self, item: int) -> slice:
        per_item = self._frames.per_item
        return slice(item * per_item, (item + 1) * per_item)

    def _write_patch(self, pixels: Pixels, row: int) -> None:
        """Write a patch as HQ, and as LQ unless LQ is corrupted."""
        hq, lq = self._images.hq[row], self._images.lq[row]
        if not self._options.corruptions.is_active:
            write_pair(pixels, self._target, hq, lq)
        elif pixels.shape[:2] == self._target:
            write_pair(pixels, self._target, hq)
        else:
            resized = resize_area(to_chw_float(pixels), self._target, interleaved=True)
            hq[...] = resized[:, : hq.shape[1], : hq.shape[2]]

    def _corrupt(self, item: int) -> None:
        """Make LQ of an item: HQ reduced by ``scale`` and corrupted. References and masks are not corrupted."""
        options, rows = self._options, self._rows_of(item)
        random = SampleRng(self._seed, self._keys[item])
        frames: list[Chw] = list(self._images.hq[rows])
        lq = self._images.lq[rows]
        if options.corrupt_before_downsize:
            frames, _ = options.corruptions.apply(frames, random)
        for frame, out in zip(frames, lq, strict=True):
            resize_area(frame, out.shape[1:], interleaved=True, out=out)
        if not options.corrupt_before_downsize:
            corrupted_lq, _ = options.corruptions.apply(list(lq), random)
            lq[...] = corrupted_lq


def _allocate_images(rows: tuple[int, int], options: PatchOptions, allocate: Allocate) -> _Images:
    """Return the image arrays of a batch of (items, frames) patches."""
    # Without references their arrays are 0. The system gives memory of zeros, and fills only pages that are touched.
    allocate_reference = allocate if options.need_ref else new_zeros
    sides = options.hq_size, options.lq_size
    return _Images(
        *(allocate((*rows, 3, side, side), np.float32).reshape(-1, 3, side, side) for side in sides),
        *(allocate_reference((*rows, 4, side, side), np.float32).reshape(-1, 4, side, side) for side in sides),
    )
