"""The sheet of ``dlas-store preview``: images with the squares of their patches, or thumbnails of whole pictures."""

from __future__ import annotations

import colorsys
import os
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image as PillowImage
from PIL import ImageDraw, ImageOps

from dlas_store.cli.sheet import (
    EMPTY,
    FAINT,
    GAP,
    PAPER,
    Picture,
    below,
    beside,
    check_target,
    fit,
    in_grid,
    make_sheet,
    text_line,
    write_png,
)
from dlas_store.cli.usage import nearest
from dlas_store.errors import ConfigError, ImageError, NameNotFoundError, counted
from dlas_store.images.decode import decode
from dlas_store.opening import open_if_path
from dlas_store.sources.base import Center, Source

REFERENCE_SIDE = 512
"""Maximum pixels of a reference's longer side; a smaller reference is magnified up to this."""

PATCH_SIDE = 128
PATCH_COLUMNS, PATCH_ROWS = 5, 3
THUMBNAIL_SIDE = 192
THUMBNAIL_COLUMNS = 6

DEFAULT_IMAGES = 4
DEFAULT_PICTURES = 24
"""Number of images shown if none is named."""

MAX_IMAGES = 200
"""Maximum number of images on a sheet; this many take 400 MB of memory."""

_MAX_NAMES = 100_000
"""Number of names among which the nearest to a wrong name is sought."""

FRAME = 2
"""Width in pixels of a shown patch's frame and of the edge of the patch's square."""


MAX_PALE_SQUARES = 100
"""Number of an image's patches above which only the squares of shown patches are drawn; more would hide the reference.
"""


def preview(
    path: str | os.PathLike[str] | Source,
    images: Sequence[str],
    file: Path,
    *,
    count: int | None = None,
    seed: int | None = None,
) -> int:
    """Draw images of a source into a new PNG file.

    An image of a chunked source is shown as its reference beside some of its patches, evenly chosen. On the reference,
    the square of a shown patch has the colour of that patch's frame; squares of patches that are not shown are thin and
    pale, and left out if the image has more than MAX_PALE_SQUARES patches. A picture of a source of pictures is shown
    as a thumbnail.

    Args:
        path: a path or another argument of open_source, or an open source, which stays open.
        images: names of images; if empty, ``count`` and ``seed`` choose the images.
        file: the PNG file to write.
        count: number of images, from 1; None shows DEFAULT_IMAGES, or DEFAULT_PICTURES of a source of pictures.
        seed: seed of a random choice, which is the same at every call; None shows the first images.

    Returns:
        The number of images shown.

    Raises:
        NameNotFoundError: no image has one of the names.
        TargetExistsError: the file exists.
        WriteError: the file cannot be written.
        ConfigError: more than MAX_IMAGES images are asked for, or both names and ``count`` or ``seed`` are given.
        StoreError: the source cannot be opened or read.
    """
    check_target(file)
    asked = max(len(images), count or 0)
    if asked > MAX_IMAGES:
        raise ConfigError(f"preview shows at most {MAX_IMAGES} images at once, got {asked}")
    if images and (count is not None or seed is not None):
        raise ConfigError("--count and --random choose images; leave them out where images are named")
    with open_if_path(path) as source:
        numbers = [_find_image(source, name) for name in images] or _choose(source, count, seed)
        if source.layout == "chunked":
            sheet = make_sheet([_draw_image(source, number) for number in numbers])
        else:
            sheet = make_sheet([in_grid([_draw_thumbnail(source, number) for number in numbers], THUMBNAIL_COLUMNS)])
    write_png(sheet, file)
    return len(numbers)


def _find_image(source: Source, name: str) -> int:
    """Return the number of the image with a name; the error for a wrong name has the nearest one."""
    try:
        return source.find_image(name)
    except NameNotFoundError as error:
        names = (source.image_name(number) for number in range(min(source.image_count, _MAX_NAMES)))
        raise NameNotFoundError(f"{error}{nearest(name, names)}") from error


def _choose(source: Source, count: int | None, seed: int | None) -> list[int]:
    """Return the numbers of the images to show, in the source's order."""
    default = DEFAULT_IMAGES if source.layout == "chunked" else DEFAULT_PICTURES
    numbers = range(source.image_count)
    shown = min(count or default, len(numbers))
    if seed is None:
        return list(numbers[:shown])
    return sorted(random.Random(seed).sample(numbers, shown))  # noqa: S311 - no secret


def spread(count: int, max_count: int) -> list[int]:
    """Return at most ``max_count`` numbers below ``count``, evenly spaced from the first to the last.

    >>> spread(3, 5), spread(9, 5)
    ([0, 1, 2], [0, 2, 4, 6, 8])
    """
    if count <= max_count:
        return list(range(count))
    return [round(step * (count - 1) / (max_count - 1)) for step in range(max_count)]


