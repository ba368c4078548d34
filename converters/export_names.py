"""Which images of a store can be written below a folder by their names, and why the others cannot."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dlas_store.errors import write_errors
from dlas_store.extra_fields import EXTRA_FILE
from dlas_store.source import CENTERS_FILE, REFERENCE_FILE, Image, Layout

_SEPARATORS = frozenset({"/", "\0", os.sep, os.altsep or os.sep})
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
_WINDOWS_SEPARATORS = frozenset(r'\/:*?"<>|')


class Folding(NamedTuple):
    """Which names a file system takes for the same.

    Attributes:
        case: those that differ in case only.
        form: those that differ in their Unicode form only.
        end: those that differ in dots or spaces at their end only.
    """

    case: bool
    form: bool
    end: bool

    @classmethod
    def of(cls, folder: Path) -> Folding:
        """Find out by a file in a folder, which is removed again.

        Raises:
            WriteError: no file can be created there.
        """
        name = "Probe-\u00c9"
        with write_errors(folder / name):
            (folder / name).touch()
            variants = (name.lower(), unicodedata.normalize("NFD", name), name + ".")
            found = cls(*((folder / variant).exists() for variant in variants))
            (folder / name).unlink()
        return found

    def key(self, path: str) -> str:
        """Return what is the same for all paths that the file system takes for the same."""
        if self.form:
            path = unicodedata.normalize("NFC", path)
        if self.case:
            path = path.casefold()
        if self.end:
            path = "/".join(part.rstrip(". ") for part in path.split("/"))
        return path


class ExportNames:
    """Tells which images can be written, asked in the order of the store.

    Of two images, or files of one, that would be the same file, the first is written.

    Args:
        layout: that of the store.
        folding: that of the file system.
        windows: whether names must be such as Windows can hold.
    """

    def __init__(self, layout: Layout, folding: Folding, *, windows: bool = os.name == "nt") -> None:
        self._layout = layout
        self._folding = folding
        self._windows = windows
        self._files: set[str] = set()
        self._folders: dict[str, str] = {}

    def why_refused(self, image: Image) -> str | None:
        """Return why an image cannot be written below the folder, None where it can."""
        parts = image.name.split("/") if self._layout == "pictures" else [image.name]
        files = image.files if self._layout == "chunked" else ()
        for name in [*parts, *files]:
            if name in ("", ".", "..") or _SEPARATORS.intersection(name):
                return f"{name!r} is no file name"
            if self._windows and not _is_windows_name(name):
                return f"{name!r} is no file name on Windows"
        if self._folding.key(parts[0]) == self._folding.key(EXTRA_FILE):
            return f"{EXTRA_FILE} is the name of the file for further fields"
        own = [REFERENCE_FILE, CENTERS_FILE]
        taken = set(map(self._folding.key, own))
        for file in files:
            if self._folding.key(file) in taken:
                same = next(other for other in [*own, *files] if self._folding.key(other) == self._folding.key(file))
                return f"{file!r} would be the same file as {same!r}"
            taken.add(self._folding.key(file))
        return self._why_in_the_way(parts)

    def _why_in_the_way(self, parts: list[str]) -> str | None:
        """Return what of an earlier image is in the way of a name; keep the name where that is nothing."""
        folders = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
        name = "/".join(parts)
        for folder in folders:
            key = self._folding.key(folder)
            if key in self._files:
                return f"its folder {folder!r} is the file of another image"
            if self._folders.get(key, folder) != folder:
                return f"its folder {folder!r} would be the same as {self._folders[key]!r}"
        key = self._folding.key(name)
        if key in self._files or key in self._folders:
            return "another image has the same name on that file system, or a folder of that name"
        self._files.add(key)
        self._folders.update((self._folding.key(folder), folder) for folder in folders)
        return None


def _is_windows_name(name: str) -> bool:
    is_reserved = _WINDOWS_DEVICES.fullmatch(name) or name.endswith((".", " "))
    return not (is_reserved or _WINDOWS_SEPARATORS.intersection(name) or any(ord(each) < 32 for each in name))


def sort_out(images: Iterable[tuple[int, Image]], names: ExportNames) -> tuple[list[int], list[tuple[str, str]]]:
    """Return the numbers of the images that can be written, and name and reason of the others."""
    numbers: list[int] = []
    refused: list[tuple[str, str]] = []
    for number, image in images:
        reason = names.why_refused(image)
        if reason is None:
            numbers.append(number)
        else:
            refused.append((image.name, reason))
    return numbers, refused
