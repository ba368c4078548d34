"""Reports of verify and compare about a store, and the summary of info."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest

from dlas_store import open_source
from dlas_store.converters.importing import import_store
from dlas_store.errors import DamagedError, FormatVersionError, NotASourceError
from dlas_store.maintenance.info import info
from dlas_store.maintenance.verify import Finding, Sample, VerifyReport, compare, verify
from dlas_store.sources.base import Center
from dlas_store.sources.centers import write_centers
from dlas_store.sources.walk import extra_line
from dlas_store.storage.commit import read_shard
from dlas_store.storage.index import INDEX_FILE, Index
from dlas_store.storage.index_writer import IndexWriter
from dlas_store.storage.lmdb_reader import read_meta
from dlas_store.storage.sealed_file import SealedFile
from dlas_store.storage.store import Store
from tests.support.command_line import run
from tests.support.sample_data import DATA, noise, png
from tests.support.small_stores import (
    NOBODY,
    append,
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("verify") / "source", "a", "b", "c")


@pytest.fixture(scope="module")
def pristine(folder: Path) -> Path:
    return make_store(folder, folder.parent / "store.lmdb")


@pytest.fixture
def store(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "store.lmdb"))


def payload(store: Path, name: str) -> bytes:
    with open_source(store) as opened:
        data = content_of(opened)[name]
    assert isinstance(data, bytes)
    return data


def findings(report: VerifyReport) -> list[tuple[str, str, str, str]]:
    assert report.ok == (not report.findings)
    return [finding[:4] for finding in report.findings]


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
        for wrong_options in (["--sample", "5"], ["--sample", "0%"], ["--sample", "101%"], ["--seed", "1"]):
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


def remove_patch(folder: Path) -> None:
    (folder / "b/00000001.png").unlink()


def add_patch(folder: Path) -> None:
    (folder / "b/5.png").write_bytes(png(noise(4, 4)))


def change_patch(folder: Path) -> None:
    flip(folder / "b/00000001.png", 50)


def change_reference(folder: Path) -> None:
    flip(folder / "b/ref.jpg", 50)


def remove_reference(folder: Path) -> None:
    (folder / "b/ref.jpg").unlink()


def change_centers(folder: Path) -> None:
    (folder / "b/centers.pt").write_bytes(write_centers({0: Center(9, 9, 9)}))


def remove_centers(folder: Path) -> None:
    (folder / "b/centers.pt").unlink()


def add_extra_fields(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(extra_line("b", {"label": 1}))


def remove_image(folder: Path) -> None:
    shutil.rmtree(folder / "b")


def add_image(folder: Path) -> None:
    shutil.copytree(folder / "b", folder / "b2")


def damage_centers(folder: Path) -> None:
    (folder / "b/centers.pt").write_bytes(b"no centres")


class TestCompare:
    @pytest.fixture
    def changed(self, folder: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "source"))

    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_store_is_as_its_source(self, folder: Path, pristine: Path, workers: int) -> None:
        before = state_of(folder)
        # Four patches, a reference and a centers.pt in each of three images.
        assert compare(pristine, folder, workers=workers) == VerifyReport(checked=18)
        assert state_of(folder) == before

    def test_verify_compares_what_it_finds_sound(self, folder: Path, store: Path, tmp_path: Path) -> None:
        report = verify(store, folder, workers=0)
        assert (report.ok, report.checked) == (True, verify(store).checked + compare(store, folder).checked)
        other = small_folder(tmp_path / "other", "a", seed=1)
        assert verify(store, against=other).findings == compare(store, other).findings != []
        shards_of(store)[0].unlink()
        assert findings(verify(store, other)) == [("shard-00000.lmdb", "", "", "missing")]

    def test_the_samples_are_as_their_source(self, tmp_path: Path) -> None:
        store = make_store(DATA / "chunked", tmp_path / "sample.lmdb", shard_size=500_000)
        report = compare(store, DATA / "chunked")
        assert report.ok
        assert report.checked == 262 + 2 * 4

    def test_a_store_can_be_compared_with_a_store(self, pristine: Path, store: Path) -> None:
        assert compare(pristine, store).ok

    def test_the_order_of_images_does_not_matter(self, folder: Path, tmp_path: Path) -> None:
        store = make_store(folder, tmp_path / "store.lmdb", images="c")
        append(folder, store)
        assert compare(store, folder).ok

    def test_pictures_are_compared_as_pictures(self, folder: Path, changed: Path, tmp_path: Path) -> None:
        store = tmp_path / "pictures.lmdb"
        import_store([folder], store, layout="pictures", workers=1)
        assert compare(store, folder).checked == 12
        change_patch(changed)
        assert findings(compare(store, changed)) == [("", "b/00000001.png", "00000001.png", "differs")]

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (remove_patch, [("b", "00000001.png", "differs")]),
            (add_patch, [("b", "5.png", "differs")]),
            (change_patch, [("b", "00000001.png", "differs")]),
            (change_reference, [("b", "ref.jpg", "differs")]),
            (remove_reference, [("b", "ref.jpg", "differs")]),
            (change_centers, [("b", "centers.pt", "differs")]),
            (remove_centers, [("b", "centers.pt", "differs")]),
            (add_extra_fields, [("b", "", "differs")]),
            (remove_image, [("b", "", "not in source")]),
            (add_image, [("b2", "", "not in store")]),
        ],
    )
    def test_every_difference_is_found(
        self, pristine: Path, changed: Path, change: Callable[[Path], None], expected: list[tuple[str, str, str]]
    ) -> None:
        change(changed)
        assert findings(compare(pristine, changed)) == [("", *finding) for finding in expected]

    def test_a_damaged_centers_file_in_the_source_is_a_finding(self, pristine: Path, changed: Path) -> None:
        damage_centers(changed)
        (finding,) = compare(pristine, changed).findings
        assert finding.image == "b"
        assert "centers.pt" in finding.message

    def test_a_damaged_patch_of_the_store_is_a_finding(self, folder: Path, store: Path) -> None:
        flip_in(shards_of(store)[1], payload(store, "b/00000001.png"))
        report = compare(store, folder)
        assert findings(report) == [("", "b", "", "damaged")]
        assert "00000001.png of image 'b'" in report.findings[0].message
        assert report.checked == 18

    def test_a_source_that_is_none_is_an_error(self, pristine: Path, tmp_path: Path) -> None:
        with pytest.raises(NotASourceError, match="none"):
            compare(pristine, tmp_path / "none")

    def test_nothing_in_common_is_a_finding_for_each_image(self, pristine: Path, tmp_path: Path) -> None:
        other = small_folder(tmp_path / "other", "x")
        report = compare(pristine, other)
        assert [finding.kind for finding in report.findings] == ["not in source"] * 3 + ["not in store"]


class TestInfo:
    def test_counts_and_sizes_are_those_of_the_files(self, folder: Path, pristine: Path) -> None:
        summary = info(pristine)
        files = [*folder.glob("*/*.png"), *folder.glob("*/ref.jpg")]
        assert (summary.images, summary.patches, summary.references, summary.shards) == (3, 12, 3, 3)
        assert summary.bytes == sum(path.stat().st_size for path in files)
        assert summary.disk_bytes == sum(path.stat().st_size for path in pristine.iterdir())
        assert summary.sizes == {"8x8": 6, "40x40": 6}
        assert (summary.layout, summary.format_version, summary.generation) == ("chunked", 1, 0)
        assert len(bytes.fromhex(summary.store_id)) == 16

    def test_widths_come_before_heights_and_the_frequent_first(self, tmp_path: Path) -> None:
        (tmp_path / "source").mkdir()
        for name, height, width in [("a", 3, 9), ("b", 5, 7), ("c", 5, 7)]:
            (tmp_path / "source" / f"{name}.png").write_bytes(png(noise(height, width)))
        summary = info(make_store(tmp_path / "source", tmp_path / "store.lmdb", shard_size=1 << 20))
        assert list(summary.sizes.items()) == [("7x5", 2), ("9x3", 1)]
        assert (summary.layout, summary.references) == ("pictures", 0)

    def test_the_index_file_and_a_single_shard_can_be_given(self, pristine: Path) -> None:
        assert info(pristine / INDEX_FILE) == info(pristine)
        shard = shards_of(pristine)[0]
        single = info(shard)
        assert (single.images, single.patches, single.shards) == (1, 4, 1)
        assert single.disk_bytes == shard.stat().st_size
        assert single.store_id == info(pristine).store_id

    def test_an_append_is_counted(self, folder: Path, tmp_path: Path) -> None:
        store = make_store(folder, tmp_path / "store.lmdb", images="a")
        append(folder, store)
        summary = info(store)
        assert (summary.images, summary.generation, summary.shards) == (3, 1, 3)


def test_a_finding_says_where_before_what() -> None:
    assert Finding._fields == ("shard", "image", "patch", "kind", "message")
