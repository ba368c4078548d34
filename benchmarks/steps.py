"""Items a second of decoding alone and with more and more parts of the threads loader, to find the slow parts."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.contenders import LIMIT
from benchmarks.data import write_mode_data
from benchmarks.options import add_picture_options, add_scratch_option
from benchmarks.reading import Reading
from benchmarks.report import Comparison, Report, run_rounds
from dlas_store import open_source
from dlas_store.processes import available_cores

_PATCHES = 6400
_IMAGES = 100


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this subject."""
    add_picture_options(parser, patches=_PATCHES)
    add_scratch_option(parser)


def run(options: argparse.Namespace) -> Report:
    """Measure all steps in this process."""
    from benchmarks.loader_steps import loader_steps  # noqa: PLC0415 - it loads torch, which is slow and which other subjects do not need

    with tempfile.TemporaryDirectory(prefix="dlas-benchmark-", dir=options.scratch) as name:
        folder, store = Path(name, "folder"), Path(name, "store.lmdb")
        images = min(_IMAGES, options.patches)
        write_mode_data(
            "pixels", folder, store, patches=options.patches, images=images, size=options.size, quality=options.quality
        )
        reading = Reading.plan("pixels", store=store, folder=None, patches=options.patches, batch=None)
        with open_source(store) as source:
            steps = loader_steps(reading, source)
            for step in steps.values():  # fill caches that last from run to run
                step()
            rounds = run_rounds(
                {title: partial(_rate, step, reading) for title, step in steps.items()}, rounds=options.rounds
            )
    return Report(
        subject=f"{reading.items:,} patches of {reading.width} x {reading.height} pixels and "
        f"{reading.mean_bytes / 1000:.1f} kB, batches of {reading.batch}, {available_cores()} cores, "
        "files in the page cache",
        comparisons=[Comparison(title="Decoding and further steps", unit="items/s", reference=LIMIT, rounds=rounds)],
    )


def _rate(step: Callable[[], object], reading: Reading) -> float:
    started = time.perf_counter()
    step()
    return reading.items / (time.perf_counter() - started)
