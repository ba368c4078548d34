"""Command-line options that several subjects share."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlas_store.cli.text import positive


def add_picture_options(parser: argparse.ArgumentParser, *, patches: int, size: int = 256, quality: int = 95) -> None:
    """Add the options of synthetic patches, with the given defaults."""
    parser.add_argument(
        "--patches", type=positive, default=patches, metavar="N", help=f"number of patches (default: {patches:,})"
    )
    parser.add_argument("--size", type=positive, default=size, help=f"side of the patches in pixels (default: {size})")
    parser.add_argument("--quality", type=positive, default=quality, help=f"JPEG quality (default: {quality})")


def add_scratch_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the folder for temporary data."""
    parser.add_argument(
        "--scratch",
        type=Path,
        metavar="DIR",
        help="folder for temporary data, removed at the end (default: the system's folder for temporary files)",
    )
