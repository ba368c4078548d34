"""HQ and LQ made on a device of patches that came there as bytes: what PatchBatchBuilder makes, in PyTorch.

Patches as they are decoded, with all that is needed to make HQ and LQ of them elsewhere.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.nn import functional

from dlas_store.datasets.decoding import Frames, decode_items, raise_error
from dlas_store.datasets.patch_options import MASK_OUTSIDE, PatchOptions, rescale_centers, square_in_reference
from dlas_store.datasets.references import ReferenceCache
from dlas_store.images.memory import Pixels
from dlas_store.loading.batch import NO_REFERENCE, Allocate, RawBatch, check_one_size
from dlas_store.sources.base import Center

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


class RawBatchBuilder:
    """A batch of patches that are decoded and nothing else; see BatchBuilder."""

    def __init__(
        self,
        frames: Frames,
        options: PatchOptions,
        references: ReferenceCache[NamedReference],
        *,
        has_frame_axis: bool,
        allocate: Allocate,
    ) -> None:
        """Begin a batch; see PatchBatchBuilder."""
        self._options = options
        self._references = references
        self._frames = frames
        count = len(frames.patches) // frames.per_item
        self._shape = (count, frames.per_item) if has_frame_axis else (count,)
        size = frames.source.header_size(frames.patches[0])
        self._pixels = allocate((count, frames.per_item, *size, 3), np.uint8)
        self._rows = list(self._pixels.reshape(-1, *size, 3))
        self._squares = [_NO_SQUARE] * len(self._rows)
        self._found: list[NamedReference | None] = [None] * len(self._rows)
        self._paths = [""] * count
        self._order = frames.argsort_on_disk()

    def __len__(self) -> int:
        return len(self._paths)

    def fill(self, start: int, stop: int) -> None:
        """Decode a part of the items; see BatchBuilder."""
        part = self._order[start:stop]
        outs = [self._rows[row] for row in self._frames.rows_of(part)]
        for items, pixels in decode_items(self._frames, part, outs, raise_error):
            self._write(self._frames.rows_of(items), pixels)

    def finish(self) -> RawBatch:
        """Return the batch."""
        distinct = {reference.image: reference.pixels for reference in self._found if reference is not None}
        places = {image: place for place, image in enumerate(distinct)}
        squares = np.fromiter(chain.from_iterable(self._squares), np.int64)
        images = [NO_REFERENCE if reference is None else places[reference.image] for reference in self._found]
        return RawBatch(
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
            self._paths[row // frames] = source.path_at(number, position)  # that of the last frame stays
            if options.need_ref and (reference := self._references.get(number)) is not None:
                self._squares[row] = square_in_reference(
                    source, number, position, options, reference_size=reference.size, patch_size=patch_size
                )
                self._found[row] = reference


DEVICE_CACHE_BYTES = 512 << 20
"""About 2,700 references of 256 x 256 pixels that stay on the device."""


class DeviceTransform:
    """Makes batches on a device, and keeps references there, so that each travels once.

    The result is that of PatchBatchBuilder but for the last bits of a float (1e-5).
    """

    def __init__(self, options: PatchOptions, device: torch.device) -> None:
        """Take how a patch becomes HQ and LQ, without corruptions, and where."""
        self._options = options
        self._device = device
        self._references: dict[int, torch.Tensor] = {}
        self._bytes = 0

    def make(self, raw: RawBatch) -> dict[str, Any]:
        """Return the batch that a trainer takes, its tensors on the device."""
        opt = self._options
        patch_size = (raw.pixels.shape[1], raw.pixels.shape[2])
        hq = self._to_hq(_to_unit(self._send(raw.pixels)))
        lq = _resize_area(hq, (opt.lq_size, opt.lq_size))
        hq_reference, lq_reference = self._make_references(raw, patch_size)
        hq_center, lq_center = _centers(raw, patch_size, opt)
        tensors = {
            "hq": hq,
            "lq": lq,
            "gt_fullsize_ref": hq_reference,
            "lq_fullsize_ref": lq_reference,
            "gt_center": self._send(hq_center),
            "lq_center": self._send(lq_center),
        }
        batch: dict[str, Any] = {key: value.reshape(*raw.shape, *value.shape[1:]) for key, value in tensors.items()}
        batch["GT_path"] = raw.paths
        if len(raw.shape) == 1:
            batch["LQ_path"] = list(raw.paths)
        return batch

    def _make_references(self, raw: RawBatch, patch_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return references with their masks at the sizes of HQ and LQ, (N, 4, h, w) each."""
        opt = self._options
        count, lq_size = len(raw.pixels), (opt.lq_size, opt.lq_size)
        if not raw.references:
            shapes = ((count, 4, side, side) for side in (opt.hq_size, opt.lq_size))
            hq, lq = (torch.zeros(shape, device=self._device) for shape in shapes)
            return hq, lq
        planes = [_to_unit(self._fetch(*named)[None]) for named in raw.references]
        distinct = torch.cat([self._to_hq(_resize_area(reference, patch_size)) for reference in planes])
        images = self._send(raw.images)
        mask = self._to_hq(_masks(self._send(raw.squares), patch_size))
        hq = torch.cat([distinct[images], mask], 1)
        lq = torch.cat([_resize_area(distinct, lq_size)[images], _resize_area(mask, lq_size)], 1)
        without = images == NO_REFERENCE
        hq[without] = 0
        lq[without] = 0
        return hq, lq

    def _to_hq(self, planes: torch.Tensor) -> torch.Tensor:
        """Return planes (N, C, H, W) resized to the target size and cropped to that of HQ."""
        opt = self._options
        return _resize_area(planes, (opt.target_size, opt.target_size))[:, :, : opt.hq_size, : opt.hq_size].contiguous()

    def _fetch(self, image: int, pixels: torch.Tensor) -> torch.Tensor:
        """Return the reference of an image on the device."""
        kept = self._references.get(image)
        if kept is None:
            kept = self._send(pixels)
            if self._bytes + kept.nbytes <= DEVICE_CACHE_BYTES:
                self._references[image] = kept
                self._bytes += kept.nbytes
        return kept

    def _send(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, non_blocking=True)


