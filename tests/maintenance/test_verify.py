"""Reports of verify about sound and damaged stores."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest

from dlas_store.converters.importing import import_store
from dlas_store.errors import DamagedError, FormatVersionError, NotASourceError
from dlas_store.lmdb_reader import read_meta
from dlas_store.maintenance.verify import Finding, Sample, VerifyReport, verify
from dlas_store.storage.commit import read_shard
from dlas_store.storage.index import INDEX_FILE, Index
from dlas_store.storage.index_writer import IndexWriter
from dlas_store.storage.sealed_file import SealedFile
from dlas_store.storage.store import Store
from tests.support.command_line import run
from tests.support.findings import findings, payload
from tests.support.small_stores import (
    NOBODY,
    content_of,
    damage_table,
    flip,
    flip_in,
    in_child,
    make_store,
    public_folder,
    shards_of,
    small_folder,
    state_of,
)

FOOTER = struct.Struct("<8sIIQ")


class TestVerify:
    @pytest.mark.parametrize("workers", [1, 3, None])
    def test_nothing_is_found_in_a_store_as_it_was_written(self, pristine: Path, workers: int | None) -> None:
        before = state_of(pristine.parent)
        # Four patches, a reference and a metadata record in each of three images.
        assert verify(pristine, workers=workers) == VerifyReport(checked=18)
        assert state_of(pristine.parent) == before

    def test_the_index_file_and_a_single_shard_can_be_given(self, pristine: Path) -> None:
        assert verify(pristine / INDEX_FILE).checked == 18
        assert verify(shards_of(pristine)[1]) == VerifyReport(checked=6)

    def test_images_of_one_shard_are_checked_by_several_processes(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(import_module("dlas_store.maintenance.verify"), "_IMAGES_PER_VERIFY_JOB", 1)
        store = make_store(folder, tmp_path / "one.lmdb", shard_size=1 << 30)
        patch, reference = payload(store, "b/00000001.png"), payload(store, "c/ref.jpg")
        flip_in(shards_of(store)[0], patch)
        flip_in(shards_of(store)[0], reference)
        report = verify(store, workers=2)
        assert report.checked == 18
        assert findings(report) == [
            ("shard-00000.lmdb", "b", "00000001.png", "damaged"),
            ("shard-00000.lmdb", "c", "ref.jpg", "damaged"),
        ]

    @pytest.mark.parametrize("file", ["00000000.png", "00000003.png", "ref.jpg"])
    def test_a_damaged_value_is_named(self, store: Path, file: str) -> None:
        flip_in(shards_of(store)[1], payload(store, f"b/{file}"))
        assert findings(verify(store)) == [("shard-00001.lmdb", "b", file, "damaged")]

    def test_a_damaged_checksum_is_found(self, store: Path) -> None:
        path = shards_of(store)[1]
        flip(path, path.read_bytes().index(payload(store, "b/00000001.png")) - 3)
        assert findings(verify(store)) == [("shard-00001.lmdb", "b", "00000001.png", "damaged")]

    def test_damaged_metadata_is_named_and_the_patches_are_checked_all_the_same(self, store: Path) -> None:
        path = shards_of(store)[1]
        flip_in(path, payload(store, "b/00000001.png"))
        flip_in(path, b"\xa4name\xa1b")
        report = verify(store)
        assert report.checked == 18
        assert {finding.shard for finding in report.findings} == {"shard-00001.lmdb"}
        assert {finding.kind for finding in report.findings} == {"damaged"}
        messages = " ".join(finding.message for finding in report.findings)
        assert "metadata of image 1" in messages
        assert "patch 5" in messages

    def test_a_damaged_tree_is_found_though_reading_does_not_need_it(self, store: Path) -> None:
        with shards_of(store)[1].open("r+b") as file:
            file.write(bytes(8192))
        with Store(store) as opened:
            content_of(opened)
        assert findings(verify(store)) == [("shard-00001.lmdb", "", "", "damaged")]

    @pytest.mark.parametrize("name", ["images", "patches", "names"])
    def test_a_damaged_table_is_a_finding_that_says_what_to_do(self, store: Path, name: str) -> None:
        damage_table(store, name)
        report = verify(store)
        assert findings(report) == [(INDEX_FILE, "", "", "damaged")]
        assert "dlas-store reindex" in report.findings[0].message

    @pytest.mark.parametrize("size", [0, 100, 4096, 10_000])
    def test_a_damaged_index_is_a_finding(self, store: Path, size: int) -> None:
        index = store / INDEX_FILE
        index.write_bytes(index.read_bytes()[:size])
        report = verify(store)
        assert findings(report) == [(INDEX_FILE, "", "", "damaged")]
        assert "dlas-store reindex" in report.findings[0].message

    def test_a_store_of_a_later_version_is_an_error(self, store: Path) -> None:
        index = store / INDEX_FILE
        data = index.read_bytes()
        _, _, body_size, lmdb_size = FOOTER.unpack(data[-32:-8])
        footer = FOOTER.pack(b"dlasseal", 5, body_size, lmdb_size)
        checksum = xxh3_64_intdigest(data[lmdb_size:-32], xxh3_64_intdigest(footer))
        index.write_bytes(data[:-32] + footer + checksum.to_bytes(8, "little"))
        with pytest.raises(FormatVersionError, match=r"index\.lmdb: .*version 5"):
            verify(store)

    @pytest.mark.parametrize(
        ("damage", "kind"),
        [
            (Path.unlink, "missing"),
            (lambda path: path.write_bytes(b""), "damaged"),
            (lambda path: path.write_bytes(path.read_bytes()[:100]), "damaged"),
            (lambda path: path.write_bytes(path.read_bytes()[:5000]), "damaged"),
            (lambda path: path.write_bytes(path.read_bytes() + b"x"), "damaged"),
            (lambda path: path.write_bytes(bytes(path.stat().st_size)), "damaged"),
            (lambda path: shutil.copy(path.with_name("shard-00000.lmdb"), path), "foreign"),
            (lambda path: shutil.copy(path.with_name(INDEX_FILE), path), "damaged"),
        ],
        ids=["missing", "empty", "some bytes", "two pages", "longer", "zeros", "another shard", "the index"],
    )
    def test_a_shard_that_is_not_the_one_named_is_one_finding(
        self, store: Path, damage: Callable[[Path], object], kind: str
    ) -> None:
        damage(shards_of(store)[1])
        report = verify(store)
        assert findings(report) == [("shard-00001.lmdb", "", "", kind)]
        assert report.checked == 12

    def test_a_shard_of_another_store_is_foreign(self, folder: Path, store: Path, tmp_path: Path) -> None:
        other = make_store(folder, tmp_path / "other.lmdb")
        shutil.copy(shards_of(other)[2], store)
        assert findings(verify(store)) == [("shard-00002.lmdb", "", "", "foreign")]

    def test_an_index_of_another_import_disagrees_with_the_shards(self, store: Path, tmp_path: Path) -> None:
        writer = IndexWriter(tmp_path / INDEX_FILE, store_id=self.store_id(store), layout="chunked", generation=0)
        for path in shards_of(store):
            sealed = read_shard(path, check_values=True)
            if path.name == "shard-00001.lmdb":
                offsets = sealed.entries.patches["offset"]
                offsets[[0, 2]] = offsets[[2, 0]]
            writer.add(sealed.header, sealed.entries, size=sealed.size)
        writer.finish()
        shutil.copy(tmp_path / INDEX_FILE, store)
        report = verify(store)
        assert ("shard-00001.lmdb", "", "", "index") in findings(report)
        assert ("shard-00001.lmdb", "b", "00000000.png", "damaged") in findings(report)

    @staticmethod
    def store_id(store: Path) -> bytes:
        with Store(store) as opened:
            return opened.index.store_id

    def test_an_emptied_shard_that_is_lost_is_found(self, tmp_path: Path) -> None:
        folder = small_folder(tmp_path / "source", "a", "b")
        for path in (folder / "b").glob("*.png"):
            path.write_bytes(b"no picture")
        store = tmp_path / "store.lmdb"
        import_store([folder], store, shard_size=1, skip_bad=True, workers=1)
        assert verify(store).ok
        shards_of(store)[1].unlink()
        with pytest.raises(DamagedError):  # so verify must report the loss
            Store(store)
        assert findings(verify(store)) == [("shard-00001.lmdb", "", "", "missing")]

    def test_a_flipped_bit_in_the_version_is_damage_not_a_later_version(self, store: Path) -> None:
        flip(store / INDEX_FILE, (store / INDEX_FILE).stat().st_size - 24, 2)
        assert findings(verify(store)) == [(INDEX_FILE, "", "", "damaged")]

    def test_quick_reads_no_value_and_finds_what_structure_and_sizes_show(self, store: Path) -> None:
        flip_in(shards_of(store)[1], payload(store, "b/00000001.png"))
        assert verify(store, quick=True) == VerifyReport(checked=18)
        assert not verify(store).ok
        with SealedFile(shards_of(store)[0], "shard").data as data:
            root = read_meta(data).root
        flip(shards_of(store)[0], root * 4096 + 12)
        shards_of(store)[2].write_bytes(shards_of(store)[2].read_bytes()[:-1])
        assert [(shard, kind) for shard, _, _, kind in findings(verify(store, quick=True))] == [
            ("shard-00000.lmdb", "damaged"),
            ("shard-00002.lmdb", "damaged"),
        ]

    def test_quick_finds_an_index_that_names_other_places(self, store: Path, folder: Path, tmp_path: Path) -> None:
        sealed_shards = [read_shard(path, check_values=False) for path in shards_of(store)]
        old_index = Index.open(store / INDEX_FILE)
        writer = IndexWriter(tmp_path / "index", store_id=old_index.store_id, layout="chunked", generation=1)
        sealed_shards[1].entries.patches["offset"][2] += 16
        for header, entries, size in sealed_shards:
            writer.add(header, entries, size=size)
        writer.finish()
        shutil.move(tmp_path / "index", store / INDEX_FILE)
        assert findings(verify(store, quick=True)) == [("shard-00001.lmdb", "", "", "index")]

    def test_a_sample_checks_its_share_and_the_same_for_the_same_seed(self, tmp_path: Path) -> None:
        folder = small_folder(tmp_path / "source", *"abcdefghij", patches=20)
        store = make_store(folder, tmp_path / "store.lmdb", shard_size=1 << 30)
        everything = verify(store).checked
        sampled = [verify(store, sample=Sample(0.25, seed)).checked - 10 for seed in (1, 1, 2)]
        assert everything == 10 * 22
        assert sampled[0] == sampled[1]
        assert all(25 < count < 85 for count in sampled)
        assert verify(store, sample=Sample(1.0, 5)).checked == everything
        shard = shards_of(store)[0]
        for position in range(20):
            flip_in(shard, payload(folder, f"c/{position:08d}.png"))
        damaged = [
            {finding.patch for finding in verify(store, sample=Sample(0.25, seed)).findings} for seed in (1, 1, 2)
        ]
        assert damaged[0] == damaged[1] != damaged[2]
        assert 0 < len(damaged[0]) < 20

    def test_the_command_says_how_much_it_checked(self, store: Path) -> None:
        assert "18 values placed, none read, no finding" in run("verify", store, "--quick").out
        complete = run("verify", store, "--sample", "100%", "--seed", "7")
        assert "18 values checked (100% of patches and references, --seed 7), no finding" in complete.out
        report = json.loads(run("verify", store, "--sample", "5%", "--json").out)
        assert report["sample"]["share"] == 0.05
        assert report["sample"]["seed"] >= 0
        assert run("verify", store, "--sample", "5").status == 0
        for wrong_options in (["--sample", "0%"], ["--sample", "101%"], ["--seed", "1"]):
            assert run("verify", store, *wrong_options).status == 2
        assert run("verify", store, "--quick", "--sample", "5%").status == 2

    def test_several_findings_are_all_listed_in_order(self, store: Path) -> None:
        shards = shards_of(store)
        reference, patch = payload(store, "a/ref.jpg"), payload(store, "c/00000001.png")
        flip_in(shards[0], reference)
        flip_in(shards[2], patch)
        shards[1].unlink()
        assert findings(verify(store)) == [
            ("shard-00000.lmdb", "a", "ref.jpg", "damaged"),
            ("shard-00001.lmdb", "", "", "missing"),
            ("shard-00002.lmdb", "c", "00000001.png", "damaged"),
        ]

    @pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "empty folder"])
    def test_no_store_at_all_is_an_error(self, make: Callable[[Path], object], tmp_path: Path) -> None:
        make(tmp_path / "none.lmdb")
        with pytest.raises(NotASourceError, match=r"none\.lmdb"):
            verify(tmp_path / "none.lmdb")

    def test_a_read_only_store_is_enough(self, folder: Path) -> None:
        with public_folder() as place:
            store = make_store(folder, place / "store.lmdb")
            store.chmod(0o555)
            for path in store.iterdir():
                path.chmod(0o444)

            def check() -> None:
                assert verify(store, workers=2).checked == 18

            assert in_child(check, user=NOBODY) == 0


def test_a_finding_says_where_before_what() -> None:
    assert Finding._fields == ("shard", "image", "patch", "kind", "message")
