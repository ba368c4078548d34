"""Reports of compare about a store and its source."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dlas_store.converters.importing import import_store
from dlas_store.errors import NotASourceError
from dlas_store.maintenance.verify import VerifyReport, compare, verify
from dlas_store.sources.base import Center
from dlas_store.sources.centers import write_centers
from dlas_store.sources.walk import extra_line
from tests.support.findings import findings, payload
from tests.support.sample_data import DATA, noise, png
from tests.support.small_stores import (
    append,
    flip,
    flip_in,
    make_store,
    shards_of,
    small_folder,
    state_of,
)


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
