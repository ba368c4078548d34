"""A folder's content: a walk that lists files and records skipped paths, and the extra fields in metadata.jsonl."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from dlas_store.errors import DamagedError, NotASourceError, counted

EXTRA_FILE = "metadata.jsonl"
"""Name of the file of extra fields, in the root of the folder."""

HIDDEN = "hidden or made by a system, taken with --include-hidden"
"""Reason to skip a hidden path, and all below it; see is_hidden."""

NEITHER = "neither a file nor a folder"
"""Reason to skip a device, a pipe or a socket, or a link to one."""

LOOP = "link to a folder that it lies in"
"""Reason to skip a link that would lead the walk to the link itself again, or out of the root to all that is beside."""

_SYSTEM_NAMES = frozenset({
    "__MACOSX", "@eaDir", "@Recycle", "#recycle", "@Recently-Snapshot", "#snapshot", "lost+found", "$RECYCLE.BIN",
    "System Volume Information",
})  # fmt: skip
"""Names that macOS, network drives, Linux file systems and Windows give to folders of their own."""

FILE_NAMES_ARE_UTF8 = sys.getfilesystemencoding().replace("-", "").lower() == "utf8"
"""Whether this process reads and writes file names as UTF-8; a Latin-1 locale makes Python do otherwise."""

_NAMES_IN_MESSAGE = 20
_SKIPPED_IN_MESSAGE = 3


class SkippedPath(NamedTuple):
    """A path in a folder that does not belong to the source.

    Attributes:
        path: path below the folder, with "/" between its parts.
        reason: why the path was skipped.
    """

    path: str
    reason: str


def describe_skipped(skipped: Sequence[SkippedPath]) -> str:
    """Return the first skipped paths with their reasons, as the end of an error message; "" if there are none."""
    shown = "; ".join(f"{path}: {reason}" for path, reason in skipped[:_SKIPPED_IN_MESSAGE])
    more = f" and {len(skipped) - _SKIPPED_IN_MESSAGE} more" if len(skipped) > _SKIPPED_IN_MESSAGE else ""
    return f"; left out: {shown}{more}" if shown else ""


class FolderWalk:
    """A walk over the folders below a root, which lists files and collects skipped paths.

    Attributes:
        root: the folder; all paths are relative to it.
        include_hidden: whether hidden paths are listed; otherwise they are skipped. The root itself may be hidden.
        skipped: the paths skipped so far; bytes of a name that are not UTF-8 are escaped.
    """

    def __init__(
        self, root: Path, *, include_hidden: bool = False, reason_of: Callable[[str], str | None] | None = None
    ) -> None:
        """Prepare a walk.

        Args:
            root: the folder.
            include_hidden: as above.
            reason_of: function that gives the reason to leave out the file at a path, None for a file that is taken.
                It is asked about names that are not UTF-8, which are an error only for files that would be taken.
        """
        self.root = root
        self._reason_of = reason_of
        self.include_hidden = include_hidden
        self.skipped: list[SkippedPath] = []
        self._not_utf8: list[str] = []

    def skip(self, paths: Iterable[str], reason: str) -> None:
        """Record paths as skipped."""
        self.skipped.extend(SkippedPath(path, reason) for path in paths)

    def identity(self, folder: str) -> tuple[int, int]:
        """Return (device, inode) of a folder, the same for every link to it.

        Raises:
            NotASourceError: the folder cannot be read.
        """
        try:
            status = (self.root / folder).stat()
        except OSError as error:
            raise self._unlistable(folder, error) from error
        return status.st_dev, status.st_ino

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the paths of all files and of all folders in one folder, unsorted; links are followed.

        Args:
            folder: path of the folder below the root, "" for the root.

        Raises:
            NotASourceError: the folder cannot be listed.
        """
        files: list[str] = []
        folders: list[str] = []
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if reason := self._reason_to_skip(entry, path):
                        self.skip([_escaped(path)], reason)
                    elif not is_utf8(entry.name):
                        self._not_utf8.append(path)
                    else:
                        (folders if entry.is_dir() else files).append(path)
        except OSError as error:
            raise self._unlistable(folder, error) from error
        return files, folders

    def files(self) -> Iterator[str]:
        """Yield the paths of all files at any depth, sorted by code point.

        The walk keeps the names of one folder for each level of depth. A link to a folder that contains the link is
        skipped, also if that folder lies above the root.
        """
        stack = [(self.around_root(), self._sorted_entries(""))]
        while stack:
            around, entries = stack[-1]
            path = next(entries, None)
            if path is None:
                stack.pop()
            elif path.endswith("/"):
                folder = path[:-1]
                identity = self.identity(folder)
                if identity in around:
                    self.skip([folder], LOOP)
                else:
                    location = self.root / folder
                    above = _identities_above(location) if location.is_symlink() else frozenset()
                    stack.append((around | above | {identity}, self._sorted_entries(folder)))
            else:
                yield path

    def around_root(self) -> frozenset[tuple[int, int]]:
        """Return the identities of the root and of every folder above it: no link in the root may lead there.

        Raises:
            NotASourceError: the root cannot be read.
        """
        return _identities_above(self.root) | {self.identity("")}

    def _reason_to_skip(self, entry: os.DirEntry[str], path: str) -> str | None:
        if not self.include_hidden and is_hidden(entry.name):
            return HIDDEN
        reason = _skip_reason(entry)
        if reason is None and self._reason_of is not None and not is_utf8(entry.name) and entry.is_file():
            return self._reason_of(path)
        return reason

    def _sorted_entries(self, folder: str) -> Iterator[str]:
        entries, folders = self.entries(folder)
        # A folder with "/" appended sorts like the paths below the folder: "a-b/1.jpg", "a.jpg", "a/1.jpg".
        entries.extend(f"{path}/" for path in folders)
        entries.sort()
        return iter(entries)

    def finish(self) -> None:
        """Check, at the end of the walk, that Python reads all listed names as UTF-8.

        Raises:
            NotASourceError: some names are not UTF-8, or the locale makes Python read names otherwise; the message
                shows the first 20.
        """
        if self._not_utf8:
            names = ", ".join(repr(os.fsencode(path)) for path in self._not_utf8[:_NAMES_IN_MESSAGE])
            ellipsis = ", ..." if len(self._not_utf8) > _NAMES_IN_MESSAGE else ""
            count = len(self._not_utf8)
            verb, them = ("is", "it") if count == 1 else ("are", "them")
            problem = f"{verb} not UTF-8, rename {them}" if FILE_NAMES_ARE_UTF8 else f"{verb} {locale_problem()}"
            raise NotASourceError(f"{self.root}: {counted(count, 'name')} {problem}: {names}{ellipsis}")

    def _unlistable(self, folder: str, error: OSError) -> NotASourceError:
        advice = "; allow it, or move the folder away" if isinstance(error, PermissionError) else ""
        return NotASourceError(f"{self.root / folder}: cannot be listed ({error.strerror}){advice}")


