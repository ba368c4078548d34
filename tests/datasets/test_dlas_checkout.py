"""A real checkout of DL-Art-School with the lines that examples/dl-art-school.md gives.

``DLAS_CHECKOUT`` names the checkout's folder; without it the tests are skipped. The checkout stays as it is: the tests
change a copy.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dlas_store.maintenance import verify
from tests.support.picture_folders import store_of, write_pictures
from tests.support.published_files import write_mnist
from tests.support.sample_data import DATA, ROOT, noise

CHECKOUT = os.environ.get("DLAS_CHECKOUT")

pytestmark = pytest.mark.skipif(not CHECKOUT, reason="DLAS_CHECKOUT names no checkout of DL-Art-School")

GUIDE = (ROOT / "examples" / "dl-art-school.md").read_text()


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    """A copy of the checkout's ``codes``, changed as the guide says."""
    copy = tmp_path / "codes"
    shutil.copytree(Path(str(CHECKOUT)) / "codes", copy)
    with (copy / "data" / "__init__.py").open("a") as file:
        file.write("\n" + two_lines())
    rows = re.findall(r"^\| `codes/(\S+)` \| `(.+?)` \| `(.+?)` \|", GUIDE, re.MULTILINE)
    assert len(rows) == 2
    for file_name, line, replacement in rows:
        path = copy / file_name
        text = path.read_text()
        assert text.count(line) == 1
        path.write_text(text.replace(line, replacement))
    return copy


def two_lines() -> str:
    """Return the lines of the guide that stand at the end of ``data/__init__.py``."""
    (block,) = re.findall(r"^    from dlas_store\.datasets import dlas_factories\n    .*\n", GUIDE, re.MULTILINE)
    return str(block).replace("    ", "")


def configs(tmp_path: Path) -> dict[str, Any]:
    """Return a dataset of every mode that DL-Art-School shares with this library, by its key in the config."""
    pictures = write_pictures(tmp_path / "pictures", {f"{n}.png": noise(64, 72, seed=n) for n in range(4)})
    write_mnist(tmp_path / "mnist" / "MNIST" / "raw", np.zeros((6, 28, 28), np.uint8), np.arange(6, dtype=np.uint8))
    patches = {"target_size": 32, "scale": 2, "need_ref": 1, "strict": True}
    members = {"default": {"mode": "imagefolder", "paths": str(pictures), "target_size": 32}}
    members["noise"] = {"mode": "random_dataset", "hq_shape": [3, 32, 32], "lq_shape": [3, 16, 16]}
    return {
        "train": {"mode": "single_image_extensible", "paths": str(DATA / "chunked"), "n_workers": 1, **patches},
        "val_multi": {
            "mode": "multi_frame_extensible",
            "paths": str(DATA / "chunked_video"),
            "num_frames": 2,
            **patches,
        },
        "val_paired": {"mode": "paired_frame", "paths": str(DATA / "chunked_stereo"), **patches},
        "val_folder_mc": {"mode": "imagefolder_mc", "paths": str(pictures), "target_size": 32, "scale": 2},
        "val_stylegan": {"mode": "stylegan2", "path": str(pictures), "target_size": 32, "aug_prob": 0.5},
        "val_scales": {"mode": "multiscale", "paths": str(pictures), "hq_tile_size": 16, "num_scales": 2, "scale": 2},
        "val_full": {"mode": "fullimage", "dataroot_GT": str(pictures), "scale": 2, "force_multiple": 4},
        "val_torch": {
            "mode": "torch_dataset",
            "dataset": "mnist",
            "kwargs": {"root": str(tmp_path / "mnist")},
            "image_size": 28,
        },
        "val_combined": {"mode": "combined", "scale": 2, **members},
    }


def test_a_checkout_with_the_two_lines_reads_every_mode_by_this_library(codes: Path, tmp_path: Path) -> None:
    datasets = {key: {"name": key, "batch_size": 2, **opt} for key, opt in configs(tmp_path).items()}
    config = tmp_path / "options.yml"
    config.write_text(yaml.safe_dump({"name": "run", "datasets": datasets}))
    inner = {"mode": "fullimage", "dataroot_GT": str(tmp_path / "pictures"), "scale": 2}
    folder = {"mode": "imagefolder", "paths": str(tmp_path / "pictures"), "target_size": 32, "scale": 2}
    corruptions = {"fixed_corruptions": ["noise"], "random_corruptions": ["jpeg"], "num_corrupts_per_image": 1}
    program = ROOT / "tests" / "support" / "in_dlas_checkout.py"
    command = [sys.executable, program, config, json.dumps([inner, folder, {**folder, **corruptions}])]
    done = subprocess.run(command, cwd=codes, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["same"] == [True, True, True]
    found = result["datasets"]
    assert found.keys() == datasets.keys()
    assert all(dataset["class"].startswith("dlas_store.datasets.") for dataset in found.values())
    assert {key: dataset["name"] for key, dataset in found.items()} == {key: key for key in datasets}
    assert found["val_combined"]["keys"] == sorted(
        [*found["val_folder_mc"]["keys"], "noise_GT_path", "noise_LQ_path", "noise_hq", "noise_lq"]
    )
    assert found["val_combined"]["items"] == 1024 * 1024
    assert not list(Path(DATA).rglob("cache.pth"))


def run_in(codes: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a copy of the checkout."""
    start = (
        "import sys\nfrom tests.support.in_dlas_checkout import EmptyModules\nsys.meta_path.append(EmptyModules())\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{codes}"}
    command = [sys.executable, "-c", start + code]
    return subprocess.run(command, cwd=codes, capture_output=True, text=True, check=False, env=environment)


def test_dl_art_schools_own_cache_loads_with_the_changed_line_and_not_without(codes: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(DATA / "chunked", tmp_path / "chunked")
    options = {"paths": str(folder), "target_size": 32, "scale": 2}
    code = f"""
from data.images.single_image_dataset import SingleImageDataset
print(len(SingleImageDataset({options})), len(SingleImageDataset({options})))
"""
    done = run_in(codes, code)
    assert done.stdout.split()[-2:] == [str(len(list(folder.glob("*/0*.jpg"))))] * 2, done.stderr
    original = Path(str(CHECKOUT)) / "codes" / "data" / "images" / "base_unsupervised_image_dataset.py"
    shutil.copy(original, codes / "data" / "images")
    assert "Weights only load failed" in run_in(codes, code).stderr


def test_without_the_two_lines_a_store_is_empty_and_stays_sound(codes: Path, tmp_path: Path) -> None:
    shutil.copy(Path(str(CHECKOUT)) / "codes" / "data" / "__init__.py", codes / "data")
    store = store_of(shutil.copytree(DATA / "chunked", tmp_path / "chunked"), "chunked")
    options = {"mode": "single_image_extensible", "paths": str(store), "target_size": 32, "scale": 2}
    options |= {"phase": "train", "n_workers": 0, "batch_size": 2}
    code = f"""
from data import create_dataloader, create_dataset
create_dataloader(create_dataset({options}), {options})
"""
    assert "got num_samples=0" in run_in(codes, code).stderr
    assert (store / "cache.pth").exists()
    assert not verify(store).findings
