"""Read and write metadata.jsonl, the extra fields of a folder's images: one JSON object a line, one line an image."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgpack

from dlas_store.errors import DamagedError

EXTRA_FILE = "metadata.jsonl"
"""Name of the file, in the root of the folder."""


def extra_line(image: str, extra: Mapping[str, Any]) -> str:
    r"""Return the line of an image in metadata.jsonl.

    >>> extra_line("cat_0", {"label": 3})
    '{"image": "cat_0", "label": 3}\n'
    """
    return json.dumps({"image": image, **extra}, ensure_ascii=False, allow_nan=False) + "\n"


class ExtraFields:
    """The extra fields of a folder's images; only the offset of each line is kept, and of() parses the line.

    Args:
        root: the folder; the file may be missing.
        images: names of the images whose lines are kept; None keeps all.

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
        """Return the fields of an image, an empty dict if it has no line.

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


def _parse(line: bytes) -> tuple[str, dict[str, Any]]:
    """Return the image name and the fields of a line.

    Raises:
        ValueError: the line is no JSON object with an "image", or msgpack cannot hold it.
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
