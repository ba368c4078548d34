"""Rebuilding of an index from the shards alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dlas_store.atomic import StagingDirectory
from dlas_store.converters.importing import import_store
from dlas_store.errors import BusyError, NotASourceError
from dlas_store.maintenance.reindex import ReindexSummary, SkippedShard, reindex
from dlas_store.maintenance.verify import verify
from dlas_store.storage.index import INDEX_FILE, Index
from dlas_store.storage.shard import Shard
from dlas_store.storage.store import Store
from tests.support.small_stores import (
    append,
    content_of,
    damage_table,
    flip_in,
    make_store,
    shards_of,
    small_folder,
    state_of,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("reindex") / "source", "a", "b", "c", "d", "e")


@pytest.fixture(scope="module")
def pristine(folder: Path) -> Path:
    """A store whose shards 0 and 1 are of an import, and 2 to 4 of an append."""
    store = make_store(folder, folder.parent / "store.lmdb", images="[de]")
    append(folder, store)
    assert len(shards_of(store)) == 5
    return store


def content(path: Path) -> dict[str, object]:
    with Store(path) as store:
        return content_of(store)


def order(path: Path) -> object:
    return content(path)["order"]


def skipped(summary: ReindexSummary) -> list[tuple[str, str]]:
    return [(path.name, reason) for path, reason in summary.skipped]


def remove(index: Path) -> None:
    index.unlink()


def truncate_to_5000_bytes(index: Path) -> None:
    index.write_bytes(index.read_bytes()[:5000])


def truncate_to_50_bytes(index: Path) -> None:
    index.write_bytes(index.read_bytes()[:50])


def empty(index: Path) -> None:
    index.write_bytes(b"")


def damage_rows(index: Path) -> None:
    for name in ("images", "patches", "names"):
        damage_table(index.parent, name)


def keep(index: Path) -> None:
    """Damage nothing."""


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("damage", [keep, remove, truncate_to_5000_bytes, truncate_to_50_bytes, empty, damage_rows])
def test_a_new_index_gives_every_read_as_before(
    store: Path, pristine: Path, damage: Callable[[Path], None], workers: int
) -> None:
    damage(store / INDEX_FILE)
    summary = reindex(store, workers=workers)
    assert summary == ReindexSummary(shards=5, images=5, patches=20)
    assert content(store) == content(pristine)
    assert Index.open(store / INDEX_FILE).shards == Index.open(pristine / INDEX_FILE).shards
    assert verify(store, workers=1).ok
    assert set(state_of(store)) == set(state_of(pristine))
    assert not store.with_name("store.lmdb.partial").exists()


def test_a_new_index_counts_generations_on(store: Path) -> None:
    before = Index.open(store / INDEX_FILE).generation
    reindex(store)
    assert Index.open(store / INDEX_FILE).generation == before + 1


def test_the_shards_are_not_touched(store: Path) -> None:
    before = {path.name: path.stat() for path in shards_of(store)}
    reindex(store)
    after = {path.name: path.stat() for path in shards_of(store)}
    assert [(name, status.st_mtime_ns, status.st_ino) for name, status in after.items()] == [
        (name, status.st_mtime_ns, status.st_ino) for name, status in before.items()
    ]


def test_an_open_reader_keeps_the_old_index(store: Path) -> None:
    with Store(store) as opened:
        expected = content_of(opened)
        shards_of(store)[0].rename(store.parent / "away")
        reindex(store)
        (store.parent / "away").rename(store / "shard-00000.lmdb")
        assert content_of(opened) == expected


@pytest.mark.parametrize("damage", [keep, remove], ids=["old index", "no index"])
def test_half_an_append_is_left_out_and_listed(
    folder: Path, store: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    incomplete = make_store(folder, tmp_path / "half.lmdb", images="[de]")
    longer = Path(shutil.copytree(incomplete, tmp_path / "longer.lmdb"))
    append(folder, longer)
    for path in shards_of(longer)[2:4]:
        shutil.copy(path, incomplete)
    damage(incomplete / INDEX_FILE)
    summary = reindex(incomplete)
    assert (summary.shards, order(incomplete)) == (2, ["d", "e"])
    reason = "is of an append of which 2 of 3 shards are here; run it again"
    assert skipped(summary) == [("shard-00002.lmdb", reason), ("shard-00003.lmdb", reason)]


def test_a_whole_append_that_was_not_published_is_taken(folder: Path, tmp_path: Path) -> None:
    store = make_store(folder, tmp_path / "store.lmdb", images="[de]")
    old_index = (store / INDEX_FILE).read_bytes()
    append(folder, store)
    expected = content(store)
    (store / INDEX_FILE).write_bytes(old_index)
    assert reindex(store).skipped == []
    assert content(store) == expected


def test_an_append_done_again_is_taken_once(folder: Path, tmp_path: Path) -> None:
    store = make_store(folder, tmp_path / "store.lmdb", images="[de]")
    given_up = Path(shutil.copytree(store, tmp_path / "given up.lmdb"))
    append(folder, given_up, images="[ab]")
    for path in shards_of(given_up)[2:]:
        shutil.copy(path, store)  # an append that was killed before its index was published
    append(folder, store)
    assert [path.name for path in shards_of(store)[4:]] == [f"shard-0000{number}.lmdb" for number in (4, 5, 6)]
    expected = content(store)
    for _ in range(2):
        summary = reindex(store)
        assert content(store) == expected
        assert skipped(summary) == [
            (f"shard-0000{number}.lmdb", "is of an append done again later") for number in (2, 3)
        ]
        (store / INDEX_FILE).unlink()


@pytest.mark.parametrize("number", [0, 1])
def test_a_lost_shard_of_the_first_import_costs_its_images_only(store: Path, number: int) -> None:
    shards_of(store)[number].unlink()
    (store / INDEX_FILE).unlink()
    summary = reindex(store)
    assert (summary.shards, summary.images, summary.skipped) == (4, 4, [])
    expected = ["d", "e", "a", "b", "c"]
    del expected[number]
    assert order(store) == expected
    assert verify(store, workers=1).ok


def test_a_lost_shard_of_a_published_append_costs_its_images_only(store: Path) -> None:
    shards_of(store)[3].unlink()
    assert reindex(store).shards == 4
    assert order(store) == ["d", "e", "a", "c"]
    assert verify(store, workers=1).ok


def test_images_can_be_appended_after_a_lost_shard(folder: Path, store: Path) -> None:
    shards_of(store)[4].unlink()
    reindex(store)
    append(folder, store)
    assert order(store) == ["d", "e", "a", "b", "c"]
    assert verify(store, workers=1).ok
    (store / INDEX_FILE).unlink()
    reindex(store)
    assert order(store) == ["d", "e", "a", "b", "c"]


def test_a_shard_with_damaged_metadata_is_left_out_and_the_rest_stays(store: Path) -> None:
    flip_in(shards_of(store)[1], b"\xa4name\xa1e")
    summary = reindex(store)
    ((name, reason),) = skipped(summary)
    assert name == "shard-00001.lmdb"
    assert "shard-00001.lmdb" in reason
    assert order(store) == ["d", "a", "b", "c"]


def test_a_shard_with_a_damaged_payload_stays(store: Path, pristine: Path) -> None:
    payload = content(pristine)["e/00000001.png"]
    assert isinstance(payload, bytes)
    flip_in(shards_of(store)[1], payload)
    assert reindex(store).skipped == []
    (finding,) = verify(store, workers=1).findings
    assert (finding.image, finding.patch, finding.kind) == ("e", "00000001.png", "damaged")


@pytest.mark.parametrize("damage", [empty, truncate_to_5000_bytes, truncate_to_50_bytes])
def test_a_damaged_shard_is_left_out_and_listed(store: Path, damage: Callable[[Path], None]) -> None:
    damage(shards_of(store)[1])
    summary = reindex(store)
    assert [name for name, _ in skipped(summary)] == ["shard-00001.lmdb"]
    assert order(store) == ["d", "a", "b", "c"]


def test_a_folder_under_a_shards_name_is_left_out_and_listed(store: Path, pristine: Path) -> None:
    (store / "shard-00099.lmdb").mkdir()
    assert [name for name, _ in skipped(reindex(store))] == ["shard-00099.lmdb"]
    assert content(store) == content(pristine)


def test_a_shard_under_another_name_is_left_out_and_named(store: Path, pristine: Path) -> None:
    shutil.copy(shards_of(store)[0], store / "shard-00007.lmdb")
    shutil.copy(shards_of(store)[0], store / "shard-00000 (copy).lmdb")
    reason = "is shard-00000.lmdb under another name"
    assert sorted(skipped(reindex(store))) == [("shard-00000 (copy).lmdb", reason), ("shard-00007.lmdb", reason)]
    assert content(store) == content(pristine)


@pytest.mark.parametrize("damage", [keep, remove], ids=["old index", "no index"])
def test_a_shard_of_another_store_is_left_out_and_named(
    folder: Path, store: Path, pristine: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    other = make_store(folder, tmp_path / "other.lmdb", images="[abcdef]")
    append(small_folder(tmp_path / "more", "x"), other)
    foreign = shards_of(other)[5]
    shutil.copy(foreign, store)
    damage(store / INDEX_FILE)
    assert reindex(store).skipped == [SkippedShard(store / foreign.name, "is a shard of another store")]
    assert content(store) == content(pristine)


def test_an_index_of_another_store_does_not_mislead(folder: Path, store: Path, pristine: Path, tmp_path: Path) -> None:
    other = make_store(folder, tmp_path / "other.lmdb")
    shutil.copy(other / INDEX_FILE, store / INDEX_FILE)
    assert reindex(store).skipped == []
    assert content(store) == content(pristine)


def test_a_shard_without_images_is_kept(tmp_path: Path) -> None:
    store = store_with_an_empty_shard(tmp_path)
    (store / INDEX_FILE).unlink()
    assert reindex(store) == ReindexSummary(shards=3, images=2, patches=8)
    assert order(store) == ["a", "c"]


def store_with_an_empty_shard(tmp_path: Path) -> Path:
    """Return a store whose second shard has no image, because the only image had bad files and was skipped."""
    folder = small_folder(tmp_path / "source", "a", "b", "c")
    for path in (folder / "b").glob("*.png"):
        path.write_bytes(b"no picture")
    import_store([folder], tmp_path / "store.lmdb", shard_size=1, skip_bad=True, workers=1)
    with Store(tmp_path / "store.lmdb") as opened:
        assert [entry.images for entry in opened.index.shards.values()] == [1, 0, 1]
    return tmp_path / "store.lmdb"


def test_the_work_of_an_interrupted_append_stays(store: Path) -> None:
    staging = store.with_name("store.lmdb.partial")
    staging.mkdir()
    (staging / "shard-00005.lmdb").write_bytes(b"sealed")
    (staging / "plan.json").write_bytes(b"{}")
    reindex(store)
    assert {path.name for path in staging.iterdir()} >= {"shard-00005.lmdb", "plan.json"}


@pytest.mark.parametrize(
    "make",
    [lambda path: None, lambda path: path.mkdir(), lambda path: path.touch()],
    ids=["missing", "empty", "file"],
)
def test_a_folder_without_shards_is_an_error_and_nothing_is_left(make: object, tmp_path: Path) -> None:
    make(tmp_path / "none.lmdb")  # type: ignore[operator]
    before = set(state_of(tmp_path))
    with pytest.raises(NotASourceError, match=r"none\.lmdb"):
        reindex(tmp_path / "none.lmdb")
    assert set(state_of(tmp_path)) == before


def test_no_usable_shard_is_an_error_that_says_why_and_keeps_the_old_index(store: Path) -> None:
    for path in shards_of(store):
        path.write_bytes(b"")
    index = (store / INDEX_FILE).read_bytes()
    with pytest.raises(NotASourceError, match=r"no shard that can be used.*shard-00000\.lmdb.*is empty"):
        reindex(store)
    assert (store / INDEX_FILE).read_bytes() == index


def test_reindex_is_refused_while_another_process_writes(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlas_store.atomic._LOCK_PATIENCE_SECONDS", 0.1)
    with StagingDirectory(store), pytest.raises(BusyError, match=r"store\.lmdb\.partial: another process is writing"):
        reindex(store)


def test_a_shard_says_which_commit_it_belongs_to(pristine: Path) -> None:
    headers = [Shard(path).header for path in shards_of(pristine)]
    assert [(header.commit, header.commit_first, header.commit_shards) for header in headers] == [(0, 0, 2)] * 2 + [
        (1, 2, 3)
    ] * 3
    assert len({header.store_id for header in headers}) == 1
    assert len({header.shard_id for header in headers}) == 5
