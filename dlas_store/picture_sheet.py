"""Sheets that people look at: pictures beside each other with text, and the PNG file they go to."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

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
"""What stands where there is no picture."""


def blank(width: int, height: int, color: tuple[int, int, int] = PAPER) -> Picture:
    """Return an RGB picture of one colour."""
    return PillowImage.new("RGB", (width, height), color)


def fit(picture: Picture, width: int, height: int) -> Picture:
    """Return a picture as large as it may be in a box, in its proportions.

    It is magnified by whole numbers only, so that every pixel stays a square of its own colour, and reduced by
    averaging.
    """
    ratio = min(width / picture.width, height / picture.height)
    scale = int(ratio) if ratio >= 1 else ratio
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    if size == picture.size:
        return picture
    how = PillowImage.Resampling.NEAREST if scale >= 1 else PillowImage.Resampling.BOX
    return picture.resize(size, how)


def in_grid(cells: Sequence[Picture], columns: int, *, gap: int = GAP) -> Picture:
    """Return pictures in rows of a grid, each at the top left of its cell.

    Args:
        cells: at least one.
        columns: how many a row has, from 1.
        gap: pixels between them.
    """
    width, height = (max(sides) for sides in zip(*(cell.size for cell in cells), strict=True))
    rows = -(-len(cells) // columns)
    grid = blank(columns * (width + gap) - gap, rows * (height + gap) - gap)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        grid.paste(cell, (column * (width + gap), row * (height + gap)))
    return grid


def beside(parts: Sequence[Picture], *, gap: int = MARGIN) -> Picture:
    """Return pictures from left to right, at least one, aligned at the top."""
    whole = blank(sum(part.width + gap for part in parts) - gap, max(part.height for part in parts))
    left = 0
    for part in parts:
        whole.paste(part, (left, 0))
        left += part.width + gap
    return whole


def below(parts: Sequence[Picture], *, gap: int = MARGIN) -> Picture:
    """Return pictures from top to bottom, at least one, aligned at the left."""
    whole = blank(max(part.width for part in parts), sum(part.height + gap for part in parts) - gap)
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height + gap
    return whole


def framed(parts: Sequence[Picture]) -> Picture:
    """Return a sheet: parts from top to bottom, at least one, with a margin around them."""
    content = below(parts)
    sheet = blank(content.width + 2 * MARGIN, content.height + 2 * MARGIN)
    sheet.paste(content, (MARGIN, MARGIN))
    return sheet


def text_line(text: str, width: int, *, size: int = 12, color: tuple[int, int, int] = INK) -> Picture:
    """Return a line of text in a given width; of text that is too long the end, for names differ there."""
    return text_lines(text, width, size=size, color=color, most=1)


def text_lines(text: str, width: int, *, size: int = 12, color: tuple[int, int, int] = INK, most: int = 3) -> Picture:
    """Return text broken into lines, after slashes and spaces where it has any.

    Args:
        text: the text; what cannot be printed becomes ``?``.
        width: of the picture in pixels, which a line fills at most.
        size: of the font in pixels.
        color: RGB.
        most: lines; of a longer text the end is shown, after dots.
    """
    text = text[-most * width :]  # no line holds more characters than pixels; a value may be long
    text = "".join(c if c.isprintable() else "?" for c in text)
    lines = _broken(text, width, size)
    if len(lines) > most:
        lines = lines[-most:]
        lines[0] = _end_of(lines[0] if most > 1 else text, width, size)
    height = _line_height(size)
    picture = blank(width, height * len(lines))
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        draw.text((0, number * height), line, fill=color, font=_font(size))
    return picture


def check_target(path: Path) -> None:
    """Check, before any work, that a file may be written.

    Raises:
        TargetExistsError: there is something of that name.
        WriteError: its folder is not there.
    """
    if path.exists():
        raise TargetExistsError(f"{path}: is there already; choose another name")
    if not path.parent.is_dir():
        raise WriteError(f"{path}: there is no folder {path.parent}; create it or choose another place")


def write_png(picture: Picture, path: Path) -> None:
    """Write a picture to a new file.

    Raises:
        TargetExistsError: there is something of that name.
        WriteError: its folder is not there, or the disk refused it.
    """
    check_target(path)
    data = io.BytesIO()
    picture.save(data, "PNG")
    with write_errors(path):
        try:
            file = path.open("xb")
        except FileExistsError as error:  # it appeared meanwhile, or is a link to nothing
            raise TargetExistsError(f"{path}: is there already; choose another name") from error
        try:
            with file:
                file.write(data.getbuffer())
        except BaseException:
            path.unlink()
            raise


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _line_height(size: int) -> int:
    return round(size * 1.3)


def _width_of(text: str, size: int) -> float:
    return _font(size).getlength(text)


def _broken(text: str, width: int, size: int) -> list[str]:
    lines = [""]
    for character in text:
        line = lines[-1]
        if line and _width_of(line + character, size) > width:
            end = max(line.rfind("/"), line.rfind(" ")) + 1 or len(line)
            lines[-1:] = [line[:end], line[end:]]
        lines[-1] += character
    return lines


def _end_of(text: str, width: int, size: int) -> str:
    start = 0
    while start < len(text) and _width_of("..." + text[start:], size) > width:
        start += 1
    return "..." + text[start:]