class ExtraFields:
    """The extra fields of a folder's images, from metadata.jsonl: one JSON object a line, one line an image.

    Opening parses every line, but keeps only its offset in the file; of() parses the line again. A file of Hugging
    Face's datasets has the same name, but its lines have a "file_name" and no "image"; such a file is not read.

    Args:
        root: the folder; metadata.jsonl may be missing.
        images: names of the images whose fields may be asked for; None means all images.

    Attributes:
        is_foreign: whether the file is one of Hugging Face's.

    Raises:
        DamagedError: a line is no JSON object with an "image", or an image has a second line.
    """

    def __init__(self, root: Path, *, images: Collection[str] | None) -> None:
        self._path = root / EXTRA_FILE
        self._offsets: dict[str, int] = {}
        self.is_foreign = False
        try:
            if not self._path.is_file():
                return
            self._index(None if images is None else frozenset(images))
        except OSError as error:
            raise DamagedError(f"{self._path}: cannot be read ({error.strerror})") from error

    @property
    def images(self) -> Collection[str]:
        """Names of the images that have a line."""
        return self._offsets.keys()

    def of(self, image: str) -> dict[str, Any]:
        """Return the extra fields of an image, an empty dict if the image has no line.

        Raises:
            DamagedError: the file changed or became unreadable since it was opened.
        """
        offset = self._offsets.get(image)
        if offset is None:
            return {}
        try:
            with self._path.open("rb") as file:
                file.seek(offset)
                name, fields = _parse(file.readline())
        except (OSError, ValueError) as error:
            raise DamagedError(f"{self._path}: changed or unreadable since it was opened ({error})") from error
        if name != image:
            raise DamagedError(f"{self._path}: changed since it was opened; open the folder again")
        return fields

    def _index(self, images: Collection[str] | None) -> None:
        offset = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1 and _is_line_of_hugging_face(line):
                    self.is_foreign = True
                    return
                try:
                    name, _ = _parse(line)
                except ValueError as error:
                    raise self._damaged(number, str(error)) from error
                if name in self._offsets:
                    raise self._damaged(number, f"a second line of {name!r}")
                if images is None or name in images:
                    self._offsets[name] = offset
                offset += len(line)

    def _damaged(self, number: int, problem: str) -> DamagedError:
        return DamagedError(
            f'{self._path}: line {number}: {problem}; expected one {{"image": NAME, ...}} for each image: '
            "mend the line or move the file away"
        )


