"""A relative path keeps its meaning when the program changes its working directory, as Hydra does."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlas_store.converters.importing import import_store
from dlas_store.datasets import create_dataloader, create_dataset
from dlas_store.opening import open_source
from dlas_store.sources.base import Source
from dlas_store.sources.concat import concat
from dlas_store.sources.published import open_published
from tests.support.file_trees import write
from tests.support.published_files import levels, write_cifar10, write_mnist
from tests.support.sample_data import noise, png
from tests.support.small_stores import small_folder

OPENERS: dict[str, Callable[[], Source]] = {
    "store": lambda: open_source("s.lmdb"),
    "index": lambda: open_source("s.lmdb/index.lmdb"),
    "shard": lambda: open_source("./s.lmdb/shard-00000.lmdb"),
    "chunked": lambda: open_source("chunked"),
    "pictures": lambda: open_source("../here/pictures"),
    "classes": lambda: open_published("imagefolder", Path("classes")),
    "mnist": lambda: open_published("mnist", Path("mnist")),
    "cifar10": lambda: open_published("cifar10", Path("cifar")),
    "concat": lambda: concat([open_source("chunked"), open_source("s.lmdb")]),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with data of all kinds."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    small_folder(Path("chunked"), "a", "b")
    write(Path("pictures"), {f"{number}.png": png(noise(24, 24, seed=number)) for number in range(3)})
    write(Path("classes"), {f"{name}/1.png": png(noise(24, 24)) for name in ("cat", "dog")})
    write_mnist(Path("mnist/raw"), levels(3, 28, 28), levels(3) % 10)
    write_cifar10(Path("cifar"))
    import_store(["chunked"], "s.lmdb", workers=0)
    return folder


@pytest.mark.parametrize("kind", OPENERS)
def test_a_source_is_read_after_a_change_of_the_working_directory(here: Path, kind: str) -> None:
    source, other = OPENERS[kind](), pickle.dumps(OPENERS[kind]())
    os.chdir("/")
    expected = len(source)
    assert expected >= 2
    unpickled = pickle.loads(other)
    for opened in (source, unpickled, pickle.loads(pickle.dumps(source))):
        assert len(opened) == expected
        assert [len(opened.read(index)) > 0 for index in range(len(opened))] == [True] * expected
        assert opened.image(0).name
        assert opened.subset([opened.image_name(0)]).read(0)
        assert sum(1 for _ in opened.listings()) == opened.image_count
        assert opened.path.is_absolute()


@pytest.mark.parametrize("loader", ["threads", "workers"])
@pytest.mark.parametrize("path", ["s.lmdb", "chunked", "pictures"])
def test_a_loader_reads_after_a_change_of_the_working_directory(here: Path, path: str, loader: str) -> None:
    options: dict[str, Any] = {
        "mode": "pixels", "paths": path, "batch_size": 1, "phase": "train", "loader": loader, "n_workers": 1,
    }  # fmt: skip
    dataset = create_dataset(options)
    made = create_dataloader(pickle.loads(pickle.dumps(dataset)), options)
    os.chdir("/")
    assert sum(1 for _ in made) == len(dataset)


def test_classes_of_a_dataset_are_read_after_a_change_of_the_working_directory(here: Path) -> None:
    options = {
        "mode": "torch_dataset", "dataset": "imagefolder", "kwargs": {"root": "classes"}, "image_size": 8,
        "phase": "train",
    }  # fmt: skip
    dataset = create_dataset(options)
    os.chdir("/")
    assert [dataset[number]["labels"] for number in range(2)] == [0, 1]
