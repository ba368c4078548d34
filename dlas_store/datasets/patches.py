"""What single image, multi frame and paired frame do with a patch: read it, make HQ and LQ of it, pack both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dlas_store.datasets.corruptions import Corruptions
from dlas_store.datasets.draws import ItemRandom
from dlas_store.datasets.options import Options, check_lq_size
from dlas_store.datasets.planes import Planes, area_resize, pack, to_planes
from dlas_store.errors import ImageError, MissingMetadataError
from dlas_store.metadata import Center
from dlas_store.pixels import decode
from dlas_store.source import Pixels, Source

MASK_OUTSIDE = np.float32(0.1)
"""Mask of the reference outside of the patch's square."""

UNKNOWN_CENTER = Center(128, 128, 256)
"""Taken when metadata is not needed: the whole of a patch of 256 pixels, the usual size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchOptions:
    """How a patch becomes HQ and LQ.

    Attributes:
        target_size: side of HQ in pixels, before it is cropped to a multiple.
        scale: HQ side over LQ side; 1 when ``eval`` is set.
        force_multiple: what the sides of LQ divide by.
        need_ref: read the reference; without it reference and mask are 0.
        need_metadata: with a reference, a patch without a centre is an error.
        corruptions: what makes LQ worse; none when ``eval`` is set.
        corrupt_before_downsize: corrupt the copy of HQ that LQ is made from, in place of LQ.
    """

    target_size: int
    scale: int
    force_multiple: int
    need_ref: bool
    need_metadata: bool
    corruptions: Corruptions
    corrupt_before_downsize: bool


class Sample(NamedTuple):
    """A patch with its reference at one resolution.

    Attributes:
        patch: (3, H, W).
        reference: (4, H, W), the mask is the last plane; None for one that is 0 everywhere.
        center: row and column of the patch's centre in the reference, in pixels of this resolution.
        path: where the patch comes from, ending in IMAGE/FILE.
    """

    patch: Planes
    reference: Planes | None
    center: tuple[int, int]
    path: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.patch.shape[1], self.patch.shape[2]


def read_patch_options(options: Options) -> PatchOptions:
    """Check the options that the three datasets share.

    Raises:
        ConfigError: one is missing or of a wrong value, or ``target_size // scale`` does not divide by
            ``force_multiple``.
    """
    evaluate = options.flag("eval", False)
    strict, needs_metadata = (options.flag(key, False) for key in ("strict", "needs_metadata"))
    scale = options.integer("scale", 1 if evaluate else None, minimum=1)
    corruptions = Corruptions.read(options)
    checked = PatchOptions(
        target_size=options.integer("target_size", minimum=1),
        scale=1 if evaluate else scale,
        force_multiple=options.integer("force_multiple", 1, minimum=1),
        need_ref=options.flag("need_ref", False),
        need_metadata=strict or needs_metadata,
        corruptions=Corruptions() if evaluate else corruptions,
        corrupt_before_downsize=options.flag("corrupt_before_downsize", False),
    )
    check_lq_size(options, target_size=checked.target_size, scale=checked.scale, force_multiple=checked.force_multiple)
    return checked


def read_sample(source: Source, index: int, opt: PatchOptions) -> Sample:
    """Read a patch, with its reference, mask and centre where they are needed, at its own size.

    Raises:
        MissingMetadataError: the centre is needed and the source has none.
        StoreError: the patch or the reference cannot be read; the message names it.
    """
    number, position = source.locate(index)
    path = source.patch_path(index)
    patch = to_planes(source.read_pixels([index])[0])
    encoded = source.read_reference(number) if opt.need_ref else None
    if encoded is None:
        return Sample(patch, None, (0, 0), path)
    size = patch.shape[1:]
    reference = to_planes(_decode_reference(encoded, source, number))
    old_size = reference.shape[1:]
    if old_size != size:
        reference = area_resize(reference, size)
    if opt.need_metadata:
        center = _rescale_square(_needed_center(source, number, position), old_size, size)
    else:
        center = UNKNOWN_CENTER
    mask = square_mask(center, size)
    return Sample(patch, np.concatenate([reference, mask[None]]), (center.row, center.col), path)


def make_hq(sample: Sample, opt: PatchOptions) -> Sample:
    """Return a sample resized to ``target_size`` and cropped at the bottom and right to the multiple LQ needs."""
    target = (opt.target_size, opt.target_size)
    if sample.size != target:
        sample = _resized(sample, target, opt)
    multiple = opt.force_multiple * opt.scale
    height, width = (side - side % multiple for side in sample.size)
    if (height, width) == sample.size:
        return sample
    reference = None if sample.reference is None else sample.reference[:, :height, :width]
    return sample._replace(patch=sample.patch[:, :height, :width], reference=reference)


def make_lq(frames: Sequence[Sample], opt: PatchOptions, random: ItemRandom) -> list[Sample]:
    """Return the HQ frames of an item brought down by ``scale`` and corrupted.

    References and masks are not corrupted. The arrays are new ones also where the scale is 1 and nothing is corrupted.
    """
    if opt.corrupt_before_downsize:
        frames = _corrupted(frames, opt, random)
    lq = [_resized(frame, (frame.size[0] // opt.scale, frame.size[1] // opt.scale), opt) for frame in frames]
    return lq if opt.corrupt_before_downsize else _corrupted(lq, opt, random)


def rescale_center(center: tuple[int, int], old_size: tuple[int, ...], size: tuple[int, ...]) -> tuple[int, int]:
    """Return a centre (row, column) after its image went from one (height, width) to another.

    >>> rescale_center((57, 113), (256, 256), (128, 128))
    (28, 56)
    """
    row, col = (_rescale(*values) for values in zip(center, old_size, size, strict=True))
    return row, col


def square_mask(center: Center, size: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the mask of a patch's square in its reference, clamped to the image.

    Args:
        center: of the square, and its side, in pixels.
        size: height and width of the mask.

    Returns:
        float32 (H, W): 1 within the square, MASK_OUTSIDE elsewhere.
    """
    mask = np.full(size, MASK_OUTSIDE)
    half = center.width // 2
    rows, cols = (slice(max(middle - half, 0), max(middle + half, 0)) for middle in (center.row, center.col))
    mask[rows, cols] = 1
    return mask


