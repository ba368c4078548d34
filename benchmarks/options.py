"""Command-line options shared by several subjects."""

from __future__ import annotations

import argparse
from pathlib import Path


def at_least_one(text: str) -> int:
    """Return the whole number from 1 in an option's text."""
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return value


def add_picture_options(parser: argparse.ArgumentParser, *, patches: int, size: int = 256, quality: int = 95) -> None:
    """Add the options of synthetic patches, with their defaults."""
    parser.add_argument(
        "--patches", type=at_least_one, default=patches, metavar="N", help=f"number of patches (default: {patches:,})"
    )
    parser.add_argument("--size", type=at_least_one, default=size, help=f"side in pixels (default: {size})")
    parser.add_argument("--quality", type=at_least_one, default=quality, help=f"JPEG quality (default: {quality})")


def add_scratch_option(parser: argparse.ArgumentParser) -> None:
    """Add the option of the folder that a benchmark writes to."""
    parser.add_argument(
        "--scratch",
        type=Path,
        metavar="DIR",
        help="folder where data is written and removed again (default: the system's folder for temporary files)",
    )