def square_color(number: int) -> tuple[int, int, int]:
    """Return the RGB colour of the n-th shown patch, from 0; successive patches have very different colours."""
    # Hues in steps of the golden ratio around the colour circle never come near an earlier hue.
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.9, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _draw_image(source: Source, number: int) -> Picture:
    image = source.image(number)
    centers = [image.center_of(position) for position in range(len(image.files))]
    positions = spread(len(image.files), PATCH_COLUMNS * PATCH_ROWS)
    patches = []
    for order, position in enumerate(positions):
        pixels = source.read_pixels([source.first_patch(number) + position])[0]
        patches.append(_draw_patch(PillowImage.fromarray(pixels), image.files[position], centers[position], order))
    reference = _draw_reference(source, number, centers, positions)
    content = beside([reference, in_grid(patches, PATCH_COLUMNS)]) if patches else reference
    facts = counted(len(centers), "patch")
    if len(positions) < len(centers):
        facts += f", {len(positions)} shown"
    if len(centers) > MAX_PALE_SQUARES:
        facts += ", with their squares only"
    if any(centers):
        facts += "; rows, columns and widths are in pixels of the reference"
    if None in centers:
        facts += f", {centers.count(None):,} without a centre"
    name = text_line(image.name, content.width, size=20)
    caption = below([name, text_line(facts, content.width, color=FAINT)], gap=2)
    return below([caption, content], gap=GAP)


def _draw_reference(source: Source, number: int, centers: Sequence[Center | None], positions: Sequence[int]) -> Picture:
    encoded = source.read_reference(number)
    if encoded is None:
        empty = PillowImage.new("RGB", (REFERENCE_SIDE, REFERENCE_SIDE), EMPTY)
        middle = (REFERENCE_SIDE // 2, REFERENCE_SIDE // 2)
        ImageDraw.Draw(empty).text(middle, "no reference", fill=FAINT, font_size=24, anchor="mm")
        return empty
    try:
        original = PillowImage.fromarray(decode(encoded))
    except ImageError as error:
        raise ImageError(f"{source.path}: reference of image {source.image_name(number)!r}: {error}") from error
    picture = fit(original, REFERENCE_SIDE, REFERENCE_SIDE)
    scale = picture.width / original.width
    pale = picture.copy()
    draw = ImageDraw.Draw(pale)
    for center in centers if len(centers) <= MAX_PALE_SQUARES else ():
        if center is not None:
            draw.rectangle(_square(center, scale), outline="white")
    picture = PillowImage.blend(picture, pale, 0.5)
    draw = ImageDraw.Draw(picture)
    colored = [
        (center, square_color(order)) for order, center in enumerate(centers[position] for position in positions)
    ]
    # Large squares are drawn first, so that they do not cover small squares inside them.
    for center, color in sorted(colored, key=lambda pair: -pair[0].width if pair[0] else 0):
        if center is not None:
            draw.rectangle(_square(center, scale), outline=color, width=FRAME)
    return picture


def _square(center: Center, scale: float) -> tuple[int, int, int, int]:
    """Return the outermost pixels of a patch's square: left, top, right and bottom. Datasets mask the same square."""
    half = center.width // 2
    left, top = (round((coordinate - half) * scale) for coordinate in (center.col, center.row))
    right, bottom = (round((coordinate + half) * scale) - 1 for coordinate in (center.col, center.row))
    return left, top, max(right, left), max(bottom, top)


def _draw_patch(pixels: Picture, file: str, center: Center | None, order: int) -> Picture:
    color = EMPTY if center is None else square_color(order)
    patch = ImageOps.expand(fit(pixels, PATCH_SIDE, PATCH_SIDE), FRAME, color)
    facts = [f"{pixels.width} x {pixels.height} px"]
    if center is None:
        facts.append("no centre")
    else:
        facts += [f"row {center.row}, column {center.col}", f"{center.width} px wide"]
    width = PATCH_SIDE + 2 * FRAME
    lines = [text_line(fact, width, size=11, color=FAINT) for fact in facts]
    return below([patch, text_line(file, width), *lines], gap=1)


def _draw_thumbnail(source: Source, number: int) -> Picture:
    picture = PillowImage.fromarray(source.read_pixels([source.first_patch(number)])[0])
    thumbnail = fit(picture, THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    # Thumbnails are aligned at the bottom, so that the captions of a row have one height.
    box = ImageOps.expand(thumbnail, (0, THUMBNAIL_SIDE - thumbnail.height, 0, 0), PAPER)
    name = text_line(source.image_name(number), THUMBNAIL_SIDE)
    size = text_line(f"{picture.width} x {picture.height} px", THUMBNAIL_SIDE, size=11, color=FAINT)
    return below([box, name, size], gap=2)
