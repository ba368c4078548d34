"""Loader of Pillow's libjpeg-turbo for the reader in C, used if it decodes to the same pixels as simplejpeg.

The reader then needs no new decoder for each patch, nor Python's lock, which simplejpeg takes twice (``python -m
benchmarks read``). Both libraries are libjpeg-turbo, maybe of different versions; simplejpeg does not export its own.
``_native/huffman.c`` decodes the Huffman code of a scan in the library's place.
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
"""Environment variable that names a library to use in place of Pillow's; if it is empty, none is used."""

_SAMPLINGS = ("444", "422", "440", "420", "411", "Gray")
"""Chroma subsamplings of the JPEGs that the reader decodes."""


def check_named() -> None:
    """Check the library that DLAS_STORE_LIBJPEG names; without the variable, do not load any.

    Raises:
        ConfigError: the library cannot be loaded, or decodes to other pixels than simplejpeg.
    """
    if os.environ.get(VARIABLE):
        find_libjpeg()


@cache
def find_libjpeg() -> Libjpeg | None:
    """Return the library; None if Pillow has none that can be called, or if its pixels differ from simplejpeg's.

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
    """Return the file of Pillow's extension module, which is linked to libjpeg-turbo."""
    found = importlib.util.find_spec("PIL._imaging")
    return found.origin if found else None


def _decodes_as_simplejpeg(library: Libjpeg, sampling: str) -> bool:
    # The picture has all values, sides that are no multiples of an MCU, and rows longer than the longest vectors.
    picture = (np.arange(20 * 75 * 3, dtype=np.uint32) ** 2 // 97).astype(np.uint8).reshape(20, 75, 3)
    if sampling == "Gray":
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(picture[:, :, :1]), 80, "GRAY", sampling)
    else:
        data = simplejpeg.encode_jpeg(picture, 80, "RGB", sampling)
    pixels = np.zeros_like(picture)
    return library.decode(data, pixels) and np.array_equal(pixels, simplejpeg.decode_jpeg(data, "RGB"))
