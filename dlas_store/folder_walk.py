"""One pass over a folder: what is listed, and what is left out of it and why."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from dlas_store.errors import NotASourceError

_NAMES_IN_MESSAGE = 20


class LeftOut(NamedTuple):
    """Something in a folder that is no part of the source.

    Attributes:
        path: below the root of the folder, with "/" between its parts.
        reason: why it was left out.
    """

    path: str
    reason: str


class FolderWalk:
    """Lists the folders below a root and gathers what is left out.

    Attributes:
        root: where all paths begin.
        left_out: what was left out so far.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.left_out: list[LeftOut] = []
        self._not_utf8: list[str] = []

    def leave_out(self, paths: Iterable[str], reason: str) -> None:
        """Note paths as left out."""
        self.left_out.extend(LeftOut(path, reason) for path in paths)

    def identity(self, folder: str) -> tuple[int, int]:
        """Return what tells a folder from every other, whichever links lead to it."""
        try:
            status = (self.root / folder).stat()
        except OSError as error:
            raise self._unreadable(folder, error) from error
        return status.st_dev, status.st_ino

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the paths of the files and of the folders in a folder, unsorted; links are followed.

        Args:
            folder: path below the root, "" for the root.

        Raises:
            NotASourceError: the folder cannot be listed.
        """
        files: list[str] = []
        folders: list[str] = []
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if not _is_utf8(entry.name):
                        self._not_utf8.append(path)
                    elif reason := _why_unusable(entry):
                        self.leave_out([path], reason)
                    else:
                        (folders if entry.is_dir() else files).append(path)
        except OSError as error:
            raise self._unreadable(folder, error) from error
        return files, folders

    def files(self) -> Iterator[str]:
        """Yield the paths of all files at any depth, sorted by code point.

        Holds one folder's names for each level of depth. A link to a folder that it lies in is left out.
        """
        above = [(self.identity(""), self._sorted_entries(""))]
        while above:
            path = next(above[-1][1], None)
            if path is None:
                above.pop()
            elif path.endswith("/"):
                folder = path[:-1]
                identity = self.identity(folder)
                if any(identity == other for other, _ in above):
                    self.leave_out([folder], "link to a folder that it lies in")
                else:
                    above.append((identity, self._sorted_entries(folder)))
            else:
                yield path

    def _sorted_entries(self, folder: str) -> Iterator[str]:
        entries, folders = self.entries(folder)
        # With its "/" a folder sorts among the files where the paths below it do: "a-b/1.jpg", "a.jpg", "a/1.jpg".
        entries.extend(f"{path}/" for path in folders)
        entries.sort()
        return iter(entries)

    def finish(self) -> None:
        """Raise NotASourceError if any name met was not UTF-8."""
        if self._not_utf8:
            shown = ", ".join(repr(os.fsencode(path)) for path in self._not_utf8[:_NAMES_IN_MESSAGE])
            more = ", ..." if len(self._not_utf8) > _NAMES_IN_MESSAGE else ""
            raise NotASourceError(f"{self.root}: {len(self._not_utf8)} names are not UTF-8, rename them: {shown}{more}")

    def _unreadable(self, folder: str, error: OSError) -> NotASourceError:
        return NotASourceError(f"{self.root / folder}: cannot be listed ({error.strerror})")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _why_unusable(entry: os.DirEntry[str]) -> str | None:
    try:
        if entry.is_dir() or entry.is_file():
            return None
    except OSError as error:
        return f"link that cannot be followed ({error.strerror})"
    return "broken link" if entry.is_symlink() else "neither a file nor a folder"
