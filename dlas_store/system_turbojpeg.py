"""The system's libjpeg-turbo, for the reader in C to call, where it decodes to the same pixels as simplejpeg's own.

With it no patch needs a decoder of its own, nor Python's lock, which simplejpeg takes twice (``python -m benchmarks
read``). Both are libjpeg-turbo, of other versions.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

import numpy as np
import simplejpeg

from dlas_store.errors import ConfigError
from dlas_store.source import Pixels

VARIABLE = "DLAS_STORE_TURBOJPEG"
"""An environment variable: a file to take in place of the system's, or nothing, to take none."""

_SYSTEM_FILE = "libturbojpeg.so.0"

_RGB = _NO_FLAGS = 0

_SAMPLINGS = ("444", "422", "440", "420", "411", "Gray")
"""Those of the JPEGs that the reader decodes."""


Addresses = tuple[int, int, int]
"""Of tjInitDecompress, tjDecompress2 and tjDestroy; zeros where there are none."""

NO_ADDRESSES = (0, 0, 0)


def check_named() -> None:
    """Check the file that DLAS_STORE_TURBOJPEG names, if it does; only then is a library loaded.

    Raises:
        ConfigError: it cannot be loaded, or decodes to other pixels than simplejpeg.
    """
    if os.environ.get(VARIABLE):
        find_addresses()


@cache
def find_addresses() -> Addresses:
    """Return where the functions are; zeros where the system has none, or a library that decodes to other pixels.

    Raises:
        ConfigError: see check_named.
    """
    named = os.environ.get(VARIABLE)
    file = _SYSTEM_FILE if named is None else named
    if not file:
        return NO_ADDRESSES
    try:
        functions = _Functions(ctypes.CDLL(file))
    except (OSError, AttributeError) as error:
        if named is None:
            return NO_ADDRESSES
        raise ConfigError(f"{VARIABLE} names {file!r}, which is no libturbojpeg ({error}); unset it") from error
    if not functions.decode_as_simplejpeg():
        if named is None:
            return NO_ADDRESSES
        raise ConfigError(f"{VARIABLE} names {file!r}, which decodes to other pixels than simplejpeg; unset it")
    return functions.addresses


class _Functions:
    """Functions of a library.

    Raises:
        AttributeError: it lacks one.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._make, self._decode, self._destroy = library.tjInitDecompress, library.tjDecompress2, library.tjDestroy
        self._make.restype = ctypes.c_void_p
        self._make.argtypes = []
        pointer, integer = ctypes.c_void_p, ctypes.c_int
        size = [integer] * 5  # width, bytes a row, height, pixel format, flags
        self._decode.argtypes = [pointer, ctypes.c_char_p, ctypes.c_ulong, pointer, *size]
        self._destroy.argtypes = [pointer]

    @property
    def addresses(self) -> Addresses:
        make, decode, destroy = (
            ctypes.cast(function, ctypes.c_void_p).value or 0 for function in (self._make, self._decode, self._destroy)
        )
        return make, decode, destroy

    def decode_as_simplejpeg(self) -> bool:
        """Return whether they give simplejpeg's pixels for one JPEG of each sampling."""
        decoder = self._make()
        if not decoder:
            return False
        # Of all values, with sides that are no whole numbers of units, and rows longer than the longest vectors.
        picture = (np.arange(20 * 75 * 3, dtype=np.uint32) ** 2 // 97).astype(np.uint8).reshape(20, 75, 3)
        try:
            return all(self._agree(decoder, picture, sampling) for sampling in _SAMPLINGS)
        finally:
            self._destroy(decoder)

    def _agree(self, decoder: int, picture: Pixels, sampling: str) -> bool:
        if sampling == "Gray":
            data = simplejpeg.encode_jpeg(np.ascontiguousarray(picture[:, :, :1]), 80, "GRAY", sampling)
        else:
            data = simplejpeg.encode_jpeg(picture, 80, "RGB", sampling)
        pixels = np.zeros(picture.shape, np.uint8)
        height, width, _ = picture.shape
        place = pixels.ctypes.data
        status = self._decode(decoder, data, len(data), place, width, 3 * width, height, _RGB, _NO_FLAGS)
        return status == 0 and np.array_equal(pixels, simplejpeg.decode_jpeg(data, "RGB"))
