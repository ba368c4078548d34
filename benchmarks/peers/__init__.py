"""Other loaders, read in the way that each recommends: JPEG bytes on a local disk to shuffled uint8 batches.

All of them decode with TurboJPEG by simplejpeg, so that loaders are compared and not decoders. Importing this package
imports none of them; ``installed`` imports each when it is reached.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Protocol

from dlas_store.aligned_memory import Pixels

HOW_TO_INSTALL = "not installed: pip install -r benchmarks/requirements-peers.txt"


class Peer(Protocol):
    """A loader with its own file format. Objects stay in the process that made them."""

    @property
    def name(self) -> str:
        """Name in tables."""

    def write(self, payloads: Sequence[bytes], folder: Path) -> None:
        """Write patches in the peer's format, as its documentation recommends.

        Args:
            payloads: JPEGs of one size, at least one.
            folder: does not exist and is made; its parent exists.
        """

    def batches(self, folder: Path, *, batch_size: int, seed: int) -> Iterator[Pixels]:
        """Read one epoch: every patch once, in an order of its own.

        Calls with equal arguments are successive epochs, which go on with the worker processes of the first one where
        the peer can keep them: let one epoch pass before the clock starts, and read each to its end before the next.

        Args:
            folder: what ``write`` wrote.
            batch_size: patches a batch, at most; every worker process may end its share with a smaller one.
            seed: of the shuffling; another seed starts again, with new worker processes.

        Yields:
            uint8 (n, height, width, 3), RGB. No batch uses the memory of another one.
        """

    def close(self) -> None:
        """End worker processes and close files; ``batches`` starts again after it."""


class _PeerModule(NamedTuple):
    module: str  # has PEERS, a tuple of peers
    packages: tuple[str, ...]  # what it imports
    distributions: str  # what those are called where they are installed from


_MODULES = (
    # Those that fork their workers come first: Lance says at every fork after its import that it is not fork-safe.
    _PeerModule("benchmarks.peers.web_dataset", ("webdataset",), "webdataset"),
    _PeerModule("benchmarks.peers.lit_data", ("litdata",), "litdata"),
    _PeerModule("benchmarks.peers.grain_array_record", ("grain", "array_record"), "grain and array_record"),
    _PeerModule("benchmarks.peers.lance_dataset", ("lance", "pyarrow"), "pylance"),
)


def installed() -> Iterator[Peer]:
    """Import those that are installed, one after the other.

    Start one (write, and read an epoch) before asking for the next: a process should fork before it has the threads of
    the later ones.

    Yields:
        Peers in a fixed order; some loaders come in two settings.
    """
    for module in _MODULES:
        if _is_installed(module):
            yield from importlib.import_module(module.module).PEERS


def missing() -> list[str]:
    """Return the names of those that are not installed, which ``HOW_TO_INSTALL`` changes."""
    return [module.distributions for module in _MODULES if not _is_installed(module)]


def _is_installed(module: _PeerModule) -> bool:
    return all(find_spec(package) is not None for package in module.packages)
