"""Time to a loader's first batch in a fresh process, at the start and in the middle of an epoch."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.data_tiny_store import small_pictures, write_tiny_store
from benchmarks.options import add_picture_options, add_scratch_option
from benchmarks.process import CHECKOUT
from benchmarks.report import Comparison, Report, run_rounds
from dlas_store import StoreError
from dlas_store.cli.text import positive
from dlas_store.processes import available_cores

_MODES: dict[str, dict[str, Any]] = {
    "pixels": {"mode": "pixels"},
    "single_image": {"mode": "single_image_extensible", "scale": 4},
}
_LOADERS = ("threads", "workers")


class _Start(NamedTuple):
    """A way to start reading: mode, loader, and whether an epoch is resumed."""

    mode: str
    loader: str
    resumed: bool

    @property
    def label(self) -> str:
        """Name of the start in a table."""
        return f"{self.mode}, {self.loader} loader"

    @property
    def name(self) -> str:
        """Name of the start, unique among all starts."""
        return f"{self.label}, {'resumed' if self.resumed else 'first'}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this subject."""
    add_picture_options(parser, patches=1_000_000, size=32, quality=50)
    parser.add_argument("--batch", type=positive, default=64, help="patches a batch (default: 64)")
    parser.add_argument(
        "--step", type=positive, default=10_000, help="step of the epoch to resume from (default: 10000)"
    )
    parser.add_argument(
        "--modes", nargs="+", choices=_MODES, default=list(_MODES), help="modes to read (default: both)"
    )
    add_scratch_option(parser)


def run(options: argparse.Namespace) -> Report:
    """Measure the time to the first batch.

    Raises:
        StoreError: an epoch has fewer batches than ``--step``.
    """
    if options.step >= options.patches // options.batch:
        raise StoreError(
            f"{options.patches} patches are {options.patches // options.batch} batches of {options.batch}, so there is "
            f"no batch after step {options.step}; give a smaller --step"
        )
    with tempfile.TemporaryDirectory(prefix="dlas-benchmark-", dir=options.scratch) as scratch:
        store = Path(scratch, "store.lmdb")
        write_tiny_store(
            store, patches=options.patches, pictures=small_pictures(size=options.size, quality=options.quality)
        )
        # For each mode one uninterrupted epoch, which both loaders must continue when they resume.
        uninterrupted = {
            mode: _run_process(_options(options, store, mode, "threads"), steps=options.step) for mode in options.modes
        }
        contenders = {}
        for mode, loader in product(options.modes, _LOADERS):
            opt = _options(options, store, mode, loader)
            contenders[_Start(mode, loader, resumed=False).name] = partial(_run_process, opt)
            contenders[_Start(mode, loader, resumed=True).name] = partial(
                _run_process, opt, state=uninterrupted[mode]["state"]
            )
        runs = run_rounds(contenders, rounds=options.rounds)
    pairs = list(product(options.modes, _LOADERS))
    first, resumed = ([_Start(*pair, resumed=is_resumed) for pair in pairs] for is_resumed in (False, True))
    equal = [run["digest"] == uninterrupted[start.mode]["digest"] for start in resumed for run in runs[start.name]]
    return Report(
        subject=f"A store of {options.patches:,} patches of {options.size} x {options.size} pixels, batches of "
        f"{options.batch}, {available_cores()} cores, a fresh process after its imports, files in the page cache",
        comparisons=[
            _compare("From create_dataset to the first batch", first, runs),
            _compare(f"From load_state_dict at step {options.step:,} to the next batch", resumed, runs),
        ],
        figures={"resumed_runs": len(equal), "resumed_runs_equal_to_an_uninterrupted_pass": sum(equal)},
    )


def _options(options: argparse.Namespace, store: Path, mode: str, loader: str) -> dict[str, Any]:
    opt = {"paths": str(store), "seed": 0, "phase": "train", "batch_size": options.batch, "loader": loader} | _MODES[
        mode
    ]
    if mode == "single_image":
        opt["target_size"] = options.size
    if loader == "workers":
        opt["n_workers"] = available_cores()
    return opt


def _run_process(options: dict[str, Any], *, state: dict[str, int] | None = None, steps: int = 0) -> dict[str, Any]:
    argument = json.dumps({"options": options, "state": state, "steps": steps})
    command = [sys.executable, "-m", "benchmarks.first_process", argument]
    process = subprocess.run(command, cwd=CHECKOUT, check=True, stdout=subprocess.PIPE)  # noqa: S603 - this package's own
    answer: dict[str, Any] = json.loads(process.stdout)
    return answer


def _compare(title: str, starts: Sequence[_Start], runs: Mapping[str, Sequence[dict[str, Any]]]) -> Comparison:
    return Comparison(
        title=title,
        unit="ms",
        reference=starts[0].label,
        rounds={start.label: [run["seconds"] * 1000 for run in runs[start.name]] for start in starts},
    )
