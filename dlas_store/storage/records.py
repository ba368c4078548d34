"""Encoding of a shard's entries: keys, values with a checksum, and the msgpack record of an image's metadata."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dlas_store.errors import DamagedError
from dlas_store.sources.base import FIRST_UNNUMBERED_ID, Center, Image, file_number

MAX_RECORD_BYTES = 1 << 28
"""Larger metadata records are refused: msgpack can expand a record to a hundred times its size in memory."""

CHECKSUM = struct.Struct("<Q")
"""Encoding of the checksum, which precedes the payload in every value."""

MAX_PAYLOAD_BYTES = (1 << 32) - 1 - CHECKSUM.size
"""Larger files are refused: a value in LMDB has less than 4 GiB."""

_KEY = struct.Struct(">QBQ")

_FAILURES = (
    AttributeError,
    KeyError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    msgpack.UnpackException,
)
"""Errors that msgpack and NumPy raise for bytes that are no metadata record."""

_CENTER_KEYS = ("center_ids", "center_rows", "center_cols", "center_widths")


class Kind(IntEnum):
    """Kinds of value; an image's keys are ordered by these numbers."""

    METADATA = 0
    REFERENCE = 1
    PATCH = 2


class Key(NamedTuple):
    """The key of a value. Numbers are big-endian on disk, so that keys are sorted by image id, kind and patch id.

    Attributes:
        image_id: id of the image.
        kind: kind of the value.
        patch_id: id of the patch, 0 for metadata and references.
    """

    image_id: int
    kind: int
    patch_id: int


def pack_key(image_id: int, kind: Kind, patch_id: int = 0) -> bytes:
    """Return the 17 bytes of a key.

    Raises:
        DamagedError: a number does not fit a key.
    """
    try:
        return _KEY.pack(image_id, kind, patch_id)
    except struct.error as error:
        raise DamagedError(f"image id {image_id} and patch id {patch_id} do not fit a key") from error


def unpack_key(key: bytes) -> Key:
    """Return the fields of a key.

    Raises:
        DamagedError: the bytes are not a key of a shard.
    """
    if len(key) != _KEY.size or key[8] > Kind.PATCH:
        raise DamagedError(f"key {key.hex()} is not one of a shard")
    return Key._make(_KEY.unpack(key))


def value_checksum(key: bytes, payload: bytes | memoryview) -> int:
    """Return the checksum of a value: XXH3-64 of the payload, seeded by XXH3-64 of its key.

    The seed makes a payload fail the check under any other key. It costs one hash of 17 bytes.
    """
    return xxh3_64_intdigest(payload, xxh3_64_intdigest(key))


def encode_value(key: bytes, payload: bytes) -> bytes:
    """Return the value to store under a key: the checksum, then the payload."""
    return CHECKSUM.pack(value_checksum(key, payload)) + payload


class PatchIds:
    """Assigns ids to the patches of one image, in item order.

    >>> ids = PatchIds()
    >>> ids.assign("1.jpg"), ids.assign("a.jpg") - 2**63, ids.assign("01.jpg") - 2**63
    (1, 0, 1)
    """

    def __init__(self) -> None:
        self._taken: set[int] = set()
        self._next_free = FIRST_UNNUMBERED_ID

    def assign(self, file: str) -> int:
        """Return the id of the next patch: the number in its name; if missing or taken, the next free id from 2^63."""
        number = file_number(file)
        if number is None or number in self._taken:
            number = self._next_free
            self._next_free += 1
        self._taken.add(number)
        return number


def encode_image(image: Image) -> bytes:
    """Return the metadata record of an image, as FORMAT.md describes it."""
    assert image.patch_ids is not None
    assert image.heights is not None
    assert image.widths is not None
    record: dict[str, Any] = {
        "name": image.name,
        "files": list(image.files),
        "ids": _pack(image.patch_ids),
        "heights": _pack(image.heights),
        "widths": _pack(image.widths),
        "reference": image.has_reference,
    }
    if image.centers is not None:
        numbers = np.array(list(image.centers), np.int64)
        columns = np.array(list(image.centers.values()), np.int64).reshape(-1, 3).T
        for key, column in zip(_CENTER_KEYS, (numbers, *columns), strict=True):
            record[key] = _pack(column)
    if image.extra:
        record["extra"] = dict(image.extra)
    packed: bytes = msgpack.packb(record, use_bin_type=True)
    return packed


