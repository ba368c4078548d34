"""Items a second of decoding alone and of several loaders on a store and a folder, in any mode, warm or cold."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks import chart, peer_contenders
from benchmarks.contender_process import Run
from benchmarks.measuring import Comparison
from benchmarks.mode_data import write_mode_data
from benchmarks.mode_options import MODES
from benchmarks.options import add_picture_options, add_scratch_option, at_least_one
from benchmarks.read_contenders import FOLDER, LIMIT, OURS, WITHOUT_LOADER, list_contenders
from benchmarks.read_rounds import Measured, measure_cold, measure_warm, write_peers
from benchmarks.reading import Reading
from benchmarks.report import Report
from dlas_store import StoreError, open_source
from dlas_store.processes import available_cores

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
