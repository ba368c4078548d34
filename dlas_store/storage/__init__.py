"""The store on disk, as FORMAT.md describes it: shards, their index, and how both are read and written.

Writers are imported from their modules, so that a reader does not load the LMDB engine.
"""

from dlas_store.storage.index import Index
from dlas_store.storage.shard import Shard
from dlas_store.storage.store import Store

__all__ = ["Index", "Shard", "Store"]
