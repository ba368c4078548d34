"""Damaged stores: an error names the file and the remedy, and no read returns a wrong byte or crashes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dlas_store.errors import DamagedError, ForeignShardError, NotASourceError
from dlas_store.storage.index import INDEX_FILE, Index
from dlas_store.storage.sealed_file import SealedFile
from dlas_store.storage.store import Store
from tests.support.small_stores import (
    append,
    content_of,
    damage_table,
    flip,
    flip_in,
    make_store,
    shards_of,
    small_folder,
)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three shards of one image each, of which the first two have the same size."""
    folder = tmp_path_factory.mktemp("damage")
    return make_store(small_folder(folder / "source", "a", "b", "c"), folder / "store.lmdb")


@pytest.fixture(scope="module")
def content(pristine: Path) -> dict[str, object]:
    with Store(pristine) as store:
        return content_of(store)


@pytest.fixture
def store(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "store.lmdb"))


@pytest.fixture(scope="module")
def other_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second store, imported from the same files."""
    folder = tmp_path_factory.mktemp("other")
    return make_store(small_folder(folder / "source", "a", "b", "c"), folder / "store.lmdb")


def open_and_read(path: Path) -> None:
    with Store(path) as store:
        content_of(store)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(100))


def truncate_to_a_page(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:4096])


def truncate_to_a_few_bytes(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def zero_the_trailer(path: Path) -> None:
    """Overwrite the last 64 bytes with zeros, as a lost disk block would."""
    path.write_bytes(path.read_bytes()[:-64] + bytes(64))


def replace_by_text(path: Path) -> None:
    path.write_text("no LMDB" * 40)


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [
    shorten,
    lengthen,
    truncate_to_a_page,
    truncate_to_a_few_bytes,
    empty,
    zero,
    zero_the_trailer,
    replace_by_text,
    replace_by_a_folder,
]


@pytest.mark.parametrize("damage", [Path.unlink, *DAMAGES])
def test_a_shard_that_is_not_the_one_named_is_an_error_with_a_way_out(
    store: Path, damage: Callable[[Path], object]
) -> None:
    damage(shards_of(store)[1])
    with pytest.raises(DamagedError, match=r"shard-00001\.lmdb: .*restore it from a copy, or run dlas-store salvage"):
        open_and_read(store)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_an_error_with_a_way_out(store: Path, damage: Callable[[Path], object]) -> None:
    damage(store / INDEX_FILE)
    with pytest.raises((DamagedError, NotASourceError), match=r"store\.lmdb.*dlas-store reindex"):
        open_and_read(store)


def test_a_missing_index_is_an_error_with_a_way_out(store: Path) -> None:
    (store / INDEX_FILE).unlink()
    with pytest.raises(NotASourceError, match=r"store\.lmdb: .*dlas-store reindex"):
        open_and_read(store)


@pytest.mark.parametrize("name", ["images", "patches", "names"])
def test_a_damaged_table_is_an_error_with_a_way_out(store: Path, name: str) -> None:
    damage_table(store, name)
    with Store(store) as opened, pytest.raises(DamagedError, match=r"index\.lmdb: .*dlas-store reindex"):
        opened.read(opened.find("a", "00000000.png"))


def test_two_shards_exchanged_are_found(store: Path) -> None:
    first, second = shards_of(store)[:2]
    assert first.stat().st_size == second.stat().st_size  # otherwise the size alone would show the difference
    aside = store / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    with pytest.raises(ForeignShardError, match=r"shard-0000[01]\.lmdb: is shard [01] of this store, not the one"):
        open_and_read(store)


def test_a_shard_of_another_store_is_found(store: Path, other_store: Path) -> None:
    shutil.copy(shards_of(other_store)[1], shards_of(store)[1])
    with pytest.raises(ForeignShardError, match=r"shard-00001\.lmdb: is shard 1 of another store.*dlas-store salvage"):
        open_and_read(store)


def test_an_index_of_another_store_is_found(store: Path, other_store: Path) -> None:
    shutil.copy(other_store / INDEX_FILE, store / INDEX_FILE)
    with pytest.raises(DamagedError, match=r"shard-00000\.lmdb: is shard 0 of another store"):
        open_and_read(store)


def test_an_index_in_the_place_of_a_shard_is_found(store: Path) -> None:
    shard = shards_of(store)[0]
    shutil.copy(store / INDEX_FILE, shard)
    with pytest.raises(DamagedError, match="is not a store's shard but its index"):
        Store(shard)
    shutil.copy(shards_of(store)[1], store / INDEX_FILE)
    with pytest.raises(DamagedError, match="is not a store's index but its shard"):
        Store(store)


def test_what_the_rest_of_a_damaged_store_holds_is_still_read(store: Path, content: dict[str, object]) -> None:
    payload = content["b/00000001.png"]
    assert isinstance(payload, bytes)
    flip_in(shards_of(store)[1], payload)
    with Store(store) as opened:
        for index in range(len(opened)):
            number, position = opened.locate(index)
            image = opened.image(number)
            name = f"{image.name}/{image.files[position]}"
            if name == "b/00000001.png":
                message = r"shard-00001\.lmdb: .*patch 5, 00000001\.png of image 'b'.*dlas-store verify"
                with pytest.raises(DamagedError, match=message):
                    opened.read(index)
            else:
                assert opened.read(index) == content[name]


def test_a_damaged_reference_is_an_error_that_names_its_image(store: Path, content: dict[str, object]) -> None:
    reference = content["b/ref.jpg"]
    assert isinstance(reference, bytes)
    flip_in(shards_of(store)[1], reference)
    with Store(store) as opened, pytest.raises(DamagedError, match=r"shard-00001\.lmdb: .*ref\.jpg of image 'b'"):
        opened.read_reference(1)


def test_damaged_metadata_is_an_error_that_says_whose(store: Path) -> None:
    flip_in(shards_of(store)[1], b"\xa4name\xa1b")
    with Store(store) as opened, pytest.raises(DamagedError, match=r"shard-00001\.lmdb: .*image 1.*dlas-store verify"):
        opened.image(1)


def test_a_patch_whose_image_cannot_be_named_is_still_an_error_of_ours(store: Path) -> None:
    with Store(store) as opened:
        row = opened.index.images[1]
        patch = opened.index.patches[5]
    flip(shards_of(store)[1], row[0] + 5)
    flip(shards_of(store)[1], patch[0] + 5)
    with Store(store) as opened, pytest.raises(DamagedError, match=r"patch 5, number 1 of image 1"):
        opened.read(5)


def test_a_store_whose_engine_pages_are_gone_is_still_read_by_slices(store: Path, content: dict[str, object]) -> None:
    for file in [store / INDEX_FILE, *shards_of(store)]:
        with file.open("r+b") as opened:
            opened.write(bytes(8192))  # both meta pages
    with Store(store) as readable:
        assert content_of(readable) == content


def test_a_half_copied_store_says_which_file_is_missing(pristine: Path, tmp_path: Path) -> None:
    incomplete = tmp_path / "part.lmdb"
    incomplete.mkdir()
    shutil.copy(pristine / INDEX_FILE, incomplete)
    with pytest.raises(DamagedError, match=r"shard-00000\.lmdb"):
        Store(incomplete)


def test_an_old_index_beside_newer_shards_is_the_old_store(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "source", "a", "b")
    store = make_store(folder, tmp_path / "store.lmdb", images="a")
    old_index = (store / INDEX_FILE).read_bytes()
    append(folder, store)
    (store / INDEX_FILE).write_bytes(old_index)
    with Store(store) as opened:
        assert content_of(opened)["order"] == ["a"]


def test_the_table_id_binds_an_index_to_its_blocks(pristine: Path, other_store: Path) -> None:
    bodies = [SealedFile(path / INDEX_FILE, "index").body for path in (pristine, other_store)]
    assert bodies[0]["table_id"] != bodies[1]["table_id"]
    assert Index.open(pristine / INDEX_FILE).store_id != Index.open(other_store / INDEX_FILE).store_id
