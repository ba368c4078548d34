"""Why a photo gives no image, as far as its header tells."""

from __future__ import annotations

from typing import NamedTuple

from dlas_store.converters.extraction.headers import Header, photo_squares
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.tiling import count_tiles, halved
from dlas_store.pixels import MAX_PIXELS

_GREYSCALE = frozenset({"1", "L", "LA", "La"})
_COLOUR = frozenset({"RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "YCbCr"})


class Problem(NamedTuple):
    """Why a photo gives no image.

    Attributes:
        reason: in words that are the same for all photos of the kind.
        bad: whether the photo is to blame, and not the options.
    """

    reason: str
    bad: bool


NO_TILE = Problem("smaller than every crop size", bad=False)
MASKED_OUT = Problem("every tile is masked out", bad=False)
EXCLUDED = Problem("excluded by a term", bad=False)


def problem_of(header: Header, options: ExtractOptions) -> Problem | None:
    """Return why a photo cannot be taken, None where it can."""
    return _problem_of_pixels(header, options) or _problem_of_size(header, options)


def why_no_tile(header: Header, options: ExtractOptions, wanted: list[int]) -> Problem:
    """Return why a photo without fault gives no tile.

    Args:
        header: the photo's.
        options: of the extraction.
        wanted: positions of the crop sizes that it is cut to.
    """
    if not wanted:
        return EXCLUDED
    sides = [square.side for square in photo_squares(header, options).values()]
    return MASKED_OUT if any(count_tiles(side, options, wanted)[0] for side in sides) else NO_TILE


def _problem_of_pixels(header: Header, options: ExtractOptions) -> Problem | None:
    grey = header.mode in _GREYSCALE
    if header.size.height * header.size.width > MAX_PIXELS:
        reason = f"more pixels than the limit of {MAX_PIXELS}"
    elif header.frames > 1:
        reason = "animated, or of several pages"
    elif header.mode == "CMYK":
        reason = "CMYK, convert it to RGB first"
    elif header.floating:
        reason = "floating point numbers for pixels, convert it to 8 bits first"
    elif header.bits > 8:
        reason = "16 bits a channel, convert it to 8 bits first"
    elif not grey and header.mode not in _COLOUR:
        reason = f"pixels of the kind {header.mode}, convert it to RGB first"
    else:
        skipped = grey and not options.convert_greyscale
        return Problem("greyscale, taken with --greyscale convert", bad=False) if skipped else None
    return Problem(reason, bad=True)


def _problem_of_size(header: Header, options: ExtractOptions) -> Problem | None:
    if min(halved(header.size, options.halve_above)) >= options.min_size:
        return None
    return Problem(f"its shorter side is below the least size of {options.min_size} pixels", bad=False)
