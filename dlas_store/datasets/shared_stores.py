"""One open store for all datasets of a process that read it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

from dlas_store.index import INDEX_FILE
from dlas_store.opening import open_source
from dlas_store.source import Layout, Source
from dlas_store.store import Store


class _Key(NamedTuple):
    """What tells an open store from any other, and from the same one after an append, which replaces its index."""

    path: Path
    layout: Layout | None
    device: int
    inode: int
    modified: int


_stores: WeakValueDictionary[_Key, Store] = WeakValueDictionary()


def open_cached(path: Path, *, layout: Layout | None) -> Source:
    """Open a source as open_source does; a store that this process holds already is given again.

    A store stays open as long as anything refers to it, so nobody closes it. A folder is opened anew each time: what
    was listed of it before may be out of date, which only another listing shows.

    Raises:
        NotASourceError: the path holds nothing to read, or not in that layout.
        StoreError: a store that is damaged, or of a later version.
    """
    key = _key(path, layout)
    held = _stores.get(key) if key else None
    if held is not None:
        return held
    source = open_source(path, layout)
    if key is not None and isinstance(source, Store):
        _stores[key] = source
    return source


def _key(path: Path, layout: Layout | None) -> _Key | None:
    """Return the key of what may be a store, None for what is none."""
    file = path / INDEX_FILE if path.is_dir() else path
    try:
        status = file.stat()
    except OSError:
        return None
    return _Key(Path(os.path.abspath(path)), layout, status.st_dev, status.st_ino, status.st_mtime_ns)  # noqa: PTH100
