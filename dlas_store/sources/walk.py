"""A folder's content: a walk that lists files and records skipped paths, and the extra fields in metadata.jsonl."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from dlas_store.errors import DamagedError, NotASourceError

EXTRA_FILE = "metadata.jsonl"
"""Name of the file of extra fields, in the root of the folder."""

_NAMES_IN_MESSAGE = 20


class SkippedPath(NamedTuple):
    """A path in a folder that does not belong to the source.

    Attributes:
        path: path below the folder, with "/" between its parts.
        reason: why the path was skipped.
    """

    path: str
    reason: str


class FolderWalk:
    """A walk over the folders below a root, which lists files and collects skipped paths.

    Attributes:
        root: the folder; all paths are relative to it.
        skipped: the paths skipped so far.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
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
                    if not _is_utf8(entry.name):
                        self._not_utf8.append(path)
                    elif reason := _skip_reason(entry):
                        self.skip([path], reason)
                    else:
                        (folders if entry.is_dir() else files).append(path)
        except OSError as error:
            raise self._unlistable(folder, error) from error
        return files, folders

    def files(self) -> Iterator[str]:
        """Yield the paths of all files at any depth, sorted by code point.

        The walk keeps the names of one folder for each level of depth. A link to a folder that contains the link is
        skipped.
        """
        stack = [(self.identity(""), self._sorted_entries(""))]
        while stack:
            path = next(stack[-1][1], None)
            if path is None:
                stack.pop()
            elif path.endswith("/"):
                folder = path[:-1]
                identity = self.identity(folder)
                if any(identity == ancestor for ancestor, _ in stack):
                    self.skip([folder], "link to a folder that it lies in")
                else:
                    stack.append((identity, self._sorted_entries(folder)))
            else:
                yield path

    def _sorted_entries(self, folder: str) -> Iterator[str]:
        entries, folders = self.entries(folder)
        # A folder with "/" appended sorts like the paths below the folder: "a-b/1.jpg", "a.jpg", "a/1.jpg".
        entries.extend(f"{path}/" for path in folders)
        entries.sort()
        return iter(entries)

    def finish(self) -> None:
        """Check, at the end of the walk, that all listed names are UTF-8.

        Raises:
            NotASourceError: some names are not; the message shows the first 20.
        """
        if self._not_utf8:
            names = ", ".join(repr(os.fsencode(path)) for path in self._not_utf8[:_NAMES_IN_MESSAGE])
            ellipsis = ", ..." if len(self._not_utf8) > _NAMES_IN_MESSAGE else ""
            raise NotASourceError(
                f"{self.root}: {len(self._not_utf8)} names are not UTF-8, rename them: {names}{ellipsis}"
            )

    def _unlistable(self, folder: str, error: OSError) -> NotASourceError:
        return NotASourceError(f"{self.root / folder}: cannot be listed ({error.strerror})")


class ExtraFields:
    """The extra fields of a folder's images, from metadata.jsonl: one JSON object a line, one line an image.

    Opening parses every line, but keeps only its offset in the file; of() parses the line again.

    Args:
        root: the folder; metadata.jsonl may be missing.
        images: names of the images whose fields may be asked for; None means all images.

    Raises:
        DamagedError: a line is no JSON object with an "image", or an image has a second line.
    """

    def __init__(self, root: Path, *, images: Collection[str] | None) -> None:
        self._path = root / EXTRA_FILE
        self._offsets: dict[str, int] = {}
        if not self._path.is_file():
            return
        try:
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


def _is_utf8(name: str) -> bool:
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
    return "broken link" if entry.is_symlink() else "neither a file nor a folder"


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
