"""List of the contenders of ``read``. Each is made by ``make`` in a process of its own."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import contender_peers as peer_contenders
from benchmarks.modes import MODES
from benchmarks.process import Open
from benchmarks.reading import Reading

LIMIT = "decoding alone, in memory, all cores"
OURS = ("store, threads loader", "store, workers loader")
FOLDER = "folder, DataLoader, TurboJPEG"
WITHOUT_LOADER = ("store, read_pixels, one core", "store, read (bytes), one core")
"""Contenders that do not give batches in random order, or give no batches at all; they have a table of their own."""

DECODERS = ("TurboJPEG", "OpenCV", "Pillow")


class Contender(NamedTuple):
    """A contender, described by plain values for the process that makes it.

    Attributes:
        name: name in tables.
        module: module of this package; only the contender's process imports it, since it may be slow to load.
        function: function of the module. It takes the reading and the arguments, prepares the contender, and returns a
            function that opens the data.
        arguments: keyword arguments of the function, as JSON values.
    """

    name: str
    module: str
    function: str
    arguments: dict[str, Any]

    def as_spec(self, reading: Reading) -> dict[str, Any]:
        """Return the argument of ``make``, as JSON values."""
        return {"contender": list(self), "reading": reading.as_spec()}

    @property
    def own_data(self) -> Path | None:
        """Path of the contender's own data; None if it reads the store or the folder."""
        return Path(self.arguments["folder"]) if self.module == "peer_contenders" else None


def make(spec: Mapping[str, Any]) -> Open:
    """Prepare a contender and return a function that opens its data."""
    contender = Contender(*spec["contender"])
    prepare = getattr(importlib.import_module(f"benchmarks.{contender.module}"), contender.function)
    open_data: Open = prepare(Reading(**spec["reading"]), **contender.arguments)
    return open_data


def list_contenders(reading: Reading, scratch: Path) -> list[Contender]:
    """Return the contenders that can read the data: first the limit, last the installed peers.

    Args:
        reading: the patches to read.
        scratch: the folder for the peers' data.
    """
    contenders = [Contender(LIMIT, "plain_contenders", "prepare_limit", {}), *_store(reading), *_folder(reading)]
    if reading.mode == "pixels":
        for number, name in enumerate(peer_contenders.peer_names()):
            arguments = {"name": name, "folder": str(scratch / f"peer_{number}")}
            contenders.append(Contender(name, "peer_contenders", "prepare", arguments))
    return contenders


def _store(reading: Reading) -> list[Contender]:
    if reading.store is None:
        return []
    contenders = [_own_loader(name, reading.store, name.split()[1]) for name in OURS]
    if MODES[reading.mode].raw:
        contenders.append(_own("store, threads loader, before the device", "prepare_raw", reading.store))
    contenders.append(_own("store, items, DataLoader", "prepare_items", reading.store))
    if reading.mode == "pixels":
        functions = ("prepare_pixels", "prepare_bytes")
        contenders += [
            Contender(name, "plain_contenders", function, {})
            for name, function in zip(WITHOUT_LOADER, functions, strict=True)
        ]
    return contenders


def _folder(reading: Reading) -> list[Contender]:
    if reading.folder is None:
        return []
    contenders = [_own_loader("folder, threads loader", reading.folder, "threads")]
    if reading.mode != "pixels":
        return [*contenders, _own("folder, items, DataLoader", "prepare_items", reading.folder)]
    for decoder in DECODERS:
        arguments = {"decoder": decoder}
        contenders.append(Contender(f"folder, DataLoader, {decoder}", "folder_contenders", "prepare", arguments))
    return contenders


def _own_loader(name: str, path: str, loader: str) -> Contender:
    return Contender(name, "own_contenders", "prepare_loader", {"path": path, "loader": loader})


def _own(name: str, function: str, path: str) -> Contender:
    return Contender(name, "own_contenders", function, {"path": path})
