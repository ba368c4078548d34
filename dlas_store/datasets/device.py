"""The option device: a builder of raw batches, and a transform that makes HQ and LQ of them in PyTorch on a device.

The transform does the work of PatchBatchBuilder. Patches and references travel to the device as bytes.
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
from dlas_store.sources.base import Center, Source

DEVICE_CACHE_BYTES = 512 << 20
"""Capacity of the cache of references on the device: about 2,700 references of 256 x 256 pixels."""

_NO_SQUARE = Center(0, 0, 0)


class RawReference(NamedTuple):
    """A decoded reference.

    Attributes:
        image: number of its image in the source.
        pixels: uint8 (h, w, 3), RGB.
        size: height and width.
    """

    image: int
    pixels: torch.Tensor
    size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Size of the pixels in bytes."""
        return self.pixels.nbytes


def raw_references(source: Source) -> ReferenceCache[RawReference]:
    """Return a cache of references as they are decoded, the same for patches of any size."""
    return ReferenceCache(source, _keep_raw)


class RawBatchBuilder:
    """Builder of a batch of patches that are decoded and nothing else; see BatchBuilder."""

    def __init__(
        self,
        frames: Frames,
        options: PatchOptions,
        references: ReferenceCache[RawReference],
        *,
        has_frame_axis: bool,
        allocate: Allocate,
    ) -> None:
        """Begin a batch; PatchBatchBuilder describes the arguments."""
        self._options = options
        self._references = references
        self._frames = frames
        count = len(frames.patches) // frames.per_item
        self._shape = (count, frames.per_item) if has_frame_axis else (count,)
        size = frames.source.header_size(frames.patches[0])
        self._pixels = allocate((count, frames.per_item, *size, 3), np.uint8)
        self._rows = list(self._pixels.reshape(-1, *size, 3))
        self._squares = [_NO_SQUARE] * len(self._rows)
        self._row_references: list[RawReference | None] = [None] * len(self._rows)
        self._paths = [""] * count
        self._order = frames.argsort_on_disk()

    def __len__(self) -> int:
        return len(self._paths)

    def fill(self, start: int, stop: int) -> None:
        """Decode some of the items; see BatchBuilder."""
        items = self._order[start:stop]
        outs = [self._rows[row] for row in self._frames.rows_of(items)]
        for group, pixels in decode_items(self._frames, items, outs, raise_error):
            rows = self._frames.rows_of(group)
            self._check_in_place(rows, pixels)
            self._look_up(rows)

    def finish(self) -> RawBatch:
        """Return the batch; see BatchBuilder."""
        references = self._row_references
        pixels_of = {reference.image: reference.pixels for reference in references if reference is not None}
        position_of = {image: position for position, image in enumerate(pixels_of)}
        positions = [NO_REFERENCE if reference is None else position_of[reference.image] for reference in references]
        squares = np.fromiter(chain.from_iterable(self._squares), np.int64)
        return RawBatch(
            pixels=torch.from_numpy(self._pixels.reshape(-1, *self._pixels.shape[2:])),
            references=list(pixels_of.items()),
            images=torch.from_numpy(np.array(positions, np.int64)),
            squares=torch.from_numpy(squares.reshape(-1, len(_NO_SQUARE))),
            paths=self._paths,
            shape=self._shape,
        )

    def _check_in_place(self, rows: Sequence[int], pixels: Sequence[Pixels]) -> None:
        """Check that patches were decoded into their rows of the batch.

        Raises:
            StoreError: a patch has another size than the first patch of the batch.
        """
        if all(map(operator.is_, pixels, map(self._rows.__getitem__, rows))):
            return
        sizes = [self._rows[0].shape[:2], *(patch_pixels.shape[:2] for patch_pixels in pixels)]
        paths = ["", *(self._frames.source.patch_path(self._frames.patches[row]) for row in rows)]
        check_one_size(paths.__getitem__, sizes, advice="leave the option device out")

    def _look_up(self, rows: Sequence[int]) -> None:
        """Find the paths of patches, their references, and the squares that they cover in the references."""
        options, patch_size = self._options, self._pixels.shape[2:4]
        source, patches, per_item = self._frames
        for row in rows:
            number, position = source.locate(patches[row])
            self._paths[row // per_item] = source.path_at(number, position)  # The last frame's path stays.
            if options.need_ref and (reference := self._references.get(number)) is not None:
                self._squares[row] = square_in_reference(
                    source, number, position, options, reference_size=reference.size, patch_size=patch_size
                )
                self._row_references[row] = reference


class DeviceTransform:
    """Transform that makes batches on a device. A cache on the device lets each reference travel once.

    The batches equal PatchBatchBuilder's, except for the last bits of floats (1e-5).
    """

    def __init__(self, options: PatchOptions, device: torch.device) -> None:
        """Set up the transform, with an empty cache.

        Args:
            options: the options by which a patch becomes HQ and LQ, without corruptions.
            device: the device that the tensors of batches are on.
        """
        self._options = options
        self._device = device
        self._references: dict[int, torch.Tensor] = {}
        self._bytes = 0

    def make(self, raw: RawBatch) -> dict[str, Any]:
        """Make HQ and LQ of a raw batch, and return the batch that a trainer takes, with tensors on the device."""
        options = self._options
        patch_size = (raw.pixels.shape[1], raw.pixels.shape[2])
        hq = self._to_hq(_to_unit(self._send(raw.pixels)))
        lq = _resize_area(hq, (options.lq_size, options.lq_size))
        hq_reference, lq_reference = self._make_references(raw, patch_size)
        hq_center, lq_center = _centers(raw, patch_size, options)
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
        """Return the patches' references with their masks at the sizes of HQ and LQ, float32 (N, 4, h, w) each."""
        options = self._options
        count, lq_size = len(raw.pixels), (options.lq_size, options.lq_size)
        if not raw.references:
            shapes = ((count, 4, side, side) for side in (options.hq_size, options.lq_size))
            hq, lq = (torch.zeros(shape, device=self._device) for shape in shapes)
            return hq, lq
        references = [_to_unit(self._on_device(image, pixels)[None]) for image, pixels in raw.references]
        hq_references = torch.cat([self._to_hq(_resize_area(reference, patch_size)) for reference in references])
        lq_references = _resize_area(hq_references, lq_size)
        positions = self._send(raw.images)
        masks = self._to_hq(_masks(self._send(raw.squares), patch_size))
        hq = torch.cat([hq_references[positions], masks], 1)
        lq = torch.cat([lq_references[positions], _resize_area(masks, lq_size)], 1)
        has_none = positions == NO_REFERENCE
        hq[has_none] = 0
        lq[has_none] = 0
        return hq, lq

    def _to_hq(self, images: torch.Tensor) -> torch.Tensor:
        """Return images (N, C, H, W) resized to the target size and cropped to the size of HQ."""
        target, side = self._options.target_size, self._options.hq_size
        return _resize_area(images, (target, target))[:, :, :side, :side].contiguous()

    def _on_device(self, image: int, pixels: torch.Tensor) -> torch.Tensor:
        """Return the reference of an image on the device, from the cache if it is there."""
        reference = self._references.get(image)
        if reference is None:
            reference = self._send(pixels)
            if self._bytes + reference.nbytes <= DEVICE_CACHE_BYTES:
                self._references[image] = reference
                self._bytes += reference.nbytes
        return reference

    def _send(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, non_blocking=True)


def _keep_raw(pixels: Pixels, number: int, _patch_size: tuple[int, int] | None) -> RawReference:
    """Return a decoded reference with the number of its image. This is a Prepare function."""
    height, width, _ = pixels.shape
    return RawReference(number, torch.from_numpy(pixels), (height, width))


def _to_unit(pixels: torch.Tensor) -> torch.Tensor:
    """Return uint8 (N, H, W, 3) as float32 (N, 3, H, W) in [0, 1]."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format) / 255


def _resize_area(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return images (N, C, H, W) resized to (height, width) by area averaging, as OpenCV does it."""
    height, width = images.shape[2:]
    if (height, width) == tuple(size):
        return images
    if height % size[0] == 0 and width % size[1] == 0:
        return functional.avg_pool2d(images, (height // size[0], width // size[1]))
    enlarges = height < size[0] or width < size[1]
    rows = _area_weights(height, size[0], enlarges=enlarges).to(images.device)
    columns = _area_weights(width, size[1], enlarges=enlarges).to(images.device)
    return rows @ images @ columns.T


@cache
def _area_weights(old: int, new: int, *, enlarges: bool) -> torch.Tensor:
    """Return the weights by which OpenCV resizes a row of pixels, float32 (new, old). OpenCV itself computes them.

    Args:
        old: number of pixels of the row.
        new: number of pixels of the resized row.
        enlarges: whether a side of the image becomes larger; OpenCV then interpolates along both sides.
    """
    columns = np.eye(old, dtype=np.float32)
    if not enlarges:
        return torch.from_numpy(cv2.resize(columns, (old, new), interpolation=cv2.INTER_AREA))
    # The width has to grow too, or else OpenCV would not interpolate. Each column is doubled, and the width enlarged by
    # 2: the second of each four columns lies between two equal columns, so that it is an original column, unmixed.
    enlarged = cv2.resize(np.repeat(columns, 2, axis=1), (4 * old, new), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(np.ascontiguousarray(enlarged[:, 1::4]))


def _masks(squares: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Return the masks of squares, int64 (N, 3), in references of a size (H, W), float32 (N, 1, H, W)."""
    half = squares[:, 2] // 2
    is_inside = []
    for middle, side in zip((squares[:, 0], squares[:, 1]), size, strict=True):
        places = torch.arange(side, device=squares.device)
        is_inside.append((places >= (middle - half)[:, None]) & (places < (middle + half)[:, None]))
    rows, columns = is_inside
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], 1.0, MASK_OUTSIDE)


def _centers(raw: RawBatch, patch_size: tuple[int, int], options: PatchOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the centres of patches in HQ and LQ, int64 (N, 2) each."""
    target, hq_size, lq_size = ((side, side) for side in (options.target_size, options.hq_size, options.lq_size))
    hq = rescale_centers(raw.squares[:, :2].numpy(), patch_size, target)
    return torch.from_numpy(hq), torch.from_numpy(rescale_centers(hq, hq_size, lq_size))
