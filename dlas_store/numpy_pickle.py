"""Replacements, in an inert pickle, for the names by which numpy pickles its types and numbers."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dlas_store.inert_pickle import RefusedError, Unfinished

_DTYPE_CODES = {
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "f4": "f",
    "f8": "d",
}


@dataclass(frozen=True, slots=True)
class DType(Unfinished):
    """A numpy type of numbers.

    Attributes:
        code: struct code of one number, with the byte order.
    """

    code: str

    def with_state(self, state: object) -> DType:
        """Return the type with the byte order of a pickled state; the rest of the state is ignored."""
        match state:
            case (_, "<" | ">" | "|" as order, *_):
                return DType(("<" if order == "|" else order) + self.code[-1])
        raise RefusedError("it sets the state of something that has none")


def make_dtype(name: object, *_: object) -> DType:
    """Replace numpy.dtype."""
    if not isinstance(name, str) or name not in _DTYPE_CODES:
        raise RefusedError("it holds a numpy value that is no number")
    return DType("<" + _DTYPE_CODES[name])


def make_scalar(dtype: object, data: object) -> object:
    """Replace numpy.core.multiarray.scalar; the result is a Python number."""
    if not isinstance(dtype, DType) or not isinstance(data, bytes):
        raise RefusedError("it holds a numpy value that is no number")
    return struct.unpack(dtype.code, data)[0]


def encode_latin1(text: object, encoding: object) -> bytes:
    """Replace _codecs.encode, by which protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise RefusedError("it encodes a text")
    return text.encode("latin1")
