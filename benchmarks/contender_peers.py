"""Contenders of ``read`` from other libraries: the installed peers."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import simplejpeg

from benchmarks.process import BatchWorkload, OpenWorkload
from benchmarks.reading import Reading, fingerprint

_PEERS = "benchmarks.peers"


def peer_names() -> list[str]:
    """Return the names of the peers that are installed."""
    return [peer.name for peer in _peers().installed()] if find_spec(_PEERS) else []


def notes() -> list[str]:
    """Return a line for each peer that is not installed, with the command that installs it."""
    if not find_spec(_PEERS):
        return ["peers: not installed"]
    return [f"{name}: {_peers().HOW_TO_INSTALL}" for name in _peers().missing()]


def prepare(reading: Reading, *, name: str, folder: str) -> OpenWorkload:
    """Write the patches in the peer's own format, unless they exist, and return a function that starts the peer.

    Args:
        reading: the patches to read.
        name: name of the peer.
        folder: path of the peer's data.
    """
    peer = next(peer for peer in _peers().installed() if peer.name == name)
    if not Path(folder).exists():
        peer.write(list(reading.payloads()), Path(folder))

    def open_data() -> BatchWorkload:
        return BatchWorkload(
            lambda: peer.batches(Path(folder), batch_size=reading.batch, seed=0),
            epochs=reading.epochs,
            count=len,
            identify=lambda batch: map(fingerprint, batch),
            expected=lambda _: reading.expected_pictures(_decode),
        )

    return open_data


def _decode(encoded: bytes) -> Any:
    return simplejpeg.decode_jpeg(encoded, "RGB")


def _peers() -> Any:
    return importlib.import_module(_PEERS)
