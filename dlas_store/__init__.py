"""Chunked image-patch datasets of DL-Art-School in a few memory-mapped LMDB files."""

from dlas_store.errors import StoreError
from dlas_store.opening import open_source
from dlas_store.sources.base import Center, Image, Source

__all__ = ["Center", "Image", "Source", "StoreError", "open_source"]
__version__ = "0.1.0"
