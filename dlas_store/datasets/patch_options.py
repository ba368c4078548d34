"""Options of the chunked modes, and the square that a patch covers in its reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlas_store.config import ConfigOptions, check_lq_size
from dlas_store.errors import MissingMetadataError
from dlas_store.sources.base import Center, Source
from dlas_store.transforms.corruptions import Corruptions

MASK_OUTSIDE = float(np.float32(0.1))
"""Value of the mask outside of the patch's square; inside it is 1."""

UNKNOWN_CENTER = Center(128, 128, 256)
"""Square of every patch if metadata is not needed: a whole reference of 256 pixels, the usual size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchOptions:
    """The options by which a patch becomes HQ and LQ.

    Attributes:
        target_size: side of HQ in pixels, before HQ is cropped to a multiple.
        scale: HQ side over LQ side; 1 if ``eval`` is set.
        force_multiple: the sides of LQ are multiples of this number.
        need_ref: read the reference; otherwise the reference and its mask are 0.
        need_metadata: treat it as an error if a patch has no centre, though its image has a reference.
        corruptions: corruptions of LQ; none if ``eval`` is set.
        corrupt_before_downsize: corrupt a copy of HQ and make LQ from it, in place of corrupting LQ.
    """

    target_size: int
    scale: int
    force_multiple: int
    need_ref: bool
    need_metadata: bool
    corruptions: Corruptions
    corrupt_before_downsize: bool

    @property
    def hq_size(self) -> int:
        """Side of HQ in pixels."""
        return self.target_size - self.target_size % (self.force_multiple * self.scale)

    @property
    def lq_size(self) -> int:
        """Side of LQ in pixels."""
        return self.hq_size // self.scale


def read_patch_options(options: ConfigOptions) -> PatchOptions:
    """Read and check the options that the three chunked modes share.

    Raises:
        ConfigError: an option is missing or has a wrong value, or ``target_size // scale`` is no multiple of
            ``force_multiple``.
    """
    evaluate = options.flag("eval", False)
    strict, needs_metadata = (options.flag(key, False) for key in ("strict", "needs_metadata"))
    scale = options.integer("scale", 1 if evaluate else None, minimum=1)
    corruptions = Corruptions.read(options)
    patch_options = PatchOptions(
        target_size=options.integer("target_size", minimum=1),
        scale=1 if evaluate else scale,
        force_multiple=options.integer("force_multiple", 1, minimum=1),
        need_ref=options.flag("need_ref", False),
        need_metadata=strict or needs_metadata,
        corruptions=Corruptions() if evaluate else corruptions,
        corrupt_before_downsize=options.flag("corrupt_before_downsize", False),
    )
    check_lq_size(
        options,
        target_size=patch_options.target_size,
        scale=patch_options.scale,
        force_multiple=patch_options.force_multiple,
    )
    return patch_options


def rescale_center(center: tuple[int, int], old_size: tuple[int, ...], size: tuple[int, ...]) -> tuple[int, int]:
    """Return a centre (row, column) after its image was resized from one (height, width) to another.

    >>> rescale_center((57, 113), (256, 256), (128, 128))
    (28, 56)
    """
    if old_size == size:
        return center
    row, col = (_rescale(*values) for values in zip(center, old_size, size, strict=True))
    return row, col


def rescale_centers(centers: NDArray[np.int64], old_size: tuple[int, int], size: tuple[int, int]) -> NDArray[np.int64]:
    """Return a new array of centres, int64 (..., 2), after their image was resized; see rescale_center."""
    factors = [float(new) / float(old) for new, old in zip(size, old_size, strict=True)]
    return (np.array(factors) * centers).astype(np.int64)


def rescale_square(square: Center, old_size: tuple[int, ...], size: tuple[int, ...]) -> Center:
    """Return a square after its image was resized from one (height, width) to another."""
    if old_size == size:
        return square
    row, col = rescale_center((square.row, square.col), old_size, size)
    return Center(row, col, _rescale(square.width, old_size[1], size[1]))


def square_in_reference(
    source: Source,
    number: int,
    position: int,
    options: PatchOptions,
    *,
    reference_size: tuple[int, ...],
    patch_size: tuple[int, ...],
) -> Center:
    """Return the square that a patch covers in its reference, in pixels of a reference of the patch's size.

    Args:
        source: holds the patch.
        number: number of the patch's image in the source.
        position: position of the patch in its image.
        options: options of the dataset; without ``need_metadata`` the square is UNKNOWN_CENTER.
        reference_size: height and width of the reference.
        patch_size: height and width of the patch.

    Raises:
        MissingMetadataError: metadata is needed, and the source has no centre of the patch.
    """
    if not options.need_metadata:
        return UNKNOWN_CENTER
    return rescale_square(_require_center(source, number, position), reference_size, patch_size)


def _require_center(source: Source, number: int, position: int) -> Center:
    """Return the centre of the patch at a position of an image.

    Raises:
        MissingMetadataError: the source has no centre of the patch.
    """
    image = source.image(number)
    center = image.center_of(position)
    if center is None:
        reason = "has no centers.pt" if image.centers is None else "has no centre for it in its centers.pt"
        raise MissingMetadataError(
            f"{source.source_path(number)}: patch {image.files[position]} needs a centre, "
            f"but image {image.name} {reason}; add it, or set strict and needs_metadata to false"
        )
    return center


def _rescale(value: int, old: int, new: int) -> int:
    # DL-Art-School's order of operations: another order sometimes truncates to another pixel.
    return int(float(new) / float(old) * float(value))
