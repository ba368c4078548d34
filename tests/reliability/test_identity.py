"""Round trips: import and export give back any chunked folder and any folder of pictures unchanged."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st

from dlas_store.converters import exporting, importing
from dlas_store.converters.exporting import export_store
from dlas_store.converters.importing import import_store
from tests.conftest import Runs
from tests.reliability.support.children import work_here
from tests.support.file_trees import (
    PICTURES,
    ChunkedTree,
    centers_file,
    chunked_trees,
    files_and_centers,
    picture_paths,
    ppm,
    read,
    write,
)


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    work_here(monkeypatch, importing.__name__, exporting.__name__)


def as_examples(numbers: range) -> settings:
    """Return Hypothesis settings with one example a run."""
    return settings(max_examples=len(numbers), suppress_health_check=list(HealthCheck), database=None)


def test_chunked_folder_to_store_to_folder(runs: Runs) -> None:
    numbers = runs(small=40, full=2000)

    @seed(numbers.start)
    @as_examples(numbers)
    @given(tree=chunked_trees(), shard_size=st.sampled_from([1, 100, 1 << 30]), hollow=st.sets(st.sampled_from("!mÿ")))
    @example(
        tree=({"a/1.jpg": ppm(1), "a/00000001.jpg": ppm(2), "a/1.png": ppm(3), "a/x.jpg": ppm(4)}, {}),
        shard_size=1,
        hollow=set(),
    )
    def go_and_return(tree: ChunkedTree, shard_size: int, hollow: set[str]) -> None:
        files, centers = tree
        with TemporaryDirectory() as place:
            root = Path(place)
            source = write(root / "data", {**files, **{name: centers_file(value) for name, value in centers.items()}})
            for name in hollow:
                (source / name).mkdir(exist_ok=True)
            import_store(
                [source], root / "s.lmdb", layout="chunked", shard_size=shard_size, include_hidden=True, workers=1
            )
            export_store(root / "s.lmdb", root / "back", workers=1)
            assert files_and_centers(root / "back") == (files, centers)
            assert repr(sorted(files_and_centers(root / "back")[1].items())) == repr(
                sorted(files_and_centers(source)[1].items())
            )
            assert {path.name for path in (root / "back").iterdir()} == {name.split("/")[0] for name in files}

    go_and_return()


def test_pictures_at_any_depth(runs: Runs) -> None:
    numbers = runs(small=20, full=2000)

    @seed(numbers.start)
    @as_examples(numbers)
    @given(paths=picture_paths(), content=st.sampled_from(PICTURES))
    def go_and_return(paths: list[str], content: bytes) -> None:
        tree = {path: content + number.to_bytes(1, "big") for number, path in enumerate(paths)}
        with TemporaryDirectory() as place:
            root = Path(place)
            source = write(root / "photos", tree)
            import_store([source], root / "s.lmdb", layout="pictures", include_hidden=True, workers=1)
            export_store(root / "s.lmdb", root / "back", workers=1)
            assert read(root / "back") == tree

    go_and_return()
