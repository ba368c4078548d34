"""Format versions: stores of every released version open for ever and give the same bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from dlas_store import open_source
from dlas_store.converters.exporting import export_store
from dlas_store.converters.importing import import_store
from dlas_store.converters.salvaging import salvage
from dlas_store.maintenance.info import info
from dlas_store.maintenance.reindex import reindex
from dlas_store.maintenance.verify import verify
from dlas_store.sources.base import Layout
from dlas_store.sources.centers import read_centers
from dlas_store.storage.sealed_file import FORMAT_VERSION
from tests.support.file_trees import read
from tests.support.sample_data import DATA
from tests.support.small_stores import content_of

VERSIONS = range(1, FORMAT_VERSION + 1)
"""Versions with sample stores: a new FORMAT_VERSION needs a new folder in tests/data."""


def hashes(folder: Path) -> dict[str, str]:
    return {path: hashlib.sha256(content).hexdigest() for path, content in read(folder).items()}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["chunked", "pictures"])
def test_a_kept_store_opens_verifies_and_gives_the_bytes_that_went_in(version: int, name: str, tmp_path: Path) -> None:
    sample_store = DATA / f"format_{version}" / f"{name}.lmdb"
    expected = json.loads((sample_store.parent / "contents.json").read_bytes())[name]
    before = hashes(sample_store)
    assert verify(sample_store, workers=1).findings == []
    assert info(sample_store).patches == sum(
        "ref.jpg" not in path and not path.endswith(("pt", "jsonl")) for path in expected
    )
    export_store(sample_store, tmp_path / "back", workers=1)
    back = hashes(tmp_path / "back")
    lines = back.pop("metadata.jsonl", None)
    assert (lines is None) == (expected.pop("metadata.jsonl", None) is None)
    assert back == expected
    assert hashes(sample_store) == before


@pytest.mark.parametrize("version", VERSIONS)
def test_a_kept_store_says_what_is_known_of_its_images(version: int) -> None:
    with open_source(DATA / f"format_{version}" / "chunked.lmdb") as source:
        images = {source.image_name(number): source.image(number) for number in range(source.image_count)}
        assert list(images) == ["largé", "no centres 📷", "plain", "later"]
        assert images["plain"].files == ("00000000.jpg", "00000001.jpg", "00000002.jpg", "00000005.jpg")
        assert images["plain"].centers == {0: (1, 2, 256), 5: (-1, 70_000, 1 << 40), 9: (0, 0, 1)}
        assert images["plain"].extra == {"label": 3, "tags": ["ü"], "none": None}
        assert [image.has_reference for image in images.values()] == [False, False, True, False]
        assert [image.centers for image in images.values()][1::2] == [None, {}]
        assert source.read_pixels([source.find("largé", "1.png")])[0].shape == (50, 50, 3)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["chunked", "pictures"])
def test_a_kept_store_is_reindexed_and_appended_to(version: int, name: Layout, tmp_path: Path) -> None:
    store = tmp_path / "s.lmdb"
    shutil.copytree(DATA / f"format_{version}" / f"{name}.lmdb", store)
    with open_source(store) as source:
        content = content_of(source)
    assert reindex(store, workers=1).skipped == []
    assert salvage(store, tmp_path / "new.lmdb", workers=1).lost == []
    for path in (store, tmp_path / "new.lmdb"):
        with open_source(path) as source:
            assert content_of(source) == content
    new = tmp_path / "more" / ("x/1.ppm" if name == "chunked" else "x.ppm")
    new.parent.mkdir(parents=True)
    new.write_bytes(b"P6 1 1 255\nabc")
    more = new.parents[1 if name == "chunked" else 0]
    import_store([more], store, layout=name, append=True, images="x*", workers=1)
    assert verify(store, workers=1).findings == []
    assert info(store).images == len(content["order"]) + 1  # type: ignore[arg-type]


def test_what_centers_files_hold_is_kept_as_well(tmp_path: Path) -> None:
    export_store(DATA / "format_1" / "chunked.lmdb", tmp_path / "back", workers=1)
    assert read_centers(tmp_path / "back" / "plain" / "centers.pt")[5] == (-1, 70_000, 1 << 40)
