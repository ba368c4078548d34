"""Page cache of Linux: drop files from it, as if they had not been read since the machine started."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from dlas_store import StoreError

_MOST_KEPT = 0.01
"""Largest share of pages that may stay: the system need not drop a page that it is busy with."""


def drop(roots: Iterable[Path]) -> None:
    """Drop all files below some folders from the page cache. No process may have one of the files mapped.

    The system's cache of folders and names stays, since only an administrator can drop it; it helps contenders that
    open many files.

    Raises:
        StoreError: pages stay in the cache, as in a file system that lies in memory.
    """
    files = [path for root in roots for path in (root.rglob("*") if root.is_dir() else [root]) if path.is_file()]
    os.sync()  # a page that is not on the disk yet cannot be dropped
    pages = cached_pages = 0
    for path in files:
        file = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            in_cache = resident(file)
            pages += len(in_cache)
            cached_pages += sum(in_cache)
        finally:
            os.close(file)
    if cached_pages > pages * _MOST_KEPT:
        raise StoreError(
            f"{cached_pages:,} of {pages:,} pages stay in the page cache, as in a file system that lies in memory; "
            "give --scratch, or data, on a disk"
        )


def resident(file: int) -> bytes:
    """Return a byte for each page of a file, 1 if the page is in the page cache; the call brings no page there."""
    size = os.fstat(file).st_size
    if not size:
        return b""
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with mmap.mmap(file, size, flags=mmap.MAP_PRIVATE) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(ctypes.byref(start), ctypes.c_size_t(size), pages)
        del start  # the map cannot be closed while this refers to it
    if failed:
        raise OSError(ctypes.get_errno(), "mincore failed")
    return bytes(page & 1 for page in pages)
