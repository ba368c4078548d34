"""Patches a second: decoding alone, a folder and a store behind DataLoader, and a store in one process."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.decode_limit import DecodeLimit
from benchmarks.loaders import FilePatches, LoaderRun, SourcePatches
from benchmarks.measuring import Comparison, run_rounds
from benchmarks.options import add_picture_options, add_scratch_option, at_least_one
from benchmarks.report import Report
from benchmarks.synthetic import write_chunked_folder
from dlas_store import StoreError, open_source
from dlas_store.converters.importing import import_store
from dlas_store.pixels import Size, image_size
from dlas_store.processes import available_cores
from dlas_store.source import Source

LIMIT = "decoding alone, in memory, all cores"

_LEAST_RAW_READS = 50_000
"""One read takes some microseconds: fewer would be over before the clock can tell."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this subject."""
    add_picture_options(parser, patches=6000)
    parser.add_argument("--store", type=Path, help="measure this store, not synthetic patches")
    parser.add_argument("--folder", type=Path, help="measure this chunked folder; with --store: the one it was made of")
    parser.add_argument("--batch", type=at_least_one, default=64, help="patches a batch (default: 64)")
    add_scratch_option(parser)


def run(options: argparse.Namespace) -> Report:
    """Measure as the options say.

    Raises:
        StoreError: data of the user that cannot be opened, or not be compared.
    """
    folder, store = options.folder, options.store
    with tempfile.TemporaryDirectory(prefix="dlas-benchmark-", dir=options.scratch) as scratch, ExitStack() as stack:
        if folder is None and store is None:
            folder, store = Path(scratch, "folder"), Path(scratch, "folder.lmdb")
            write_chunked_folder(folder, patches=options.patches, size=options.size, quality=options.quality)
            import_store([folder], store)
        sources = [stack.enter_context(open_source(path)) for path in (store, folder) if path is not None]
        indices = _choose(len(sources[0]), options.patches)
        encoded = _read_all(sources, indices)
        size = _common_size(encoded)
        limit = DecodeLimit(encoded, size=size, batch=options.batch, threads=available_cores())
        contenders: dict[str, Callable[[], int]] = {LIMIT: limit.run}
        if folder is not None:
            contenders |= _folder_contenders(sources[-1], indices, batch=options.batch)
        if store is not None:
            contenders |= _store_contenders(sources[0], indices, batch=options.batch)
        rates = {name: partial(_rate, contender) for name, contender in contenders.items()}
        for warm_up in rates.values():
            warm_up()
        rounds = run_rounds(rates, rounds=options.rounds)
    mean_bytes = sum(map(len, encoded)) / len(encoded)
    return Report(
        subject=f"{len(encoded):,} patches of {size.width} x {size.height} pixels and {mean_bytes / 1000:.1f} kB, "
        f"batches of {options.batch}, {available_cores()} cores, files in the page cache",
        comparisons=[Comparison(title="Reading", unit="patches/s", reference=LIMIT, rounds=rounds)],
        figures={"mean_patch_bytes": round(mean_bytes)},
    )


def _folder_contenders(folder: Source, indices: Sequence[int], *, batch: int) -> dict[str, Callable[[], int]]:
    paths = [Path(folder.patch_path(index)) for index in indices]
    return {"folder, DataLoader": LoaderRun(FilePatches(paths), batch=batch, workers=available_cores()).run}


def _store_contenders(store: Source, indices: Sequence[int], *, batch: int) -> dict[str, Callable[[], int]]:
    loader = LoaderRun(SourcePatches(store, indices), batch=batch, workers=available_cores(), collate=torch.from_numpy)
    return {
        "store, DataLoader": loader.run,
        "store, read_pixels, one core": partial(_read_pixels, store, indices, batch=batch),
        "store, read (bytes), one core": partial(_read_bytes, store, indices),
    }


def _read_pixels(source: Source, indices: Sequence[int], *, batch: int) -> int:
    batches = (indices[first : first + batch] for first in range(0, len(indices), batch))
    return sum(len(source.read_pixels(chosen)) for chosen in batches)


def _read_bytes(source: Source, indices: Sequence[int]) -> int:
    passes = -(-_LEAST_RAW_READS // len(indices))
    for _ in range(passes):
        for index in indices:
            source.read(index)
    return passes * len(indices)


def _rate(contender: Callable[[], int]) -> float:
    started = time.perf_counter()
    patches = contender()
    return patches / (time.perf_counter() - started)


def _choose(available: int, wanted: int) -> list[int]:
    """Return patches in random order; each comes once before any comes again."""
    rng = np.random.default_rng(0)
    passes = [rng.permutation(available) for _ in range(-(-wanted // available))]
    chosen: list[int] = np.concatenate(passes)[:wanted].tolist()
    return chosen


def _read_all(sources: Sequence[Source], indices: Sequence[int]) -> list[bytes]:
    """Return the patches, after checking that all sources have the same ones; this also brings them into the cache."""
    encoded = [sources[0].read(index) for index in indices]
    for other in sources[1:]:
        if len(other) != len(sources[0]) or any(map(bytes.__ne__, encoded, map(other.read, indices))):
            raise StoreError(f"{other.path} and {sources[0].path} hold different patches; give a store and its folder")
    return encoded


def _common_size(encoded: Sequence[bytes]) -> Size:
    sizes = {image_size(data) for data in encoded}
    if len(sizes) > 1 or not all(data.startswith(b"\xff\xd8\xff") for data in encoded):
        raise StoreError("patches that are not JPEG, or not all of one size, cannot be measured in batches")
    return sizes.pop()