def extra_line(image: str, extra: Mapping[str, Any]) -> str:
    r"""Return the line of an image in metadata.jsonl, a JSON object.

    >>> extra_line("cat_0", {"label": 3})
    '{"image": "cat_0", "label": 3}\n'
    """
    return json.dumps({"image": image, **extra}, ensure_ascii=False, allow_nan=False) + "\n"


def is_hidden(name: str) -> bool:
    """Return whether the name of a file or folder begins with a dot, or is one that a system gives to its own folders.

    >>> is_hidden(".ipynb_checkpoints"), is_hidden("__MACOSX"), is_hidden("cat")
    (True, True, False)
    """
    return name.startswith(".") or name in _SYSTEM_NAMES


def locale_problem() -> str:
    """Return the reason why this process cannot read or write file names that are not ASCII, and the way out."""
    encoding = sys.getfilesystemencoding()
    return f"not ASCII, and Python takes file names as {encoding} in this locale; set PYTHONUTF8=1 and start again"


def is_utf8(name: str) -> bool:
    """Return whether this process reads and writes a file name as UTF-8; in another locale only ASCII names are."""
    if name.isascii():
        return True
    if not FILE_NAMES_ARE_UTF8:
        return False
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _skip_reason(entry: os.DirEntry[str]) -> str | None:
    try:
        if entry.is_dir() or entry.is_file():
            return None
    except OSError as error:
        return f"link that cannot be followed ({error.strerror})"
    return NEITHER if os.path.exists(entry.path) else "broken link"  # noqa: PTH110 - as is_dir, without a Path


def _identities_above(folder: Path) -> frozenset[tuple[int, int]]:
    """Return (device, inode) of every folder above the place of a folder, links resolved, that can be read."""
    identities = set()
    for parent in Path(os.path.realpath(folder)).parents:
        with suppress(OSError):
            status = parent.stat()
            identities.add((status.st_dev, status.st_ino))
    return frozenset(identities)


def _escaped(path: str) -> str:
    return path if is_utf8(path) else os.fsencode(path).decode(errors="backslashreplace")


def _is_line_of_hugging_face(line: bytes) -> bool:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(fields, dict) or isinstance(fields.get("image"), str):
        return False
    return any(key.endswith(("file_name", "file_names")) for key in fields)


def _parse(line: bytes) -> tuple[str, dict[str, Any]]:
    """Return the image name and the extra fields of a line.

    Raises:
        ValueError: the line is no JSON object with an "image", or msgpack cannot encode the object.
    """
    try:
        fields = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("image"), str):
        raise ValueError('no object with an "image"')  # noqa: TRY004 - the file is wrong, not the argument's type
    try:
        msgpack.packb(fields)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"a store cannot hold it ({error})") from error
    return fields.pop("image"), fields
