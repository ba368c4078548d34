"""Archives as containers of records: tar, plain or compressed by gzip, and zip. Nothing is unpacked to the disk."""

from __future__ import annotations

import io
import mmap
import os
import re
import struct
import tarfile
import threading
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from dlas_store.errors import DamagedError
from dlas_store.sources.containers import MAX_FIELD_BYTES, Container, Record
from dlas_store.sources.folder import is_picture
from dlas_store.sources.gzip_file import GzipFile, SpanCache
from dlas_store.sources.walk import HIDDEN, SkippedPath, is_hidden

GZIP_MAGIC = b"\x1f\x8b"
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")

_RANGE = re.compile(r"(.*)\{([0-9]+)\.\.([0-9]+)\}(.*)", re.DOTALL)

_TAR_BLOCK = 512
_TAR_MAGIC = b"ustar"
_TAR_MAGIC_AT = 257

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
"""Zip's header before a file: magic, version, flags, method, time, date, CRC, two sizes, lengths of name and extra."""

_ENCRYPTED = 0x1

FAILURES = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError, OSError, RuntimeError,
    TypeError, ValueError, struct.error, tarfile.TarError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""Exceptions that the libraries raise for malformed archives."""


def is_tar(path: Path) -> bool:
    """Return whether a file begins like a tar archive, plain or compressed by gzip."""
    with path.open("rb") as file:
        head = file.read(_TAR_BLOCK)
    if head.startswith(GZIP_MAGIC):
        compressed = GzipFile(path, SpanCache())
        try:
            head = compressed.read(0, _TAR_BLOCK)
        except DamagedError:
            return False
        finally:
            compressed.close()
    return head[_TAR_MAGIC_AT:].startswith(_TAR_MAGIC)


def is_zip(path: Path) -> bool:
    """Return whether a file begins like a zip archive."""
    with path.open("rb") as file:
        return file.read(4) in ZIP_MAGICS


def expand_range(path: Path) -> list[Path]:
    """Return the paths that a range in braces stands for, as in ``train-{000..127}.tar``; none without a range.

    >>> [str(path) for path in expand_range(Path("a-{08..10}.tar"))]
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    match = _RANGE.fullmatch(str(path))
    if match is None:
        return []
    before, first, last, after = match.groups()
    return [Path(f"{before}{number:0{len(first)}}{after}") for number in range(int(first), int(last) + 1)]


def find_archives(folder: Path) -> list[Path]:
    """Return the tar archives in a folder, sorted by name; none if the folder holds pictures or folders too."""
    archives = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(TAR_ENDINGS):
                archives.append(folder / entry.name)
            # DirEntry.is_dir raises an error for a link to itself.
            elif not is_hidden(entry.name) and (is_picture(entry.name) or os.path.isdir(entry)):  # noqa: PTH112
                return []
    archives.sort()
    return archives if all(file.is_file() and is_tar(file) for file in archives) else []


class _Bytes(Protocol):
    """The bytes of a file, at any offset."""

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Return bytes, fewer only at the end."""

    def close(self) -> None:
        """Release the file."""


class _MappedFile:
    """A mapped file; views of it stay valid after close()."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    @property
    def size(self) -> int:
        return len(self._view)

    def read(self, offset: int, size: int) -> memoryview:
        return self._view[offset : offset + size]

    def close(self) -> None:
        self._view = memoryview(b"")


class Archives(Container):
    """One or several archives of a kind; with several, the path of a record begins with its archive's name.

    Args:
        path: the archive, or the folder of the archives.
        parts: the archives.
        has_prefix: whether paths begin with the names of the archives.
        include_hidden: list hidden files and folders, too; see is_hidden of sources.walk.
    """

    def __init__(
        self, path: Path, parts: Sequence[Path], *, has_prefix: bool = False, include_hidden: bool = False
    ) -> None:
        super().__init__(path)
        self._parts = tuple(parts)
        self._has_prefix = has_prefix
        self._include_hidden = include_hidden
        self._files: dict[tuple[int, int], _Bytes] = {}  # by process and part: a lock does not survive a fork
        self._locks: dict[int, threading.Lock] = {}
        self._spans: dict[int, SpanCache] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        options: dict[str, Any] = {"has_prefix": self._has_prefix, "include_hidden": self._include_hidden}
        return partial(type(self), **options), (self.path, self._parts)

    def records(self) -> Iterator[Record]:
        """List the records of all archives; see Container."""
        self.skipped = []
        for part, path in enumerate(self._parts):
            prefix = f"{path.name.partition('.')[0]}/" if self._has_prefix else ""
            try:
                for record in self._list(part):
                    if not self._include_hidden and any(map(is_hidden, record.path.split("/"))):
                        self._skip(part, record.path, HIDDEN)
                    else:
                        yield record._replace(path=prefix + record.path)
            except FAILURES as error:
                raise DamagedError(f"{path}: is damaged or cut short ({error}); take a whole copy") from error

    def close(self) -> None:
        """Release all files."""
        files, self._files = self._files, {}
        for file in files.values():
            file.close()

    @abstractmethod
    def _list(self, part: int) -> Iterator[Record]:
        """Yield the records of an archive."""

    def _skip(self, part: int, name: str, reason: str) -> None:
        archive = f"{self._parts[part].name}: " if self._has_prefix else ""
        self.skipped.append(SkippedPath(archive + name, reason))

    def _file(self, part: int) -> _Bytes:
        """Return the bytes of an archive, opened once in each process."""
        key = (os.getpid(), part)
        if key not in self._files:
            with self._locks.setdefault(os.getpid(), threading.Lock()):
                if key not in self._files:
                    self._files[key] = _open(self._parts[part], self._spans.setdefault(os.getpid(), SpanCache()))
        return self._files[key]


