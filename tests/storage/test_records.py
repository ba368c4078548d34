"""Keys of a shard, checksums of values, patch ids and metadata records of images."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from dlas_store.errors import DamagedError
from dlas_store.sources.base import FIRST_UNNUMBERED_ID, Center, Image, file_number
from dlas_store.storage.records import (
    CHECKSUM,
    MAX_RECORD_BYTES,
    Key,
    Kind,
    PatchIds,
    decode_image,
    encode_image,
    encode_value,
    pack_key,
    unpack_key,
    value_checksum,
)

U64 = st.integers(0, (1 << 64) - 1)
KEYS = st.builds(Key, U64, st.sampled_from(Kind), U64)


def pack(key: Key) -> bytes:
    return pack_key(key.image_id, Kind(key.kind), key.patch_id)


@given(KEYS)
def test_a_key_is_image_kind_and_patch_big_endian(key: Key) -> None:
    assert pack(key) == struct.pack(">QBQ", *key)
    assert unpack_key(pack(key)) == key


@given(KEYS, KEYS)
def test_key_order_is_reading_order(first: Key, second: Key) -> None:
    assert (pack(first) < pack(second)) == (first < second)


def test_the_bytes_of_a_key_and_a_value_never_change() -> None:
    key = pack_key(1, Kind.PATCH, 2)
    assert key.hex() == "0000000000000001020000000000000002"
    assert encode_value(key, b"abc").hex() == "81f0937a63c0edfa616263"


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(18), bytes(8) + b"\x03" + bytes(8), b"\xff" * 17])
def test_other_bytes_are_no_key(key: bytes) -> None:
    with pytest.raises(DamagedError, match=f"key {key.hex()} is not"):
        unpack_key(key)


@given(KEYS, st.binary(max_size=100))
def test_a_value_is_its_checksum_and_the_payload(key: Key, payload: bytes) -> None:
    value = encode_value(pack(key), payload)
    assert value[CHECKSUM.size :] == payload
    assert CHECKSUM.unpack_from(value)[0] == xxh3_64_intdigest(payload, seed=xxh3_64_intdigest(pack(key)))


@given(KEYS, KEYS, st.binary(max_size=100))
def test_a_payload_does_not_pass_under_another_key(key: Key, other: Key, payload: bytes) -> None:
    is_same = value_checksum(pack(key), payload) == value_checksum(pack(other), payload)
    assert is_same == (key == other)


@given(KEYS, st.binary(min_size=1, max_size=100), st.data())
def test_a_flipped_bit_changes_the_checksum(key: Key, payload: bytes, data: st.DataObject) -> None:
    position, bit = data.draw(st.integers(0, len(payload) - 1)), data.draw(st.integers(0, 7))
    flipped = bytearray(payload)
    flipped[position] ^= 1 << bit
    assert value_checksum(pack(key), bytes(flipped)) != value_checksum(pack(key), payload)


INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
EXTRA = st.dictionaries(
    NAMES, st.recursive(st.none() | st.booleans() | INT64 | st.floats(allow_nan=False) | NAMES, st.lists, max_leaves=8)
)


def image(**changes: object) -> Image:
    values: dict[str, object] = {
        "name": "cat_0",
        "files": ("1.jpg", "x.jpg"),
        "centers": {1: Center(2, 3, 4)},
        "has_reference": True,
        "patch_ids": np.array([1, FIRST_UNNUMBERED_ID], np.uint64),
        "heights": np.array([5, 6], np.uint32),
        "widths": np.array([7, 70_000], np.uint32),
        "extra": {"label": 1},
    }
    return Image(**{**values, **changes})  # type: ignore[arg-type]


def record(**changes: object) -> bytes:
    """Return the record of image() with fields replaced; None removes a field."""
    fields = msgpack.unpackb(encode_image(image())) | changes
    packed: bytes = msgpack.packb({key: value for key, value in fields.items() if value is not None})
    return packed


@st.composite
def images(draw: st.DrawFn) -> Image:
    files = draw(st.lists(NAMES, max_size=5, unique=True))
    sizes = st.lists(st.integers(0, (1 << 32) - 1), min_size=len(files), max_size=len(files))
    return image(
        name=draw(NAMES),
        files=tuple(files),
        centers=draw(st.none() | st.dictionaries(INT64, st.builds(Center, INT64, INT64, INT64), max_size=5)),
        has_reference=draw(st.booleans()),
        patch_ids=np.array(draw(sizes), np.uint64),
        heights=np.array(draw(sizes), np.uint32),
        widths=np.array(draw(sizes), np.uint32),
        extra=draw(EXTRA),
    )


@given(images())
def test_a_record_gives_back_the_image(original: Image) -> None:
    copy = decode_image(encode_image(original))
    for name in ("name", "files", "centers", "has_reference", "extra"):
        assert getattr(copy, name) == getattr(original, name)
    assert copy.centers is None or list(copy.centers) == list(original.centers or ())
    for name in ("patch_ids", "heights", "widths"):
        assert getattr(copy, name).dtype == getattr(original, name).dtype
        np.testing.assert_array_equal(getattr(copy, name), getattr(original, name))


def test_centres_of_a_record_are_those_of_a_dict_in_whatever_order_they_are_asked_for() -> None:
    numbers = [7, 300, 2, -1, 1 << 62, 5]
    original = {number: Center(position, 2 * position, 300 * position) for position, number in enumerate(numbers)}
    for requested in (numbers[::-1], numbers[2:4], []):
        centers = decode_image(encode_image(image(centers=original))).centers
        assert centers is not None
        assert [centers[number] for number in requested] == [original[number] for number in requested]
        assert all(type(value) is int for number in requested for value in centers[number])
        assert (centers.get(1), centers.get(1 << 70), 3 in centers, 7 in centers) == (None, None, False, True)
        with pytest.raises(KeyError):
            centers[4]
        assert list(centers.items()) == list(original.items())
        assert len(centers) == len(numbers)
        assert pickle.loads(pickle.dumps(centers)) == original  # worker processes receive centres pickled
        assert original == centers
        assert centers != {**original, 5: Center(0, 0, 0)}


@pytest.mark.parametrize("repeat", range(5))
def test_centres_are_given_to_many_threads(repeat: int) -> None:
    original = {number: Center(number, repeat, 1) for number in range(2000)}
    centers = decode_image(encode_image(image(centers=original))).centers
    assert centers is not None
    reads: list[Callable[[], object]] = [
        lambda: dict(centers),
        lambda: {number: centers[number] for number in reversed(original)},
    ]
    with ThreadPoolExecutor(6) as pool:
        assert all(future.result() == original for future in [pool.submit(read) for read in reads * 3])


@pytest.mark.parametrize(
    ("changes", "bytes_each"), [({"heights": 255}, 1), ({"heights": 256}, 2), ({"heights": 70_000}, 4)]
)
def test_numbers_take_the_smallest_type_that_holds_them(changes: dict[str, int], bytes_each: int) -> None:
    def size(value: int) -> int:
        return len(encode_image(image(files=("1.jpg",) * 1000, widths=np.full(1000, 1), heights=np.full(1000, value))))

    assert size(changes["heights"]) - size(1) == pytest.approx(1000 * (bytes_each - 1), abs=2)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xc1", id="no msgpack"),
        pytest.param(record()[:-1], id="cut"),
        pytest.param(record() + b"\0", id="more behind"),
        pytest.param(msgpack.packb([1]), id="a list"),
        pytest.param(msgpack.packb({1: 2}), id="number as key"),
        pytest.param(b"\x91" * 100_000, id="nested deeply"),
        pytest.param(record(name=None), id="no name"),
        pytest.param(record(name=3), id="number as name"),
        pytest.param(record(name=b"cat"), id="bytes as name"),
        pytest.param(record(files="ab"), id="ids and files differ in type"),
        pytest.param(record(files=["1.jpg"]), id="fewer files"),
        pytest.param(record(files=[1, 2]), id="numbers as files"),
        pytest.param(record(heights=["<u1", b"\1"]), id="fewer heights"),
        pytest.param(record(heights=["<f8", bytes(16)]), id="heights that are no integers"),
        pytest.param(record(heights=["<u2", b"\1\2\3"]), id="half a height"),
        pytest.param(record(heights=3), id="a number as heights"),
        pytest.param(record(center_rows=None), id="centres without rows"),
        pytest.param(record(center_rows=["<u1", b""]), id="fewer rows"),
        pytest.param(record(reference=1), id="number as flag"),
        pytest.param(record(extra=[1]), id="list as extra"),
        pytest.param(record(extra=msgpack.ExtType(4, b"x")), id="extension type"),
        pytest.param(record(extra=msgpack.Timestamp(1)), id="timestamp"),
    ],
)
def test_a_damaged_record_is_an_error(data: bytes) -> None:
    with pytest.raises(DamagedError, match="metadata record"):
        decode_image(data)


def test_a_record_of_hostile_size_is_not_looked_at() -> None:
    with pytest.raises(DamagedError, match="more than"):
        decode_image(bytes(MAX_RECORD_BYTES + 1))


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with pytest.raises(DamagedError):
        decode_image(data)


@pytest.mark.parametrize(
    ("file", "number"),
    [
        ("00000012.jpg", 12),
        ("0.png", 0),
        ("12", None),
        ("12.tar.jpg", None),
        ("-1.jpg", None),
        ("1_0.jpg", None),
        ("٣.jpg", None),
        (" 1.jpg", None),
        (f"{FIRST_UNNUMBERED_ID - 1}.jpg", FIRST_UNNUMBERED_ID - 1),
        (f"{FIRST_UNNUMBERED_ID}.jpg", None),
        ("9" * 5000 + ".jpg", None),
    ],
)
def test_the_number_of_a_file_is_its_whole_stem(file: str, number: int | None) -> None:
    assert file_number(file) == number


@given(st.lists(st.sampled_from(["1.jpg", "01.jpg", "001.png", "a.jpg", "b.jpg", "2.jpg"]), unique=True))
def test_patch_ids_are_the_numbers_or_above_and_never_twice(files: list[str]) -> None:
    patch_ids = PatchIds()
    ids = [patch_ids.assign(file) for file in files]
    assert len(set(ids)) == len(files)
    unnumbered = [patch_id for patch_id in ids if patch_id >= FIRST_UNNUMBERED_ID]
    assert unnumbered == list(range(FIRST_UNNUMBERED_ID, FIRST_UNNUMBERED_ID + len(unnumbered)))
    assert all(patch_id in (file_number(file), *unnumbered) for file, patch_id in zip(files, ids, strict=True))


def test_files_of_one_number_share_its_centre() -> None:
    original = image(files=("00000001.jpg", "1.jpg", "2.jpg", "a.jpg"))
    assert [original.center_of(position) for position in range(4)] == [Center(2, 3, 4), Center(2, 3, 4), None, None]
    assert image(centers=None).center_of(0) is None
