"""Files out of the page cache, as if they had not been read since the machine was started (Linux)."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from dlas_store import StoreError

_MOST_KEPT = 0.01
"""Share of the pages that may stay: the system need not drop one that it is busy with."""


def drop(roots: Iterable[Path]) -> None:
    """Drop all files below some folders from the page cache. No process may have one of them mapped.

    What the system knows of folders and names stays, for only its administrator can drop that; it is of use to whoever
    opens many files.

    Raises:
        StoreError: they stay there; so it is in a file system that lies in memory.
    """
    files = [path for root in roots for path in (root.rglob("*") if root.is_dir() else [root]) if path.is_file()]
    os.sync()  # what is not on the disk yet cannot be dropped
    pages = kept = 0
    for path in files:
        file = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            in_cache = resident(file)
            pages += len(in_cache)
            kept += sum(in_cache)
        finally:
            os.close(file)
    if kept > pages * _MOST_KEPT:
        raise StoreError(
            f"{kept:,} of {pages:,} pages stay in the page cache, as in a file system that lies in memory; give "
            "--scratch, or data, on a disk"
        )


def resident(file: int) -> bytes:
    """Return a byte for each page of a file, 1 where it is in the page cache; looking brings none there."""
    size = os.fstat(file).st_size
    if not size:
        return b""
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with mmap.mmap(file, size, flags=mmap.MAP_PRIVATE) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(ctypes.byref(start), ctypes.c_size_t(size), pages)
        del start  # the map cannot be closed under it
    if failed:
        raise OSError(ctypes.get_errno(), "mincore failed")
    return bytes(page & 1 for page in pages)
