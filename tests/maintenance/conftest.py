"""A sound store of three images and its source, for the tests of maintenance."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.small_stores import make_store, small_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of the store: images a, b and c of four patches, a reference and a centers.pt each."""
    return small_folder(tmp_path_factory.mktemp("maintenance") / "source", "a", "b", "c")


@pytest.fixture(scope="module")
def pristine(folder: Path) -> Path:
    """The store, which no test may change."""
    return make_store(folder, folder.parent / "store.lmdb")


@pytest.fixture
def store(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the store, which a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "store.lmdb"))
