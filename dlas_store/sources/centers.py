"""Reader and writer of centers.pt, the positions of an image's patches, without torch and without running a pickle."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dlas_store.errors import CentersError
from dlas_store.sources.base import Center
from dlas_store.sources.inert_pickle import (
    SAFE_OPCODES,
    InertUnpickler,
    PickleRules,
    RefusedError,
    Storage,
    encode_latin1,
    make_dtype,
    make_scalar,
)

MAX_FILE_BYTES = 1 << 24
"""Largest file that is read, 16 MiB; 400,000 centres take less."""

_ZIP_START = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_NO_ENTRY = "it holds an entry that is not ((row, col), width)"
_INT64 = range(-(1 << 63), 1 << 63)

_FAILURES = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, RuntimeError, TypeError,
    ValueError, pickle.PickleError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""Exceptions that zipfile, struct and the unpickler raise for malformed bytes."""

# Pattern of torch.save's pickle of {int: ((int, int), int)}: opcodes of one dict, of ints up to 32 bits and of pairs,
# with memo indices below 65,536.
_INT = rb"(?:K.|M..|J....)"
_MEMO = rb"(?:q.|r..\0\0)?"
_ITEM = _INT + _INT + _INT + rb"\x86" + _MEMO + _INT + rb"\x86" + _MEMO
_ITEMS = re.compile(_ITEM, re.DOTALL)
_PICKLE = re.compile(rb"\x80\x02}(?:q\0)?(?:\((?:" + _ITEM + rb")*+u|" + _ITEM + rb"s)*+\.", re.DOTALL)


def read_centers(source: str | os.PathLike[str] | bytes) -> dict[int, Center]:
    """Read a centers.pt as torch.save writes it, zip or legacy.

    Numbers may be Python ints, numpy numbers, tensors of one number, or floats without a fraction. No name in the file
    is imported or run.

    Args:
        source: path of the file, or its bytes.

    Returns:
        Patch number -> centre, in the order of the file.

    Raises:
        CentersError: the file cannot be read, is damaged, or holds other values.
    """
    where = "centers.pt" if isinstance(source, bytes) else os.fspath(source)
    remedy = "take the folder's original, or extract the image again"
    try:
        data = source if isinstance(source, bytes) else _read_file(Path(source))
        return _load(data)
    except RefusedError as error:
        raise CentersError(f"{where}: refused: {error}; {remedy}") from error
    except OSError as error:
        raise CentersError(f"{where}: cannot be read ({error.strerror})") from error
    except _FAILURES as error:
        raise CentersError(f"{where}: damaged, no whole torch file ({type(error).__name__}); {remedy}") from error


def write_centers(centers: Mapping[int, Center]) -> bytes:
    """Return the bytes of a centers.pt, which torch.load reads with and without weights_only.

    Equal centres give equal bytes.
    """
    values = {
        int(number): ((int(center.row), int(center.col)), int(center.width)) for number, center in centers.items()
    }
    entries = {"data.pkl": pickle.dumps(values, protocol=2), "version": b"3\n", "byteorder": b"little"}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            entry = zipfile.ZipInfo(f"centers/{name}")  # dated 1980 by zipfile: the bytes do not depend on the time
            entry.create_system = 3  # Unix on every system, so that the bytes do not depend on the system
            archive.writestr(entry, data)
    return file.getvalue()


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES + 1)


def _load(data: bytes) -> dict[int, Center]:
    if len(data) > MAX_FILE_BYTES:
        raise RefusedError(f"it is larger than {MAX_FILE_BYTES} bytes")
    return _load_zip(data) if data.startswith(_ZIP_START) else _load_legacy(data)


def _load_zip(data: bytes) -> dict[int, Center]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        folders = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(folders) != 1 or len(set(names)) != len(names):
            raise RefusedError("it holds no single data.pkl, or two files of one name")
        folder = folders[0]
        if sum(entry.file_size for entry in archive.infolist()) > len(data):
            raise RefusedError("it is smaller than its files claim to be")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise RefusedError("it is compressed, which torch never does")
        pickled = archive.read(f"{folder}data.pkl")
        if _is_plain(pickled):
            return {number: Center(row, col, width) for number, ((row, col), width) in _load_plain(pickled).items()}
        unpickler = InertUnpickler(io.BytesIO(pickled), _RULES)
        value = unpickler.load()
        storages = {key: archive.read(f"{folder}data/{key}") for key in unpickler.storages}
        is_big_endian = f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") == b"big"
    return _to_centers(value, storages, ">" if is_big_endian else "<")


def _load_legacy(data: bytes) -> dict[int, Center]:
    file = io.BytesIO(data)
    magic, version, system = (InertUnpickler(file, _RULES).load() for _ in range(3))
    if magic != _LEGACY_MAGIC or version != _LEGACY_VERSION:
        raise ValueError("not the start of a torch file")
    unpickler = InertUnpickler(file, _RULES)
    value = unpickler.load()
    storages = {}
    for key in InertUnpickler(file, _RULES).load():
        (count,) = struct.unpack("<Q", file.read(8))
        storages[key] = file.read(count * struct.calcsize(f"<{unpickler.storages[key]}"))
    return _to_centers(value, storages, "<" if system["little_endian"] else ">")


