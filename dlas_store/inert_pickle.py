"""Reading a pickle without importing, calling or allocating anything that it asks for.

A pickle is a program. Here only the opcodes that build plain values run, the few names that a kind of file is known to
hold are replaced by functions of our own, and every other opcode or name is refused. PickleRules say which they are.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

MAX_OPCODES = 1 << 22
"""About 400,000 centres of plain numbers. An opcode can hold some 100 bytes of memory, so 400 MB at the worst."""

_NAME_IN_MESSAGE = 80


class RefusedError(pickle.UnpicklingError):
    """The pickle asks for what a file of its kind never holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PickleRules:
    """What pickles of one kind may hold.

    Attributes:
        what: the kind, for messages.
        names: what stands for each (module, name) that they may name.
        opcodes: what each opcode does that they may use.
        key_types: of the keys of their dicts.
    """

    what: str
    names: Mapping[tuple[str, str], object]
    opcodes: Mapping[int, Callable[[Any], None]]
    key_types: frozenset[type]


class Unfinished(ABC):
    """What a pickle sets the state of after it made it."""

    @abstractmethod
    def with_state(self, state: object) -> object:
        """Return what it becomes, or raise RefusedError."""


class Storage(NamedTuple):
    """Where the numbers of a tensor lie: outside the pickle.

    Attributes:
        code: struct code of one number.
        key: name of the storage.
    """

    code: str
    key: str


STORAGE_CODES = frozenset("Bbhiqfd")
"""Struct codes of the numbers that a storage may hold."""


class InertUnpickler(pickle._Unpickler):
    """Loads dicts, lists, tuples, strings and numbers, and what the rules name.

    Byte strings of Python 2 become str, a character a byte.

    It builds on the Python unpickler because the one in C reserves memory for whatever memo index a file names, and
    can neither be kept from other opcodes nor be stopped.

    Raises:
        RefusedError: the pickle asks for more than that.
        Exception: of nearly any kind, for bytes that are no pickle; the caller maps them.
    """

    # What the Python unpickler has and its type stub leaves out.
    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: BinaryIO, rules: PickleRules) -> None:
        """Take a file, and what it may hold."""
        super().__init__(file, encoding="latin1")
        self.storages: dict[str, str] = {}
        """Key -> code of all storages that were named."""
        self._rules = rules
        self.dispatch = _Opcodes(self._rules)  # type: ignore[misc]

    def find_class(self, module: str, name: str) -> object:
        """Return what stands here for a name."""
        try:
            return self._rules.names[module, name]
        except KeyError:
            named = ascii(f"{module}.{name}"[:_NAME_IN_MESSAGE])
            raise RefusedError(
                f"it names {named}, which {self._rules.what} never holds and which was not run"
            ) from None

    def persistent_load(self, pid: object) -> Storage:
        """Return the storage that a persistent id names."""
        match pid:
            case ("storage", str(code), str(key), _, _) | ("storage", str(code), str(key), _, _, None) if (
                self.storages.setdefault(key, code) == code in STORAGE_CODES
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
        """Set the state of what has one."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Unfinished):
            self.stack[-1] = target.with_state(state)
        elif not (isinstance(target, dict) and isinstance(state, dict)):  # attributes, which torch sets on state dicts
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
        if type(target) is not dict or not {type(key) for key in keys} <= self._rules.key_types:
            raise RefusedError("it holds a dict whose keys are of the wrong type")
        size = len(target) + len(keys)
        target.update(zip(keys, values, strict=True))
        if len(target) != size:
            raise RefusedError("it holds the same key twice")


class _Opcodes(dict[int, Callable[[Any], None]]):
    """What each opcode does, for one pickle; refuses unknown opcodes and endless programs."""

    def __init__(self, rules: PickleRules) -> None:
        super().__init__(rules.opcodes)
        self._what = rules.what
        self._left = MAX_OPCODES

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self._left -= 1
        if self._left < 0:
            raise RefusedError(f"it is longer than {MAX_OPCODES} steps")
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
"""What builds plain values in every pickle that torch, numpy and Python 3 write."""
