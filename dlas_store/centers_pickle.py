"""Pickle rules for centers.pt: plain values, and the forms in which torch and numpy write numbers."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

from dlas_store.inert_pickle import SAFE_OPCODES, PickleRules, RefusedError, Storage
from dlas_store.numpy_pickle import encode_latin1, make_dtype, make_scalar


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A number or a pair of numbers in a storage.

    Attributes:
        storage: the storage.
        positions: position of each number in the storage, counted in numbers.
    """

    storage: Storage
    positions: tuple[int, ...]


def _rebuild_tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> Tensor:
    match storage, offset, size, stride:
        case Storage(), int(start), () | (1,), tuple():
            positions: tuple[int, ...] = (start,)
        case Storage(), int(start), (2,), (int(step),):
            positions = (start, start + step)
        case _:
            raise RefusedError("it holds a tensor that is neither a number nor a pair of numbers")
    if min(positions) < 0:
        raise RefusedError("it holds a tensor that reaches outside its storage")
    return Tensor(storage, positions)


def _make_dict() -> dict[object, object]:
    return {}


_KNOWN_NAMES: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): _make_dict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch", "ByteStorage"): "B",
    ("torch", "CharStorage"): "b",
    ("torch", "ShortStorage"): "h",
    ("torch", "IntStorage"): "i",
    ("torch", "LongStorage"): "q",
    ("torch", "FloatStorage"): "f",
    ("torch", "DoubleStorage"): "d",
    ("numpy", "dtype"): make_dtype,
    ("numpy.core.multiarray", "scalar"): make_scalar,  # numpy 1
    ("numpy._core.multiarray", "scalar"): make_scalar,
    ("_codecs", "encode"): encode_latin1,
}

CENTERS_RULES = PickleRules(
    what="a centers.pt",
    names=_KNOWN_NAMES,
    opcodes=SAFE_OPCODES | {pickle.BINPERSID[0]: pickle._Unpickler.dispatch[pickle.BINPERSID[0]]},
    key_types=frozenset({int, float, str, Tensor}),
)
