"""Steps a second of a training loop, with batches in memory, from threads and from worker processes."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.data import write_mode_data
from benchmarks.modes import dataset_options
from benchmarks.options import add_picture_options, add_scratch_option
from benchmarks.process import ContenderProcess, Run
from benchmarks.report import Comparison, Report, run_rounds
from dlas_store import StoreError, open_source
from dlas_store.cli.text import positive
from dlas_store.images.decode import image_size
from dlas_store.processes import available_cores

IN_MEMORY = "batches in memory"

_LIGHT, _HEAVY = 4, 16
_THREADS = (1, 2, 3)
_WORKERS = (1, 2, 4)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of a training loop, as plain values that can be sent to another process.

    Attributes:
        options: options of dataset and loader.
        in_memory: whether the loop repeats a few batches from memory; no loader can be faster.
        width: number of channels of the network.
        blocks: number of residual blocks of the network.
        steps: steps a run.
        device: device that the network is trained on.
        torch_threads: number of PyTorch's threads in the loop's process; None leaves PyTorch its own choice.
    """

    options: dict[str, Any]
    in_memory: bool
    width: int
    blocks: int
    steps: int
    device: str
    torch_threads: int | None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this subject."""
    add_picture_options(parser, patches=960)
    parser.add_argument("--store", type=Path, help="train from this chunked store instead of synthetic patches")
    parser.add_argument("--batch", type=positive, default=16, help="items a batch (default: 16)")
    parser.add_argument(
        "--steps",
        type=positive,
        default=100,
        help="steps a round, in one epoch or several (default: 100)",
    )
    parser.add_argument(
        "--width",
        type=positive,
        nargs="+",
        default=[_LIGHT, _HEAVY],
        metavar="N",
        help=f"channels of the network, one table each (default: {_LIGHT} {_HEAVY}, a light and a heavy network)",
    )
    parser.add_argument("--blocks", type=positive, default=4, help="residual blocks (default: 4)")
    parser.add_argument(
        "--threads",
        type=positive,
        nargs="+",
        default=_THREADS,
        metavar="N",
        help="n_threads (default: 1 2 3)",
    )
    parser.add_argument(
        "--workers",
        type=positive,
        nargs="+",
        default=_WORKERS,
        metavar="N",
        help="n_workers (default: 1 2 4)",
    )
    parser.add_argument("--device", default="cpu", help="device to train on (default: cpu)")
    parser.add_argument(
        "--torch-threads",
        type=positive,
        metavar="N",
        help="number of PyTorch's own threads (default: PyTorch's choice)",
    )
    add_scratch_option(parser)


def run(options: argparse.Namespace) -> Report:
    """Measure training.

    Raises:
        StoreError: the device does not exist, or the data cannot be opened.
    """
    gpu_name = _describe(options.device)
    with tempfile.TemporaryDirectory(prefix="dlas-benchmark-", dir=options.scratch) as scratch:
        store = options.store
        if store is None:
            store = Path(scratch, "folder.lmdb")
            write_mode_data(
                "single_image",
                Path(scratch, "folder"),
                store,
                patches=options.patches,
                images=min(100, options.patches),
                size=options.size,
                quality=options.quality,
            )
        with open_source(store) as source:
            side = min(image_size(source.read(0)))
        contenders = _contenders(options, dataset_options("single_image", str(store.absolute()), side=side))
        comparisons = [
            Comparison(
                title=f"Training, {width} channels, on {options.device}",
                unit="steps/s",
                reference=IN_MEMORY,
                rounds={
                    name: [run.items / run.seconds for run in runs]
                    for name, runs in _measure(options, contenders, width).items()
                },
            )
            for width in options.width
        ]
    return Report(
        subject=f"{options.steps} steps a round, batches of {options.batch} SingleImage items with reference, mask and "
        f"centres, patches of {side} x {side} pixels, {options.blocks} blocks, {available_cores()} cores, "
        f"PyTorch's threads: {options.torch_threads or 'its own choice'}, {gpu_name}",
        comparisons=comparisons,
    )


def _contenders(options: argparse.Namespace, dataset: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the options of each contender; the first contender has its batches in memory."""
    opt = dataset | {"batch_size": options.batch}
    contenders = {IN_MEMORY: opt | {"loader": "threads"}}
    for threads in options.threads:
        contenders[f"threads loader, n_threads {threads}"] = opt | {"loader": "threads", "n_threads": threads}
    for workers in options.workers:
        contenders[f"workers loader, n_workers {workers}"] = opt | {"loader": "workers", "n_workers": workers}
    if options.device != "cpu":
        for threads in options.threads:
            name = f"threads loader, n_threads {threads}, device {options.device}"
            contenders[name] = opt | {"loader": "threads", "n_threads": threads, "device": options.device}
    return contenders


def _measure(options: argparse.Namespace, contenders: dict[str, dict[str, Any]], width: int) -> dict[str, list[Run]]:
    with ExitStack() as stack:
        processes = {name: stack.enter_context(_start(options, name, opt, width)) for name, opt in contenders.items()}
        for process in processes.values():
            process.check()
        timed: dict[str, Callable[[], Run]] = {name: process.run for name, process in processes.items()}
        return run_rounds(timed, rounds=options.rounds)


def _start(options: argparse.Namespace, name: str, opt: dict[str, Any], width: int) -> ContenderProcess:
    training = Training(
        options=opt,
        in_memory=name == IN_MEMORY,
        width=width,
        blocks=options.blocks,
        steps=options.steps,
        device=options.device,
        torch_threads=options.torch_threads,
    )
    return ContenderProcess(name, module="contender_training", spec=asdict(training))


def _describe(name: str) -> str:
    """Check that a device exists and return the name of its GPU, or "no GPU"."""
    import torch  # noqa: PLC0415 - torch is slow to load, and other subjects do not need it

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise StoreError(f"--device must be cpu, cuda, cuda:1 or the like, got {name!r}") from error
    if device.type != "cuda":
        return "no GPU"
    if not torch.cuda.is_available():
        raise StoreError(f"PyTorch finds no GPU for --device {name}; leave out --device")
    return torch.cuda.get_device_name(device)