def _to_centers(value: object, storages: Mapping[str, bytes], byte_order: str) -> dict[int, Center]:
    if not isinstance(value, dict):
        raise RefusedError("it holds no dict of {patch: ((row, col), width)}")
    numbers = _Numbers(storages, byte_order)
    centers = {numbers.integer(key): numbers.center(entry) for key, entry in value.items()}
    if len(centers) != len(value):
        raise RefusedError("it holds the same patch twice")
    return centers


class _Numbers(NamedTuple):
    """Conversion of a pickle's values to Python ints.

    Attributes:
        storages: key of a tensor's storage -> bytes of the storage.
        byte_order: byte order of the numbers in the storages, "<" or ">".
    """

    storages: Mapping[str, bytes]
    byte_order: str

    def center(self, entry: object) -> Center:
        match entry:
            case (pair, width):
                row, col = self._items(pair, 2)
                return Center(self.integer(row), self.integer(col), self.integer(width))
        raise RefusedError(_NO_ENTRY)

    def integer(self, item: object) -> int:
        if isinstance(item, _Tensor):
            (item,) = self._items(item, 1)
        if isinstance(item, float) and item.is_integer():
            item = int(item)
        if type(item) is not int or item not in _INT64:
            raise RefusedError("it holds something other than whole numbers of 64 bits")
        return item

    def _items(self, group: object, count: int) -> Sequence[object]:
        """Return the numbers of a tensor, or the items of a tuple or list, if their number is ``count``."""
        if isinstance(group, _Tensor) and len(group.positions) == count:
            number = struct.Struct(self.byte_order + group.storage.code)
            data = self.storages[group.storage.key]
            return [number.unpack_from(data, position * number.size)[0] for position in group.positions]
        if isinstance(group, tuple | list) and len(group) == count:
            return group
        raise RefusedError(_NO_ENTRY)


@dataclass(frozen=True, slots=True, eq=False)
class _Tensor:
    """A tensor of one number or a pair of numbers.

    Attributes:
        storage: the storage that holds the numbers.
        positions: position of each number in the storage, counted in numbers.
    """

    storage: Storage
    positions: tuple[int, ...]


def _rebuild_tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> _Tensor:
    match storage, offset, size, stride:
        case Storage(), int(start), () | (1,), tuple():
            positions: tuple[int, ...] = (start,)
        case Storage(), int(start), (2,), (int(step),):
            positions = (start, start + step)
        case _:
            raise RefusedError("it holds a tensor that is neither a number nor a pair of numbers")
    if min(positions) < 0:
        raise RefusedError("it holds a tensor that reaches outside its storage")
    return _Tensor(storage, positions)


def _make_dict() -> dict[object, object]:
    """Return an empty dict; the replacement for OrderedDict. Unlike ``dict``, it refuses arguments."""
    return {}


_NAMES: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): _make_dict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch", "ByteStorage"): "B",
    ("torch", "CharStorage"): "b",
    ("torch", "ShortStorage"): "h",
    ("torch", "IntStorage"): "i",
    ("torch", "LongStorage"): "q",
    ("torch", "FloatStorage"): "f",
    ("torch", "DoubleStorage"): "d",
    ("numpy", "dtype"): make_dtype,
    ("numpy.core.multiarray", "scalar"): make_scalar,  # numpy 1
    ("numpy._core.multiarray", "scalar"): make_scalar,
    ("_codecs", "encode"): encode_latin1,
}

_RULES = PickleRules(
    kind="a centers.pt",
    names=_NAMES,
    opcodes=SAFE_OPCODES | {pickle.BINPERSID[0]: pickle._Unpickler.dispatch[pickle.BINPERSID[0]]},
    key_types=frozenset({int, float, str, _Tensor}),
)


def _is_plain(pickled: bytes) -> bool:
    """Return whether a pickle is built like torch.save's pickle of {int: ((int, int), int)}, of safe opcodes only."""
    return _PICKLE.fullmatch(pickled) is not None


def _load_plain(pickled: bytes) -> dict[int, tuple[tuple[int, int], int]]:
    """Load a plain pickle by the unpickler in C: 0.12 ms for 130 entries, against 0.51 ms by InertUnpickler.

    Raises:
        RefusedError: the dict holds a key twice.
    """
    assert _is_plain(pickled)
    value: dict[int, tuple[tuple[int, int], int]] = _PlainUnpickler(io.BytesIO(pickled)).load()
    if len(value) != len(_ITEMS.findall(pickled)):
        raise RefusedError("it holds the same patch twice")
    return value


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        """Refuse every name; a plain pickle has no opcode that asks for a name."""
        raise RefusedError(f"it names {module}.{name}")
