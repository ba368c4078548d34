"""The store on disk, as FORMAT.md describes it: reading and writing of shards and of their index.

Users import writers from their modules. This package imports no writer, because a writer loads the LMDB engine.
"""

from dlas_store.storage.index import Index
from dlas_store.storage.shard import Shard
from dlas_store.storage.store import Store

__all__ = ["Index", "Shard", "Store"]
