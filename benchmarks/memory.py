"""Memory of a worker process by the number of patches in the store, and growth of a reading process by epoch."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.data import write_mode_data
from benchmarks.data_tiny_store import small_pictures, write_tiny_store
from benchmarks.modes import dataset_options
from benchmarks.options import add_scratch_option
from benchmarks.process import CHECKOUT
from benchmarks.report import Comparison, Report, run_rounds
from dlas_store.cli.text import positive

_SMALLEST = 1000
_LARGE = 1_000_000
_BASE_EPOCH = 2
"""Epoch that later epochs are compared with: at its end caches are full and every buffer has been used."""

_EPOCH_INTERVAL = 2
"""Distance between the epochs that have a line in the table."""

_GROWTH_MODES = ("pixels", "single_image")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this subject."""
    parser.add_argument(
        "--patches",
        type=positive,
        default=_LARGE,
        metavar="N",
        help=f"number of patches in the large store (default: {_LARGE:,})",
    )
    parser.add_argument(
        "--batches", type=positive, default=200, help="number of batches that the worker makes (default: 200)"
    )
    parser.add_argument(
        "--epochs", type=positive, default=10, help="number of epochs that the reading process reads (default: 10)"
    )
    parser.add_argument(
        "--epoch-patches", type=positive, default=2000, metavar="N", help="patches an epoch (default: 2000)"
    )
    parser.add_argument(
        "--size", type=positive, default=256, help="side of an epoch's patches in pixels (default: 256)"
    )
    parser.add_argument(
        "--modes", nargs="+", choices=_GROWTH_MODES, default=list(_GROWTH_MODES), help="modes to read (default: both)"
    )
    add_scratch_option(parser)


def run(options: argparse.Namespace) -> Report:
    """Measure the memory of a worker and of a reading process."""
    epochs = max(options.epochs, _BASE_EPOCH)
    with tempfile.TemporaryDirectory(prefix="dlas-benchmark-", dir=options.scratch) as scratch:
        sizes = sorted({_SMALLEST, options.patches})
        stores = {f"{size:,} patches": Path(scratch, f"{size}.lmdb") for size in sizes}
        for size, store in zip(sizes, stores.values(), strict=True):
            write_tiny_store(store, patches=size, pictures=small_pictures(size=32, quality=50))
        # A weight makes the small store as long as the large store by repetition, so that both are read alike.
        contenders = {
            name: partial(_worker_kilobytes, store, max(sizes) // size, options.batches)
            for (name, store), size in zip(stores.items(), sizes, strict=True)
        }
        workers = run_rounds(contenders, rounds=options.rounds)
        chunked = Path(scratch, "chunked.lmdb")
        write_mode_data(
            "single_image",
            Path(scratch, "chunked"),
            chunked,
            patches=options.epoch_patches,
            images=min(20, options.epoch_patches),
            size=options.size,
            quality=95,
        )
        readers = {mode: partial(_epochs_kilobytes, mode, chunked, options.size, epochs) for mode in options.modes}
        growth = run_rounds(readers, rounds=options.rounds)
    comparisons = [
        Comparison(
            title="Private_Dirty of a worker process",
            unit="kB",
            reference=f"{_SMALLEST:,} patches",
            rounds=workers,
            relation="difference",
        )
    ]
    for mode, runs in growth.items():
        shown_epochs = sorted({*range(_BASE_EPOCH, epochs + 1, _EPOCH_INTERVAL), epochs})
        comparisons.append(
            Comparison(
                title=f"Private_Dirty of a process that reads {mode} in threads",
                unit="kB",
                reference=f"after epoch {_BASE_EPOCH}",
                rounds={f"after epoch {epoch}": [run[epoch - 1] for run in runs] for epoch in shown_epochs},
                relation="difference",
            )
        )
    return Report(
        subject=f"A worker (fork) that has made {options.batches} batches of 64 patches of 32 x 32 pixels; epochs of "
        f"{options.epoch_patches:,} patches of {options.size} x {options.size} pixels; fresh processes",
        comparisons=comparisons,
    )


def _worker_kilobytes(store: Path, weight: int, batches: int) -> float:
    options = {
        "mode": "pixels",
        "paths": [str(store)],
        "weights": [weight],
        "seed": 0,
        "phase": "train",
        "batch_size": 64,
        "loader": "workers",
        "n_workers": 1,
        "start_method": "fork",
    }
    kilobytes: float = _ask("worker", {"options": options, "batches": batches}) / 1000
    return kilobytes


def _epochs_kilobytes(mode: str, store: Path, side: int, epochs: int) -> list[float]:
    options = dataset_options(mode, str(store), side=side) | {"batch_size": 16, "loader": "threads"}
    return [size / 1000 for size in _ask("growth", {"options": options, "epochs": epochs})]


def _ask(question: str, spec: dict[str, Any]) -> Any:
    command = [sys.executable, "-m", "benchmarks.memory_process", question, json.dumps(spec)]
    process = subprocess.run(command, cwd=CHECKOUT, check=True, stdout=subprocess.PIPE)  # noqa: S603 - this package's own
    return json.loads(process.stdout)
