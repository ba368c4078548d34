"""Peers: loaders of other libraries, used as each library recommends, from JPEG files to shuffled uint8 batches.

All peers decode with TurboJPEG by simplejpeg, so that loaders are compared and not decoders. Importing this package
imports no peer; ``installed`` imports each peer when the iteration reaches the peer.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Protocol

from dlas_store.images.memory import Pixels

HOW_TO_INSTALL = "not installed: pip install -r benchmarks/requirements-peers.txt"


class Peer(Protocol):
    """A loader with its own file format. A peer object is used only in the process that made the object."""

    @property
    def name(self) -> str:
        """Name of the peer in tables."""

    def write(self, payloads: Sequence[bytes], folder: Path) -> None:
        """Write patches in the peer's format, as its documentation recommends.

        Args:
            payloads: JPEGs of one size, at least one.
            folder: the folder to make; its parent exists.
        """

    def batches(self, folder: Path, *, batch_size: int, seed: int) -> Iterator[Pixels]:
        """Read one epoch: every patch once, in an order of the epoch's own.

        Calls with equal arguments are successive epochs, which reuse the first epoch's worker processes if the peer can
        keep them. So read one epoch before the clock starts, and read each epoch to its end before the next epoch.

        Args:
            folder: the folder that ``write`` made.
            batch_size: patches a batch; the last batch of every worker process may be smaller.
            seed: seed of the shuffling; a call with another seed starts new worker processes.

        Yields:
            uint8 (n, height, width, 3), RGB. No batch shares memory with another.
        """

    def close(self) -> None:
        """End worker processes and close files; a later call of ``batches`` starts and opens them again."""


class _PeerModule(NamedTuple):
    module: str  # has PEERS, a tuple of peers
    packages: tuple[str, ...]  # packages that the module imports
    distributions: str  # names of these packages in the package index


_MODULES = (
    # Peers that fork workers are first: once imported, Lance warns at every fork that it is not fork-safe.
    _PeerModule("benchmarks.peers.web_dataset", ("webdataset",), "webdataset"),
    _PeerModule("benchmarks.peers.lit_data", ("litdata",), "litdata"),
    _PeerModule("benchmarks.peers.grain_array_record", ("grain", "array_record"), "grain and array_record"),
    _PeerModule("benchmarks.peers.lance_dataset", ("lance", "pyarrow"), "pylance"),
)


def installed() -> Iterator[Peer]:
    """Import the installed peers one after another.

    Start a peer (write, and read an epoch) before asking for the next peer: a process should fork before later peers
    start threads.

    Yields:
        Peers in a fixed order; some loaders are two peers, with different settings.
    """
    for module in _MODULES:
        if _is_installed(module):
            yield from importlib.import_module(module.module).PEERS


def missing() -> list[str]:
    """Return the package names of the peers that are not installed; ``HOW_TO_INSTALL`` says how to install them."""
    return [module.distributions for module in _MODULES if not _is_installed(module)]


def _is_installed(module: _PeerModule) -> bool:
    return all(find_spec(package) is not None for package in module.packages)
