"""Reading the pickle in a centers.pt without importing, calling or allocating anything that it asks for.

A pickle is a program. Here only the opcodes that build plain values run, the few names that torch and numpy write are
replaced by functions of this module, and every other opcode or name is refused.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

MAX_OPCODES = 1 << 22
"""About 400,000 centres of plain numbers. An opcode can hold some 100 bytes of memory, so 400 MB at the worst."""

_NAME_IN_MESSAGE = 80


class RefusedError(pickle.UnpicklingError):
    """The pickle asks for what a centers.pt never holds."""


class Storage(NamedTuple):
    """Where the numbers of a tensor lie: outside the pickle.

    Attributes:
        code: struct code of one number.
        key: name of the storage.
    """

    code: str
    key: str


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A number or a pair of numbers in a storage.

    Attributes:
        storage: where they lie.
        positions: of each number in the storage, in numbers.
    """

    storage: Storage
    positions: tuple[int, ...]


class InertUnpickler(pickle._Unpickler):
    """Loads dicts, lists, tuples, strings and numbers; tensors come as Tensor.

    It builds on the Python unpickler because the one in C reserves memory for whatever memo index a file names, and
    can neither be kept from other opcodes nor be stopped.

    Raises:
        RefusedError: the pickle asks for more than that.
        Exception: of nearly any kind, for bytes that are no pickle; the caller maps them.
    """

    # What the Python unpickler has and its type stub leaves out.
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, str] = {}
        """Key -> code of all storages that were named."""
        self.dispatch = _Opcodes(_SAFE_OPCODES)  # type: ignore[misc]

    def find_class(self, module: str, name: str) -> object:
        """Return what stands here for a name."""
        try:
            return _KNOWN_NAMES[module, name]
        except KeyError:
            named = ascii(f"{module}.{name}"[:_NAME_IN_MESSAGE])
            raise RefusedError(f"it names {named}, which a centers.pt never holds and which was not run") from None

    def persistent_load(self, pid: object) -> Storage:
        """Return the storage that a persistent id names."""
        match pid:
            case ("storage", str(code), str(key), _, _) | ("storage", str(code), str(key), _, _, None) if (
                self.storages.setdefault(key, code) == code in _STORAGE_CODES
            ):
                return Storage(code, key)
        raise RefusedError("it refers to something that is no tensor of numbers")

    def load_reduce(self) -> None:
        """Call one of our own functions."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple) or not callable(function):
            raise RefusedError("it calls something that is no function")
        self.append(function(*arguments))

    def load_build(self) -> None:
        """Set the byte order of a dtype, the only state that is looked at."""
        state = self.stack.pop()
        match self.stack[-1], state:
            case _DType(code), (_, "<" | ">" | "|" as order, *_):
                self.stack[-1] = _DType(("<" if order == "|" else order) + code[-1])
            case dict(), dict():
                pass  # attributes of an OrderedDict, which torch sets on state dicts
            case _:
                raise RefusedError("it sets the state of something that has none")

    def load_setitem(self) -> None:
        """Set one item of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        """Set the items since the mark."""
        self._set_items(self.pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        keys, values = items[::2], items[1::2]
        # Hashing a tuple nested a million deep ends the process, so that the type is looked at first.
        if type(target) is not dict or not {type(key) for key in keys} <= _KEY_TYPES:
            raise RefusedError("it holds a dict whose keys are no numbers")
        size = len(target) + len(keys)
        target.update(zip(keys, values, strict=True))
        if len(target) != size:
            raise RefusedError("it holds the same key twice")


class _Opcodes(dict[int, Callable[[Any], None]]):
    """What each opcode does, for one pickle; refuses unknown opcodes and endless programs."""

    def __init__(self, opcodes: Mapping[int, Callable[[Any], None]]) -> None:
        super().__init__(opcodes)
        self._left = MAX_OPCODES

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self._left -= 1
        if self._left < 0:
            raise RefusedError(f"it is longer than {MAX_OPCODES} steps")
        return super().__getitem__(code)

    def __missing__(self, code: int) -> Callable[[Any], None]:
        raise RefusedError(f"it uses opcode {code:#04x}, which a centers.pt never holds")


class _DType(NamedTuple):
    code: str


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


def _make_dtype(name: object, *_: object) -> _DType:
    if not isinstance(name, str) or name not in _DTYPE_CODES:
        raise RefusedError("it holds a numpy value that is no number")
    return _DType("<" + _DTYPE_CODES[name])


def _make_scalar(dtype: object, data: object) -> object:
    if not isinstance(dtype, _DType) or not isinstance(data, bytes):
        raise RefusedError("it holds a numpy value that is no number")
    return struct.unpack(dtype.code, data)[0]


def _encode_latin1(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise RefusedError("it encodes a text")
    return text.encode("latin1")


def _make_dict() -> dict[Any, Any]:
    return {}


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
    ("numpy", "dtype"): _make_dtype,
    ("numpy.core.multiarray", "scalar"): _make_scalar,  # numpy 1
    ("numpy._core.multiarray", "scalar"): _make_scalar,
    ("_codecs", "encode"): _encode_latin1,  # how protocol 2 writes bytes
}
_STORAGE_CODES = frozenset("Bbhiqfd")
_KEY_TYPES = {int, float, str, Tensor}

_PLAIN_OPCODES = (
    pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWFALSE, pickle.NEWTRUE,
    pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT,
    pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINBYTES, pickle.SHORT_BINBYTES,
    pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
    pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT,
    pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET,
    pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.BINPERSID,
)  # fmt: skip
_SAFE_OPCODES: dict[int, Callable[[Any], None]] = {
    **{code[0]: pickle._Unpickler.dispatch[code[0]] for code in _PLAIN_OPCODES},
    pickle.SETITEM[0]: InertUnpickler.load_setitem,
    pickle.SETITEMS[0]: InertUnpickler.load_setitems,
    pickle.REDUCE[0]: InertUnpickler.load_reduce,
    pickle.BUILD[0]: InertUnpickler.load_build,
}
