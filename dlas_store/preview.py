"""What ``dlas-store preview`` draws: images with their patches' squares, or thumbnails of whole pictures."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image as PillowImage
from PIL import ImageDraw

from dlas_store.errors import ConfigError, ImageError
from dlas_store.opening import opened
from dlas_store.picture_sheet import (
    EMPTY,
    FAINT,
    GAP,
    Picture,
    below,
    beside,
    blank,
    check_target,
    fit,
    framed,
    in_grid,
    text_line,
    write_png,
)
from dlas_store.pixels import decode
from dlas_store.source import Center, Source

REFERENCE_SIDE = 512
"""Pixels that a reference has at most; a smaller one is magnified up to here."""

PATCH_SIDE = 128
PATCH_COLUMNS, PATCH_ROWS = 5, 3
THUMBNAIL_SIDE = 192
THUMBNAIL_COLUMNS = 6

FEW_IMAGES = 4
FEW_PICTURES = 24
"""How many are shown where none is named."""

MOST_IMAGES = 200
"""A sheet of so many takes 400 MB of memory."""

FRAME = 2
"""Pixels of the frame around a shown patch, and of the edge of its square."""


def preview(path: str | os.PathLike[str] | Source, images: Sequence[str], file: Path) -> int:
    """Draw images of a source into a new PNG file.

    An image of a chunked source is shown as its reference beside some of its patches, evenly chosen; their squares on
    the reference have the colours of the frames around them, the squares of the other patches are thin and pale. A
    picture of a source of pictures is shown as a thumbnail.

    Args:
        path: what open_source opens, or an open source, which stays open.
        images: names of images; none stands for the first few.
        file: the file to write.

    Returns:
        The number of images shown.

    Raises:
        NameNotFoundError: there is no image of a name.
        TargetExistsError: the file is there already.
        WriteError: the file cannot be written.
        ConfigError: more than MOST_IMAGES are named.
        StoreError: the source cannot be opened or read.
    """
    check_target(file)
    if len(images) > MOST_IMAGES:
        raise ConfigError(f"preview shows at most {MOST_IMAGES} images at once, got {len(images)}")
    with opened(path) as source:
        few = FEW_IMAGES if source.layout == "chunked" else FEW_PICTURES
        numbers = [source.find_image(name) for name in images] or range(min(few, source.image_count))
        if source.layout == "chunked":
            sheet = framed([_draw_image(source, number) for number in numbers])
        else:
            sheet = framed([in_grid([_draw_thumbnail(source, number) for number in numbers], THUMBNAIL_COLUMNS)])
    write_png(sheet, file)
    return len(numbers)


def spread(count: int, most: int) -> list[int]:
    """Return at most ``most`` of the numbers below ``count``, from the first to the last, evenly apart.

    >>> spread(3, 5), spread(9, 5)
    ([0, 1, 2], [0, 2, 4, 6, 8])
    """
    if count <= most:
        return list(range(count))
    return [round(step * (count - 1) / (most - 1)) for step in range(most)]


def square_color(number: int) -> tuple[int, int, int]:
    """Return the RGB colour of the n-th shown patch, from 0; neighbours differ much."""
    # Steps of the golden ratio go around the circle of hues without coming near where they were.
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.9, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _draw_image(source: Source, number: int) -> Picture:
    image = source.image(number)
    centers = [image.center_of(position) for position in range(len(image.files))]
    shown = spread(len(image.files), PATCH_COLUMNS * PATCH_ROWS)
    parts = [_draw_reference(source, number, centers, shown)]
    cells = []
    for order, position in enumerate(shown):
        pixels = source.read_pixels([source.first_patch(number) + position])[0]
        cells.append(_draw_patch(PillowImage.fromarray(pixels), image.files[position], centers[position], order))
    if cells:
        parts.append(in_grid(cells, PATCH_COLUMNS))
    content = beside(parts)
    facts = (
        f"{len(image.files):,} patches, {len(shown)} shown" if len(shown) < len(centers) else f"{len(shown)} patches"
    )
    without = centers.count(None)
    if without:
        facts += f", {without:,} without a centre"
    caption = below(
        [text_line(image.name, content.width, size=20), text_line(facts, content.width, color=FAINT)], gap=2
    )
    return below([caption, content], gap=GAP)


def _draw_reference(source: Source, number: int, centers: Sequence[Center | None], shown: Sequence[int]) -> Picture:
    encoded = source.read_reference(number)
    if encoded is None:
        empty = blank(REFERENCE_SIDE, REFERENCE_SIDE, EMPTY)
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
    for center in centers:
        if center is not None:
            draw.rectangle(_square(center, scale), outline="white")
    picture = PillowImage.blend(picture, pale, 0.5)
    draw = ImageDraw.Draw(picture)
    # Large squares first, for small ones lie in them.
    for order, position in sorted(enumerate(shown), key=lambda pair: -_width(centers[pair[1]])):
        center = centers[position]
        if center is not None:
            draw.rectangle(_square(center, scale), outline=square_color(order), width=FRAME)
    return picture


def _width(center: Center | None) -> int:
    return 0 if center is None else center.width


def _square(center: Center, scale: float) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom, all within the square, which is that of the datasets' masks."""
    half = center.width // 2
    left, top = (round((middle - half) * scale) for middle in (center.col, center.row))
    right, bottom = (round((middle + half) * scale) - 1 for middle in (center.col, center.row))
    return left, top, max(right, left), max(bottom, top)


def _draw_patch(pixels: Picture, file: str, center: Center | None, order: int) -> Picture:
    picture = fit(pixels, PATCH_SIDE, PATCH_SIDE)
    color = EMPTY if center is None else square_color(order)
    frame = blank(picture.width + 2 * FRAME, picture.height + 2 * FRAME, color)
    frame.paste(picture, (FRAME, FRAME))
    place = "no centre" if center is None else f"at {center.row}, {center.col}, {center.width} wide"
    width = PATCH_SIDE + 2 * FRAME
    return below([frame, text_line(file, width), text_line(place, width, size=11, color=FAINT)], gap=1)


def _draw_thumbnail(source: Source, number: int) -> Picture:
    picture = PillowImage.fromarray(source.read_pixels([source.first_patch(number)])[0])
    thumbnail = fit(picture, THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    size = f"{picture.width} x {picture.height}"
    box = blank(THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    box.paste(thumbnail, (0, THUMBNAIL_SIDE - thumbnail.height))
    name = text_line(source.image_name(number), THUMBNAIL_SIDE)
    return below([box, name, text_line(size, THUMBNAIL_SIDE, size=11, color=FAINT)], gap=2)
