"""Model of a disk after power loss: recorded calls are replayed, and any call that no sync has covered may be lost.

The model assumes only the promises of POSIX:

* Bytes of a file may be lost until a later fsync of the file covers them. Each 4 KiB block is lost independently, with
  or without the growth of the file.
* The creation, removal and renaming of names may be lost until a later fsync of their folder covers them. A rename is
  lost as a whole or not at all.
* sync covers everything.
* A folder whose own name was never synced may be lost with all its contents.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.reliability.support.faults import Call, Record

BLOCK = 4096


class _Folder:
    """Folder of the recorded machine; folders are compared by identity."""


class _File:
    """File of the recorded machine, with the bytes before the first recorded call."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = content


_Node = _Folder | _File
_Names = dict[_Folder, dict[str, _Node]]


@dataclass
class _Effect:
    """Effect of a call on the disk.

    Attributes:
        ended: time of the end of the call.
        home: file or folder whose fsync makes the effect durable.
        record: the call.
        names: (folder, name, node) of each name that the call set; node is None for a removed name.
        covered: position, among the calls, of the sync that made the effect durable; beyond the end if no sync did.
    """

    ended: int
    home: _Node
    record: Record
    names: list[tuple[_Folder, str, _Node | None]] = field(default_factory=list)
    covered: int = 1 << 62


