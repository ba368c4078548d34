"""Items a second of decoding alone and of several loaders on a store and a folder, in any mode, warm or cold.

Rounds of reading, with the data in the page cache (warm) or dropped from it (cold).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from benchmarks import contender_peers as peer_contenders
from benchmarks import report as chart
from benchmarks import system as page_cache
from benchmarks.contenders import FOLDER, LIMIT, OURS, WITHOUT_LOADER, Contender, list_contenders
from benchmarks.data import write_mode_data
from benchmarks.modes import MODES
from benchmarks.options import add_picture_options, add_scratch_option, at_least_one
from benchmarks.process import ContenderProcess, Run
from benchmarks.reading import Reading
from benchmarks.report import Comparison, Report, run_rounds
from dlas_store import StoreError, open_source
from dlas_store.processes import available_cores


@dataclass(frozen=True)
class Measured:
    """Runs and memory of the contenders.

    Attributes:
        runs: contender -> one run a round.
        memory: contender -> peak memory in bytes of a run of its own; empty if memory was not measured.
    """

    runs: Mapping[str, Sequence[Run]]
    memory: Mapping[str, int]


def write_peers(reading: Reading, contenders: Sequence[Contender]) -> None:
    """Let each peer write its data, in a process that ends afterwards."""
    for contender in contenders:
        if contender.own_data is not None:
            with _start(contender, reading) as process:
                process.wait_until_ready()


def measure_warm(reading: Reading, contenders: Sequence[Contender], *, rounds: int) -> Measured:
    """Measure contenders that live side by side, each alone in a process of its own.

    The first pass of each contender is checked and not timed; it warms up whatever stays from pass to pass. After the
    rounds, one more pass measures the memory.

    Raises:
        StoreError: a contender did not give every patch once, or failed.
    """
    with ExitStack() as stack:
        processes = {contender.name: stack.enter_context(_start(contender, reading)) for contender in contenders}
        for process in processes.values():
            process.check()
        timed: dict[str, Callable[[], Run]] = {name: process.run for name, process in processes.items()}
        runs = run_rounds(timed, rounds=rounds)
        memory = {name: process.peak_memory() for name, process in processes.items()}
    _check_items(reading, runs)
    return Measured(runs, memory)


def measure_cold(reading: Reading, contenders: Sequence[Contender], *, rounds: int, data: Sequence[Path]) -> Measured:
    """Measure contenders in fresh processes, each run after all data is dropped from the page cache.

    Opening is part of a run. Only measure_warm checks that contenders give every patch once; here only the items are
    counted.

    Args:
        reading: the patches to read.
        contenders: the contenders to measure.
        rounds: number of rounds.
        data: paths of all data that the contenders read; no process may have any of it mapped.

    Raises:
        StoreError: a contender failed, or the data stays in the page cache.
    """

    def run(contender: Contender) -> Run:
        with _start(contender, reading) as process:
            process.wait_until_ready()
            page_cache.drop(data)
            return process.run()

    runs = run_rounds({contender.name: partial(run, contender) for contender in contenders}, rounds=rounds)
    _check_items(reading, runs)
    return Measured(runs, {})


def _start(contender: Contender, reading: Reading) -> ContenderProcess:
    return ContenderProcess(contender.name, module="read_contenders", spec=contender.as_spec(reading))


def _check_items(reading: Reading, runs: Mapping[str, Sequence[Run]]) -> None:
    for name in runs:
        counts = {run.items for run in runs[name]}
        # Encoded bytes are read so fast that a pass repeats them.
        assert counts == {reading.items * reading.epochs} or name in WITHOUT_LOADER, f"{name}: {counts} items"


_PATCHES = 6400
_IMAGES = 100


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this subject."""
    parser.add_argument(
        "--mode", choices=MODES, default="pixels", help="mode of the dataset; pixels (the default) gives uint8 batches"
    )
    add_picture_options(parser, patches=_PATCHES)
    parser.add_argument(
        "--images",
        type=at_least_one,
        metavar="N",
        help=f"number of images of synthetic patches (default: {_IMAGES}); there are at least as many patches",
    )
    parser.add_argument("--store", type=Path, help="measure this store instead of synthetic patches")
    parser.add_argument(
        "--folder", type=Path, help="measure this chunked folder; with --store, the folder of that store"
    )
    parser.add_argument(
        "--batch", type=at_least_one, help="items a batch (default: 64 in mode pixels, 16 in the others)"
    )
    parser.add_argument(
        "--cold", action="store_true", help="read from the disk: drop the data from the page cache before each run"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="measure these contenders and the limit only; * matches any text"
    )
    parser.add_argument("--chart", type=Path, metavar="FILE.png", help="draw the ratios to FILE.png; needs matplotlib")
    add_scratch_option(parser)