def pack_frame(hq: Sample, lq: Sample) -> dict[str, Any]:
    """Return a frame as the trainer takes it; SingleImageDataset says what is in it."""
    return {
        "hq": pack(hq.patch),
        "lq": pack(lq.patch),
        "gt_fullsize_ref": _pack_reference(hq),
        "lq_fullsize_ref": _pack_reference(lq),
        "gt_center": torch.tensor(hq.center),
        "lq_center": torch.tensor(lq.center),
        "GT_path": hq.path,
        "LQ_path": lq.path,
    }


def stack_frames(frames: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return packed frames as one item: tensors get a leading frame dimension, ``GT_path`` is that of the last."""
    last = frames[-1]
    tensors = [key for key, value in last.items() if isinstance(value, torch.Tensor)]
    return {key: torch.stack([frame[key] for frame in frames]) for key in tensors} | {"GT_path": last["GT_path"]}


def _pack_reference(sample: Sample) -> torch.Tensor:
    return torch.zeros(4, *sample.size) if sample.reference is None else pack(sample.reference)


def _corrupted(frames: Sequence[Sample], opt: PatchOptions, random: ItemRandom) -> list[Sample]:
    patches, _ = opt.corruptions.apply([frame.patch for frame in frames], random)
    return [frame._replace(patch=patch) for frame, patch in zip(frames, patches, strict=True)]


def _resized(sample: Sample, size: tuple[int, int], opt: PatchOptions) -> Sample:
    return Sample(
        area_resize(sample.patch, size, interleaved=opt.corruptions.is_active),
        None if sample.reference is None else area_resize(sample.reference, size),
        rescale_center(sample.center, sample.size, size),
        sample.path,
    )


def _rescale(value: int, old: int, new: int) -> int:
    # The order of these operations is DL-Art-School's: another one truncates to another pixel now and then.
    return int(float(new) / float(old) * float(value))


def _rescale_square(center: Center, old_size: tuple[int, ...], size: tuple[int, ...]) -> Center:
    row, col = rescale_center((center.row, center.col), old_size, size)
    return Center(row, col, _rescale(center.width, old_size[1], size[1]))


def _needed_center(source: Source, number: int, position: int) -> Center:
    image = source.image(number)
    center = image.center_of(position)
    if center is None:
        reason = "has no centers.pt" if image.centers is None else "has no centre for it in its centers.pt"
        raise MissingMetadataError(
            f"{source.path}: patch {image.files[position]} needs a centre, but image {image.name} {reason}; "
            "add it, or set strict and needs_metadata to false"
        )
    return center


def _decode_reference(encoded: bytes, source: Source, number: int) -> Pixels:
    try:
        return decode(encoded)
    except ImageError as error:
        raise ImageError(f"{source.path}: reference of image {source.image_name(number)}: {error}") from error
