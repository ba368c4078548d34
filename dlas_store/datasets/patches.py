"""What single image, multi frame and paired frame do with a patch: read it, bring it to HQ, make LQ of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dlas_store.datasets.options import Options
from dlas_store.errors import ImageError, MissingMetadataError
from dlas_store.metadata import Center
from dlas_store.pixels import decode
from dlas_store.source import Pixels, Source

Planes = NDArray[np.float32]
"""Channels first: float32 (C, H, W), RGB first, [0, 1]."""

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
    """

    target_size: int
    scale: int
    force_multiple: int
    need_ref: bool
    need_metadata: bool


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
        ConfigError: one is missing or of a wrong value, ``target_size // scale`` does not divide by
            ``force_multiple``, or a corruption is asked for, which this version does not have.
    """
    evaluate = options.flag("eval", False)
    strict, needs_metadata = (options.flag(key, False) for key in ("strict", "needs_metadata"))
    scale = options.integer("scale", 1 if evaluate else None, minimum=1)
    checked = PatchOptions(
        target_size=options.integer("target_size", minimum=1),
        scale=1 if evaluate else scale,
        force_multiple=options.integer("force_multiple", 1, minimum=1),
        need_ref=options.flag("need_ref", False),
        need_metadata=strict or needs_metadata,
    )
    lq_size = checked.target_size // checked.scale
    if lq_size == 0 or lq_size % checked.force_multiple:
        raise options.error(
            f"target_size // scale must be a multiple of force_multiple, got {checked.target_size} // "
            f"{checked.scale} = {lq_size} and force_multiple {checked.force_multiple}"
        )
    _check_corruptions(options, evaluate=evaluate)
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
        sample = _resized(sample, target)
    multiple = opt.force_multiple * opt.scale
    height, width = (side - side % multiple for side in sample.size)
    if (height, width) == sample.size:
        return sample
    reference = None if sample.reference is None else sample.reference[:, :height, :width]
    return sample._replace(patch=sample.patch[:, :height, :width], reference=reference)


def make_lq(hq: Sample, opt: PatchOptions) -> Sample:
    """Return HQ brought down by ``scale``; its arrays are new ones also where the scale is 1."""
    height, width = hq.size
    return _resized(hq, (height // opt.scale, width // opt.scale))


def to_planes(pixels: Pixels) -> Planes:
    """Return uint8 (H, W, C) pixels as float32 (C, H, W) in [0, 1].

    OpenCV's split and then a division a plane takes 54 us for 256 x 256 x 3, one division of the transposed array 66.
    """
    planes = np.empty((pixels.shape[2], *pixels.shape[:2]), np.float32)
    for plane, channel in zip(planes, cv2.split(pixels), strict=True):
        np.divide(channel, np.float32(255), out=plane)
    return planes


def area_resize(planes: Planes, size: tuple[int, ...]) -> Planes:
    """Return a new array (C, *size), resized by area averaging as DL-Art-School does it, in float32.

    A plane at a time: OpenCV halves a plane five times as fast as interleaved channels, with the same result.
    """
    height, width = size
    return np.stack([cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA) for plane in planes])


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


def pack_reference(sample: Sample) -> torch.Tensor:
    """Return the reference and its mask, float32 (4, H, W), 0 where there is none."""
    return torch.zeros(4, *sample.size) if sample.reference is None else pack(sample.reference)


def pack(planes: Planes) -> torch.Tensor:
    """Return planes as a contiguous tensor, without a copy where they are so already."""
    return torch.from_numpy(np.ascontiguousarray(planes))


def _resized(sample: Sample, size: tuple[int, int]) -> Sample:
    return Sample(
        area_resize(sample.patch, size),
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


def _check_corruptions(options: Options, *, evaluate: bool) -> None:
    """Check the corruption options, of which this version takes those that change nothing."""
    options.flag("corrupt_before_downsize", False)
    options.flag("cosine_bias", True)
    options.number("corruption_blur_scale", 1, minimum=0)
    if options.has("random_seed"):
        options.integer("random_seed")
    drawn = options.integer("num_corrupts_per_image", 0, minimum=0)
    fixed_names = options.texts("fixed_corruptions", [])
    random_names = options.texts("random_corruptions", [])
    for key, asked in (("fixed_corruptions", fixed_names), ("random_corruptions", random_names if drawn else [])):
        if asked and not evaluate:
            raise options.error(f"this version cannot corrupt images; leave out {key}: {', '.join(asked)}")
