"""Items a second of decoding alone and of several loaders on a store and a folder, in any mode, warm or cold.

Warm data are in the page cache; cold data are dropped from the page cache before each run.
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

from benchmarks import contender_peers
from benchmarks.contenders import FOLDER, LIMIT, STORE_LOADERS, WITHOUT_LOADER, Contender, list_contenders
from benchmarks.data import write_mode_data
from benchmarks.modes import MODES
from benchmarks.options import add_picture_options, add_scratch_option
from benchmarks.process import ContenderProcess, Run
from benchmarks.reading import Reading
from benchmarks.report import Comparison, Report, require_matplotlib, run_rounds, write_chart
from benchmarks.system import drop_from_page_cache
from dlas_store import StoreError, open_source
from dlas_store.cli.text import positive
from dlas_store.processes import available_cores

_PATCHES = 6400
_IMAGES = 100


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this subject."""
    parser.add_argument(
        "--mode", choices=MODES, default="pixels", help="mode of the dataset (default: pixels, whose batches are uint8)"
    )
    add_picture_options(parser, patches=_PATCHES)
    parser.add_argument(
        "--images",
        type=positive,
        metavar="N",
        help=f"number of images of synthetic patches (default: {_IMAGES}); each has at least one patch",
    )
    parser.add_argument("--store", type=Path, help="measure this store instead of synthetic patches")
    parser.add_argument(
        "--folder", type=Path, help="measure this chunked folder; with --store, the folder that the store was made of"
    )
    parser.add_argument(
        "--batch", type=positive, help="items a batch (default: 64 in mode pixels, 16 in all other modes)"
    )
    parser.add_argument(
        "--cold", action="store_true", help="read from the disk: drop the data from the page cache before each run"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="measure only these contenders and the limit; * matches any text"
    )
    parser.add_argument("--chart", type=Path, metavar="FILE.png", help="draw the ratios to FILE.png; needs matplotlib")
    add_scratch_option(parser)


def run(options: argparse.Namespace) -> Report:
    """Measure reading.

    Raises:
        StoreError: the user's data cannot be opened or compared, or a contender fails.
    """
    if options.chart is not None:
        require_matplotlib()
    with tempfile.TemporaryDirectory(prefix="dlas-benchmark-", dir=options.scratch) as name:
        scratch = Path(name)
        reading, images = _prepare(options, scratch)
        all_contenders = list_contenders(reading, scratch)
        contenders = [contender for contender in all_contenders if _is_chosen(contender.name, options.only)]
        _write_peers(reading, contenders)
        if options.cold:
            contenders = [contender for contender in contenders if contender.name not in WITHOUT_LOADER]
            shared_data = [Path(path) for path in (reading.store, reading.folder) if path is not None]
            own_data = [contender.own_data for contender in contenders if contender.own_data is not None]
            measurement = _measure_cold(reading, contenders, rounds=options.rounds, data=shared_data + own_data)
        else:
            measurement = _measure_warm(reading, contenders, rounds=options.rounds)
    report = Report(
        subject=f"{options.mode}: {reading.items * reading.epochs:,} items of {images:,} images, patches of "
        f"{reading.width} x {reading.height} pixels and {reading.mean_bytes / 1000:.1f} kB, batches of "
        f"{reading.batch}, {available_cores()} cores, files {'on the disk' if options.cold else 'in the page cache'}",
        comparisons=_compare(measurement, cold=options.cold),
        figures={"mean_patch_bytes": reading.mean_bytes, "images": images, "items": reading.items * reading.epochs},
        notes=contender_peers.notes() if options.mode == "pixels" else [],
    )
    if options.chart is not None:
        write_chart(options.chart, report.comparisons[0], subject=report.subject, highlighted=STORE_LOADERS)
    return report


@dataclass(frozen=True)
class _Measurement:
    """Runs and memory of the contenders.

    Attributes:
        runs: contender -> one run a round.
        memory: contender -> peak memory in bytes of one more run; empty if memory was not measured.
    """

    runs: Mapping[str, Sequence[Run]]
    memory: Mapping[str, int]