def run(options: argparse.Namespace) -> Report:
    """Measure reading.

    Raises:
        StoreError: the user's data cannot be opened or compared, or a contender fails.
    """
    if options.chart is not None:
        chart.require_matplotlib()
    with tempfile.TemporaryDirectory(prefix="dlas-benchmark-", dir=options.scratch) as name:
        scratch = Path(name)
        reading, images = _prepare(options, scratch)
        all_contenders = list_contenders(reading, scratch)
        contenders = [contender for contender in all_contenders if _is_wanted(contender.name, options.only)]
        write_peers(reading, contenders)
        if options.cold:
            contenders = [contender for contender in contenders if contender.name not in WITHOUT_LOADER]
            shared_data = [Path(path) for path in (reading.store, reading.folder) if path is not None]
            own_data = [contender.own_data for contender in contenders if contender.own_data is not None]
            measured = measure_cold(reading, contenders, rounds=options.rounds, data=shared_data + own_data)
        else:
            measured = measure_warm(reading, contenders, rounds=options.rounds)
    report = Report(
        subject=f"{options.mode}: {reading.items * reading.epochs:,} items of {images:,} images, patches of "
        f"{reading.width} x {reading.height} pixels and {reading.mean_bytes / 1000:.1f} kB, batches of "
        f"{reading.batch}, {available_cores()} cores, files {'on the disk' if options.cold else 'in the page cache'}",
        comparisons=_compare(measured, cold=options.cold),
        figures={"mean_patch_bytes": reading.mean_bytes, "images": images, "items": reading.items * reading.epochs},
        notes=peer_contenders.notes() if options.mode == "pixels" else [],
    )
    if options.chart is not None:
        chart.write_chart(options.chart, report.comparisons[0], subject=report.subject, highlighted=OURS)
    return report


def _prepare(options: argparse.Namespace, scratch: Path) -> tuple[Reading, int]:
    """Return the reading and its number of images; write synthetic data unless the user gave data."""
    folder, store, patches = options.folder, options.store, options.patches
    if folder is None and store is None:
        folder, store = scratch / "folder", scratch / "folder.lmdb"
        images = options.images or min(_IMAGES, patches)
        if patches == _PATCHES:
            patches = max(patches, images)
        write_mode_data(
            options.mode, folder, store, patches=patches, images=images, size=options.size, quality=options.quality
        )
    if not MODES[options.mode].chunked:
        if store is None:
            raise StoreError(
                f"mode {options.mode} is measured on a store; give --store, or neither --store nor --folder"
            )
        folder = None
    reading = Reading.plan(options.mode, store=store, folder=folder, patches=patches, batch=options.batch)
    with open_source(reading.data) as source:
        return reading, source.image_count


def _is_wanted(name: str, patterns: Sequence[str] | None) -> bool:
    return name == LIMIT or patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def _compare(measured: Measured, *, cold: bool) -> list[Comparison]:
    loaders = {name: runs for name, runs in measured.runs.items() if name not in WITHOUT_LOADER}
    without_loader = {name: runs for name, runs in measured.runs.items() if name in (LIMIT, *WITHOUT_LOADER)}
    reading = "Reading from the disk, opening included" if cold else "Reading"
    comparisons = [_rates(reading, loaders, LIMIT)]
    if cold and FOLDER in loaders:
        comparisons.append(_rates(f"{reading}, against the folder", loaders, FOLDER))
    if len(without_loader) > 1:
        comparisons.append(_rates("Reading without a loader", without_loader, LIMIT))
    comparisons.append(
        Comparison(
            title="Time of all processors",
            unit="ms/1,000 items",
            reference=LIMIT,
            rounds=_each(loaders, lambda run: run.cpu_seconds / run.items * 1e6),
        )
    )
    if measured.memory:
        comparisons.append(
            Comparison(
                title="Memory at its peak, page cache not counted",
                unit="MB",
                reference=LIMIT,
                rounds={name: [measured.memory[name] / 1e6] for name in loaders},
            )
        )
    return comparisons


def _rates(title: str, runs: Mapping[str, Sequence[Run]], reference: str) -> Comparison:
    rates = _each(runs, lambda run: run.items / run.seconds)
    return Comparison(title=title, unit="items/s", reference=reference, rounds=rates)


def _each(runs: Mapping[str, Sequence[Run]], value: Callable[[Run], float]) -> dict[str, list[float]]:
    return {name: [value(run) for run in runs[name]] for name in runs}
