"""Keys of a shard, and the checksum that binds a value to its key."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from dlas_store.errors import DamagedError

CHECKSUM = struct.Struct("<Q")
"""Layout of the checksum, which precedes the payload of every value."""

_KEY = struct.Struct(">QBQ")


class Kind(IntEnum):
    """Kinds of value, in the order of an image's values on disk."""

    METADATA = 0
    REFERENCE = 1
    PATCH = 2


class Key(NamedTuple):
    """Image id, kind and patch id (0 except for patches); big-endian on disk, so that key order is reading order."""

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
        DamagedError: the bytes are no key of a shard.
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
