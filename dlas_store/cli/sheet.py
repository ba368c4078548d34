"""Contact sheets: pictures beside each other with captions, and the PNG file that a sheet is written to."""

from __future__ import annotations

import io
import textwrap
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont, ImageOps

from dlas_store.errors import TargetExistsError, WriteError, write_errors

Picture = PillowImage.Image

MARGIN = 16
"""Pixels around a sheet and between its parts."""

GAP = 8
"""Pixels between the pictures of one part."""

PAPER = (238, 238, 234)
INK = (24, 24, 24)
FAINT = (96, 96, 96)
EMPTY = (192, 192, 192)
"""Colour of a box whose picture is missing."""


def fit(picture: Picture, width: int, height: int) -> Picture:
    """Return a picture as large as a box allows, in its proportions.

    A small picture is magnified by a whole number, so that every pixel stays a square of its own colour. A large one is
    reduced by averaging, to at least one pixel.
    """
    factor = min(width // picture.width, height // picture.height)
    if factor:
        return ImageOps.scale(picture, factor, PillowImage.Resampling.NEAREST)
    # ImageOps.contain would leave no pixel of a very narrow picture.
    reduced = picture.copy()
    reduced.thumbnail((width, height), PillowImage.Resampling.BOX, reducing_gap=None)
    return reduced


def pad(picture: Picture, width: int, height: int) -> Picture:
    """Return a picture with paper to its right and below it; a side that is that long already stays."""
    return ImageOps.expand(picture, (0, 0, max(width - picture.width, 0), max(height - picture.height, 0)), PAPER)


def in_grid(cells: Sequence[Picture], columns: int, *, gap: int = GAP) -> Picture:
    """Return pictures in rows of a grid, each at the top left of its cell.

    Args:
        cells: at least one.
        columns: cells of a row, from 1.
        gap: pixels between cells.
    """
    width, height = (max(sides) for sides in zip(*(cell.size for cell in cells), strict=True))
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    grid = below([beside([pad(cell, width, height) for cell in row], gap=gap) for row in rows], gap=gap)
    return pad(grid, columns * (width + gap) - gap, grid.height)


def beside(parts: Sequence[Picture], *, gap: int = MARGIN) -> Picture:
    """Return pictures from left to right, at least one, aligned at the top."""
    width = sum(part.width + gap for part in parts) - gap
    row, left = _blank(width, max(part.height for part in parts)), 0
    for part in parts:
        row.paste(part, (left, 0))
        left += part.width + gap
    return row


def below(parts: Sequence[Picture], *, gap: int = MARGIN) -> Picture:
    """Return pictures from top to bottom, at least one, aligned at the left."""
    height = sum(part.height + gap for part in parts) - gap
    column, top = _blank(max(part.width for part in parts), height), 0
    for part in parts:
        column.paste(part, (0, top))
        top += part.height + gap
    return column


def make_sheet(parts: Sequence[Picture]) -> Picture:
    """Return a sheet: parts from top to bottom, at least one, with a margin around them."""
    return ImageOps.expand(below(parts), MARGIN, PAPER)


def text_line(text: str, width: int, *, size: int = 12, color: tuple[int, int, int] = INK) -> Picture:
    """Return a line of text in a given width. Of a longer text it shows the end, for names differ there."""
    return text_lines(text, width, size=size, color=color, most=1)


def text_lines(text: str, width: int, *, size: int = 12, color: tuple[int, int, int] = INK, most: int = 3) -> Picture:
    """Return text broken into lines, after slashes and spaces where it has any.

    Args:
        text: the text; a character that cannot be printed becomes ``?``.
        width: pixels of the picture; no line is wider.
        size: of the font in pixels.
        color: RGB.
        most: lines; of a longer text the end is shown, after dots.
    """
    text = text[-most * width :]  # no line holds more characters than pixels; a value may be long
    text = "".join(c if c.isprintable() else "?" for c in text)
    lines = _wrap(text, width, size)
    if len(lines) > most:
        start = bisect_left(
            range(len(text)), True, key=lambda start: len(_wrap(f"...{text[start:]}", width, size)) <= most
        )
        lines = _wrap(f"...{text[start:]}", width, size)
    return below([_draw_line(line, width, size, color) for line in lines], gap=0)


def check_target(path: Path) -> None:
    """Check, before any work, that a new file may be written.

    Raises:
        TargetExistsError: the path exists.
        WriteError: its folder does not exist.
    """
    if path.exists():
        raise TargetExistsError(f"{path}: is there already; choose another name")
    if not path.parent.is_dir():
        raise WriteError(f"{path}: there is no folder {path.parent}; create it or choose another place")


def write_png(picture: Picture, path: Path) -> None:
    """Write a picture to a new file.

    Raises:
        TargetExistsError: the path exists.
        WriteError: its folder does not exist, or the disk refused the file.
    """
    check_target(path)
    data = io.BytesIO()
    picture.save(data, "PNG")
    with write_errors(path):
        try:
            file = path.open("xb")
        except FileExistsError as error:  # created meanwhile, or a dangling link
            raise TargetExistsError(f"{path}: is there already; choose another name") from error
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
    """Break text into lines of at most ``width`` pixels: textwrap counts characters, so find how many fit."""
    too_wide = bisect_left(
        range(1, width), True, key=lambda columns: max(map(_font(size).getlength, _columns(text, columns))) > width
    )
    return _columns(text, max(too_wide, 1))


def _columns(text: str, columns: int) -> list[str]:
    """Break text into lines of at most so many characters, at least one line."""
    # textwrap breaks at white space: a tab after each slash, which printable text has none of, lets it break there.
    lines = textwrap.wrap(
        text.replace("/", "/\t"), columns, expand_tabs=False, replace_whitespace=False, break_on_hyphens=False
    )
    return [line.replace("\t", "") for line in lines] or [""]
