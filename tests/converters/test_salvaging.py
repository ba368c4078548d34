"""Salvage: undamaged images are copied and lost images are listed, whatever was damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dlas_store.converters.importing import import_store
from dlas_store.converters.salvaging import salvage
from dlas_store.errors import ConfigError, NotASourceError, TargetExistsError
from dlas_store.lmdb_reader import read_meta
from dlas_store.maintenance.reindex import reindex
from dlas_store.maintenance.verify import verify
from dlas_store.storage.index import INDEX_FILE
from dlas_store.storage.sealed_file import map_file
from dlas_store.storage.store import Store
from tests.support.command_line import done, findings, refused, run
from tests.support.small_stores import (
    append,
    content_of,
    damage_table,
    flip,
    flip_in,
    make_store,
    shards_of,
    small_folder,
    state_of,
)

NAMES = "abcdef"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose three shards hold two images each."""
    folder = tmp_path_factory.mktemp("salvage")
    size = sum(path.stat().st_size for path in small_folder(folder / "source", *NAMES).rglob("a/*.*g"))
    return make_store(folder / "source", folder / "store.lmdb", shard_size=2 * size + 2000)


@pytest.fixture(scope="module")
def content(pristine: Path) -> dict[str, object]:
    assert len(shards_of(pristine)) == 3
    with Store(pristine) as store:
        return content_of(store)


@pytest.fixture
def store(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "store.lmdb"))


def images_in(store: Path, content: dict[str, object]) -> str:
    """Return the names of a store's images, in order, as one string, after checks of the store and its content."""
    assert verify(store, workers=1).findings == []
    with Store(store) as opened:
        values = content_of(opened)
    order = values.pop("order")
    assert values.items() <= content.items()
    assert isinstance(order, list)
    return "".join(order)


def salvaged(store: Path, content: dict[str, object]) -> tuple[str, list[tuple[str, str]]]:
    """Salvage a store; return the names of the copied images, and shard and name of each lost image."""
    new, report = store.with_name("new.lmdb"), store.with_name("report.json")
    old_state = state_of(store)
    summary = salvage(store, new, workers=1, report=report)
    assert state_of(store) == old_state
    assert json.loads(report.read_bytes())["lost"] == [lost._asdict() for lost in summary.lost]
    images = images_in(new, content)
    assert len(images) == summary.images
    return images, [(lost.shard, lost.image) for lost in summary.lost]


def test_the_command_says_what_was_copied_and_lost(store: Path, content: dict[str, object]) -> None:
    value_bytes = content["c/00000001.png"]
    assert isinstance(value_bytes, bytes)
    flip_in(shards_of(store)[1], value_bytes)
    remove_index(store)
    result = run("salvage", store, store.with_name("new.lmdb"), "--report", store.with_name("report.json"))
    assert (result.status, result.err) == (1, "")
    assert "new.lmdb: salvaged 5 images, 20 patches, " in result.out
    assert "lost: shard-00001.lmdb c: image 2: 00000001.png is damaged" in result.out
    assert "note: the index is not used: " in result.out
    report = json.loads(store.with_name("report.json").read_bytes())
    assert (report["images"], report["patches"]) == (5, 20)
    assert report["lost"] == [{"shard": "shard-00001.lmdb", "image": "c", "reason": "image 2: 00000001.png is damaged"}]


def remove_index(store: Path) -> None:
    (store / INDEX_FILE).unlink()


def empty_index(store: Path) -> None:
    (store / INDEX_FILE).write_bytes(b"")


def flip_in_index_trailer(store: Path) -> None:
    flip(store / INDEX_FILE, (store / INDEX_FILE).stat().st_size - 60)


def shard_as_index(store: Path) -> None:
    shutil.copy(shards_of(store)[0], store / INDEX_FILE)


def damage_patch_rows(store: Path) -> None:
    damage_table(store, "patches")


def damage_image_rows(store: Path) -> None:
    damage_table(store, "images")


