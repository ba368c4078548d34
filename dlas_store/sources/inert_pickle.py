"""A restricted unpickler: it imports, calls and allocates nothing on a pickle's demand.

A pickle is a program. This unpickler runs only the opcodes that build plain values, and replaces the few known names of
a kind of file by functions of this library. It refuses every other opcode and name. PickleRules list both.

Replacements, in an inert pickle, for the names by which numpy pickles its types and numbers.
"""

from __future__ import annotations

import pickle
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

MAX_OPCODES = 1 << 22
"""Limit of opcodes a pickle, enough for 400,000 centres. An opcode can allocate some 100 bytes, so 400 MB at worst."""

_NAME_IN_MESSAGE = 80


class RefusedError(pickle.UnpicklingError):
    """A pickle with something that no file of its kind holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PickleRules:
    """The allowed contents of one kind of pickle.

    Attributes:
        what: name of the kind, for messages.
        names: allowed (module, name) -> the object that replaces it.
        opcodes: allowed opcode -> its implementation.
        key_types: allowed types of dict keys.
    """

    what: str
    names: Mapping[tuple[str, str], object]
    opcodes: Mapping[int, Callable[[Any], None]]
    key_types: frozenset[type]


class Unfinished(ABC):
    """An object that a pickle creates first and gives its state afterwards."""

    @abstractmethod
    def with_state(self, state: object) -> object:
        """Return the object with its state.

        Raises:
            RefusedError: no known object has this state.
        """


class Storage(NamedTuple):
    """A reference to the numbers of a tensor, which lie outside the pickle.

    Attributes:
        code: struct code of one number.
        key: name of the storage.
    """

    code: str
    key: str


STORAGE_CODES = frozenset("Bbhiqfd")
"""Struct codes of the types of number that a storage may hold."""


class InertUnpickler(pickle._Unpickler):
    """Loads dicts, lists, tuples, strings, numbers, and the names in its rules.

    Byte strings of Python 2 become str, one character a byte.

    The base class is the unpickler in Python. The one in C reserves memory for any memo index in the file, runs every
    opcode, and cannot be stopped.

    Raises:
        RefusedError: the pickle holds something that the rules do not allow.
        Exception: nearly any kind, for bytes that are no pickle; the caller maps it.
    """

    # Attributes of the unpickler in Python that its type stub omits.
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: BinaryIO, rules: PickleRules) -> None:
        """Take a file and the rules for it."""
        super().__init__(file, encoding="latin1")
        self.storages: dict[str, str] = {}
        """Key -> struct code of each storage in the pickle."""
        self._rules = rules
        self.dispatch = _Opcodes(self._rules)  # type: ignore[misc]

    def find_class(self, module: str, name: str) -> object:
        """Return the object that replaces a name."""
        try:
            return self._rules.names[module, name]
        except KeyError:
            full_name = ascii(f"{module}.{name}"[:_NAME_IN_MESSAGE])
            raise RefusedError(
                f"it names {full_name}, which {self._rules.what} never holds and which was not run"
            ) from None

    def persistent_load(self, pid: object) -> Storage:
        """Return the storage of a persistent id."""
        match pid:
            case ("storage", str(code), str(key), _, _) | ("storage", str(code), str(key), _, _, None) if (
                self.storages.setdefault(key, code) == code in STORAGE_CODES
            ):
                return Storage(code, key)
        raise RefusedError("it refers to something other than a tensor of numbers")

    def load_reduce(self) -> None:
        """Call a function of this library that replaces a name."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple) or not callable(function):
            raise RefusedError("it calls something that is no function")
        self.append(function(*arguments))

    def load_build(self) -> None:
        """Set the state of an Unfinished object; the attributes of a dict are ignored."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Unfinished):
            self.stack[-1] = target.with_state(state)
        elif not (isinstance(target, dict) and isinstance(state, dict)):  # torch sets attributes of state dicts
            raise RefusedError("it sets the state of something that has none")

    def load_setitem(self) -> None:
        """Set the topmost item in the dict below it."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        """Set the items above the mark in the dict below it."""
        self._set_items(self.pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        keys, values = items[::2], items[1::2]
        # Hashing a tuple nested a million deep ends the process, so the types are checked first.
        if type(target) is not dict or not {type(key) for key in keys} <= self._rules.key_types:
            raise RefusedError("it holds a dict whose keys are of the wrong type")
        size = len(target) + len(keys)
        target.update(zip(keys, values, strict=True))
        if len(target) != size:
            raise RefusedError("it holds the same key twice")


class _Opcodes(dict[int, Callable[[Any], None]]):
    """The opcode table of one pickle; it refuses unknown opcodes and more than MAX_OPCODES steps."""

    def __init__(self, rules: PickleRules) -> None:
        super().__init__(rules.opcodes)
        self._what = rules.what
        self._steps_left = MAX_OPCODES

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self._steps_left -= 1
        if self._steps_left < 0:
            raise RefusedError(f"it has more than {MAX_OPCODES} opcodes")
        return super().__getitem__(code)

    def __missing__(self, code: int) -> Callable[[Any], None]:
        raise RefusedError(f"it uses opcode {code:#04x}, which {self._what} never holds")


_PLAIN_OPCODES = (
    pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWFALSE, pickle.NEWTRUE,
    pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT,
    pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINBYTES, pickle.SHORT_BINBYTES,
    pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
    pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT,
    pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET,
    pickle.GLOBAL, pickle.STACK_GLOBAL,
)  # fmt: skip
SAFE_OPCODES: dict[int, Callable[[Any], None]] = {
    **{code[0]: pickle._Unpickler.dispatch[code[0]] for code in _PLAIN_OPCODES},
    pickle.SETITEM[0]: InertUnpickler.load_setitem,
    pickle.SETITEMS[0]: InertUnpickler.load_setitems,
    pickle.REDUCE[0]: InertUnpickler.load_reduce,
    pickle.BUILD[0]: InertUnpickler.load_build,
}
"""Opcodes that build plain values, as torch, numpy and Python 3 write them."""


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
