"""Pairs of HQ and LQ pictures: the pictures of dataroot_LQ, and checks that the two of a pair belong together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np

from dlas_store.config import ConfigOptions
from dlas_store.datasets.concat import open_paths
from dlas_store.datasets.pictures import Pictures
from dlas_store.errors import ImageError
from dlas_store.sources.base import Source

_CHECKED_PAIRS = 10_000
"""Maximum number of pairs whose names and sizes are checked when a dataset is made. A pair takes 20 us."""

Size = tuple[int, int]
"""Height and width in pixels."""


def open_lq(options: ConfigOptions, hq: Pictures) -> list[Pictures]:
    """Open each path of ``dataroot_LQ``, which must hold a picture for each of HQ; without the option open nothing.

    The pictures are paired with HQ's by their order. Names that do not fit are a warning, see check_names.

    Raises:
        ConfigError: a path does not exist, or does not hold as many pictures as HQ.
        StoreError: a path holds no pictures.
    """
    if not options.has("dataroot_LQ"):
        return []
    sources = open_paths(options, layout="pictures", key="dataroot_LQ")
    lqs = [Pictures([source], [1]) for source in sources]
    for source, lq in zip(sources, lqs, strict=True):
        if len(lq) != hq.unweighted_count:
            raise options.error(
                f"dataroot_LQ must hold a picture for each of HQ: {source.path} holds {len(lq)}, "
                f"and HQ {hq.unweighted_count}"
            )
        check_names(options, hq, lq)
    return lqs


def check_names(options: ConfigOptions, hq: Pictures, lq: Pictures) -> None:
    """Warn of the first pair whose names do not fit.

    The names of a pair fit if one change makes the name of LQ from the name of HQ in all pairs: ``1.png`` and
    ``1x4.png``, ``2.png`` and ``2x4.png``. Folders and endings do not count. A change of a number into another number
    fits no pair. A single pair fits always. Of more than 10,000 pairs some are checked.
    """
    changes: set[tuple[str, str]] = set()
    for number, (hq_patch, lq_patch) in enumerate(_checked_pairs(hq, lq)):
        hq_path, lq_path = hq.source.patch_path(hq_patch), lq.source.patch_path(lq_patch)
        pair_changes = _changes(PurePosixPath(hq_path).stem, PurePosixPath(lq_path).stem)
        changes = changes & pair_changes if number else pair_changes
        if number and not changes:
            options.warn(
                f"dataroot_LQ: HQ {hq_path} is paired with LQ {lq_path}, and their names do not fit; pictures are "
                "paired by the order of their paths: give both roots the same pictures",
                stacklevel=4,
            )
            return


def check_sizes(options: ConfigOptions, hq: Pictures, lqs: list[Pictures], scale: int) -> None:
    """Check the sizes of pairs before they are read; stores know the sizes of their pictures, folders do not.

    Raises:
        ConfigError: a pair of whole pictures differs in its sizes by another factor than ``scale``.
    """
    for lq in lqs:
        for hq_patch, lq_patch in _checked_pairs(hq, lq):
            hq_size, lq_size = _known_size(hq.source, hq_patch), _known_size(lq.source, lq_patch)
            if hq_size is None or lq_size is None:
                continue
            if not _fits(hq_size, lq_size, scale):
                paths = hq.source.patch_path(hq_patch), lq.source.patch_path(lq_patch)
                raise options.error(f"{_misfit(*paths, hq_size, lq_size, scale)}, or set on_error to skip")


def check_scale(hq_path: str, lq_path: str, hq_size: Size, lq_size: Size, scale: int) -> None:
    """Check that LQ has HQ's size over ``scale``, rounded up or down.

    Raises:
        ImageError: it has another size.
    """
    if not _fits(hq_size, lq_size, scale):
        raise ImageError(_misfit(hq_path, lq_path, hq_size, lq_size, scale))


def common_size(hq_path: str, lq_path: str, hq_size: Size, lq_size: Size) -> tuple[int, Size]:
    """Return the factor from LQ's size to HQ's, and the height and width that both pictures cover, in pixels of LQ.

    Raises:
        ImageError: HQ is not LQ enlarged by a whole factor. A side of HQ may differ by less than the factor.
    """
    factor = max(round(hq_size[0] / lq_size[0]), 1)
    if not _fits(hq_size, lq_size, factor):
        sizes = [_in_words(size) for size in (lq_size, hq_size)]
        raise ImageError(
            f"{lq_path}: {sizes[0]} pixels, no whole part of the {sizes[1]} pixels of {hq_path}; "
            "dataroot_LQ must hold the pictures of HQ in the same order"
        )
    height, width = (min(lq_side, hq_side // factor) for hq_side, lq_side in zip(hq_size, lq_size, strict=True))
    return factor, (height, width)


def _fits(hq_size: Size, lq_size: Size, factor: int) -> bool:
    return all(abs(hq_side - lq_side * factor) < factor for hq_side, lq_side in zip(hq_size, lq_size, strict=True))


def _misfit(hq_path: str, lq_path: str, hq_size: Size, lq_size: Size, scale: int) -> str:
    sizes = f"{_in_words(lq_size)} pixels are not the {_in_words(hq_size)} pixels of {hq_path} at scale {scale}"
    return f"{lq_path}: {sizes}; dataroot_LQ must hold the pictures of HQ in the same order"


def _in_words(size: Size) -> str:
    return f"{size[1]} x {size[0]}"


def _changes(hq_name: str, lq_name: str) -> set[tuple[str, str]]:
    """Return the text of HQ's name that another text replaces in LQ's: between the equal start and the equal end.

    Where start and end overlap there are two such changes. A change of a number into another number is left out.

    >>> sorted(_changes("left", "lr_left"))
    [('', 'lr_'), ('', 'r_l')]
    >>> _changes("0007", "0008")
    set()
    """
    shorter = min(len(hq_name), len(lq_name))
    start = _equal_letters(hq_name, lq_name)
    end = _equal_letters(hq_name[::-1], lq_name[::-1])
    edges = {(start, min(end, shorter - start)), (min(start, shorter - end), end)}
    changes = {(hq_name[a : len(hq_name) - b], lq_name[a : len(lq_name) - b]) for a, b in edges}
    return {(hq_text, lq_text) for hq_text, lq_text in changes if not (hq_text.isdigit() and lq_text.isdigit())}


def _equal_letters(a: str, b: str) -> int:
    """Return the number of equal letters at the start of two texts."""
    differences = (count for count, (left, right) in enumerate(zip(a, b, strict=False)) if left != right)
    return next(differences, min(len(a), len(b)))


def _checked_pairs(hq: Pictures, lq: Pictures) -> Iterator[tuple[int, int]]:
    """Yield HQ's and LQ's index of each pair in their sources, or of some pairs: the first, the last, and between."""
    count = len(hq)
    items: list[int] = np.linspace(0, count - 1, min(count, _CHECKED_PAIRS)).astype(np.int64).tolist()
    patches = {hq.unweighted(item): hq.patch_at(item) for item in items}  # a weight repeats pairs
    yield from ((hq_patch, lq.patch_at(position)) for position, hq_patch in patches.items())


def _known_size(source: Source, patch: int) -> Size | None:
    number, position = source.locate(patch)
    image = source.image(number)
    if image.heights is None or image.widths is None:
        return None
    return int(image.heights[position]), int(image.widths[position])
