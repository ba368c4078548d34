"""Contact sheets: arranging pictures and captions, and writing a sheet as a PNG file."""

from __future__ import annotations

import io
import textwrap
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont, ImageOps

from dlas_store.atomic import check_place
from dlas_store.errors import TargetExistsError, write_errors

Picture = PillowImage.Image

MARGIN = 16
"""Pixels around a sheet and between its blocks."""

GAP = 8
"""Pixels between the pictures of one block."""

PAPER = (238, 238, 234)
INK = (24, 24, 24)
FAINT = (96, 96, 96)
EMPTY = (192, 192, 192)
"""Colour of a box without a picture."""


def fit(picture: Picture, width: int, height: int) -> Picture:
    """Scale a picture to fit into a box, keeping its aspect ratio.

    A small picture is magnified by a whole number, so that every pixel stays a square of one colour. A large picture is
    reduced by averaging; each side keeps at least one pixel.
    """
    factor = min(width // picture.width, height // picture.height)
    if factor:
        return ImageOps.scale(picture, factor, PillowImage.Resampling.NEAREST)
    # ImageOps.contain would reduce a very narrow picture to no pixel.
    reduced = picture.copy()
    reduced.thumbnail((width, height), PillowImage.Resampling.BOX, reducing_gap=None)
    return reduced


def pad(picture: Picture, width: int, height: int) -> Picture:
    """Pad a picture with paper to its right and below it, up to a width and a height; no side is shortened."""
    return ImageOps.expand(picture, (0, 0, max(width - picture.width, 0), max(height - picture.height, 0)), PAPER)


def in_grid(cells: Sequence[Picture], columns: int, *, gap: int = GAP) -> Picture:
    """Arrange pictures in the rows of a grid, each at the top left of its cell.

    Args:
        cells: pictures, at least one.
        columns: number of cells in a row, from 1.
        gap: pixels between cells.
    """
    width, height = (max(sides) for sides in zip(*(cell.size for cell in cells), strict=True))
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    grid = below([beside([pad(cell, width, height) for cell in row], gap=gap) for row in rows], gap=gap)
    return pad(grid, columns * (width + gap) - gap, grid.height)


def beside(pictures: Sequence[Picture], *, gap: int = MARGIN) -> Picture:
    """Join pictures, at least one, from left to right, aligned at the top."""
    width = sum(picture.width + gap for picture in pictures) - gap
    row, x = _blank(width, max(picture.height for picture in pictures)), 0
    for picture in pictures:
        row.paste(picture, (x, 0))
        x += picture.width + gap
    return row


def below(pictures: Sequence[Picture], *, gap: int = MARGIN) -> Picture:
    """Join pictures, at least one, from top to bottom, aligned at the left."""
    height = sum(picture.height + gap for picture in pictures) - gap
    column, y = _blank(max(picture.width for picture in pictures), height), 0
    for picture in pictures:
        column.paste(picture, (0, y))
        y += picture.height + gap
    return column


def make_sheet(blocks: Sequence[Picture]) -> Picture:
    """Join blocks, at least one, from top to bottom, and add a margin around them."""
    return ImageOps.expand(below(blocks), MARGIN, PAPER)


def text_line(text: str, width: int, *, size: int = 12, color: tuple[int, int, int] = INK) -> Picture:
    """Draw one line of text. A text that is too long is shown by its end, where names differ."""
    return text_lines(text, width, size=size, color=color, max_lines=1)


def text_lines(
    text: str, width: int, *, size: int = 12, color: tuple[int, int, int] = INK, max_lines: int = 3
) -> Picture:
    """Draw text, broken into lines after slashes and spaces if it has any.

    Args:
        text: the text; a character that cannot be printed becomes ``?``.
        width: width of the picture in pixels; no line is wider.
        size: size of the font in pixels.
        color: RGB colour of the text.
        max_lines: maximum number of lines; a text that is too long is shown by its end, after dots.
    """
    text = text[-max_lines * width :]  # a line has at most one character a pixel; a value may be very long
    text = "".join(c if c.isprintable() else "?" for c in text)
    lines = _wrap(text, width, size)
    if len(lines) > max_lines:
        start = bisect_left(
            range(len(text)), True, key=lambda start: len(_wrap(f"...{text[start:]}", width, size)) <= max_lines
        )
        lines = _wrap(f"...{text[start:]}", width, size)
    return below([_draw_line(line, width, size, color) for line in lines], gap=0)


def check_target(path: Path) -> None:
    """Check that a new file may be written; call this before any work.

    Raises:
        TargetExistsError: the path exists.
        WriteError: the path's folder does not exist, or may not be written.
    """
    if path.exists():
        raise TargetExistsError(f"{path}: exists; choose another name, or move it away")
    check_place(path)


def write_png(picture: Picture, path: Path) -> None:
    """Write a picture to a new file.

    Raises:
        TargetExistsError: the path exists.
        WriteError: the path's folder does not exist, or the disk refused the file.
    """
    check_target(path)
    data = io.BytesIO()
    picture.save(data, "PNG")
    with write_errors(path):
        try:
            file = path.open("xb")
        except FileExistsError as error:  # created meanwhile, or a dangling link
            raise TargetExistsError(f"{path}: exists; choose another name, or move it away") from error
        try:
            with file:
                file.write(data.getbuffer())
        except BaseException:
            path.unlink()
            raise


def _blank(width: int, height: int) -> Picture:
    return PillowImage.new("RGB", (width, height), PAPER)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _draw_line(text: str, width: int, size: int, color: tuple[int, int, int]) -> Picture:
    picture = _blank(width, round(size * 1.3))
    ImageDraw.Draw(picture).text((0, 0), text, fill=color, font=_font(size))
    return picture


def _wrap(text: str, width: int, size: int) -> list[str]:
    """Break text into lines of at most ``width`` pixels.

    textwrap counts characters, so a bisection finds the number of characters whose lines fit.
    """
    too_wide = bisect_left(
        range(1, width), True, key=lambda columns: max(map(_font(size).getlength, _columns(text, columns))) > width
    )
    return _columns(text, max(too_wide, 1))


def _columns(text: str, columns: int) -> list[str]:
    """Break text into lines of at most ``columns`` characters; return at least one line."""
    # textwrap breaks at white space only, so put a tab, which no printable text contains, after each slash.
    lines = textwrap.wrap(
        text.replace("/", "/\t"), columns, expand_tabs=False, replace_whitespace=False, break_on_hyphens=False
    )
    return [line.replace("\t", "") for line in lines] or [""]
