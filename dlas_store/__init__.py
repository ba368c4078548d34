"""Chunked image-patch datasets of DL-Art-School in a few memory-mapped LMDB files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlas_store.errors import StoreError
from dlas_store.opening import open_source
from dlas_store.sources.base import Center, Image, Source

if TYPE_CHECKING:
    from dlas_store.datasets.plain import StoreDataset, create_loader
    from dlas_store.loading.collate import collate

__all__ = ["Center", "Image", "Source", "StoreDataset", "StoreError", "collate", "create_loader", "open_source"]
__version__ = "0.1.0"

_WITH_TORCH = {
    "StoreDataset": "dlas_store.datasets.plain",
    "collate": "dlas_store.loading.collate",
    "create_loader": "dlas_store.datasets.plain",
}
"""Name -> module that is imported when the name is asked for: torch takes a second to load."""


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - seldom needed

    return getattr(import_module(_WITH_TORCH[name]), name)
