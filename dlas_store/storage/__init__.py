"""The store on disk, as FORMAT.md describes it: reading and writing of shards and of their index.

Import writers from their modules: this package does not, so that a reader does not load the LMDB engine.
"""

from dlas_store.storage.index import Index
from dlas_store.storage.shard import Shard
from dlas_store.storage.store import Store

__all__ = ["Index", "Shard", "Store"]
