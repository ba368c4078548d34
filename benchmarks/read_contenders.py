"""The contenders of ``read``, by name; a process makes its own with ``make``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import peer_contenders
from benchmarks.contender import Open
from benchmarks.mode_options import MODES
from benchmarks.reading import Reading

LIMIT = "decoding alone, in memory, all cores"
OURS = ("store, threads loader", "store, workers loader")
FOLDER = "folder, DataLoader, TurboJPEG"
WITHOUT_LOADER = ("store, read_pixels, one core", "store, read (bytes), one core")
"""They give no batches in random order, or none at all, so they are shown apart."""

DECODERS = ("TurboJPEG", "OpenCV", "Pillow")


class Contender(NamedTuple):
    """One of those that are compared; a process of its own makes it.

    Attributes:
        name: in tables.
        module: of this package; only its own process imports it, for it may be slow to load.
        function: of the module: takes the reading and the arguments, prepares, and returns what opens the data.
        arguments: by keyword, as JSON has them.
    """

    name: str
    module: str
    function: str
    arguments: dict[str, Any]

    def as_spec(self, reading: Reading) -> dict[str, Any]:
        """Return what ``make`` needs, as JSON has it."""
        return {"contender": list(self), "reading": reading.as_spec()}

    @property
    def own_data(self) -> Path | None:
        """Where it has data of its own; None where it reads the store or the folder."""
        return Path(self.arguments["folder"]) if self.module == "peer_contenders" else None


def make(spec: Mapping[str, Any]) -> Open:
    """Prepare a contender and return what opens its data."""
    contender = Contender(*spec["contender"])
    prepare = getattr(importlib.import_module(f"benchmarks.{contender.module}"), contender.function)
    opening: Open = prepare(Reading(**spec["reading"]), **contender.arguments)
    return opening


def list_contenders(reading: Reading, scratch: Path) -> list[Contender]:
    """Return what can read the data, the limit first, and peers where there are any.

    Args:
        reading: what to read.
        scratch: where peers have their data.
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
    found = [_own_loader(name, reading.store, name.split()[1]) for name in OURS]
    if MODES[reading.mode].raw:
        found.append(_own("store, threads loader, before the device", "prepare_raw", reading.store))
    found.append(_own("store, items, DataLoader", "prepare_items", reading.store))
    if reading.mode == "pixels":
        functions = ("prepare_pixels", "prepare_bytes")
        found += [
            Contender(name, "plain_contenders", function, {})
            for name, function in zip(WITHOUT_LOADER, functions, strict=True)
        ]
    return found


def _folder(reading: Reading) -> list[Contender]:
    if reading.folder is None:
        return []
    found = [_own_loader("folder, threads loader", reading.folder, "threads")]
    if reading.mode != "pixels":
        return [*found, _own("folder, items, DataLoader", "prepare_items", reading.folder)]
    for decoder in DECODERS:
        arguments = {"decoder": decoder}
        found.append(Contender(f"folder, DataLoader, {decoder}", "folder_contenders", "prepare", arguments))
    return found


def _own_loader(name: str, path: str, loader: str) -> Contender:
    return Contender(name, "own_contenders", "prepare_loader", {"path": path, "loader": loader})


def _own(name: str, function: str, path: str) -> Contender:
    return Contender(name, "own_contenders", function, {"path": path})