def _to_unit(pixels: torch.Tensor) -> torch.Tensor:
    """Return uint8 (N, H, W, 3) as float32 (N, 3, H, W) in [0, 1]."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format) / 255


def _resize_area(planes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return planes (N, C, H, W) resized to (height, width) by area averaging, as OpenCV does it."""
    height, width = planes.shape[2:]
    if (height, width) == tuple(size):
        return planes
    if height % size[0] == 0 and width % size[1] == 0:
        return functional.avg_pool2d(planes, (height // size[0], width // size[1]))
    enlarges = height < size[0] or width < size[1]
    rows = _area_weights(height, size[0], enlarges=enlarges).to(planes.device)
    columns = _area_weights(width, size[1], enlarges=enlarges).to(planes.device)
    return rows @ planes @ columns.T


@cache
def _area_weights(old: int, new: int, *, enlarges: bool) -> torch.Tensor:
    """Return float32 (new, old): what each pixel of a row adds to those of a resized one, asked of OpenCV itself.

    Args:
        old: pixels of the row.
        new: pixels of the resized one.
        enlarges: whether one of the sides becomes larger, for OpenCV then interpolates along both.
    """
    columns = np.eye(old, dtype=np.float32)
    if not enlarges:
        return torch.from_numpy(cv2.resize(columns, (old, new), interpolation=cv2.INTER_AREA))
    # Each column twice and enlarged by 2: the second of each four is a column as it was.
    enlarged = cv2.resize(np.repeat(columns, 2, axis=1), (4 * old, new), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(np.ascontiguousarray(enlarged[:, 1::4]))


def _masks(squares: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Return the masks of squares (N, 3), float32 (N, 1, H, W)."""
    half = squares[:, 2] // 2
    inside = []
    for middle, side in zip((squares[:, 0], squares[:, 1]), size, strict=True):
        places = torch.arange(side, device=squares.device)
        inside.append((places >= (middle - half)[:, None]) & (places < (middle + half)[:, None]))
    rows, columns = inside
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], 1.0, MASK_OUTSIDE)


def _centers(raw: RawBatch, patch_size: tuple[int, int], opt: PatchOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the centres of patches in HQ and LQ, int64 (N, 2) each."""
    target, cropped = (opt.target_size, opt.target_size), (opt.hq_size, opt.hq_size)
    hq = rescale_centers(raw.squares[:, :2].numpy(), patch_size, target)
    return torch.from_numpy(hq), torch.from_numpy(rescale_centers(hq, cropped, (opt.lq_size, opt.lq_size)))