class TarArchives(Archives):
    """Tar archives, plain or compressed by gzip."""

    def read(self, record: Record) -> bytes | memoryview:
        """Return the bytes of a record; see Container."""
        data = self._file(record.part).read(record.offset, record.size)
        if len(data) != record.size:
            raise DamagedError(f"{self._parts[record.part]} is cut short; take a whole copy")
        return data

    def _list(self, part: int) -> Iterator[Record]:
        file = self._file(part)
        with tarfile.open(fileobj=_Stream(file), mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps all members
                if reason := _reason_to_skip(member):
                    self._skip(part, member.name, reason)
                elif not member.isdir():
                    name = member.name.removeprefix("./")
                    yield Record(name, part, member.offset_data, member.size, member.size)
            end = archive.offset
        # tarfile also stops, without an error, at a damaged header and at the end of a file that is cut short.
        if bytes(file.read(end, _TAR_BLOCK)) != bytes(_TAR_BLOCK):
            raise DamagedError(f"{self._parts[part]}: is damaged or cut short at byte {end}; take a whole copy")
        while file.read(end, _TAR_BLOCK):  # up to gzip's checksum
            end += _TAR_BLOCK


class ZipArchives(Archives):
    """Zip archives whose files are stored, or compressed by deflate."""

    def read(self, record: Record) -> bytes | memoryview:
        """Return the bytes of a record; see Container."""
        file = self._file(record.part)
        header = file.read(record.offset, _LOCAL_HEADER.size)
        if len(header) != _LOCAL_HEADER.size or bytes(header[:4]) != ZIP_MAGICS[0]:
            raise DamagedError(f"{self._parts[record.part]} has no file at byte {record.offset}; take a whole copy")
        _, _, _, method, *_, name_size, extra_size = _LOCAL_HEADER.unpack(header)
        start = record.offset + _LOCAL_HEADER.size + name_size + extra_size
        data = file.read(start, record.packed_size)
        if method == zipfile.ZIP_DEFLATED:
            data = _inflate(data, record.size)
        if len(data) != record.size or zlib.crc32(data) != record.checksum:
            raise DamagedError(f"its checksum in {self._parts[record.part]} is another; take a whole copy")
        return data

    def _list(self, part: int) -> Iterator[Record]:
        with zipfile.ZipFile(_Stream(self._file(part))) as archive:
            for info in archive.infolist():
                if info.flag_bits & _ENCRYPTED:
                    self._skip(part, info.filename, "encrypted")
                elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    self._skip(part, info.filename, f"compressed by method {info.compress_type}, not by deflate")
                elif not info.is_dir():
                    yield Record(info.filename, part, info.header_offset, info.file_size, info.compress_size, info.CRC)


class _Stream(io.RawIOBase):
    """A file object over bytes at any offset, for the libraries that list archives."""

    def __init__(self, file: _Bytes) -> None:
        self._file = file
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        starts = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._size() if whence == os.SEEK_END else 0}
        self._offset = max(0, starts[whence] + offset)
        return self._offset

    def tell(self) -> int:
        return self._offset

    def read(self, size: int = -1) -> bytes:
        if size > MAX_FIELD_BYTES:  # a header that claims so much
            raise DamagedError(f"a header of {size} bytes")
        data = bytes(self._file.read(self._offset, MAX_FIELD_BYTES if size < 0 else size))
        self._offset += len(data)
        return data

    def _size(self) -> int:
        assert isinstance(self._file, _MappedFile)  # only zip asks for the end
        return self._file.size


def _open(path: Path, spans: SpanCache) -> _Bytes:
    try:
        with path.open("rb") as file:
            is_compressed = file.read(2) == GZIP_MAGIC
        return GzipFile(path, spans) if is_compressed else _MappedFile(path)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise DamagedError(f"{path}: cannot be read ({error})") from error


def _reason_to_skip(member: tarfile.TarInfo) -> str | None:
    if member.issym() or member.islnk():
        return "a link"
    if member.issparse():
        return "a sparse file"
    return None if member.isfile() or member.isdir() else "neither a file nor a folder"


def _inflate(data: bytes | memoryview, size: int) -> bytes:
    """Return decompressed bytes, at most one more than ``size``."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    except zlib.error as error:
        raise DamagedError(f"cannot be decompressed ({error}); take a whole copy of the archive") from error
