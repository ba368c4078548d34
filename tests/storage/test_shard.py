"""Shards: reads by slice and by key return the written values."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np
import pytest

from dlas_store.errors import DamagedError, StoreError
from dlas_store.images.decode import Size
from dlas_store.sources.base import FIRST_UNNUMBERED_ID, Center, Image
from dlas_store.storage.lmdb_writer import BATCH_BYTES
from dlas_store.storage.records import Kind, pack_key
from dlas_store.storage.sealed_file import SealedFile, seal
from dlas_store.storage.shard import Shard, ShardEntries, ShardHeader, name_hash, read_image, read_payload, scan_shard
from dlas_store.storage.shard_writer import ShardWriter
from tests.support.small_stores import flip_in

HEADER = ShardHeader(
    store_id=b"s" * 16,
    shard_id=b"i" * 16,
    number=3,
    layout="chunked",
    commit=2,
    commit_first=1,
    commit_shards=4,
    first_image=1000,
)

Files = Mapping[str, bytes]


def random_bytes(size: int, *, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def build(
    path: Path, images: Mapping[str, Files], *, references: Files | None = None
) -> tuple[ShardHeader, ShardEntries]:
    with ShardWriter(path, HEADER) as writer:
        for name, files in images.items():
            for number, (file, data) in enumerate(files.items()):
                writer.add_patch(file, data, Size(number + 1, 70_000))
            reference = (references or {}).get(name)
            image = Image(name, ("unused",), {5: Center(1, 2, 3)}, has_reference=False, extra={"label": name})
            writer.end_image(image, reference)
        return writer.seal()


def by_key(path: Path) -> dict[bytes, bytes]:
    """Return key -> value, as the LMDB engine and every other LMDB tool read them."""
    with (
        lmdb.open(str(path), subdir=False, readonly=True, lock=False, lib_version=0) as environment,
        environment.begin() as transaction,
    ):
        return dict(transaction.cursor())


def assert_holds(path: Path, entries: ShardEntries, images: Mapping[str, Files], references: Files) -> None:
    """Check that reads by slice and by key return the written images."""
    stored = by_key(path)
    data = Shard(path).data
    assert len(entries.images) == len(images)
    assert entries.name_hashes.tolist() == [name_hash(name) for name in images]
    expected_keys = set()
    for number, (name, files) in enumerate(images.items()):
        row = entries.images[number]
        key = pack_key(HEADER.first_image + number, Kind.METADATA)
        image = read_image(data, key, int(row["metadata_offset"]), int(row["metadata_length"]), path)
        assert (image.name, image.files, image.extra) == (name, tuple(files), {"label": name})
        assert image.centers == {5: Center(1, 2, 3)}
        assert image.heights is not None
        assert image.heights.tolist() == list(range(1, len(files) + 1))
        assert image.has_reference == (name in references)
        assert bool(row["reference_offset"]) == (name in references)
        expected_keys.add(key)
        if name in references:
            key = pack_key(HEADER.first_image + number, Kind.REFERENCE)
            location = int(row["reference_offset"]), int(row["reference_length"])
            assert read_payload(data, key, *location, path) == stored[key][8:] == references[name]
            expected_keys.add(key)
        for position, payload in enumerate(files.values()):
            patch = entries.patches[int(row["first_patch"]) + position]
            key = pack_key(HEADER.first_image + number, Kind.PATCH, int(patch["patch_id"]))
            location = int(patch["offset"]), int(patch["length"])
            assert read_payload(data, key, *location, path) == stored[key][8:] == payload
            assert (patch["image"], patch["shard"]) == (number, HEADER.number)
            expected_keys.add(key)
    assert set(stored) == expected_keys
    assert len(entries.patches) == sum(map(len, images.values()))


IMAGES: dict[str, dict[str, Files]] = {
    "no image": {},
    "one patch": {"a": {"1.jpg": b"x"}},
    "an empty patch": {"a": {"1.jpg": b""}},
    "inline and overflow": {
        "a": {f"{n:08d}.jpg": random_bytes(n * 97, seed=n) for n in range(1, 80)},
        "b": {"2.jpg": random_bytes(100_000)},
    },
    "names without a number": {"a": {"a.jpg": b"a", "b.jpg": b"b", "x1.jpg": b"x"}},
    "numbers taken twice": {"a": {"001.jpg": b"1", "01.jpg": b"2", "1.jpg": b"3", "1.png": b"4", "2.jpg": b"5"}},
    "numbers too large": {"a": {"9223372036854775807.jpg": b"largest", "9223372036854775808.jpg": b"too large"}},
    "order of names is not that of numbers": {"a": {"10.jpg": b"10", "9.jpg": b"9", "b.jpg": b"b", "8.jpg": b"8"}},
    "unicode names": {"é ü/日本": {"é.jpg": b"1", "日本.jpg": b"2", "🙂.png": b"3"}, "\u0301": {"1.jpg": b"4"}},
}


@pytest.mark.parametrize("references", [{}, {"a": b"reference"}, {"a": random_bytes(5000), "b": b"b", "é ü/日本": b""}])
@pytest.mark.parametrize("name", IMAGES)
def test_what_is_written_is_read_by_slice_and_by_key(name: str, references: Files, tmp_path: Path) -> None:
    images = IMAGES[name]
    references = {image: data for image, data in references.items() if image in images}
    path = tmp_path / "shard"
    header, entries = build(path, images, references=references)
    assert_holds(path, entries, images, references)
    payload = sum(len(data) for files in images.values() for data in files.values())
    payload += sum(map(len, references.values()))
    assert header == replace(HEADER, images=len(images), patches=sum(map(len, images.values())), payload_bytes=payload)
    assert Shard(path).header == header
    assert np.array_equal(scan_shard(Shard(path), check_values=True).patches, entries.patches)


def test_patches_without_a_free_number_get_ids_from_2_to_the_63_up(tmp_path: Path) -> None:
    _, entries = build(tmp_path / "shard", {"a": {"01.jpg": b"1", "1.jpg": b"2", "7.jpg": b"3", "x.jpg": b"4"}})
    assert entries.patches["patch_id"].tolist() == [1, FIRST_UNNUMBERED_ID, 7, FIRST_UNNUMBERED_ID + 1]


def test_an_image_without_patches_is_left_out(tmp_path: Path) -> None:
    header, entries = build(tmp_path / "shard", {"a": {}, "b": {"1.jpg": b"1"}, "c": {}}, references={"a": b"r"})
    assert (header.images, header.patches, header.payload_bytes) == (1, 1, 1)
    assert_holds(tmp_path / "shard", entries, {"b": {"1.jpg": b"1"}}, {})


@pytest.mark.parametrize("batch", [1, 1000, 10_000])
def test_an_image_may_span_several_transactions(batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlas_store.storage.shard_writer.BATCH_BYTES", batch)
    images = {name: {f"{n:05d}.jpg": random_bytes(300 + n * 50, seed=n) for n in range(60)} for name in ("a", "b", "c")}
    references = {"a": random_bytes(3000), "c": b"r"}
    _, entries = build(tmp_path / "shard", images, references=references)
    assert_holds(tmp_path / "shard", entries, images, references)


def test_an_image_larger_than_a_batch_is_written_whole(tmp_path: Path) -> None:
    megabyte = random_bytes(1 << 20)
    count = (BATCH_BYTES >> 20) * 2 + 3
    images = {"giant": {f"{n:05d}.jpg": megabyte[n:] for n in range(count)}, "small": {"1.jpg": b"1"}}
    references = {"giant": b"reference"}
    _, entries = build(tmp_path / "shard", images, references=references)
    assert_holds(tmp_path / "shard", entries, images, references)
    metadata = int(entries.images[0]["metadata_offset"])
    assert metadata > int(entries.patches[0]["offset"])  # metadata was written after the first batch


def test_small_images_lie_in_the_order_of_reading(tmp_path: Path) -> None:
    images = {name: {f"{n:03d}.jpg": random_bytes(5000) for n in range(5)} for name in "abc"}
    _, entries = build(tmp_path / "shard", images)
    offsets = entries.patches["offset"].tolist()
    assert offsets == sorted(offsets)


def test_an_unfinished_shard_is_no_shard_and_can_be_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    with ShardWriter(path, HEADER) as writer:
        writer.add_patch("1.jpg", b"old", Size(1, 1))
    with pytest.raises(StoreError):
        Shard(path)
    _, entries = build(path, {"a": {"1.jpg": b"new"}})
    assert_holds(path, entries, {"a": {"1.jpg": b"new"}}, {})


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    build(
        tmp_path / "shard",
        {"a": {"1.jpg": b"patch one of a", "2.jpg": random_bytes(9000)}, "b": {"1.jpg": b"patch one of b"}},
        references={"a": b"reference of a"},
    )
    return tmp_path / "shard"


@pytest.mark.parametrize("part", [b"patch one of a", b"reference of a", random_bytes(9000)])
def test_a_changed_payload_is_found_by_a_full_check_only(shard: Path, part: bytes) -> None:
    flip_in(shard, part)
    scan_shard(Shard(shard))
    with pytest.raises(DamagedError, match="checksum"):
        scan_shard(Shard(shard), check_values=True)


def test_changed_metadata_is_found_by_every_walk(shard: Path) -> None:
    flip_in(shard, b"\xa5label\xa1a")
    with pytest.raises(DamagedError, match=r"shard: .*checksum"):
        scan_shard(Shard(shard))


def test_payloads_in_each_others_place_are_found(shard: Path) -> None:
    values = by_key(shard)
    one, other = pack_key(1000, Kind.PATCH, 1), pack_key(1001, Kind.PATCH, 1)
    data = shard.read_bytes().replace(values[one], b"-hold-").replace(values[other], values[one])
    shard.write_bytes(data.replace(b"-hold-", values[other]))
    with pytest.raises(DamagedError, match="checksum"):
        scan_shard(Shard(shard), check_values=True)


def test_a_payload_is_refused_at_places_outside_the_file(shard: Path) -> None:
    data = Shard(shard).data
    for offset, length in [(0, 4), (7, 4), (len(data) - 2, 4), (len(data) + 100, 4), (1 << 62, 4), (8, 1 << 40)]:
        with pytest.raises(DamagedError, match="checksum"):
            read_payload(data, bytes(17), offset, length, shard)


def rewrite(path: Path, change: Mapping[bytes, bytes | None]) -> None:
    """Rewrite a shard under the same trailer, with the values in ``change`` replaced (None: removed)."""
    body = SealedFile(path, "shard").body
    values = by_key(path)
    path.unlink()
    with (
        lmdb.open(str(path), subdir=False, lock=False, lib_version=0) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in sorted({**values, **change}.items()):
            if value is not None:
                transaction.put(key, value)
    seal(path, body)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({pack_key(1000, Kind.METADATA): None}, "image 1000 or its metadata is missing"),
        ({pack_key(1000, Kind.REFERENCE): None}, "values of image 'a' are not those its metadata names"),
        ({pack_key(1000, Kind.PATCH, 2): None}, "values of image 'a' are not those its metadata names"),
        ({pack_key(1000, Kind.PATCH, 9): bytes(20)}, "values of image 'a' are not those its metadata names"),
        ({pack_key(1001, Kind.METADATA): None, pack_key(1001, Kind.PATCH, 1): None}, "1 images and 2 patches"),
        ({pack_key(1000, Kind.PATCH, 2): bytes(7)}, "too short"),
        ({b"foreign": b"key"}, "is not one of a shard"),
        ({pack_key(5, Kind.PATCH, 1): bytes(20)}, "image 1000 or its metadata is missing"),
        ({pack_key(1003, Kind.PATCH, 1): bytes(20)}, "image 1002 or its metadata is missing"),
    ],
)
def test_values_that_do_not_agree_are_named(shard: Path, change: Mapping[bytes, bytes | None], message: str) -> None:
    rewrite(shard, {})
    scan_shard(Shard(shard), check_values=True)
    rewrite(shard, change)
    with pytest.raises(DamagedError, match=f"shard: .*{message}"):
        scan_shard(Shard(shard))


@pytest.mark.parametrize("change", [{"number": None}, {"new": 1}])
def test_a_trailer_with_other_fields_is_damaged(shard: Path, change: Mapping[str, int | None]) -> None:
    body = {**SealedFile(shard, "shard").body, **change}
    seal(shard, {key: value for key, value in body.items() if value is not None})
    with pytest.raises(DamagedError, match="lacks fields or has unknown ones"):
        Shard(shard)


def test_the_bytes_of_a_value_are_those_that_the_format_states(shard: Path) -> None:
    from xxhash import xxh3_64_intdigest

    key = struct.pack(">QBQ", 1000, 2, 1)
    checksum = xxh3_64_intdigest(b"patch one of a", xxh3_64_intdigest(key))
    assert by_key(shard)[key] == struct.pack("<Q", checksum) + b"patch one of a"
