"""Restricted unpickler: it imports, calls and allocates nothing that a hostile pickle asks for.

A pickle is a program. InertUnpickler runs only the opcodes that build plain values. PickleRules list these opcodes and
the few names that one kind of file may hold, each with a replacement from this library. Every other opcode or name is
refused. The functions at the end are replacements for the names in numpy's pickles.
"""

from __future__ import annotations

import pickle
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

MAX_OPCODES = 1 << 22
"""Limit of opcodes in a pickle, enough for 400,000 centres. An opcode may allocate some 100 bytes: at worst 400 MB."""

STORAGE_CODES = frozenset("Bbhiqfd")
"""Struct codes of the types of number that a storage may hold."""

_DTYPE_CODES = {
    "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q", "f4": "f", "f8": "d",
}  # fmt: skip
"""NumPy's name of a type of number -> its struct code."""

_NAME_IN_MESSAGE = 80


class RefusedError(pickle.UnpicklingError):
    """A pickle that holds something that its rules do not allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PickleRules:
    """The allowed contents of one kind of pickle.

    Attributes:
        kind: name of the kind of file, for messages.
        names: allowed (module, name) -> the object that replaces it.
        opcodes: allowed opcode -> its implementation.
        key_types: allowed types of dict keys.
    """

    kind: str
    names: Mapping[tuple[str, str], object]
    opcodes: Mapping[int, Callable[[Any], None]]
    key_types: frozenset[type]


class UnfinishedObject(ABC):
    """An object that a pickle creates first and gives its state afterwards."""

    @abstractmethod
    def with_state(self, state: object) -> object:
        """Return the object with its state.

        Raises:
            RefusedError: no known object has this state.
        """


class Storage(NamedTuple):
    """A reference to a tensor's numbers, which a torch file stores outside the pickle.

    Attributes:
        code: struct code of one number.
        key: name of the storage.
    """

    code: str
    key: str


class InertUnpickler(pickle._Unpickler):
    """An unpickler of dicts, lists, tuples, strings, numbers, and the names in its rules.

    A byte string of Python 2 becomes a str with one character for each byte.

    The base class is the standard library's unpickler in Python. Its unpickler in C would reserve memory for any memo
    index in the file, and would run every opcode, however many there are.

    Raises:
        RefusedError: the pickle holds something that the rules do not allow.
        Exception: the bytes are no pickle; nearly any kind of exception, which the caller maps.
    """

    # Attributes that the type stub of the base class omits.
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: BinaryIO, rules: PickleRules) -> None:
        """Create an unpickler of a file by rules."""
        super().__init__(file, encoding="latin1")
        self.storages: dict[str, str] = {}
        """Key -> struct code of each storage in the pickle."""
        self._rules = rules
        self.dispatch = _Opcodes(self._rules)  # type: ignore[misc]

    def find_class(self, module: str, name: str) -> object:
        """Return the object that replaces a name, or raise RefusedError for a name that the rules lack."""
        try:
            return self._rules.names[module, name]
        except KeyError:
            full_name = ascii(f"{module}.{name}"[:_NAME_IN_MESSAGE])
            raise RefusedError(
                f"it names {full_name}, which {self._rules.kind} never holds and which was not run"
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
        """Call a replacement, which is a function of this library, with the pickled arguments."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple) or not callable(function):
            raise RefusedError("it calls something that is no function")
        self.append(function(*arguments))

    def load_build(self) -> None:
        """Set the state of an UnfinishedObject; the attributes of a dict are ignored."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, UnfinishedObject):
            self.stack[-1] = target.with_state(state)
        elif not (isinstance(target, dict) and isinstance(state, dict)):  # torch sets attributes of state dicts
            raise RefusedError("it sets the state of something that has none")

    def load_setitem(self) -> None:
        """Set an item of a dict; the stack ends with the dict, the key and the value."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        """Set items of a dict; keys and values lie above the stack's mark, the dict lies below the mark."""
        self._set_items(self.pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        keys, values = items[::2], items[1::2]
        # The types are checked before a key is hashed, because hashing a tuple nested a million deep ends the process.
        if type(target) is not dict or not {type(key) for key in keys} <= self._rules.key_types:
            raise RefusedError("it holds a dict whose keys are of the wrong type")
        size = len(target) + len(keys)
        target.update(zip(keys, values, strict=True))
        if len(target) != size:
            raise RefusedError("it holds the same key twice")


class _Opcodes(dict[int, Callable[[Any], None]]):
    """The opcode table for one pickle, which refuses unknown opcodes and more than MAX_OPCODES look-ups."""

    def __init__(self, rules: PickleRules) -> None:
        super().__init__(rules.opcodes)
        self._kind = rules.kind
        self._remaining_lookups = MAX_OPCODES

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self._remaining_lookups -= 1
        if self._remaining_lookups < 0:
            raise RefusedError(f"it has more than {MAX_OPCODES} opcodes")
        return super().__getitem__(code)

    def __missing__(self, code: int) -> Callable[[Any], None]:
        raise RefusedError(f"it uses opcode {code:#04x}, which {self._kind} never holds")


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


@dataclass(frozen=True, slots=True)
class DType(UnfinishedObject):
    """A type of number in numpy's pickles.

    Attributes:
        code: byte order and struct code of one number.
    """

    code: str

    def with_state(self, state: object) -> DType:
        """Return the type with the byte order in a pickled state; other values of the state are ignored."""
        match state:
            case (_, "<" | ">" | "|" as order, *_):
                return DType(("<" if order == "|" else order) + self.code[-1])
        raise RefusedError("it sets the state of something that has none")


def make_dtype(name: object, *_: object) -> DType:
    """Return the type of a name; the replacement for numpy.dtype."""
    if not isinstance(name, str) or name not in _DTYPE_CODES:
        raise RefusedError("it holds a numpy value that is no number")
    return DType("<" + _DTYPE_CODES[name])


def make_scalar(dtype: object, data: object) -> object:
    """Return a Python number; the replacement for numpy.core.multiarray.scalar."""
    if not isinstance(dtype, DType) or not isinstance(data, bytes):
        raise RefusedError("it holds a numpy value that is no number")
    return struct.unpack(dtype.code, data)[0]


def encode_latin1(text: object, encoding: object) -> bytes:
    """Return bytes; the replacement for _codecs.encode, by which pickle protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise RefusedError("it encodes a text")
    return text.encode("latin1")
