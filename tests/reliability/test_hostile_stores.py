"""Hostile shards, indexes, metadata and pictures with valid checksums raise StoreError, in bounded memory."""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from dlas_store.converters import salvaging
from dlas_store.converters.salvaging import salvage
from dlas_store.errors import DamagedError, ImageError, StoreError
from dlas_store.images.decode import check_picture, decode, image_size
from dlas_store.lmdb_reader import iter_entries, iter_intact_entries
from dlas_store.maintenance.info import info
from dlas_store.maintenance.reindex import reindex
from dlas_store.maintenance.verify import verify
from dlas_store.sources.base import Center, Image
from dlas_store.storage.index import INDEX_FILE, Index
from dlas_store.storage.records import decode_image, encode_image
from dlas_store.storage.shard import Shard
from dlas_store.storage.store import Store
from tests.conftest import Runs
from tests.reliability.support.children import each_in_child, work_here
from tests.reliability.support.mutations import mutated
from tests.reliability.support.spoilers import SPOILERS, packed, parts, resealed, rewrite_row, sealed
from tests.support.file_trees import picture
from tests.support.small_stores import append, content_of, make_store, shards_of, small_folder

MEMORY = 512 << 20


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    work_here(monkeypatch, "dlas_store.maintenance.verify", "dlas_store.maintenance.reindex", salvaging.__name__)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    folder = small_folder(root / "source", "a", "b", "c")
    store = make_store(folder, root / "store.lmdb", images="[ab]", shard_size=1 << 30)
    append(folder, store)
    return store


def use(store: Path, number: int) -> None:
    """Use every operation on a store; the only error allowed is StoreError."""
    with suppress(StoreError), Store(store) as opened:
        for image in range(opened.image_count):
            for look in (opened.image, opened.read_reference, opened.first_patch, opened.patch_sizes):
                with suppress(StoreError):
                    look(image)
            with suppress(StoreError):
                opened.find(opened.image_name(image), "00000001.png")
        for index in range(min(len(opened), 100)):
            for look in (opened.read, opened.locate, opened.patch_path):
                with suppress(StoreError):
                    look(index)
            with suppress(StoreError):
                opened.read_pixels([index])
        with suppress(StoreError):
            list(opened.listings())
    for file in store.glob("*.lmdb"):
        with suppress(StoreError), Store(file) as opened:
            content_of(opened)
    for quick in (True, False):
        with suppress(StoreError):
            verify(store, workers=1, quick=quick)
    with suppress(StoreError):
        info(store)
    if number % 4 == 0:
        new = store.with_name("new.lmdb")
        with suppress(StoreError):
            salvage(store, new, workers=1)
            assert verify(new, workers=1).ok
        for folder in (new, new.with_name("new.lmdb.partial")):
            shutil.rmtree(folder, ignore_errors=True)
    if number % 4 == 1:
        with suppress(StoreError):
            reindex(store, workers=1)


@pytest.mark.parametrize("spoiler", SPOILERS)
def test_a_store_with_sound_checksums_and_hostile_contents_is_an_error_of_ours(
    pristine: Path, tmp_path: Path, spoiler: Callable[[Path, random.Random], None], runs: Runs
) -> None:
    def spoil_and_use(number: int) -> None:
        store = Path(shutil.copytree(pristine, tmp_path / "store.lmdb"))
        spoiler(store, random.Random(number))
        use(store, number)
        shutil.rmtree(store)

    each_in_child(spoil_and_use, runs(small=150, full=60_000), memory=MEMORY)


def test_records_of_any_bytes_are_an_error_or_an_image(runs: Runs) -> None:
    image = Image(
        name="a",
        files=("1.jpg", "2.jpg"),
        centers={1: Center(1, 2, 3)},
        has_reference=True,
        patch_ids=np.array([1, 2], "u8"),
        heights=np.array([1, 2], "u4"),
        widths=np.array([1, 2], "u4"),
        extra={"deep": [[{"a": 1}]]},
    )
    record = encode_image(image)
    bombs = [
        b"\x90",
        b"\x80",
        b"\x91",
        b"\x81\xa1a",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
    ]

    def decode_one(number: int) -> None:
        rng = random.Random(number)
        data = mutated(record, rng)
        if number % 500 == 0:  # bytes that would unpack to a hundred times their size
            filling = rng.choice(bombs) * rng.choice((1000, 1 << 20, 1 << 23))
            at = rng.randrange(len(data) + 1)
            data = data[:at] + rng.choice((b"", b"\xdd" + struct.pack(">I", len(filling)))) + filling
        with suppress(StoreError):
            decode_image(data)

    each_in_child(decode_one, runs(small=1500, full=1_000_000), memory=MEMORY)


def test_pages_of_any_bytes_are_an_error_or_entries(pristine: Path, runs: Runs) -> None:
    data = shards_of(pristine)[0].read_bytes()

    def walk_one(number: int) -> None:
        rng = random.Random(number)
        changed = bytearray(mutated(data, rng))
        for _ in range(rng.randrange(20)):
            changed[rng.choice((rng.randrange(len(changed)), rng.randrange(300)))] = rng.randrange(256)
        with suppress(StoreError):
            list(iter_entries(bytes(changed)))
        list(iter_intact_entries(bytes(changed)))

    each_in_child(walk_one, runs(small=300, full=100_000), memory=MEMORY)


# Pictures

CLAIMED = 65_500


