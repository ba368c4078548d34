"""Fault cases: inputs and uses with which readers of picture data go wrong. Each file stands for a kind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from converters.importing import import_store
from dlas_store import StoreError, open_source
from dlas_store.datasets import create_dataloader, create_dataset
from tests.support.sample_data import DATA

PROGRAMS = sorted(path for path in (Path(__file__).parent / "cases").glob("*.py") if "common" not in path.name)
CASES = DATA / "cases"
JPEGS = sorted(CASES.rglob("*.jpg"))
NO_PLACE = 77
"""Status of a program whose requirements this machine lacks, such as a tool or the rights of root."""


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_a_use_that_goes_wrong_elsewhere_goes_right(program: Path) -> None:
    done = subprocess.run([sys.executable, program], check=False, capture_output=True, text=True, timeout=300)
    if done.returncode == NO_PLACE:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("loader", ["threads", "workers"])
@pytest.mark.parametrize("path", JPEGS, ids=lambda path: path.stem)
def test_an_odd_jpeg_is_read_as_pillow_reads_it(path: Path, loader: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(path.read_bytes())
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    import_store([folder], tmp_path / "store.lmdb")
    for source_path in (folder, tmp_path / "store.lmdb"):
        with open_source(source_path) as source:
            np.testing.assert_array_equal(source.read_pixels([0])[0], expected)
        opt = {"mode": "pixels", "paths": source_path, "batch_size": 1, "loader": loader}
        (batch,) = create_dataloader(create_dataset(opt), opt)
        np.testing.assert_array_equal(batch["pixels"][0].numpy(), expected)


@pytest.mark.parametrize("path", sorted(CASES.rglob("*.png")), ids=lambda path: path.stem)
def test_a_png_without_its_last_rows_is_refused(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(StoreError, match=path.name):
        import_store([folder], tmp_path / "store.lmdb", decode_all=True)