class Disk:
    """History of a folder: the first state, and all calls that changed the folder.

    Args:
        root: absolute path of the folder during the recording.
        before: copy of the folder before the first call.
        records: calls, sorted by their end.
    """

    def __init__(self, root: Path, before: Path, records: Sequence[Record]) -> None:
        self._root = str(root)
        self._top = _Folder()
        self._start: _Names = {}
        self._load(self._top, before)
        self._effects: list[_Effect | None] = []
        names: _Names = {folder: dict(entries) for folder, entries in self._start.items()}
        pending: list[_Effect] = []
        for position, record in enumerate(records):
            if record.call in (Call.SYNC_FILE, Call.SYNC_ALL):
                node = None if record.call == Call.SYNC_ALL else self._find(names, record.path)
                for effect in pending:
                    if effect.ended < record.begun and (node is None or effect.home is node):
                        effect.covered = position
                pending = [effect for effect in pending if effect.covered > position]
                self._effects.append(None)
                continue
            effect = self._effect(names, record)
            if record.is_durable:
                effect.covered = position
            else:
                pending.append(effect)
            self._effects.append(effect)

    def __len__(self) -> int:
        """Number of calls."""
        return len(self._effects)

    def write_as_it_was(self, folder: Path, end: int) -> None:
        """Write the folder after the first ``end`` calls, without any loss."""
        self._write(folder, end, None)

    def write_after_power_loss(self, folder: Path, end: int, rng: random.Random) -> None:
        """Write a random possible state of the folder after power loss behind the first ``end`` calls."""
        self._write(folder, end, rng)

    def write_what_was_synced(self, folder: Path, end: int) -> None:
        """Write the folder after power loss behind the first ``end`` calls, with the greatest possible loss."""
        self._write(folder, end, random.Random(0), keep=(0,))

    def _load(self, node: _Folder, folder: Path) -> None:
        entries: dict[str, _Node] = {}
        self._start[node] = entries
        for path in folder.iterdir():
            if path.is_dir():
                entries[path.name] = child = _Folder()
                self._load(child, path)
            else:
                entries[path.name] = _File(path.read_bytes())

    def _parts(self, path: str) -> list[str]:
        assert path == self._root or path.startswith(self._root + "/"), path
        return [part for part in path[len(self._root) :].split("/") if part]

    def _find(self, names: _Names, path: str) -> _Node:
        node: _Node = self._top
        for part in self._parts(path):
            assert isinstance(node, _Folder)
            node = names[node][part]
        return node

    def _place(self, names: _Names, path: str) -> tuple[_Folder, str]:
        parent, _, name = path.rpartition("/")
        folder = self._find(names, parent)
        assert isinstance(folder, _Folder)
        return folder, name

    def _effect(self, names: _Names, record: Record) -> _Effect:
        """Return the effect of a call, and apply the effect to ``names``."""
        if record.call in (Call.WRITE, Call.TRUNCATE, Call.ALLOCATE):
            return _Effect(record.ended, self._find(names, record.path), record)
        folder, name = self._place(names, record.path)
        changes: list[tuple[_Folder, str, _Node | None]]
        home = folder
        match record.call:
            case Call.CREATE:
                changes = [(folder, name, _File())]
            case Call.MKDIR:
                new_folder = _Folder()
                names[new_folder] = {}
                changes = [(folder, name, new_folder)]
            case Call.UNLINK | Call.RMDIR:
                changes = [(folder, name, None)]
            case Call.RENAME | Call.LINK:
                node = names[folder][name]
                home, other = self._place(names, record.other)
                removal: list[tuple[_Folder, str, _Node | None]] = [(folder, name, None)]
                changes = [*(removal if record.call == Call.RENAME else []), (home, other, node)]
            case _:
                raise AssertionError(record.call)
        _rename(names, changes)
        return _Effect(record.ended, home, record, changes)

    def _write(
        self, folder: Path, end: int, rng: random.Random | None, *, keep: Sequence[float] = (0, 0.5, 0.9, 1)
    ) -> None:
        names: _Names = {node: dict(entries) for node, entries in self._start.items()}
        contents: dict[_File, bytearray] = {}
        # Chances near 0 and 1, drawn separately for names and data, give states that fair coins would hardly ever give.
        keep_names, keep_data = (1.0, 1.0) if rng is None else (rng.choice(keep) for _ in range(2))
        for effect in self._effects[:end]:
            if effect is None:
                continue
            is_safe = rng is None or effect.covered < end
            if effect.names:
                if is_safe or _is_kept(rng, keep_names):
                    _rename(names, effect.names)
                continue
            assert isinstance(effect.home, _File)
            content = contents.setdefault(effect.home, bytearray(effect.home.content))
            if is_safe:
                _change(content, effect.record, None, 1)
            elif effect.record.call == Call.WRITE or _is_kept(rng, keep_data):
                _change(content, effect.record, rng, keep_data)
        self._materialise(folder, self._top, names, contents)

    def _materialise(self, path: Path, node: _Folder, names: _Names, contents: dict[_File, bytearray]) -> None:
        path.mkdir(exist_ok=True)
        for name, child in names.get(node, {}).items():
            if isinstance(child, _Folder):
                self._materialise(path / name, child, names, contents)
            else:
                (path / name).write_bytes(contents.get(child, child.content))


def _is_kept(rng: random.Random | None, chance: float) -> bool:
    assert rng is not None
    return rng.random() < chance


def _rename(names: _Names, changes: list[tuple[_Folder, str, _Node | None]]) -> None:
    for folder, name, node in changes:
        entries = names.setdefault(folder, {})
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


def _change(content: bytearray, record: Record, rng: random.Random | None, keep: float) -> None:
    """Apply a call to a file's bytes; with ``draw``, apply each block of a write only with the chance ``keep``."""
    end = record.offset + record.length
    if record.call == Call.TRUNCATE:
        _resize(content, record.length)
    elif record.call == Call.ALLOCATE:
        _resize(content, max(len(content), end))
    else:
        if rng is not None and rng.random() < 0.5:
            _resize(content, max(len(content), end))  # the file grew, but the bytes did not reach the disk
        for start, stop in _blocks(record.offset, end):
            if rng is None or rng.random() < keep:
                _resize(content, max(len(content), stop))
                content[start:stop] = record.data[start - record.offset : stop - record.offset]


def _blocks(start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        stop = min(end, (start // BLOCK + 1) * BLOCK)
        yield start, stop
        start = stop


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))
