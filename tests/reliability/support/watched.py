"""Watched reads of centers.pt: an audit hook reports opened files, imports, executed code and started processes."""

from __future__ import annotations

import codecs
import sys
from contextlib import suppress

from dlas_store.errors import CentersError
from dlas_store.sources.centers import read_centers

_EVENTS = (
    "compile",
    "ctypes.",
    "exec",
    "import",
    "marshal.",
    "mmap.",
    "open",
    "os.",
    "pickle.find_class",
    "shutil.",
    "socket.",
    "subprocess.",
    "tempfile.",
    "urllib.",
)
"""Prefixes of the audit events that reading a file must never raise."""

_reading: list[bytes] = []
_installed: list[bool] = []


class RanSomethingError(BaseException):
    """A forbidden audit event during a read. A handler of Exception does not catch this BaseException."""


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _reading and event.startswith(_EVENTS):
        raise RanSomethingError(f"{event} {arguments!r:.200}")


def install() -> None:
    """Install the audit hook in this process, once; Python cannot remove an audit hook."""
    if _installed:
        return
    _installed.append(True)
    codecs.lookup("cp437")  # Python imports this codec at zipfile's first use
    sys.addaudithook(_watch)


def read(data: bytes) -> bool:
    """Read the bytes of a centers.pt and return whether the reader refused the bytes.

    Raises:
        RanSomethingError: the read raised a forbidden audit event.
        Exception: the read raised another error than CentersError.
    """
    refused = True
    _reading.append(data)
    try:
        with suppress(CentersError):
            read_centers(data)
            refused = False
    finally:
        _reading.clear()
    return refused
