"""Time and memory of opening a store in a fresh process, by the number of patches in it."""

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

from benchmarks.data_tiny_store import write_tiny_store
from benchmarks.options import add_scratch_option, at_least_one
from benchmarks.report import Comparison, Report, run_rounds

_SMALLEST = 1000
_SIZES = (10_000, 100_000, 1_000_000)
_LARGEST = 10_000_000
_READS = 1000
_CHECKOUT = Path(__file__).parents[1]


class _OpeningCost(NamedTuple):
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
    parser.add_argument(
        "--largest", action="store_true", help=f"measure a store of {_LARGEST:,} patches as well; takes minutes"
    )
    add_scratch_option(parser)


def run(options: argparse.Namespace) -> Report:
    """Measure opening."""
    sizes = sorted({_SMALLEST, *options.patches, *([_LARGEST] if options.largest else [])})
    seeds = count()
    with tempfile.TemporaryDirectory(prefix="dlas-benchmark-", dir=options.scratch) as scratch:
        stores = {f"{size:,} patches": Path(scratch, f"{size}.lmdb") for size in sizes}
        for size, store in zip(sizes, stores.values(), strict=True):
            write_tiny_store(store, patches=size)
        contenders = {name: partial(_open_in_process, store, seeds) for name, store in stores.items()}
        costs = run_rounds(contenders, rounds=options.rounds)
    reference = f"{_SMALLEST:,} patches"
    return Report(
        subject="A fresh process, files in the page cache, after its imports",
        comparisons=[
            Comparison(
                title="open_source and read one patch",
                unit="ms",
                reference=reference,
                rounds={name: [cost.milliseconds for cost in runs] for name, runs in costs.items()},
            ),
            Comparison(
                title=f"Private_Dirty after {_READS:,} more reads",
                unit="kB",
                reference=reference,
                rounds={name: [cost.kilobytes for cost in runs] for name, runs in costs.items()},
                relation="difference",
            ),
        ],
    )


def _open_in_process(store: Path, seeds: count[int]) -> _OpeningCost:
    command = [sys.executable, "-m", "benchmarks.open_process", str(store), str(next(seeds)), str(_READS)]
    process = subprocess.run(command, cwd=_CHECKOUT, check=True, stdout=subprocess.PIPE)  # noqa: S603 - this module's own
    cost = json.loads(process.stdout)
    return _OpeningCost(cost["seconds"] * 1000, cost["dirty_bytes"] / 1000)
