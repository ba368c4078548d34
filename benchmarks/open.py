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
from benchmarks.options import add_scratch_option
from benchmarks.process import CHECKOUT
from benchmarks.report import Comparison, Report, run_rounds
from dlas_store.cli.text import positive

_SMALLEST = 1000
_SIZES = (10_000, 100_000, 1_000_000)
_LARGEST = 10_000_000
_READS = 1000


class _OpeningCost(NamedTuple):
    milliseconds: float
    kilobytes: float


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this subject."""
    parser.add_argument(
        "--patches",
        type=positive,
        nargs="+",
        default=list(_SIZES),
        metavar="N",
        help=f"numbers of patches to compare with a store of {_SMALLEST:,} (default: {' '.join(map(str, _SIZES))})",
    )
    parser.add_argument(
        "--largest", action="store_true", help=f"also measure a store of {_LARGEST:,} patches, which takes minutes"
    )
    add_scratch_option(parser)


def run(options: argparse.Namespace) -> Report:
    """Measure opening a store of each size."""
    sizes = sorted({_SMALLEST, *options.patches, *([_LARGEST] if options.largest else [])})
    seeds = count()
    with tempfile.TemporaryDirectory(prefix="dlas-benchmark-", dir=options.scratch) as scratch:
        stores = {f"{size:,} patches": Path(scratch, f"{size}.lmdb") for size in sizes}
        for size, store in zip(sizes, stores.values(), strict=True):
            write_tiny_store(store, patches=size)
        contenders = {name: partial(_open_in_process, store, seeds) for name, store in stores.items()}
        costs_of = run_rounds(contenders, rounds=options.rounds)
    reference = f"{_SMALLEST:,} patches"
    return Report(
        subject="A fresh process, files in the page cache, after its imports",
        comparisons=[
            Comparison(
                title="open_source and read one patch",
                unit="ms",
                reference=reference,
                rounds={name: [cost.milliseconds for cost in costs_of[name]] for name in costs_of},
            ),
            Comparison(
                title=f"Private_Dirty after {_READS:,} more reads",
                unit="kB",
                reference=reference,
                rounds={name: [cost.kilobytes for cost in costs_of[name]] for name in costs_of},
                relation="difference",
            ),
        ],
    )


def _open_in_process(store: Path, seeds: count[int]) -> _OpeningCost:
    command = [sys.executable, "-m", "benchmarks.open_process", str(store), str(next(seeds)), str(_READS)]
    process = subprocess.run(command, cwd=CHECKOUT, check=True, stdout=subprocess.PIPE)  # noqa: S603 - this package's own
    cost = json.loads(process.stdout)
    return _OpeningCost(cost["seconds"] * 1000, cost["dirty_bytes"] / 1000)
