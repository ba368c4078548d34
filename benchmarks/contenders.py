"""List of the contenders of ``read``; ``make`` makes each contender in a process of its own."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import contender_peers
from benchmarks.modes import MODES
from benchmarks.process import OpenWorkload
from benchmarks.reading import Reading

LIMIT = "decoding alone, in memory, all cores"
STORE_LOADERS = ("store, threads loader", "store, workers loader")
FOLDER = "folder, DataLoader, TurboJPEG"
WITHOUT_LOADER = ("store, read_pixels, one core", "store, read (bytes), one core")
"""Contenders without a loader: they give batches not in random order, or no batches. They have a separate table."""

DECODERS = ("TurboJPEG", "OpenCV", "Pillow")


class Contender(NamedTuple):
    """Description of a contender in plain values, for the process that makes the contender.

    Attributes:
        name: name in tables.
        module: module of this package. Only the contender's process imports the module, which may be slow to load.
        function: function of the module. The function takes the reading and the arguments, prepares the contender, and
            returns a function that opens the data.
        arguments: keyword arguments of the function, as JSON values.
    """

    name: str
    module: str
    function: str
    arguments: dict[str, Any]

    def as_spec(self, reading: Reading) -> dict[str, Any]:
        """Return the argument of ``make`` as JSON values."""
        return {"contender": list(self), "reading": reading.as_spec()}

    @property
    def own_data(self) -> Path | None:
        """Path of the contender's own data; None if the contender reads the store or the folder."""
        return Path(self.arguments["folder"]) if self.module == "contender_peers" else None


def make(spec: Mapping[str, Any]) -> OpenWorkload:
    """Prepare a contender and return a function that opens its data."""
    contender = Contender(*spec["contender"])
    prepare = getattr(importlib.import_module(f"benchmarks.{contender.module}"), contender.function)
    open_data: OpenWorkload = prepare(Reading(**spec["reading"]), **contender.arguments)
    return open_data


def list_contenders(reading: Reading, scratch: Path) -> list[Contender]:
    """Return the contenders that can read the data; the limit is the first, and installed peers are the last.

    Args:
        reading: the patches to read.
        scratch: folder for the peers' data.
    """
    contenders = [Contender(LIMIT, "contender_limit", "prepare_limit", {}), *_of_store(reading), *_of_folder(reading)]
    if reading.mode == "pixels":
        for number, name in enumerate(contender_peers.peer_names()):
            arguments = {"name": name, "folder": str(scratch / f"peer_{number}")}
            contenders.append(Contender(name, "contender_peers", "prepare", arguments))
    return contenders


def _of_store(reading: Reading) -> list[Contender]:
    if reading.store is None:
        return []
    contenders = [_loader_contender(name, reading.store, name.split()[1]) for name in STORE_LOADERS]
    if MODES[reading.mode].raw:
        contenders.append(_dataset_contender("store, threads loader, before the device", "prepare_raw", reading.store))
    contenders.append(_dataset_contender("store, items, DataLoader", "prepare_items", reading.store))
    if reading.mode == "pixels":
        functions = ("prepare_pixels", "prepare_bytes")
        contenders += [
            Contender(name, "contender_limit", function, {})
            for name, function in zip(WITHOUT_LOADER, functions, strict=True)
        ]
    return contenders


def _of_folder(reading: Reading) -> list[Contender]:
    if reading.folder is None:
        return []
    contenders = [_loader_contender("folder, threads loader", reading.folder, "threads")]
    if reading.mode != "pixels":
        return [*contenders, _dataset_contender("folder, items, DataLoader", "prepare_items", reading.folder)]
    for decoder in DECODERS:
        arguments = {"decoder": decoder}
        contenders.append(Contender(f"folder, DataLoader, {decoder}", "contender_folder", "prepare", arguments))
    return contenders


def _loader_contender(name: str, path: str, loader: str) -> Contender:
    return Contender(name, "contender_store", "prepare_loader", {"path": path, "loader": loader})


def _dataset_contender(name: str, function: str, path: str) -> Contender:
    return Contender(name, "contender_store", function, {"path": path})
