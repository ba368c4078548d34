"""Containers: files that hold records, such as archives and databases; the images and fields made of records."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from dlas_store.sources.base import Layout
from dlas_store.sources.walk import SkippedPath

MAX_RECORD_BYTES = 1 << 30
"""Size above which a record is refused before it is read."""

MAX_FIELD_BYTES = 1 << 24
"""Size above which a record that holds a field is refused before it is read."""

PATCH, REFERENCE, CENTERS = "patch", "reference", "centers"
"""Roles of an image's records; any other role is the name of a field."""

NUMBER_ENDINGS = frozenset({"cls", "cls2", "id", "index", "count"})
"""Endings of files that hold a number."""

TEXT_ENDINGS = frozenset({"txt", "text", "transcript", "json"})
"""Endings of files that hold a text, or JSON."""


class Record(NamedTuple):
    """A file inside a container, and its place there.

    Attributes:
        path: path of the file inside the container, with "/" between its parts.
        part: number of the container's file that holds the record.
        offset: where the record begins in that file, in bytes.
        size: bytes of the record as it was before compression.
        packed_size: bytes of the record as it lies in the container.
        checksum: CRC-32 of the record, 0 if the container has none.
    """

    path: str
    part: int
    offset: int
    size: int
    packed_size: int
    checksum: int = 0


class Container(ABC):
    """One file or several, which hold records. Threads and forked processes may read at once; a pickle holds paths.

    Attributes:
        path: the file or folder that was opened; it begins the paths in messages.
        skipped: records that no reader can use, with the reasons; complete when records() has ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped: list[SkippedPath] = []

    @abstractmethod
    def records(self) -> Iterator[Record]:
        """List all records in one pass.

        Raises:
            DamagedError: a file is damaged or cut short.
        """

    @abstractmethod
    def read(self, record: Record) -> bytes | memoryview:
        """Return the bytes of a record, or a view of a map.

        Raises:
            DamagedError: the bytes are damaged, cut short, or more than the record's size.
        """

    @abstractmethod
    def close(self) -> None:
        """Release files and maps."""


class RecordImage(NamedTuple):
    """The records of one image.

    Attributes:
        name: name of the image.
        records: role -> records of that role; the patches are sorted by file name.
        extra: fields that are known without reading a record.
    """

    name: str
    records: Mapping[str, Sequence[Record]]
    extra: Mapping[str, Any]


class FoundImages(NamedTuple):
    """The images of a container.

    Attributes:
        layout: their layout.
        images: the images, sorted by name.
    """

    layout: Layout
    images: Iterator[RecordImage]


FindImages = Callable[[Container, Layout | None], FoundImages]
"""A picklable function that lists a container and says which records are images, in a given layout or the layout that
the records show."""


def parse_field(path: str, data: bytes) -> Any:
    """Return the value of a field's file: a number, a text, or what JSON holds, by the ending of its path.

    Raises:
        ValueError: the bytes are no such value, or a store cannot hold it.
    """
    ending = path.rpartition(".")[2].lower()
    if ending in NUMBER_ENDINGS:
        try:
            return int(data)
        except ValueError as error:
            raise ValueError(f"holds no number ({data[:20]!r})") from error
    if ending != "json":
        return data.decode()  # a UnicodeDecodeError is a ValueError
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
        msgpack.packb(value)
    except (RecursionError, OverflowError) as error:
        raise ValueError("nested too deeply, or a number too large for a store") from error
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"holds {name}, which is no value of JSON")
