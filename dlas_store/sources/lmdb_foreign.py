"""LMDBs of other programs as sources: BasicSR's, StyleGAN2's, LSUN's, those of text recognition, and any of pictures.

The pages are read without the LMDB engine, since these files come from anywhere; see lmdb_reader.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlas_store.errors import ConfigError, DamagedError, NotASourceError
from dlas_store.lmdb_reader import is_lmdb, iter_entries
from dlas_store.sources.base import Layout
from dlas_store.sources.containers import PATCH, Container, FoundImages, Record, RecordImage
from dlas_store.sources.folder import is_picture
from dlas_store.sources.record_images import skip, sorted_records
from dlas_store.sources.walk import SkippedPath

DATA_FILE = "data.mdb"
INFO_FILE = "meta_info.txt"

_ENDINGS = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"BM", ".bmp"),
    (b"P6", ".ppm"),
    (b"P5", ".ppm"),
    (b"RIFF", ".webp"),
)
"""First bytes of a picture, and the ending that its name gets if it has none."""

_HEAD_BYTES = 12
_RESOLUTION_KEY = re.compile(r"([0-9]+)-[0-9]+")
_TEXT_KEY = re.compile(r"(image|label)-([0-9]+)")
_KNOWN_KEYS = frozenset({"length", "num-samples"})


def is_foreign_lmdb(path: Path) -> bool:
    """Return whether a folder holds the LMDB of another program, or the path is the file of one."""
    file = path / DATA_FILE if path.is_dir() else path
    if file.name != DATA_FILE or not file.is_file():
        return False
    if file.parent.suffix == ".lmdb" or (file.parent / INFO_FILE).is_file():
        return True  # although it may be damaged
    with file.open("rb") as opened:
        return is_lmdb(opened.read(4096))


class LmdbContainer(Container):
    """The values of an LMDB, each a record whose path is its key.

    Args:
        path: folder of data.mdb, or the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.folder = path if path.is_dir() else path.parent
        self._file = path / DATA_FILE if path.is_dir() else path
        self._cached_data: mmap.mmap | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return LmdbContainer, (self.path,)

    def records(self) -> Iterator[Record]:
        """List the values; see Container."""
        self.skipped = []
        try:
            for entry in iter_entries(self._data()):
                name = _text(entry.key)
                if name is None:
                    self.skipped.append(SkippedPath(entry.key.hex(), "a key that is no text"))
                else:
                    yield Record(name, 0, entry.offset, entry.length, entry.length)
        except DamagedError as error:
            raise DamagedError(f"{self._file}: {error}; take a whole copy") from error

    def read(self, record: Record) -> memoryview:
        """Return a view of a value; see Container."""
        return memoryview(self._data())[record.offset : record.offset + record.size]

    def head(self, record: Record) -> bytes:
        """Return the first bytes of a value."""
        return self._data()[record.offset : record.offset + min(record.size, _HEAD_BYTES)]

    def close(self) -> None:
        """Let go of the map."""
        self._cached_data = None

    def _data(self) -> mmap.mmap:
        data = self._cached_data
        if data is None:
            try:
                with self._file.open("rb") as file:
                    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
                raise DamagedError(f"{self._file}: cannot be read ({error})") from error
            self._cached_data = data
        return data


def find_lmdb_images(container: Container, layout: Layout | None, *, resolution: int | None = None) -> FoundImages:
    """Find the pictures of an LMDB.

    A picture's name is its key, with the ending of its format if the key has none. BasicSR's meta_info.txt gives the
    names, and says which keys are meant. A label of text recognition is the field ``label``.

    Args:
        container: the LMDB.
        layout: must not be ``chunked``.
        resolution: the pictures to read, of an LMDB that has several resolutions; None reads all.

    Raises:
        NotASourceError: the layout is ``chunked``.
        DamagedError: the LMDB or meta_info.txt is damaged, or meta_info.txt names a key that is missing.
        ConfigError: no picture has the resolution.
    """
    assert isinstance(container, LmdbContainer)
    if layout == "chunked":
        raise NotASourceError(f"{container.path}: is an LMDB of whole pictures where a chunked source is needed")
    records = {record.path: record for record in sorted_records(container)}
    info = container.folder / INFO_FILE
    if info.is_file():
        images = _listed_images(container, records, _read_info(info))
    elif "num-samples" in records:
        images = _labelled_images(container, records)
    else:
        images = _all_images(container, records)
    if resolution is not None:
        images = _of_resolution(container, images, resolution)
    return FoundImages("pictures", iter(sorted(images, key=lambda image: image.name)))


def _listed_images(container: LmdbContainer, records: dict[str, Record], names: list[str]) -> Iterator[RecordImage]:
    """Yield the pictures that meta_info.txt names; their keys are the names without endings."""
    for name in names:
        key = name if name in records else name.rpartition(".")[0]
        record = records.pop(key, None)
        if record is None:
            raise DamagedError(f"{container.folder / INFO_FILE}: names {name!r}, for which the LMDB has no key")
        yield RecordImage(name, {PATCH: [record]}, {})
    for record in records.values():
        skip(container, record, f"not in {INFO_FILE}")


def _labelled_images(container: LmdbContainer, records: dict[str, Record]) -> Iterator[RecordImage]:
    """Yield the pictures of text recognition, each with the text of its label."""
    for key, record in records.items():
        match = _TEXT_KEY.fullmatch(key)
        if match is None or match[1] == "label":
            if match is None and key not in _KNOWN_KEYS:
                skip(container, record, "a key of neither a picture nor a label")
            elif match is not None and f"image-{match[2]}" not in records:
                skip(container, record, "a label without a picture")
            continue
        for image in _picture(container, record):
            label = records.get(f"label-{match[2]}")
            yield image if label is None else image._replace(records={**image.records, "label": [label]})


def _all_images(container: LmdbContainer, records: dict[str, Record]) -> Iterator[RecordImage]:
    for key, record in records.items():
        if key not in _KNOWN_KEYS:
            yield from _picture(container, record)


def _picture(container: LmdbContainer, record: Record) -> Iterator[RecordImage]:
    """Yield the image of a value, or nothing if its first bytes are those of no picture."""
    head = container.head(record)
    ending = next((ending for start, ending in _ENDINGS if head.startswith(start)), None)
    if ending is None:
        skip(container, record, "no picture")
    else:
        name = record.path if is_picture(record.path) else record.path + ending
        yield RecordImage(name, {PATCH: [record]}, {})


def _of_resolution(container: Container, images: Iterator[RecordImage], resolution: int) -> Iterator[RecordImage]:
    found = set()
    for image in images:
        match = _RESOLUTION_KEY.fullmatch(image.records[PATCH][0].path)
        found.add(int(match[1]) if match else None)
        if match and int(match[1]) == resolution:
            yield image
    if resolution not in found:
        known = ", ".join(str(number) for number in sorted(number for number in found if number is not None))
        raise ConfigError(f"{container.path}: has no pictures of resolution {resolution}; it has {known or 'none'}")


def _read_info(path: Path) -> list[str]:
    """Return the names in BasicSR's meta_info.txt: the text of each line up to the first bracket."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path}: cannot be read ({error})") from error
    names = [line.partition(" (")[0].strip() for line in lines if line.strip()]
    if len(set(names)) < len(names):
        raise DamagedError(f"{path}: names a picture twice; make it again")
    return names


def _text(key: bytes) -> str | None:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return None
