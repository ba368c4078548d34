"""Every error that the library raises on purpose.

    StoreError
    ├── NotASourceError        (ValueError)      the path holds nothing that patches can be read from
    ├── DamagedError           (ValueError)      stored bytes are not what was written
    │   └── ForeignShardError                    a file that is not the shard that the index means
    ├── FormatVersionError     (ValueError)      a store of a format that this version cannot read
    ├── ClosedError            (ValueError)      a source was used after close()
    ├── PatchIndexError        (IndexError)      a patch or image number outside the source
    ├── NameNotFoundError      (KeyError)        no image or patch file of that name
    ├── ImageError             (ValueError)      bytes that are no picture, or one that cannot be decoded
    ├── CentersError           (ValueError)      a centers.pt that is damaged or refused
    ├── MissingMetadataError   (ValueError)      a centre that a dataset needs and the source lacks
    ├── ConfigError            (ValueError)      an option that is missing, unknown or of a wrong value
    ├── TargetExistsError      (FileExistsError) what is to be written is there already
    ├── BusyError              (BlockingIOError) another process writes the same store
    ├── WriteError             (OSError)         the disk refused a write (full, quota, input/output)
    └── ImportFailedError      (ValueError)      a conversion stopped at what it found in its source

Messages are one line: what is wrong, where, and what to do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class StoreError(Exception):
    """What every error of this library derives from."""

    def __str__(self) -> str:
        """Return the message as written (KeyError would quote it, OSError put the number before it)."""
        return str(self.args[-1]) if self.args else ""


class NotASourceError(StoreError, ValueError):
    """The path holds nothing that patches can be read from."""


class DamagedError(StoreError, ValueError):
    """Stored bytes are not what was written."""


class ForeignShardError(DamagedError):
    """A file that is not the shard that the index means."""


class FormatVersionError(StoreError, ValueError):
    """A store of a format that this version cannot read."""


class ClosedError(StoreError, ValueError):
    """A source was used after close()."""


class PatchIndexError(StoreError, IndexError):
    """A patch or image number outside the source."""


class NameNotFoundError(StoreError, KeyError):
    """No image or patch file of that name."""


class ImageError(StoreError, ValueError):
    """Bytes that are no picture, or one that cannot be decoded."""


class CentersError(StoreError, ValueError):
    """A centers.pt that is damaged or refused."""


class MissingMetadataError(StoreError, ValueError):
    """A centre that a dataset needs and the source lacks."""


class ConfigError(StoreError, ValueError):
    """An option that is missing, unknown or of a wrong value."""


class TargetExistsError(StoreError, FileExistsError):
    """What is to be written is there already."""


class BusyError(StoreError, BlockingIOError):
    """Another process writes the same store."""


class WriteError(StoreError, OSError):
    """The disk refused a write: full, over quota, input/output error."""


class ImportFailedError(StoreError, ValueError):
    """A conversion stopped at what it found in its source."""


@contextmanager
def write_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise WriteError, naming a path, for what the system refuses inside the block."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        message = f"{os.fspath(path)}: cannot be written ({error.strerror}); make room or choose another place"
        raise WriteError(error.errno, message) from error
