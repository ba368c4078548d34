"""Loader of Pillow's libjpeg-turbo for the reader in C; the library must decode to the same pixels as simplejpeg.

With the library the reader uses one decoder for many patches and does not take Python's lock. simplejpeg creates a
decoder for each patch and takes the lock twice (``python -m benchmarks read``). It contains a libjpeg-turbo too, maybe
of another version, but does not export it. ``_native/huffman.c`` decodes the Huffman code of a scan in the library's
place, if the library is of a tested version (``_native/entropy_step.c``).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import simplejpeg

from dlas_store.errors import ConfigError
from dlas_store.images.jpeg import without_surplus_bytes
from dlas_store.images.memory import Pixels

_LOG = logging.getLogger(__name__)

try:
    from dlas_store._native.patch_reader import Libjpeg, PatchReader
except ImportError as error:  # installed without a C compiler
    _LOG.debug("simplejpeg decodes each patch, which is slower, because a C extension is missing (%s)", error)
    Libjpeg = PatchReader = None  # type: ignore[assignment, misc]

__all__ = [
    "HUFFMAN_VARIABLE",
    "VARIABLE",
    "Choice",
    "Libjpeg",
    "PatchReader",
    "check_variables",
    "choose_libjpeg",
    "find_damage",
    "find_libjpeg",
]

VARIABLE = "DLAS_STORE_LIBJPEG"
"""Environment variable that names a library to use in place of Pillow's; an empty value means no library."""

HUFFMAN_VARIABLE = "DLAS_STORE_HUFFMAN"
"""Environment variable that turns the Huffman decoder in C off by the value 0; the library then decodes the scans."""

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
)
"""Parts of libjpeg's warnings that pixels are missing or wrong. The others, of surplus bytes, of an unknown Adobe
transform, and of needless parameters of a scan, leave all pixels right."""

_DOUBTS = ("Inconsistent progression",)
"""Parts of warnings that a scan may be missing; decoders agree on the pixels of the others."""

_SURPLUS = "extraneous bytes"

_QUANTIZERS = (255, 1000, 32767)
"""Factors of coefficients that overflow the 16 bits in which SIMD instructions compute; other code has more bits."""

_QUANTIZATION_TABLE = re.compile(rb"\xff\xdb\x00\x43([\x00-\x03]).{64}", re.DOTALL)


class Choice(NamedTuple):
    """The library that decodes many patches at a time, and the reason for it.

    Attributes:
        library: the library; None if simplejpeg decodes each patch.
        reason: reason why simplejpeg does; empty if there is a library.
    """

    library: Libjpeg | None
    reason: str


def check_variables() -> None:
    """Check the environment variables of this module; without them, load no library.

    Raises:
        ConfigError: see choose_libjpeg.
    """
    if os.environ.get(VARIABLE) or HUFFMAN_VARIABLE in os.environ:
        find_libjpeg()


@cache
def find_libjpeg() -> Libjpeg | None:
    """Return the library of choose_libjpeg; the first call decides for the process.

    Raises:
        ConfigError: see choose_libjpeg.
    """
    library, reason = choose_libjpeg()
    if library is None:
        _LOG.debug("simplejpeg decodes each patch, which is slower: %s", reason)
    elif library.refusal is not None:
        _LOG.debug("%s decodes the Huffman code of JPEGs, which is slower: %s", library.file, library.refusal)
    return library


def choose_libjpeg() -> Choice:
    """Load Pillow's libjpeg-turbo, or the library that DLAS_STORE_LIBJPEG names, and compare it with simplejpeg.

    Raises:
        ConfigError: the named library cannot be loaded, or decodes to other pixels than simplejpeg; or
            DLAS_STORE_HUFFMAN is neither 0 nor 1.
    """
    wants_huffman, named_file = _wants_huffman(), os.environ.get(VARIABLE)
    if Libjpeg is None:
        return Choice(None, "the package was installed without a C compiler")
    if named_file == "":
        return Choice(None, f"{VARIABLE} is empty")
    file = named_file or _pillows_module()
    if file is None:
        return Choice(None, "Pillow has no extension module")
    try:
        library = Libjpeg(file, wants_huffman)
    except OSError as error:
        if named_file is None:
            return Choice(None, f"Pillow's libjpeg-turbo cannot be called ({error})")
        raise ConfigError(f"{VARIABLE} names {file!r}, which is no libjpeg-turbo ({error}); unset it") from error
    if all(_decodes_as_simplejpeg(library, data) for data in _samples()):
        return Choice(library, "")
    if named_file is None:
        return Choice(None, f"{library.file} decodes to other pixels than simplejpeg")
    raise ConfigError(f"{VARIABLE} names {file!r}, which decodes to other pixels than simplejpeg; unset it")