def leave(store: Path) -> None:
    pass


INDEXES = [
    leave,
    remove_index,
    empty_index,
    flip_in_index_trailer,
    shard_as_index,
    damage_patch_rows,
    damage_image_rows,
]
"""Functions that damage an index, each in another way, and one that does not."""


@pytest.mark.parametrize("damage_index", INDEXES)
def test_nothing_is_lost_with_the_index(
    store: Path, content: dict[str, object], damage_index: Callable[[Path], None]
) -> None:
    damage_index(store)
    assert salvaged(store, content) == (NAMES, [])


def test_nothing_is_lost_with_the_index_of_another_store(
    store: Path, content: dict[str, object], tmp_path: Path
) -> None:
    other = make_store(small_folder(tmp_path / "other", "x", "y"), tmp_path / "other.lmdb")
    shutil.copy(other / INDEX_FILE, store / INDEX_FILE)
    assert salvaged(store, content) == (NAMES, [])


@pytest.mark.parametrize("damage_index", [leave, remove_index, damage_patch_rows])
@pytest.mark.parametrize("value", ["c/00000001.png", "c/00000002.png", "c/ref.jpg"])
def test_an_image_with_a_damaged_value_is_listed_and_the_rest_copied(
    store: Path, content: dict[str, object], value: str, damage_index: Callable[[Path], None]
) -> None:
    value_bytes = content[value]
    assert isinstance(value_bytes, bytes)
    flip_in(shards_of(store)[1], value_bytes)
    damage_index(store)
    assert salvaged(store, content) == ("abdef", [("shard-00001.lmdb", "c")])
    lost = json.loads((store.parent / "report.json").read_bytes())["lost"]
    assert lost[0]["reason"].endswith(f"{value[2:]} is damaged")


def test_an_image_whose_metadata_is_damaged_is_listed_without_a_name(store: Path, content: dict[str, object]) -> None:
    flip_in(shards_of(store)[1], b"\xa4name\xa1d")
    assert salvaged(store, content) == ("abcef", [("shard-00001.lmdb", "")])


@pytest.mark.parametrize("damage_index", [leave, remove_index])
def test_a_missing_shard_is_listed(
    store: Path, content: dict[str, object], damage_index: Callable[[Path], None]
) -> None:
    shards_of(store)[1].unlink()
    damage_index(store)
    assert salvaged(store, content) == ("abef", [("shard-00001.lmdb", "")])


def test_a_shard_of_another_store_is_not_taken(store: Path, content: dict[str, object], tmp_path: Path) -> None:
    other = make_store(small_folder(tmp_path / "other", "x", "y", seed=3), tmp_path / "other.lmdb")
    shutil.copy(shards_of(other)[0], shards_of(store)[1])
    assert salvaged(store, content) == ("abef", [("shard-00001.lmdb", "")])
    shutil.rmtree(store.parent / "new.lmdb")
    remove_index(store)
    assert salvaged(store, content) == ("abef", [("shard-00001.lmdb", "")])


@pytest.mark.parametrize("damage_index", [leave, remove_index])
def test_shards_that_were_swapped_lose_nothing(
    store: Path, content: dict[str, object], damage_index: Callable[[Path], None]
) -> None:
    first, _, third = shards_of(store)
    first.rename(store / "aside")
    third.rename(first)
    (store / "aside").rename(third)
    damage_index(store)
    images, lost = salvaged(store, content)
    assert (images, lost) == (NAMES, [])


def root_page(shard: Path) -> int:
    return read_meta(map_file(shard)).root * 4096


@pytest.mark.parametrize("place", ["meta", "root"])
def test_a_shard_with_a_damaged_tree_loses_nothing_while_the_index_knows_its_values(
    store: Path, content: dict[str, object], place: str
) -> None:
    shard = shards_of(store)[1]
    data = bytearray(shard.read_bytes())
    start = root_page(shard) if place == "root" else 0
    data[start : start + (16 if place == "root" else 8192)] = bytes(16 if place == "root" else 8192)
    shard.write_bytes(data)
    assert salvaged(store, content) == (NAMES, [])


