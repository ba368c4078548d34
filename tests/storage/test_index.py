"""The index: rows, names and shard entries, read back from its file."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlas_store.errors import DamagedError
from dlas_store.storage.index import INDEX_FILE, NAME_ROW, Index
from dlas_store.storage.index_writer import IndexWriter
from dlas_store.storage.sealed_file import BLOCK_BYTES, SealedFile, seal
from dlas_store.storage.shard import IMAGE_ROW, PATCH_ROW, Shard, ShardEntries, ShardHeader, name_hash, scan_shard
from tests.support.sample_data import Array
from tests.support.small_stores import append, damage_table, flip, make_store, shards_of, small_folder


def header(number: int, *, images: int, patches: int, first_image: int) -> ShardHeader:
    return ShardHeader(
        store_id=b"s" * 16,
        shard_id=bytes([number]) * 16,
        number=number,
        layout="chunked",
        commit=number // 2,
        commit_first=number // 2 * 2,
        commit_shards=2,
        first_image=first_image,
        images=images,
        patches=patches,
        payload_bytes=patches * 10,
    )


def shard_entries(number: int, *, images: int, patches_an_image: int, hashes: Array | None = None) -> ShardEntries:
    """Return the entries that a scan of a shard with so many images returns."""
    image_rows = np.zeros(images, IMAGE_ROW.dtype)
    image_rows["metadata_offset"] = np.arange(images) * 1000 + 17
    image_rows["first_patch"] = np.arange(images) * patches_an_image
    image_rows["shard"] = number
    patch_rows = np.zeros(images * patches_an_image, PATCH_ROW.dtype)
    patch_rows["offset"] = np.arange(len(patch_rows)) * 11
    patch_rows["patch_id"] = (1 << 63) + np.arange(len(patch_rows), dtype=np.uint64)
    patch_rows["image"] = np.repeat(np.arange(images), patches_an_image)
    patch_rows["shard"] = number
    if hashes is None:
        names = (name_hash(f"{number}/{image}") for image in range(images))
        hashes = np.fromiter(names, np.uint64, images)
    return ShardEntries(image_rows, patch_rows, hashes)


def write_index(path: Path, entries_of_shards: list[ShardEntries], *, base: Index | None = None) -> Index:
    """Write the entries of shards with gaps between their numbers, and open the index."""
    writer = IndexWriter(path, store_id=b"s" * 16, layout="chunked", generation=7)
    if base is not None:
        writer.add_index(base)
    first = 0 if base is None else len(base.images)
    for entries in entries_of_shards:
        number = int(entries.images["shard"][0]) if len(entries.images) else 99
        shard_header = header(number, images=len(entries.images), patches=len(entries.patches), first_image=first + 5)
        writer.add(shard_header, entries, size=10_000 + number)
        first += len(entries.images)
    writer.finish()
    return Index.open(path)


def rows_of(index: Index) -> tuple[list[Any], list[Any], list[Any]]:
    return tuple([table[row] for row in range(len(table))] for table in index.tables)  # type: ignore[return-value]


@pytest.mark.parametrize("images", [0, 1, 150, 3000])
def test_an_index_gives_back_what_it_was_given(images: int, tmp_path: Path) -> None:
    shards = [shard_entries(number, images=images, patches_an_image=3) for number in (2, 4)]
    index = write_index(tmp_path / INDEX_FILE, shards)
    assert (index.store_id, index.layout, index.generation) == (b"s" * 16, "chunked", 7)
    assert (len(index.images), len(index.patches), len(index.names)) == (2 * images, 6 * images, 2 * images)
    image_rows, patch_rows, names = rows_of(index)
    assert [row[0] for row in image_rows] == [
        *shards[0].images["metadata_offset"],
        *shards[1].images["metadata_offset"],
    ]
    assert [row[2] for row in image_rows] == list(
        range(0, 6 * images, 3)
    )  # the second shard's patches continue the numbers of the first shard's
    assert [row[1] for row in patch_rows] == [*shards[0].patches["patch_id"], *shards[1].patches["patch_id"]]
    assert [row[3] for row in patch_rows] == [patch // 3 for patch in range(6 * images)]
    assert names == sorted(names)
    assert list(index.tables[0].damaged_blocks()) == []


def test_the_shard_table_is_kept_by_number(tmp_path: Path) -> None:
    shards = [shard_entries(number, images=number, patches_an_image=2) for number in (2, 4)]
    index = write_index(tmp_path / INDEX_FILE, shards)
    assert list(index.shards) == [2, 4]
    entry = index.shards[4]
    assert (entry.first_image, entry.first_image_id, entry.images, entry.patches) == (2, 7, 4, 8)
    assert (entry.size, entry.shard_id, entry.payload_bytes, entry.commit) == (10_004, b"\x04" * 16, 80, 2)


def test_every_name_is_found_and_no_other(tmp_path: Path) -> None:
    shards = [shard_entries(number, images=700, patches_an_image=1) for number in (0, 1)]
    index = write_index(tmp_path / INDEX_FILE, shards)
    for number in range(1400):
        assert list(index.images_named(name_hash(f"{number // 700}/{number % 700}"))) == [number]
    for other in (0, (1 << 64) - 1, name_hash("no such"), name_hash("")):
        assert list(index.images_named(other)) == []


@pytest.mark.parametrize("value", [0, 12345, (1 << 64) - 1])
def test_names_of_one_hash_are_all_given(value: int, tmp_path: Path) -> None:
    hashes = np.array([5, value, 3, value, (1 << 64) - 2, value], np.uint64)
    index = write_index(tmp_path / INDEX_FILE, [shard_entries(0, images=6, patches_an_image=1, hashes=hashes)])
    assert list(index.images_named(value)) == [1, 3, 5]


def test_an_index_added_to_is_the_same_as_one_made_at_once(tmp_path: Path) -> None:
    shards = [shard_entries(number, images=400, patches_an_image=2) for number in range(4)]
    base = write_index(tmp_path / "base", shards[:2])
    longer = write_index(tmp_path / "longer", shards[2:], base=base)
    at_once = write_index(tmp_path / "at once", shards)
    assert rows_of(longer) == rows_of(at_once)
    assert longer.shards == at_once.shards


def test_an_index_that_was_not_finished_is_none(tmp_path: Path) -> None:
    writer = IndexWriter(tmp_path / INDEX_FILE, store_id=b"s" * 16, layout="chunked", generation=0)
    writer.add(header(0, images=1, patches=1, first_image=0), shard_entries(0, images=1, patches_an_image=1), size=1)
    writer.close()
    with pytest.raises(DamagedError):
        Index.open(tmp_path / INDEX_FILE)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    names = ["a", "b", "c"]
    random.Random(1).shuffle(names)
    source = small_folder(folder / "source", *names, "late")
    path = make_store(source, folder / "store.lmdb", images="?")
    append(source, path)
    return path


def test_an_index_of_a_shard_is_its_part_of_the_store(store: Path) -> None:
    store_index = Index.open(store / INDEX_FILE)
    for path in shards_of(store):
        single = Index.of_shard(Shard(path))
        (entry,) = single.shards.values()
        first = store_index.shards[entry.number].first_image
        assert entry.first_image == 0
        assert entry.first_image_id == store_index.shards[entry.number].first_image_id
        assert (entry.size, entry.shard_id) == (path.stat().st_size, store_index.shards[entry.number].shard_id)
        for number in range(len(single.images)):
            assert single.images[number][:2] == store_index.images[first + number][:2]
        first_patch = store_index.images[first][2]
        for patch in range(len(single.patches)):
            assert single.patches[patch][:3] == store_index.patches[first_patch + patch][:3]
        assert single.tables == []


def test_an_index_agrees_with_its_shards_and_no_other_places(store: Path) -> None:
    index = Index.open(store / INDEX_FILE)
    for path in shards_of(store):
        shard = Shard(path)
        scanned = scan_shard(shard)
        assert index.agrees_with(shard.header, scanned)
        for table, column in [(scanned.images, "metadata_offset"), (scanned.patches, "length")]:
            table[column][0] += 1
            assert not index.agrees_with(shard.header, scanned)
            table[column][0] -= 1
        assert not index.agrees_with(shard.header, scanned._replace(patches=scanned.patches[1:]))


def test_opening_reads_no_row(store: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(store, tmp_path / "copy.lmdb")
    for name in ("images", "patches", "names"):
        damage_table(copy, name)
    index = Index.open(copy / INDEX_FILE)
    assert len(index.patches) == 16
    for table in index.tables:
        with pytest.raises(DamagedError, match=r"copy\.lmdb/index\.lmdb: block 0 of .*dlas-store reindex"):
            table[0]


def test_every_flipped_byte_of_a_block_is_found(store: Path, tmp_path: Path) -> None:
    path = tmp_path / INDEX_FILE
    path.write_bytes((store / INDEX_FILE).read_bytes())
    body = SealedFile(path, "index").body
    for name, chunk in body["chunks"].items():
        start = int.from_bytes(chunk[:8], "little")
        for position in range(start, start + BLOCK_BYTES, 5):
            flip(path, position, position % 8)
            index = Index.open(path)
            assert sum(1 for table in index.tables for _ in table.damaged_blocks()) == 1, (name, position)
            flip(path, position, position % 8)


FIELDS = ["store_id", "layout", "generation", "table_id", "shards", "counts", "chunks"]


@pytest.mark.parametrize("field", FIELDS)
def test_an_index_that_lacks_a_field_is_damaged(field: str, store: Path, tmp_path: Path) -> None:
    path = tmp_path / INDEX_FILE
    path.write_bytes((store / INDEX_FILE).read_bytes())
    body = SealedFile(path, "index").body
    assert set(body) == {"kind", *FIELDS}
    del body[field]
    seal(path, body)
    with pytest.raises(DamagedError, match=r"index\.lmdb: the trailer lacks fields"):
        Index.open(path)


def test_the_layout_of_rows_never_changes() -> None:
    assert [(row.name, row.dtype.itemsize, row.rows_per_block) for row in (IMAGE_ROW, PATCH_ROW, NAME_ROW)] == [
        ("images", 36, 113),
        ("patches", 28, 146),
        ("names", 12, 340),
    ]