def find_damage(data: bytes, size: tuple[int, int], refusal: str, *, is_strict: bool) -> str:
    """Return the damage of a JPEG that Pillow will decode, "" if its data are whole.

    Pillow ignores the warnings of libjpeg, some of which say that data are missing or wrong. Without a library in C all
    that is known is the first warning, which simplejpeg reports.

    Args:
        data: the bytes of a JPEG file.
        size: height and width in pixels.
        refusal: simplejpeg's reason to refuse the JPEG, "" if simplejpeg was not asked.
        is_strict: take for damage what may be damage: scans in an unusual order, whatever the library refuses behind
            the pixels, and bytes behind the data of a scan. These may be surplus, but data that changed look the same
            if the changed data seem to end early.
    """
    if not is_strict:
        return _find_damage(data, size, refusal, is_strict=False)[0]
    damage, has_surplus = "", True
    for zeros in (False, True):
        if has_surplus and not damage:
            whole = without_surplus_bytes(data, zeros=zeros)
            damage, has_surplus = _find_damage(whole, size, _refusal(whole) if refusal else "", is_strict=True)
    return damage or ("bytes are left behind the data of a scan, which may have changed" if has_surplus else "")


def _find_damage(data: bytes, size: tuple[int, int], refusal: str, *, is_strict: bool) -> tuple[str, bool]:
    """Return the damage of a JPEG, "" if there is none, and whether it has bytes that libjpeg skips."""
    library = find_libjpeg()
    is_decoded, messages, behind = (True, [refusal], []) if library is None else library.messages(data, *size)
    messages, behind = ([_PLACEHOLDER.sub("?", message) for message in part] for part in (messages, behind))
    if not is_decoded:
        # simplejpeg gives a wrong reason for some headers that it cannot read.
        return "; ".join(messages) or refusal or "no decoder reads it", False
    parts = (*_DAMAGES, *_DOUBTS) if is_strict else _DAMAGES
    damages = [message for message in messages if any(part in message for part in parts)]
    if is_strict:
        damages += [message for message in behind if _SURPLUS not in message]
    return "; ".join(damages), any(_SURPLUS in message for message in messages + behind)


def _refusal(data: bytes) -> str:
    """Return why simplejpeg refuses a JPEG, "" if it decodes it."""
    try:
        simplejpeg.decode_jpeg(data)
    except (ValueError, KeyError) as error:
        return str(error)
    return ""


def _wants_huffman() -> bool:
    value = os.environ.get(HUFFMAN_VARIABLE) or "1"
    if value not in {"0", "1"}:
        raise ConfigError(f"{HUFFMAN_VARIABLE} is {value!r}; set it to 0 (the library decodes the scans), or unset it")
    return value == "1"


def _pillows_module() -> str | None:
    """Return the file of Pillow's extension module, which is linked to libjpeg-turbo."""
    spec = importlib.util.find_spec("PIL._imaging")
    return spec.origin if spec else None


def _samples() -> Iterator[bytes]:
    """Yield JPEGs of every sampling: of usual coefficients, and of coefficients that overflow.

    The pictures have all values, rows longer than the longest vectors, and sides that are no multiples of an MCU's side
    (an MCU is the smallest group of blocks that a JPEG codes together). One has blocks in which most columns are zero:
    decoders treat these apart.
    """
    mixed = (np.arange(20 * 75 * 3, dtype=np.uint32) ** 2 // 97).astype(np.uint8).reshape(20, 75, 3)
    stripes = np.full_like(mixed, 130)
    stripes[::8] = 10
    for sampling in _SAMPLINGS:
        yield _encode(mixed, 80, sampling)
        for picture in (mixed, stripes):
            data = _encode(picture, 100, sampling)
            for factor in _QUANTIZERS:
                yield _with_quantizer(data, factor)


def _encode(picture: Pixels, quality: int, sampling: str) -> bytes:
    if sampling == "Gray":
        return simplejpeg.encode_jpeg(np.ascontiguousarray(picture[:, :, :1]), quality, "GRAY", sampling)  # type: ignore[no-any-return]
    return simplejpeg.encode_jpeg(picture, quality, "RGB", sampling)  # type: ignore[no-any-return]


def _with_quantizer(data: bytes, factor: int) -> bytes:
    """Return a JPEG with tables of 16 bits that multiply each coefficient by a factor."""
    table = factor.to_bytes(2, "big") * 64
    return _QUANTIZATION_TABLE.sub(lambda match: b"\xff\xdb\x00\x83" + bytes([0x10 | match[1][0]]) + table, data)


def _decodes_as_simplejpeg(library: Libjpeg, data: bytes) -> bool:
    expected = simplejpeg.decode_jpeg(data, "RGB")
    pixels = np.zeros_like(expected)
    return library.decode(data, pixels) and np.array_equal(pixels, expected)