def decode_image(record: bytes) -> Image:
    """Return the image of a metadata record.

    Raises:
        DamagedError: encode_image cannot have written the record. The caller adds the record's location.
    """
    if len(record) > MAX_RECORD_BYTES:
        raise DamagedError(f"metadata record of {len(record)} bytes, more than {MAX_RECORD_BYTES}")
    try:
        fields = msgpack.unpackb(record, raw=False, strict_map_key=True, ext_hook=_refuse_ext)
        ids = _unpack(fields["ids"]).astype(np.uint64)
        heights, widths = (_unpack(fields[key]).astype(np.uint32) for key in ("heights", "widths"))
        image = Image(
            name=_expect(str, fields["name"]),
            files=_expect_texts(fields["files"]),
            centers=_PackedCenters(*(_unpack(fields[key]) for key in _CENTER_KEYS)) if "center_ids" in fields else None,
            has_reference=_expect(bool, fields["reference"]),
            patch_ids=ids,
            heights=heights,
            widths=widths,
            extra=_expect(dict, fields.get("extra", {})),
        )
        lengths = {len(image.files), len(ids), len(heights), len(widths)}
    except _FAILURES as error:
        raise DamagedError(f"metadata record cannot be read ({error!r})") from error
    if len(lengths) != 1:
        raise DamagedError(f"metadata record of {image.name!r} has columns of different length")
    return image


class _PackedCenters(Mapping[int, Center]):
    """Centres that are unpacked on demand, because most readers need few centres of an image.

    Safe in any number of threads.
    """

    __slots__ = ("_columns", "_numbers", "_unpacked")

    def __init__(self, numbers: NDArray[Any], *columns: NDArray[Any]) -> None:
        """Create the mapping.

        Args:
            numbers: integers (centres,), the number in the file name of each centre's patch.
            columns: rows, columns and widths of the centres, integers (centres,) each.
        """
        if {len(column) for column in columns} != {len(numbers)}:
            raise ValueError("columns of centres have different lengths")
        self._numbers = numbers
        self._columns = columns
        self._unpacked: dict[int, Center] = {}

    def __getitem__(self, number: int) -> Center:
        center = self._unpacked.get(number)
        if center is None:
            (positions,) = np.nonzero(self._numbers == number)
            if not len(positions):
                raise KeyError(number)
            center = self._unpacked[number] = Center(*(int(column[positions[-1]]) for column in self._columns))
        return center

    def __iter__(self) -> Iterator[int]:
        if len(self._unpacked) < len(self):
            centers = map(Center._make, zip(*(column.tolist() for column in self._columns), strict=True))
            self._unpacked = dict(zip(self._numbers.tolist(), centers, strict=True))
        return iter(self._numbers.tolist())

    def __len__(self) -> int:
        return len(self._numbers)


def _pack(numbers: NDArray[Any]) -> list[Any]:
    """Return integers as [type code, little-endian bytes], in the smallest type that holds all of them."""
    low, high = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, 0)
    for code in ("<u1", "<u2", "<u4", "<i8", "<u8"):
        limits = np.iinfo(code)
        if limits.min <= low and high <= limits.max:
            return [code, numbers.astype(code).tobytes()]
    raise AssertionError("every int64 and uint64 fits one of the types")


def _unpack(packed: list[Any]) -> NDArray[Any]:
    code, data = packed
    if code not in ("<u1", "<u2", "<u4", "<i8", "<u8"):
        raise ValueError(f"unknown array type {code!r}")
    return np.frombuffer(data, code)


def _expect(kind: type[Any], value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{kind.__name__} expected, got {type(value).__name__}")
    return value


def _expect_texts(values: Any) -> tuple[str, ...]:
    if not set(map(type, _expect(list, values))) <= {str}:
        raise TypeError("names of files expected")
    return tuple(values)


def _refuse_ext(code: int, _: bytes) -> None:
    raise ValueError(f"extension type {code}")
