"""The examples run as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from samples import DATA

from dlas_store import open_source
from dlas_store.config import DATA_KEYS
from dlas_store.converters.importing import import_store
from dlas_store.read_command import describe_batches

EXAMPLES = Path(__file__).parents[1] / "examples"


def cut_photos(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "cut_photos.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_cut_photos_makes_a_chunked_folder(tmp_path: Path) -> None:
    folder = tmp_path / "demo" / "photos"
    done = cut_photos(folder)
    assert done.returncode == 0, done.stderr
    with open_source(folder) as source:
        assert source.layout == "chunked"
        assert f"{len(source)} patches" in done.stdout
        for number in range(source.image_count):
            image = source.image(number)
            assert image.has_reference
            assert all(image.center_of(position) is not None for position in range(len(image.files)))
            first = source.first_patch(number)
            assert source.read_pixels(range(first, first + len(image.files))).shape[1:] == (256, 256, 3)


def test_cut_photos_leaves_a_folder_that_is_there_alone(tmp_path: Path) -> None:
    done = cut_photos(tmp_path)
    assert done.returncode == 1
    assert "FileExistsError" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("examples") / "sample.lmdb"
    import_store([DATA / "chunked"], path)
    return path


def with_path(options: Any, path: Path) -> Any:
    """Return options, dicts in dicts included, whose data is at a path."""
    if not isinstance(options, dict):
        return options
    return {key: str(path) if key in DATA_KEYS else with_path(value, path) for key, value in options.items()}


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yml")), ids=lambda path: path.name)
def test_every_config_gives_batches(example: Path, store: Path, tmp_path: Path) -> None:
    config = with_path(yaml.safe_load(example.read_text(encoding="utf-8")), store)
    changed = tmp_path / example.name
    changed.write_text(yaml.safe_dump(config), encoding="utf-8")
    for phase in {key.split("_")[0] for key in config["datasets"]}:
        lines = list(describe_batches(changed, phase=phase, batches=2))
        assert "2 batches read" in lines[-1]