def _write_peers(reading: Reading, contenders: Sequence[Contender]) -> None:
    """Let each peer write its own data, in a process that ends afterwards."""
    for contender in contenders:
        if contender.own_data is not None:
            with _start(contender, reading) as process:
                process.wait_until_ready()


def _measure_warm(reading: Reading, contenders: Sequence[Contender], *, rounds: int) -> _Measurement:
    """Measure contenders that live side by side, each in a process of its own.

    The first run of each contender is checked and not timed; it fills caches that last from run to run. One more run
    after the rounds measures the memory.

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
    return _Measurement(runs, memory)


def _measure_cold(
    reading: Reading, contenders: Sequence[Contender], *, rounds: int, data: Sequence[Path]
) -> _Measurement:
    """Measure contenders in fresh processes, dropping all data from the page cache before each run.

    A run includes opening the data. This function only counts the items of a run; _measure_warm also checks that
    contenders give every patch once.

    Args:
        reading: the patches to read.
        contenders: the contenders to measure.
        rounds: number of rounds.
        data: paths of all data that the contenders read; no process may have a file of the data mapped.

    Raises:
        StoreError: a contender failed, or the data stays in the page cache.
    """

    def run(contender: Contender) -> Run:
        with _start(contender, reading) as process:
            process.wait_until_ready()
            drop_from_page_cache(data)
            return process.run()

    runs = run_rounds({contender.name: partial(run, contender) for contender in contenders}, rounds=rounds)
    _check_items(reading, runs)
    return _Measurement(runs, {})


def _start(contender: Contender, reading: Reading) -> ContenderProcess:
    return ContenderProcess(contender.name, module="contenders", spec=contender.as_spec(reading))


def _check_items(reading: Reading, runs: Mapping[str, Sequence[Run]]) -> None:
    for name in runs:
        counts = {run.items for run in runs[name]}
        # A run repeats the epochs of encoded bytes, which take too little time.
        assert counts == {reading.items * reading.epochs} or name in WITHOUT_LOADER, f"{name}: {counts} items"


def _prepare(options: argparse.Namespace, scratch: Path) -> tuple[Reading, int]:
    """Return the reading and the number of images; write synthetic data unless the options name data."""
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


def _is_chosen(name: str, patterns: Sequence[str] | None) -> bool:
    return name == LIMIT or patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def _compare(measurement: _Measurement, *, cold: bool) -> list[Comparison]:
    loaders = {name: runs for name, runs in measurement.runs.items() if name not in WITHOUT_LOADER}
    without_loader = {name: runs for name, runs in measurement.runs.items() if name in (LIMIT, *WITHOUT_LOADER)}
    title = "Reading from the disk, opening included" if cold else "Reading"
    comparisons = [_rates(title, loaders, LIMIT)]
    if cold and FOLDER in loaders:
        comparisons.append(_rates(f"{title}, against the folder", loaders, FOLDER))
    if len(without_loader) > 1:
        comparisons.append(_rates("Reading without a loader", without_loader, LIMIT))
    comparisons.append(
        Comparison(
            title="Time of all processors",
            unit="ms/1,000 items",
            reference=LIMIT,
            rounds=_values_of(loaders, lambda run: run.cpu_seconds / run.items * 1e6),
        )
    )
    if measurement.memory:
        comparisons.append(
            Comparison(
                title="Memory at its peak, page cache not counted",
                unit="MB",
                reference=LIMIT,
                rounds={name: [measurement.memory[name] / 1e6] for name in loaders},
            )
        )
    return comparisons


def _rates(title: str, runs: Mapping[str, Sequence[Run]], reference: str) -> Comparison:
    rates = _values_of(runs, lambda run: run.items / run.seconds)
    return Comparison(title=title, unit="items/s", reference=reference, rounds=rates)


def _values_of(runs: Mapping[str, Sequence[Run]], value: Callable[[Run], float]) -> dict[str, list[float]]:
    return {name: [value(run) for run in runs[name]] for name in runs}
