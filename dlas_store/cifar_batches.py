"""Reader of CIFAR-10 and CIFAR-100 as published: pickled batches, read without running the pickles."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlas_store.array_pictures import LabelledPictures
from dlas_store.errors import DamagedError
from dlas_store.inert_pickle import SAFE_OPCODES, InertUnpickler, PickleRules, RefusedError, Unfinished
from dlas_store.numpy_pickle import DType, encode_latin1, make_dtype

MAX_FILE_BYTES = 1 << 30
"""Largest file that is read; the largest published one, CIFAR-100's train, has 155 MB."""

_SIDE = 32
_ROW = 3 * _SIDE * _SIDE

# Exceptions that the unpickler raises for malformed bytes.
_FAILURES = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError,
    TypeError, ValueError, pickle.PickleError, struct.error,
)  # fmt: skip


def load_cifar(
    batches: Sequence[Path], meta: Path, *, split: str, labels: Mapping[str, str], names: Mapping[str, str]
) -> LabelledPictures:
    """Load the pictures of several batches.

    Args:
        batches: the files, in order.
        meta: the file with the class names; if it is missing, classes have no names.
        split: see LabelledPictures.
        labels: field of Image.extra -> key of the labels in a batch.
        names: field of Image.extra -> key of the class names in ``meta``.

    Raises:
        DamagedError: a file is damaged, is no batch, or holds something that no batch holds.
    """
    contents = [_Batch(path) for path in batches]
    pixels = np.concatenate([batch.pixels() for batch in contents])
    meta_fields = _read_batch(meta) if meta.exists() else {}
    return LabelledPictures(
        split=split,
        pixels=np.ascontiguousarray(pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)),
        labels={field: np.concatenate([batch.labels(key) for batch in contents]) for field, key in labels.items()},
        class_names={field: _texts(meta_fields[key], meta) for field, key in names.items() if key in meta_fields},
    )


class _Batch:
    """One file of pictures and labels, whose fields are checked as they are read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fields = _read_batch(path)

    def pixels(self) -> NDArray[np.uint8]:
        data = self._field("data")
        if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _ROW:
            raise self._error(f"data is no array of {_ROW} bytes a picture")
        return data

    def labels(self, key: str) -> NDArray[np.int64]:
        labels = self._field(key)
        count = len(self._field("data"))
        if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 256 for label in labels):
            raise self._error(f"{key} is no list of labels")
        if len(labels) != count:
            raise self._error(f"{key} has {len(labels)} labels for {count} pictures")
        return np.array(labels, np.int64)

    def _field(self, key: str) -> Any:
        if key not in self._fields:
            raise self._error(f"holds no {key!r}")
        return self._fields[key]

    def _error(self, problem: str) -> DamagedError:
        return DamagedError(f"{self._path}: {problem}; download it again")


def _read_batch(path: Path) -> dict[str, Any]:
    """Return the fields of a batch, with keys as str."""
    try:
        fields = InertUnpickler(io.BytesIO(_read_file(path)), _BATCH_RULES).load()
    except RefusedError as error:
        raise DamagedError(f"{path}: refused: {error}; take the publisher's file") from error
    except _FAILURES as error:
        raise DamagedError(f"{path}: cannot be read as a batch of CIFAR ({error}); download it again") from error
    if not isinstance(fields, dict):
        raise DamagedError(f"{path}: holds no dict; take the publisher's file")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in fields.items()}


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise RefusedError(f"it is larger than {MAX_FILE_BYTES} bytes")
    return data


def _texts(names: object, path: Path) -> tuple[str, ...]:
    if isinstance(names, list) and all(isinstance(name, str | bytes) for name in names):
        return tuple(name.decode("latin1") if isinstance(name, bytes) else name for name in names)
    raise DamagedError(f"{path}: the names of the classes are no list of texts; download it again")


class _UnfinishedArray(Unfinished):
    """An array whose shape and numbers follow in its state."""

    def with_state(self, state: object) -> NDArray[np.uint8]:
        match state:
            case (_, tuple(shape), DType() as dtype, bool(is_fortran), str() | bytes() as data):
                return _make_array(data, dtype, shape, "F" if is_fortran else "C")
        raise RefusedError("it holds an array of something other than bytes")


def _make_array(data: object, dtype: object, shape: object, order: object = "C", *_: object) -> NDArray[np.uint8]:
    """Return an array of bytes; ``data`` is a str if Python 2 wrote it."""
    if isinstance(data, str):
        data = data.encode("latin1")
    if not isinstance(data, bytes) or not isinstance(dtype, DType) or dtype.code[-1] != "B":
        raise RefusedError("it holds an array of something other than bytes")
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise RefusedError("it holds an array without a shape")
    return np.frombuffer(data, np.uint8).reshape(shape, order="F" if order == "F" else "C")


def _start_array(*_: object) -> _UnfinishedArray:
    return _UnfinishedArray()


def _load_long_bytes(unpickler: InertUnpickler) -> None:
    """Read bytes whose length takes eight bytes; the unpickler in Python would first reserve the claimed length."""
    (size,) = struct.unpack("<Q", unpickler.read(8))
    data = unpickler.read(size) if size <= MAX_FILE_BYTES else b""
    if len(data) != size:
        raise RefusedError(f"it claims {size} bytes that it does not have")
    unpickler.append(bytes(data))


_TEXT_OPCODES = (pickle.BINSTRING, pickle.SHORT_BINSTRING)
_LONG_OPCODES = (pickle.BINBYTES8, pickle.BYTEARRAY8)
_OPCODES: dict[int, Callable[[Any], None]] = {
    **SAFE_OPCODES,
    **{code[0]: pickle._Unpickler.dispatch[code[0]] for code in _TEXT_OPCODES},
    **{code[0]: _load_long_bytes for code in _LONG_OPCODES},
}
_BATCH_RULES = PickleRules(
    what="a batch of CIFAR",
    names={
        ("numpy.core.multiarray", "_reconstruct"): _start_array,  # numpy 1, which wrote the published files
        ("numpy._core.multiarray", "_reconstruct"): _start_array,
        ("numpy.core.numeric", "_frombuffer"): _make_array,
        ("numpy._core.numeric", "_frombuffer"): _make_array,
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): make_dtype,
        ("_codecs", "encode"): encode_latin1,
    },
    opcodes=_OPCODES,
    key_types=frozenset({str, bytes}),
)
