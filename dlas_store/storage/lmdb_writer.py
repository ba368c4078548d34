"""Writer of LMDB files, the only module that uses the LMDB engine."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

import lmdb

from dlas_store.errors import WriteError

BATCH_BYTES = 32 << 20
"""Bytes of one transaction. LMDB keeps a transaction in memory, so a larger transaction costs memory and is slower."""

_FIRST_MAP_SIZE = 1 << 30


class LmdbWriter:
    """Writes a new LMDB file that no other process has open.

    The file is durable only after close() and sealed_file.seal(), which syncs it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last_key = b""
        # lib_version 0 is engine 0.9: an environment variable can switch the default to a format that other programs
        # cannot read. The file needs no lock, because only this process knows its name. Writes do not sync, because a
        # sync of a small file takes as long as that of a large file: seal() syncs once.
        try:
            self._environment = lmdb.open(
                str(path), map_size=_FIRST_MAP_SIZE, subdir=False, lock=False, sync=False, lib_version=0
            )
        except lmdb.Error as error:
            raise _write_error(path, error) from error

    def write(self, values: Iterable[tuple[bytes, bytes]]) -> None:
        """Write (key, value) pairs, in any order, as one transaction.

        Raises:
            WriteError: the disk refused the write.
        """
        batch = sorted(values)
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    last_key = self._last_key
                    for key, value in batch:
                        transaction.put(key, value, append=key > last_key)
                        last_key = max(key, last_key)
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])
                continue
            except lmdb.BadValsizeError as error:
                raise WriteError(errno.EFBIG, f"{self._path}: a value has more than LMDB's 4 GiB ({error})") from error
            except lmdb.Error as error:
                raise _write_error(self._path, error) from error
            self._last_key = last_key
            return

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        self._environment.close()


def _write_error(path: Path, error: lmdb.Error) -> WriteError:
    # LMDB reports a full disk as an input/output error.
    return WriteError(errno.EIO, f"{path}: cannot be written ({error}); is the disk full? Make room and try again")
