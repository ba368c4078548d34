"""Time and memory that opening takes in a fresh process, by the number of patches in the store."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

from benchmarks.measuring import Comparison, run_rounds
from benchmarks.options import add_scratch_option, at_least_one
from benchmarks.report import Report
from benchmarks.tiny_store import write_tiny_store

_SMALLEST = 1000
_SIZES = (10_000, 100_000, 1_000_000)
_LARGEST = 10_000_000
_READS = 1000
_CHECKOUT = Path(__file__).parents[1]


class _Opened(NamedTuple):
    milliseconds: float
    kilobytes: float


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this subject."""
    parser.add_argument(
        "--patches",
        type=at_least_one,
        nargs="+",
        default=list(_SIZES),
        metavar="N",
        help=f"sizes to compare with a store of {_SMALLEST:,} (default: {' '.join(map(str, _SIZES))})",
    )
    parser.add_argument("--largest", action="store_true", help=f"one of {_LARGEST:,} patches as well; takes minutes")
    add_scratch_option(parser)


def run(options: argparse.Namespace) -> Report:
    """Measure as the options say."""
    sizes = sorted({_SMALLEST, *options.patches, *([_LARGEST] if options.largest else [])})
    seeds = count()
    with tempfile.TemporaryDirectory(prefix="dlas-benchmark-", dir=options.scratch) as scratch:
        stores = {f"{size:,} patches": Path(scratch, f"{size}.lmdb") for size in sizes}
        for size, store in zip(sizes, stores.values(), strict=True):
            write_tiny_store(store, patches=size)
        contenders = {name: partial(_open_in_process, store, seeds) for name, store in stores.items()}
        opened = run_rounds(contenders, rounds=options.rounds)
    reference = f"{_SMALLEST:,} patches"
    return Report(
        subject="A fresh process, files in the page cache, after its imports",
        comparisons=[
            Comparison(
                title="open_source and read one patch",
                unit="ms",
                reference=reference,
                rounds={name: [each.milliseconds for each in runs] for name, runs in opened.items()},
            ),
            Comparison(
                title=f"Private_Dirty after {_READS:,} more reads",
                unit="kB",
                reference=reference,
                rounds={name: [each.kilobytes for each in runs] for name, runs in opened.items()},
                relation="difference",
            ),
        ],
    )


def _open_in_process(store: Path, seeds: count[int]) -> _Opened:
    command = [sys.executable, "-m", "benchmarks.first_read", str(store), str(next(seeds)), str(_READS)]
    process = subprocess.run(command, cwd=_CHECKOUT, check=True, stdout=subprocess.PIPE)  # noqa: S603 - this module's own
    cost = json.loads(process.stdout)
    return _Opened(cost["seconds"] * 1000, cost["dirty_bytes"] / 1000)
