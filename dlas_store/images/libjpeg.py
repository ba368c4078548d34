"""Loader of Pillow's libjpeg-turbo for the reader in C; the library must decode to the same pixels as simplejpeg.

With the library the reader uses one decoder for many patches and does not take Python's lock. simplejpeg creates a
decoder for each patch and takes the lock twice (``python -m benchmarks read``). It contains a libjpeg-turbo too, maybe
of another version, but does not export it. ``_native/huffman.c`` decodes the Huffman code of a scan in the library's
place.
"""

from __future__ import annotations

import importlib.util
import os
import re
from functools import cache

import numpy as np
import simplejpeg

from dlas_store.errors import ConfigError
from dlas_store.images.jpeg import without_surplus_bytes

try:
    from dlas_store._native.patch_reader import Libjpeg, PatchReader
except ImportError:  # installed without a C compiler
    Libjpeg = PatchReader = None  # type: ignore[assignment, misc]

__all__ = ["VARIABLE", "Libjpeg", "PatchReader", "check_named_library", "find_damage", "find_libjpeg"]

VARIABLE = "DLAS_STORE_LIBJPEG"
"""Environment variable that names a library to use in place of Pillow's; an empty value means no library."""

_SAMPLINGS = ("444", "422", "440", "420", "411", "Gray")
"""Chroma subsamplings of the JPEGs that the reader in C decodes."""

_PLACEHOLDER = re.compile(r"(0x)?%\d*[a-z]")
"""A number in a message of libjpeg."""

_DAMAGES = (
    "premature end of data",
    "Premature end of JPEG",
    "bad Huffman code",
    "bad arithmetic code",
    "instead of RST",
    "Inconsistent progression",
)
"""Parts of libjpeg's warnings that pixels are missing or wrong. The others, of surplus bytes, of an unknown Adobe
transform, and of needless parameters of a scan, leave all pixels right."""


def check_named_library() -> None:
    """Check the library that DLAS_STORE_LIBJPEG names; without the variable, load no library.

    Raises:
        ConfigError: the library cannot be loaded, or decodes to other pixels than simplejpeg.
    """
    if os.environ.get(VARIABLE):
        find_libjpeg()


@cache
def find_libjpeg() -> Libjpeg | None:
    """Return libjpeg-turbo; None if Pillow's cannot be called, or decodes to other pixels than simplejpeg.

    Raises:
        ConfigError: see check_named_library.
    """
    named_file = os.environ.get(VARIABLE)
    file = _pillows_module() if named_file is None else named_file
    if not file or Libjpeg is None:
        return None
    try:
        library = Libjpeg(file)
    except OSError as error:
        if named_file is None:
            return None
        raise ConfigError(f"{VARIABLE} names {file!r}, which is no libjpeg-turbo ({error}); unset it") from error
    if all(_decodes_as_simplejpeg(library, sampling) for sampling in _SAMPLINGS):
        return library
    if named_file is None:
        return None
    raise ConfigError(f"{VARIABLE} names {file!r}, which decodes to other pixels than simplejpeg; unset it")


def find_damage(data: bytes, size: tuple[int, int], refusal: str, *, is_strict: bool) -> str:
    """Return the damage of a JPEG that Pillow will decode, "" if its data are whole.

    Pillow ignores the warnings of libjpeg, some of which say that data are missing or wrong. Without a library in C all
    that is known is the first warning, which simplejpeg reports.

    Args:
        data: the bytes of a JPEG file.
        size: height and width in pixels.
        refusal: simplejpeg's reason to refuse the JPEG, "" if simplejpeg was not asked.
        is_strict: take bytes behind the data of a scan for damage. They may be surplus, but data that changed look the
            same if the changed data seem to end early.
    """
    if not is_strict:
        return _find_damage(data, size, refusal)[0]
    damage, has_surplus = "", True
    for zeros in (False, True):
        if has_surplus and not damage:
            whole = without_surplus_bytes(data, zeros=zeros)
            damage, has_surplus = _find_damage(whole, size, _refusal(whole) if refusal else "")
    return damage or ("bytes are left behind the data of a scan, which may have changed" if has_surplus else "")


def _find_damage(data: bytes, size: tuple[int, int], refusal: str) -> tuple[str, bool]:
    """Return the damage of a JPEG, "" if there is none, and whether it has bytes that libjpeg skips."""
    library = find_libjpeg()
    is_decoded, messages = (True, [refusal]) if library is None else library.messages(data, *size)
    messages = [_PLACEHOLDER.sub("?", message) for message in messages]
    if not is_decoded:
        return refusal or "; ".join(messages) or "no decoder reads it", False
    damages = [message for message in messages if any(part in message for part in _DAMAGES)]
    return "; ".join(damages), any("extraneous bytes" in message for message in messages)


def _refusal(data: bytes) -> str:
    """Return why simplejpeg refuses a JPEG, "" if it decodes it."""
    try:
        simplejpeg.decode_jpeg(data)
    except (ValueError, KeyError) as error:
        return str(error)
    return ""


def _pillows_module() -> str | None:
    """Return the file of Pillow's extension module, which is linked to libjpeg-turbo."""
    spec = importlib.util.find_spec("PIL._imaging")
    return spec.origin if spec else None


def _decodes_as_simplejpeg(library: Libjpeg, sampling: str) -> bool:
    # The picture has all values, rows longer than the longest vectors, and sides that are no multiples of an MCU's side
    # (an MCU is the smallest group of blocks that a JPEG codes together).
    picture = (np.arange(20 * 75 * 3, dtype=np.uint32) ** 2 // 97).astype(np.uint8).reshape(20, 75, 3)
    if sampling == "Gray":
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(picture[:, :, :1]), 80, "GRAY", sampling)
    else:
        data = simplejpeg.encode_jpeg(picture, 80, "RGB", sampling)
    pixels = np.zeros_like(picture)
    return library.decode(data, pixels) and np.array_equal(pixels, simplejpeg.decode_jpeg(data, "RGB"))
