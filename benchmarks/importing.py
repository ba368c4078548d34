"""Seconds and disk space of an import, compared with ``cp -r`` and ``sync`` of the same folder."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.data import write_chunked_folder
from benchmarks.options import add_picture_options, add_scratch_option
from benchmarks.report import Comparison, Report, run_rounds
from dlas_store.processes import available_cores

COPY = "cp -r, then sync -f"
IMPORT = "dlas-store import"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this subject."""
    add_picture_options(parser, patches=10_000)
    parser.add_argument("--folder", type=Path, help="import this folder instead of synthetic patches")
    add_scratch_option(parser)


def run(options: argparse.Namespace) -> Report:
    """Measure import and copy."""
    with tempfile.TemporaryDirectory(prefix="dlas-benchmark-", dir=options.scratch) as scratch:
        folder = options.folder
        if folder is None:
            folder = Path(scratch, "folder")
            write_chunked_folder(folder, patches=options.patches, size=options.size, quality=options.quality)
        files, content_bytes = _read_all(folder)
        copy, store = Path(scratch, "copy"), Path(scratch, "folder.lmdb")
        copy_commands = [["cp", "-r", str(folder), str(copy)], ["sync", "-f", str(copy)]]
        import_commands = [[sys.executable, "-m", "dlas_store", "import", str(folder), str(store)]]
        # Each run writes its result's disk usage here before it removes the result.
        disk_bytes: dict[str, int] = {}
        contenders = {
            COPY: partial(_timed, copy_commands, copy, disk_bytes),
            IMPORT: partial(_timed, import_commands, store, disk_bytes),
        }
        rounds = run_rounds(contenders, rounds=options.rounds)
    return Report(
        subject=f"{files:,} files, {content_bytes / 1e6:,.1f} MB, {available_cores()} cores, files in the page cache",
        comparisons=[Comparison(title="Making a durable copy", unit="s", reference=COPY, rounds=rounds)],
        figures={
            "folder_disk_bytes": disk_bytes[copy.name],
            "store_disk_bytes": disk_bytes[store.name],
            "store_to_folder_on_disk": disk_bytes[store.name] / disk_bytes[copy.name],
        },
    )


def _timed(commands: Sequence[Sequence[str]], result: Path, disk_bytes: dict[str, int]) -> float:
    """Return the seconds that commands take; measure and remove their result after the clock has stopped."""
    os.sync()
    started = time.perf_counter()
    for command in commands:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - this package's own commands
    seconds = time.perf_counter() - started
    disk_bytes[result.name] = _disk_usage(result)
    shutil.rmtree(result)
    return seconds


def _read_all(folder: Path) -> tuple[int, int]:
    """Bring all files of a folder into the page cache and return their number and bytes."""
    sizes = [len(path.read_bytes()) for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def _disk_usage(folder: Path) -> int:
    """Return the disk space of a folder and its contents, in bytes as du counts them."""
    return sum(path.lstat().st_blocks * 512 for path in [folder, *folder.rglob("*")])