@pytest.mark.parametrize("damage_index", [leave, remove_index])
def test_a_shard_without_its_trailer_loses_nothing(
    store: Path, content: dict[str, object], damage_index: Callable[[Path], None]
) -> None:
    shard = shards_of(store)[1]
    shard.write_bytes(shard.read_bytes()[:-40])
    damage_index(store)
    images, lost = salvaged(store, content)
    assert (sorted(images), lost) == (list(NAMES), [])


def test_of_a_shard_that_was_cut_what_is_left_is_copied(store: Path, content: dict[str, object]) -> None:
    shard = shards_of(store)[1]
    value_bytes = content["d/00000003.png"]
    assert isinstance(value_bytes, bytes)
    shard.write_bytes(shard.read_bytes()[: shard.read_bytes().index(value_bytes) + 100])
    images, lost = salvaged(store, content)
    assert "c" in images
    assert set(images) | {name for _, name in lost} | {"d"} == set(NAMES)
    assert ("shard-00001.lmdb", "d") in lost


def test_of_an_emptied_shard_nothing_is_copied(store: Path, content: dict[str, object]) -> None:
    shards_of(store)[1].write_bytes(b"")
    assert salvaged(store, content) == ("abef", [("shard-00001.lmdb", "")])


def test_half_an_append_is_not_taken_up_without_an_index(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "source", *NAMES)
    store = make_store(folder, tmp_path / "store.lmdb", images="[ab]")
    with Store(store) as opened:
        content = content_of(opened)
    append(folder, store)
    shards_of(store)[-1].unlink()
    remove_index(store)
    assert salvaged(store, content) == ("ab", [])
    assert "append" in " ".join(json.loads((tmp_path / "report.json").read_bytes())["notes"])


def test_pictures_are_salvaged_as_pictures(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "source", "a", "b")
    import_store([folder], tmp_path / "store.lmdb", layout="pictures", workers=1)
    (tmp_path / "store.lmdb" / INDEX_FILE).unlink()
    done("salvage", tmp_path / "store.lmdb", tmp_path / "new.lmdb")
    assert findings(tmp_path / "new.lmdb", "--against", folder) == []


def test_a_store_with_nothing_whole_is_an_error_and_nothing_is_written(store: Path) -> None:
    for shard in shards_of(store):
        shard.write_bytes(b"")
    old_paths = sorted(store.parent.iterdir())
    assert "no image that is whole" in refused("salvage", store, store.with_name("new.lmdb"))
    remove_index(store)
    assert "neither its index nor any shard" in refused("salvage", store, store.with_name("new.lmdb"))
    assert sorted(store.parent.iterdir()) == old_paths


def test_what_cannot_be_the_new_store_is_refused(store: Path) -> None:
    with pytest.raises(TargetExistsError, match=r"store\.lmdb: exists"):
        salvage(store, store)
    with pytest.raises(ConfigError, match=r"ends in \.lmdb"):
        salvage(store, store.with_name("folder"))
    with pytest.raises(NotASourceError, match="no folder of shards"):
        salvage(store.with_name("nothing"), store.with_name("new.lmdb"))
    assert "no folder" in refused("salvage", store, store.with_name("new.lmdb"), "--report", store / "no" / "r.json")


@pytest.mark.parametrize("damage_index", INDEXES[1:])
def test_the_error_of_a_damaged_index_names_reindex_which_mends_it(
    store: Path, content: dict[str, object], damage_index: Callable[[Path], None]
) -> None:
    damage_index(store)
    try:
        messages = [finding.message for finding in verify(store, workers=1).findings]
    except NotASourceError as error:
        messages = [str(error)]
    assert messages
    assert all("run dlas-store reindex" in message for message in messages)
    reindex(store, workers=1)
    assert images_in(store, content) == NAMES
