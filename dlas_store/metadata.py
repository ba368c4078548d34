"""What is known of an image, and the msgpack record that holds it in a store."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from dlas_store.errors import DamagedError

FIRST_UNNUMBERED_ID = 1 << 63
"""Patch ids from here up belong to files whose name gives none."""

MAX_RECORD_BYTES = 1 << 28
"""Records above this are refused: msgpack can grow a small record to a hundred times its size."""

_FAILURES = (
    AttributeError,
    KeyError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    msgpack.UnpackException,
)
"""All that msgpack and numpy raise for bytes that make no sense."""

_CENTER_KEYS = ("center_ids", "center_rows", "center_cols", "center_widths")

_NUMBER = re.compile(r"([0-9]{1,19})\.[^.]*", re.ASCII)


class Center(NamedTuple):
    """Where a patch lies in its image, in pixels of the reference."""

    row: int
    col: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """What is known of one image.

    Attributes:
        name: folder name in a chunked layout, relative path in one of pictures.
        files: patch file names in item order (by code point).
        centers: number in the file name -> centre, as centers.pt has it (it may name patches that do not exist and
            lack some that do); None where the image has no centers.pt.
        has_reference: whether there is a ref.jpg.
        patch_ids: what a store's keys name the patches by, uint64 (len(files),); None outside of a store.
        heights: pixels, uint32 (len(files),); None where they are not known without opening the files.
        widths: likewise.
        extra: what else is kept of the image (labels, sizes of the photo); JSON types only.
    """

    name: str
    files: tuple[str, ...]
    centers: Mapping[int, Center] | None
    has_reference: bool
    patch_ids: NDArray[np.uint64] | None = None
    heights: NDArray[np.uint32] | None = None
    widths: NDArray[np.uint32] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def center_of(self, position: int) -> Center | None:
        """Return the centre of the patch at a position, None where there is none."""
        number = file_number(self.files[position])
        return None if self.centers is None or number is None else self.centers.get(number)


@lru_cache(4096)  # patches of many images have the same names
def file_number(file: str) -> int | None:
    """Return the number that a patch's file name is, None for a name that is no number below 2^63.

    >>> file_number("00000012.jpg"), file_number("12.png"), file_number("a12.jpg")
    (12, 12, None)
    """
    match = _NUMBER.fullmatch(file)
    number = int(match[1]) if match else FIRST_UNNUMBERED_ID
    return number if number < FIRST_UNNUMBERED_ID else None


class PatchIds:
    """Gives the patches of one image their ids, in item order.

    >>> ids = PatchIds()
    >>> [ids.assign(file) - (file != "1.jpg") * 2**63 for file in ("1.jpg", "a.jpg", "01.jpg")]
    [1, 0, 1]
    """

    def __init__(self) -> None:
        self._taken: set[int] = set()
        self._next_free = FIRST_UNNUMBERED_ID

    def assign(self, file: str) -> int:
        """Return the id of the next patch: its number, or the next from 2^63 where that is missing or taken."""
        number = file_number(file)
        if number is None or number in self._taken:
            number = self._next_free
            self._next_free += 1
        self._taken.add(number)
        return number


def encode_image(image: Image) -> bytes:
    """Return the metadata record of an image; FORMAT.md describes it."""
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
        DamagedError: the record is not one that encode_image writes; the caller adds where it lies.
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
    """Centres as they are packed: made when they are asked for, for most readers ask for few of an image's.

    For any number of threads.
    """

    __slots__ = ("_columns", "_made", "_numbers")

    def __init__(self, numbers: NDArray[Any], *columns: NDArray[Any]) -> None:
        """Take the numbers, and rows, columns and widths of as many centres."""
        if {len(column) for column in columns} != {len(numbers)}:
            raise ValueError("columns of centres have different lengths")
        self._numbers = numbers
        self._columns = columns
        self._made: dict[int, Center] = {}

    def __getitem__(self, number: int) -> Center:
        center = self._made.get(number)
        if center is None:
            (places,) = np.nonzero(self._numbers == number)
            if not len(places):
                raise KeyError(number)
            center = self._made[number] = Center(*(int(column[places[-1]]) for column in self._columns))
        return center

    def __iter__(self) -> Iterator[int]:
        if len(self._made) < len(self):
            centers = map(Center._make, zip(*(column.tolist() for column in self._columns), strict=True))
            self._made = dict(zip(self._numbers.tolist(), centers, strict=True))
        return iter(self._numbers.tolist())

    def __len__(self) -> int:
        return len(self._numbers)


def _pack(numbers: NDArray[Any]) -> list[Any]:
    """Return [type code, little-endian bytes] in the smallest type that holds all the numbers."""
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
