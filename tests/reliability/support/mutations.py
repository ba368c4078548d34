"""Mutations of bytes from a seed, in the manner of fuzzers."""

from __future__ import annotations

import random
import struct

_EXTREMES = (
    0,
    1,
    127,
    128,
    255,
    256,
    32767,
    65535,
    65536,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    (1 << 63) - 1,
    1 << 63,
)


def mutated(data: bytes, rng: random.Random, *, donors: list[bytes] | None = None) -> bytes:
    """Return bytes with one to eight random changes.

    A change flips a bit, writes a byte or an extreme number, removes or repeats bytes, inserts noise, or copies a part.

    Args:
        data: the original bytes.
        rng: source of random numbers.
        donors: bytes that parts are copied from; None copies from ``data``.
    """
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        _change(changed, rng, donors or [data])
    return bytes(changed)


def _change(data: bytearray, rng: random.Random, donors: list[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    size = min(len(data) - at, rng.choice((1, 2, 4, 8, 16, 64)))
    match rng.randrange(7):
        case 0 if size:
            data[at] ^= 1 << rng.randrange(8)
        case 1 if size:
            data[at] = rng.randrange(256)
        case 2:
            number = (rng.choice(_EXTREMES) + rng.choice((-1, 0, 1))) % (1 << 64)
            kind = rng.choice(["<B", "<H", "<I", "<Q", ">H", ">I", ">Q"])
            packed = struct.pack(kind, number % (1 << 8 * struct.calcsize(kind)))
            data[at : at + len(packed)] = packed
        case 3:
            del data[at : at + size]
        case 4:
            data[at:at] = data[at : at + size] * rng.choice((1, 2, 50))
        case 5:
            donor = rng.choice(donors)
            start = rng.randrange(len(donor) + 1)
            data[at : at + size] = donor[start : start + rng.choice((1, 4, 16, 200))]
        case _:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 16)))
