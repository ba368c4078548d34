"""Text of the command line: its encoding, parsers of option values, and printing of numbers, sizes, names, lists."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dlas_store.errors import counted

WORKERS_HELP = "worker processes (default: one a core; 0: none, work in this process)"

HIDDEN_HELP = "take hidden files and folders, too, and those that systems make, such as __MACOSX"

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MAX_LINES = 20


def open_closed_streams() -> None:
    """Send what is written to a closed standard stream nowhere.

    The next file that the process opens would otherwise get the stream's number, and receive what is written to it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            if getattr(sys, name) is None:
                setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def take_names_as_utf8() -> None:
    """Start the program again in Python's UTF-8 mode, unless Python takes file names as UTF-8 already.

    In a Latin-1 locale Python takes a name's bytes as other letters, and cannot write names with letters that Latin-1
    lacks. The output keeps the terminal's encoding.
    """
    if sys.getfilesystemencoding() != "utf-8" and sys.executable:
        os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606


def escape_unprintable() -> None:
    """Escape letters that the encoding of the output lacks, instead of failing at them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Summary(Protocol):
    """Counts of a result: images, their patches, bytes of patches and references, and seconds that the work took."""

    @property
    def images(self) -> int:
        """Number of images."""

    @property
    def patches(self) -> int:
        """Number of patches."""

    @property
    def payload_bytes(self) -> int:
        """Bytes of patches and references."""

    @property
    def seconds(self) -> float:
        """Duration."""


def summary_text(summary: Summary) -> str:
    """Return the counts of a result as text: 2 images, 18 patches, 0.2 MB in 0.1 s."""
    counts = f"{counted(summary.images, 'image')}, {counted(summary.patches, 'patch')}"
    return f"{counts}, {megabytes(summary.payload_bytes)} in {summary.seconds:.1f} s"


def print_json(facts: Mapping[str, Any]) -> None:
    """Print the result of a command as JSON."""
    print(json.dumps(facts, indent=2))


def print_lines(heading: str, lines: Sequence[str], count: int | None = None) -> None:
    """Print the first lines about images or files, each after a heading, and the number of further lines.

    Args:
        heading: text before every line.
        lines: the lines; the first 20 are printed.
        count: number of all lines, if ``lines`` is only their beginning.
    """
    count = len(lines) if count is None else count
    for line in lines[:_MAX_LINES]:
        print(f"{heading}: {one_line(line)}")
    if count > _MAX_LINES:
        print(f"{heading}: and {count - min(len(lines), _MAX_LINES):,} more")


def shorten(paths: Sequence[str], count: int = 3) -> str:
    """Return the first paths in one line, with dots if there are more."""
    return ", ".join(map(one_line, paths[:count])) + (", ..." if len(paths) > count else "")


def one_line(text: str) -> str:
    """Return text with unprintable characters escaped, since names may contain newlines."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def megabytes(size: int) -> str:
    """Return a number of bytes as text in megabytes."""
    return f"{size / 1e6:,.1f} MB"


def positive(text: str) -> int:
    """Parse an option's whole number from 1."""
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return value


def natural(text: str) -> int:
    """Parse an option's whole number from 0."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, got {text!r}")
    return int(text)


def share(text: str) -> float:
    """Parse an option's percentage, such as 5% or 5, and return it as a fraction above 0 and at most 1."""
    match = re.fullmatch(r"([0-9]+(\.[0-9]+)?)%?", text)
    if match is None or not 0 < float(match[1]) <= 100:
        raise argparse.ArgumentTypeError(
            f"must be a percentage such as 5% or 0.1%, above 0% and at most 100%, got {text!r}"
        )
    return float(match[1]) / 100


def file_ending_in(ending: str) -> Callable[[str], Path]:
    """Return a parser of an option's file name, which must have an ending such as .png; ``~`` is expanded."""

    def parse(text: str) -> Path:
        path = Path(text).expanduser()
        if path.suffix.lower() != ending:
            raise argparse.ArgumentTypeError(f"must be a file name that ends in {ending}, got {text!r}")
        return path

    return parse


def byte_size(text: str) -> int:
    """Parse an option's size, such as 512MiB, and return it in bytes."""
    match = re.fullmatch(r"([0-9]+)([KMGT]?)(iB|B)?", text)
    if match is None or int(match[1]) < 1:
        raise argparse.ArgumentTypeError(f"must be a size such as 512MiB or 1GiB, got {text!r}")
    return int(match[1]) * _UNITS[match[2]]
