"""Data that several test modules read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import pytest
import torch
from samples import DATA, Array, png


class MakeImage(Protocol):
    """Writes an image into a chunked folder and returns that folder."""

    def __call__(
        self,
        name: str,
        patches: Mapping[str, Array],
        *,
        reference: Array | None = None,
        centers: Mapping[int, tuple[tuple[int, int], int]] | None = None,
    ) -> Path: ...


@pytest.fixture(scope="session", params=["folder", "store"])
def sample_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns one of the sample chunked folders by its name, and in a second run a store made of it."""
    from dlas_store.converters.importing import import_store

    def path(name: str) -> Path:
        folder = DATA / name
        store: Path = stores / f"{name}.lmdb"
        if request.param == "store" and not store.exists():
            import_store([folder], store)
        return folder if request.param == "folder" else store

    stores = tmp_path_factory.mktemp("stores")
    return path


@pytest.fixture(scope="session")
def chunked_source_path(sample_path: Callable[[str], Path]) -> Path:
    """The sample chunked folder, and a store made of it."""
    return sample_path("chunked")


@pytest.fixture
def make_image(tmp_path: Path) -> MakeImage:
    """Write images into ``tmp_path / "chunked"``."""

    def make(
        name: str,
        patches: Mapping[str, Array],
        *,
        reference: Array | None = None,
        centers: Mapping[int, tuple[tuple[int, int], int]] | None = None,
    ) -> Path:
        folder = tmp_path / "chunked" / name
        folder.mkdir(parents=True)
        for file, pixels in patches.items():
            (folder / file).write_bytes(png(pixels))
        if reference is not None:
            (folder / "ref.jpg").write_bytes(png(reference))
        if centers is not None:
            torch.save(dict(centers), folder / "centers.pt")
        return folder.parent

    return make
