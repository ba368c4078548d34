"""Many names in little memory."""

from __future__ import annotations

from array import array
from bisect import bisect_left


class Names:
    """A growing list of names, kept as one UTF-8 string: some 8 bytes a name beyond its own.

    A list of str costs five times as much, and a forked process copies it page by page as it counts references.

    >>> names = Names()
    >>> for name in ("a", "b", "é"):
    ...     names.append(name)
    >>> names[2], len(names), names.find_sorted("b", 0, 3), names.find_sorted("c", 0, 3)
    ('é', 3, 1, None)
    """

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends = array("Q", [0])

    def append(self, name: str) -> None:
        """Add a name at the end."""
        self._text += name.encode()
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._ends) - 1

    def __getitem__(self, position: int) -> str:
        """Return the name at 0 <= position < len(self)."""
        return self._text[self._ends[position] : self._ends[position + 1]].decode()

    def find_sorted(self, name: str, start: int, stop: int) -> int | None:
        """Return the position of a name among those from start up to stop, which are sorted by code point."""
        position = bisect_left(self, name, start, stop)
        return position if position < stop and self[position] == name else None