def claiming(kind: str, height: int, width: int) -> bytes:
    """Return a small picture whose header claims the given size."""
    data = bytearray(picture(kind, side=16))
    match kind:
        case "JPEG":
            at = next(data.index(bytes([0xFF, code])) for code in (0xC0, 0xC2) if bytes([0xFF, code]) in data)
            struct.pack_into(">HH", data, at + 5, height, width)
        case "PNG":
            import zlib

            struct.pack_into(">II", data, 16, width, height)
            struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
        case "BMP":
            struct.pack_into("<ii", data, 18, width, height)
        case "PPM":
            data = bytearray(data.replace(b"16 16", b"%d %d" % (width, height), 1))
        case "WEBP":  # lossy WebP has 14 bits a side
            at = data.index(b"\x9d\x01\x2a") + 3
            struct.pack_into("<HH", data, at, min(width, 16383), min(height, 16383))
    return bytes(data)


KINDS = ("JPEG", "PNG", "BMP", "PPM", "WEBP")


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_claims_to_be_huge_is_refused_before_anything_is_allocated(kind: str, tmp_path: Path) -> None:
    data = claiming(kind, CLAIMED, CLAIMED)

    def refuse(number: int) -> None:
        if kind == "JPEG":
            assert image_size(data, max_pixels=CLAIMED**2) == (CLAIMED, CLAIMED)
        for look in (image_size, check_picture, decode, lambda data: check_picture(data, decode_all=True)):
            with pytest.raises(ImageError, match="pixels"):
                look(data)

    each_in_child(refuse, range(1), memory=64 << 20)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_any_bytes_is_an_error_or_pixels(kind: str, runs: Runs) -> None:
    good = picture(kind, side=16)

    def decode_one(number: int) -> None:
        rng = random.Random(number)
        data = mutated(good, rng)
        if number % 10 == 0:
            data = claiming(kind, rng.choice((0, 1, 16, 9000, 65_500)), rng.choice((0, 1, 16, 9000, 65_535)))
        for look in (image_size, check_picture, lambda data: decode(data, alpha=bool(number % 2))):
            with suppress(StoreError):
                look(data)

    each_in_child(decode_one, runs(small=300, full=200_000), memory=1 << 30)


def test_an_index_that_names_a_shard_twice_or_leaves_a_gap_is_an_error(pristine: Path, tmp_path: Path) -> None:
    pages, body = parts(pristine / INDEX_FILE)
    for change in ({"first_image": 5}, {"number": 0}, {"images": 7}, {"patches": 1}):
        spoiled = {**body, "shards": [body["shards"][0], body["shards"][1] | change]}
        (tmp_path / INDEX_FILE).write_bytes(sealed(pages, packed(spoiled)))
        with pytest.raises(StoreError, match=r"index\.lmdb: "):
            Index.open(tmp_path / INDEX_FILE)


# Mended faults: the name of each test says what went wrong


@pytest.fixture
def store(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "store.lmdb"))


def test_chunk_offsets_of_half_a_number_were_a_value_error(store: Path) -> None:
    resealed(store / INDEX_FILE, lambda body: body["chunks"].update(images=b"1234567"))
    with pytest.raises(DamagedError, match=r"index\.lmdb: the trailer lacks fields or has unknown ones"):
        Store(store)


@pytest.mark.parametrize("field", ["number", "first_image", "size"])
@pytest.mark.parametrize("value", ["1", None, -1, True, 1.0])
def test_a_shard_table_of_anything_but_whole_numbers_was_a_type_error(store: Path, field: str, value: object) -> None:
    resealed(store / INDEX_FILE, lambda body: body["shards"][0].update({field: value}))
    with pytest.raises(DamagedError, match=rf"index\.lmdb: the trailer's {field} cannot be"):
        Store(store)


@pytest.mark.parametrize("field", ["number", "first_image", "store_id", "layout"])
def test_a_shard_header_of_wrong_types_was_a_type_error(store: Path, field: str) -> None:
    resealed(shards_of(store)[0], lambda body: body.update({field: "x"}))
    with pytest.raises(DamagedError, match=rf"shard-00000\.lmdb: the trailer's {field} cannot be 'x'"):
        Shard(shards_of(store)[0])


def test_a_shard_of_another_number_than_the_index_has_was_a_key_error_in_verify(store: Path) -> None:
    shard, size = shards_of(store)[0], shards_of(store)[0].stat().st_size
    resealed(shard, lambda body: body.update(number=5))
    assert shard.stat().st_size == size
    (finding,) = verify(store, workers=1, quick=True).findings
    assert (finding.shard, finding.kind) == ("shard-00000.lmdb", "damaged")
    assert "says otherwise of itself" in finding.message


def test_a_shard_number_above_32_bits_was_an_overflow_error(store: Path) -> None:
    resealed(shards_of(store)[0], lambda body: body.update(number=1 << 32))
    with pytest.raises(DamagedError, match="the trailer's number cannot be 4294967296"):
        Store(shards_of(store)[0])


def test_a_first_patch_beyond_all_was_an_overflow_error(store: Path) -> None:
    rewrite_row(store, "images", 1, "first_patch", 1 << 63)
    with Store(store) as opened:
        for look in (opened.patch_sizes, opened.payload_bytes, opened.image):
            with pytest.raises(DamagedError, match="image 0 has rows that cannot be; run dlas-store reindex"):
                look(0)
    assert not verify(store, workers=1).ok
    reindex(store, workers=1)
    assert verify(store, workers=1).ok


def test_an_empty_value_beyond_the_end_was_a_struct_error(store: Path) -> None:
    rewrite_row(store, "patches", 0, "length", 0)
    rewrite_row(store, "patches", 0, "offset", 1 << 40)
    with Store(store) as opened, pytest.raises(DamagedError, match="the checksum of the 0 bytes"):
        opened.read(0)


def test_a_patch_of_another_image_was_given_a_position_before_it(store: Path) -> None:
    rewrite_row(store, "patches", 0, "image", 2)
    with Store(store) as opened, pytest.raises(DamagedError, match="patch 0 is none of image 2"):
        opened.locate(0)
