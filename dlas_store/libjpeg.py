"""The libjpeg-turbo that Pillow decodes with, for the reader in C to call, where it decodes to simplejpeg's pixels.

With it no patch needs a decoder of its own, nor Python's lock, which simplejpeg takes twice (``python -m benchmarks
read``). Both are libjpeg-turbo, maybe of other versions; simplejpeg keeps its own to itself. The Huffman code of a scan
is decoded in the library's place, see ``_native/huffman.c``.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import numpy as np
import simplejpeg

from dlas_store.errors import ConfigError

try:
    from dlas_store._native.patch_reader import Libjpeg, PatchReader
except ImportError:  # installed where there was no compiler
    Libjpeg = PatchReader = None  # type: ignore[assignment, misc]

__all__ = ["VARIABLE", "Libjpeg", "PatchReader", "check_named", "find_libjpeg"]

VARIABLE = "DLAS_STORE_LIBJPEG"
"""An environment variable: a file to take in place of Pillow's, or nothing, to take none."""

_SAMPLINGS = ("444", "422", "440", "420", "411", "Gray")
"""Those of the JPEGs that the reader decodes."""


def check_named() -> None:
    """Check the file that DLAS_STORE_LIBJPEG names, if it does; only then is a library loaded.

    Raises:
        ConfigError: it cannot be loaded, or decodes to other pixels than simplejpeg.
    """
    if os.environ.get(VARIABLE):
        find_libjpeg()


@cache
def find_libjpeg() -> Libjpeg | None:
    """Return the library; None where Pillow has none that can be called, or one that decodes to other pixels.

    Raises:
        ConfigError: see check_named.
    """
    named = os.environ.get(VARIABLE)
    file = _pillows_module() if named is None else named
    if not file or Libjpeg is None:
        return None
    try:
        library = Libjpeg(file)
    except OSError as error:
        if named is None:
            return None
        raise ConfigError(f"{VARIABLE} names {file!r}, which is no libjpeg-turbo ({error}); unset it") from error
    if all(_decodes_as_simplejpeg(library, sampling) for sampling in _SAMPLINGS):
        return library
    if named is None:
        return None
    raise ConfigError(f"{VARIABLE} names {file!r}, which decodes to other pixels than simplejpeg; unset it")


def _pillows_module() -> str | None:
    """Return the file of the module that is linked to libjpeg-turbo, under whatever name that has."""
    found = importlib.util.find_spec("PIL._imaging")
    return found.origin if found else None


def _decodes_as_simplejpeg(library: Libjpeg, sampling: str) -> bool:
    # Of all values, with sides that are no whole numbers of units, and rows longer than the longest vectors.
    picture = (np.arange(20 * 75 * 3, dtype=np.uint32) ** 2 // 97).astype(np.uint8).reshape(20, 75, 3)
    if sampling == "Gray":
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(picture[:, :, :1]), 80, "GRAY", sampling)
    else:
        data = simplejpeg.encode_jpeg(picture, 80, "RGB", sampling)
    pixels = np.zeros_like(picture)
    return library.decode(data, pixels) and np.array_equal(pixels, simplejpeg.decode_jpeg(data, "RGB"))
