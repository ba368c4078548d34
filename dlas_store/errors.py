"""The errors that the library raises on purpose.

    StoreError
    ├── NotASourceError        (ValueError)      a path without anything to read patches from
    ├── DamagedError           (ValueError)      stored bytes that differ from the bytes written
    │   └── ForeignShardError                    a file that is not the shard in the index
    ├── FormatVersionError     (ValueError)      a store in a newer format than this version reads
    ├── ClosedError            (ValueError)      the use of a source after its close()
    ├── PatchIndexError        (IndexError)      a patch or image number outside the source
    ├── NameNotFoundError      (KeyError)        a name that no image or patch file has
    ├── ImageError             (ValueError)      bytes that cannot be decoded as a picture
    ├── CentersError           (ValueError)      a centers.pt that is damaged or refused
    ├── MissingMetadataError   (ValueError)      a centre that a dataset needs and the source lacks
    ├── ConfigError            (ValueError)      an option that is missing, unknown or has a wrong value
    ├── TargetExistsError      (FileExistsError) a target that exists already
    ├── BusyError              (BlockingIOError) a store that another process is writing
    ├── WriteError             (OSError)         a write that the disk refused (full, quota, input/output)
    ├── SharedMemoryError      (OSError)         memory or files that the system refused to worker processes
    └── ImportFailedError      (ValueError)      a conversion stopped by a fault in its source

Each message is one line that says what is wrong, where, and what to do.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


class StoreError(Exception):
    """The base class of every error of this library."""

    def __str__(self) -> str:
        """Return the message as written (KeyError would quote it, OSError would put the number before it)."""
        return str(self.args[-1]) if self.args else ""


class NotASourceError(StoreError, ValueError):
    """A path without anything to read patches from."""


class DamagedError(StoreError, ValueError):
    """Stored bytes that differ from the bytes written."""


class ForeignShardError(DamagedError):
    """A file that is not the shard in the index."""


class FormatVersionError(StoreError, ValueError):
    """A store in a newer format than this version reads."""


class ClosedError(StoreError, ValueError):
    """The use of a source after its close()."""


class PatchIndexError(StoreError, IndexError):
    """A patch or image number outside the source."""


class NameNotFoundError(StoreError, KeyError):
    """A name that no image or patch file has."""


class ImageError(StoreError, ValueError):
    """Bytes that cannot be decoded as a picture."""


class CentersError(StoreError, ValueError):
    """A centers.pt that is damaged or refused."""


class MissingMetadataError(StoreError, ValueError):
    """A centre that a dataset needs and the source lacks."""


class ConfigError(StoreError, ValueError):
    """An option that is missing, unknown or has a wrong value."""


class TargetExistsError(StoreError, FileExistsError):
    """A target that exists already."""


class BusyError(StoreError, BlockingIOError):
    """A store that another process is writing."""


class WriteError(StoreError, OSError):
    """A write that the disk refused: full, over quota, input/output error."""


class SharedMemoryError(StoreError, OSError):
    """Shared memory, or files to share it by, that the system refused to a loader's worker processes."""


class ImportFailedError(StoreError, ValueError):
    """A conversion stopped by a fault in its source."""


_NO_PERMISSION = "you have no permission to write there; choose another place, or change the permissions"

_WRITE_ADVICE = {
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EROFS: "the file system is read-only; choose another place",
    errno.ENOENT: "create the folder or choose another place",
    errno.EISDIR: "it is a folder; choose another name",
    errno.ENOTDIR: "a part of the path is no folder; choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
}
"""Number of an error of a write -> advice; by default the disk is full."""


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1.

    >>> counted(1, "patch"), counted(2000, "patch"), counted(0, "image")
    ('1 patch', '2,000 patches', '0 images')
    """
    plural = "es" if noun.endswith(("ch", "ss")) else "s"
    return f"{count:,} {noun}{'' if count == 1 else plural}"


@contextmanager
def write_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError inside the block into a WriteError that names ``path``; a StoreError passes unchanged."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        advice = _WRITE_ADVICE.get(error.errno or 0, "make room or choose another place")
        message = f"{os.fspath(path)}: cannot be written ({error.strerror}); {advice}"
        raise WriteError(error.errno, message) from error
