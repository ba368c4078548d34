"""``python -m benchmarks.peers``: patches a second of other loaders, compared with decoding alone."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import cycle, islice
from pathlib import Path

from benchmarks.contender_limit import DecodeLimit
from benchmarks.contenders import LIMIT
from benchmarks.data import synthetic_jpegs
from benchmarks.options import add_picture_options, add_scratch_option
from benchmarks.peers import HOW_TO_INSTALL, Peer, installed, missing
from benchmarks.report import Comparison, Report, print_report, run_rounds
from dlas_store.cli.text import positive
from dlas_store.images.decode import Size
from dlas_store.processes import available_cores


def main() -> None:
    """Measure the installed peers, and name the peers that are not installed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Measure other loaders.")
    add_picture_options(parser, patches=2000)
    parser.add_argument("--batch", type=positive, default=64, help="patches a batch (default: 64)")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="number of rounds (default: 5)")
    add_scratch_option(parser)
    options = parser.parse_args()
    print_report(_measure(options))
    for name in missing():
        print(f"{name}: {HOW_TO_INSTALL}")


def _measure(options: argparse.Namespace) -> Report:
    pictures = synthetic_jpegs(options.patches, size=options.size, quality=options.quality)
    payloads = list(islice(cycle(pictures), options.patches))
    limit = DecodeLimit(payloads, size=Size(options.size, options.size), batch=options.batch, threads=available_cores())
    contenders: dict[str, Callable[[], int]] = {LIMIT: limit.run}
    limit.run()
    with tempfile.TemporaryDirectory(prefix="dlas-benchmark-", dir=options.scratch) as scratch, ExitStack() as stack:
        for number, peer in enumerate(installed()):
            stack.callback(peer.close)
            folder = Path(scratch, str(number))
            peer.write(payloads, folder)
            contenders[peer.name] = partial(_read_epoch, peer, folder, batch=options.batch)
            contenders[peer.name]()
        rounds = run_rounds({name: partial(_rate, run) for name, run in contenders.items()}, rounds=options.rounds)
    return Report(
        subject=f"{options.patches:,} patches of {options.size} x {options.size} pixels, batches of {options.batch}, "
        f"{available_cores()} cores, files in the page cache",
        comparisons=[Comparison(title="Reading", unit="patches/s", reference=LIMIT, rounds=rounds)],
    )


def _read_epoch(peer: Peer, folder: Path, *, batch: int) -> int:
    return sum(len(pixels) for pixels in peer.batches(folder, batch_size=batch, seed=0))


def _rate(run: Callable[[], int]) -> float:
    started = time.perf_counter()
    patches = run()
    return patches / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
