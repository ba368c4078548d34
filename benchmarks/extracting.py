"""Seconds of extracting patches from photos, compared with decoding the photos and encoding the tiles alone."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from benchmarks.data import write_photos
from benchmarks.options import add_scratch_option
from benchmarks.report import Comparison, Report, run_rounds
from dlas_store.cli.text import positive
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.plan import ExtractPlan, plan_extraction
from dlas_store.converters.extraction.tiles import tile_photo
from dlas_store.errors import ConfigError
from dlas_store.processes import available_cores

LIMIT = "decoding and encoding alone, in memory, all cores"
STORE = "dlas-store extract, to a store"
FOLDER = "dlas-store extract, to a folder"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this subject."""
    parser.add_argument(
        "--folder", type=Path, help="extract from the JPEG photos of this folder instead of synthetic photos"
    )
    parser.add_argument("--photos", type=positive, default=80, metavar="N", help="number of photos (default: 80)")
    parser.add_argument(
        "--megapixels",
        type=_range,
        default=(2.0, 15.0),
        metavar="LOW,HIGH",
        help="sizes of the smallest and the largest photo (default: 2,15)",
    )
    parser.add_argument(
        "--step",
        type=_steps,
        default=list(ExtractOptions().steps),
        metavar="N,N",
        help="pixels from one tile to the next, for the crop sizes 256 and 512 (default: half of each)",
    )
    add_scratch_option(parser)


def run(options: argparse.Namespace) -> Report:
    """Measure extraction to a store and to a folder."""
    extraction = ExtractOptions.read({"step": options.step})
    with tempfile.TemporaryDirectory(prefix="dlas-benchmark-", dir=options.scratch) as scratch:
        folder = options.folder
        if folder is None:
            folder = Path(scratch, "photos")
            write_photos(folder, count=options.photos, megapixels=options.megapixels)
        plan = plan_extraction(folder, extraction)
        for path in plan.paths:
            (folder / path).read_bytes()  # brings the photos into the page cache
        contenders = {
            LIMIT: partial(_limit_seconds, plan, extraction),
            STORE: partial(_command_seconds, folder, Path(scratch, "photos.lmdb"), extraction),
            FOLDER: partial(_command_seconds, folder, Path(scratch, "tiles"), extraction),
        }
        rounds = run_rounds(contenders, rounds=options.rounds)
    expected = plan.estimate
    steps = " and ".join(map(str, options.step))
    comparison = Comparison(title="Extracting patches", unit="s", reference=LIMIT, rounds=rounds)
    return Report(
        subject=(
            f"{len(plan.paths)} photos, {expected.photo_pixels / 1e6:,.0f} megapixels, {expected.tiles:,} tiles every "
            f"{steps} pixels, {available_cores()} cores, files in the page cache"
        ),
        comparisons=[comparison],
        figures={
            "speed_of_store_to_limit": 1 / comparison.summary(STORE).relative,
            "speed_of_folder_to_limit": 1 / comparison.summary(FOLDER).relative,
        },
    )


def _range(text: str) -> tuple[float, float]:
    """Parse two numbers above 0, the second not below the first."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = 0.0
    if not 0 < low <= high:
        raise argparse.ArgumentTypeError(f"must be two numbers above 0 such as 2,15, got {text!r}")
    return low, high


def _steps(text: str) -> list[int]:
    """Parse steps as ``dlas-store extract --step`` does."""
    try:
        return list(ExtractOptions.read({"step": list(map(int, text.split(",")))}).steps)
    except (ValueError, ConfigError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _limit_seconds(plan: ExtractPlan, options: ExtractOptions) -> float:
    """Return the seconds of decoding every photo and encoding every tile once, on perfectly balanced cores.

    Each worker takes whole photos. A worker's clock does not run while the worker crops tiles for the encoding; the sum
    of all clocks is divided by the number of cores.
    """
    cores = available_cores()
    cv2.setNumThreads(1)  # before workers are forked, which inherit it
    largest_first = sorted(plan.paths, key=lambda path: -(plan.root / path).stat().st_size)
    with ProcessPoolExecutor(cores, get_context("fork")) as pool:
        return sum(pool.map(partial(_time_photo, plan.root, options), largest_first)) / cores


def _time_photo(root: Path, options: ExtractOptions, path: str) -> float:
    """Return the seconds that one core takes to decode a photo in memory into a buffer and to encode its tiles."""
    data = (root / path).read_bytes()
    tiles = _tiles(root, options, path)
    buffer: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "BGR")
    started = time.perf_counter()
    simplejpeg.decode_jpeg(data, "BGR", buffer=buffer)
    for tile in tiles:
        cv2.imencode(".jpg", tile, (cv2.IMWRITE_JPEG_QUALITY, options.quality))
    return time.perf_counter() - started


def _tiles(root: Path, options: ExtractOptions, path: str) -> Sequence[NDArray[np.uint8]]:
    """Return the pixels of a photo's tiles; neighbouring tiles may overlap."""
    images = tile_photo(root, path, options).images
    return [np.ascontiguousarray(pixels) for image in images for pixels in image.pixels()]


def _command_seconds(folder: Path, dst: Path, options: ExtractOptions) -> float:
    """Return the seconds of the whole command; remove the command's output after the clock has stopped."""
    os.sync()
    steps = ",".join(map(str, options.steps))
    command = [sys.executable, "-m", "dlas_store", "extract", str(folder), str(dst), "--step", steps]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - this package's own command
    seconds = time.perf_counter() - started
    shutil.rmtree(dst)
    return seconds
