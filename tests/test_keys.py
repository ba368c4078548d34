"""Keys of a shard, and the checksum that binds a value to its key."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from dlas_store.errors import DamagedError
from dlas_store.keys import CHECKSUM, Key, Kind, encode_value, pack_key, unpack_key, value_checksum

U64 = st.integers(0, (1 << 64) - 1)
KEYS = st.builds(Key, U64, st.sampled_from(Kind), U64)


def pack(key: Key) -> bytes:
    return pack_key(key.image_id, Kind(key.kind), key.patch_id)


@given(KEYS)
def test_a_key_is_image_kind_and_patch_big_endian(key: Key) -> None:
    assert pack(key) == struct.pack(">QBQ", *key)
    assert unpack_key(pack(key)) == key


@given(KEYS, KEYS)
def test_key_order_is_reading_order(one: Key, other: Key) -> None:
    assert (pack(one) < pack(other)) == (one < other)


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
    same = value_checksum(pack(key), payload) == value_checksum(pack(other), payload)
    assert same == (key == other)


@given(KEYS, st.binary(min_size=1, max_size=100), st.data())
def test_a_flipped_bit_changes_the_checksum(key: Key, payload: bytes, data: st.DataObject) -> None:
    position, bit = data.draw(st.integers(0, len(payload) - 1)), data.draw(st.integers(0, 7))
    flipped = bytearray(payload)
    flipped[position] ^= 1 << bit
    assert value_checksum(pack(key), bytes(flipped)) != value_checksum(pack(key), payload)
