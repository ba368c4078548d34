"""Examples and texts: the examples run unchanged on the demo's photos; links, paths and tables of texts are valid."""

from __future__ import annotations

import re
import subprocess
import sys
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from dlas_store import open_source
from dlas_store.cli.read import describe_batches
from dlas_store.config import load_config
from dlas_store.converters.extraction.extracting import extract
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.importing import import_store
from dlas_store.datasets.modes import MODES
from dlas_store.sources.published import open_published
from tests.support.sample_data import ROOT

pytest.importorskip("skimage", reason="the sample photos are scikit-image's")

EXAMPLES = ROOT / "examples"
CONFIGS = sorted(EXAMPLES.glob("*.yml"))
TEXTS = [
    text
    for folder in (".", "benchmarks", "docs", "examples", "tests/reliability")
    for text in (ROOT / folder).glob("*.md")
]


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``make demo``, with all stores."""
    folder = tmp_path_factory.mktemp("examples") / "demo"
    result = run("sample_photos.py", folder / "originals")
    assert result.returncode == 0, result.stderr
    (folder / "sample_photos.txt").write_text(result.stdout)
    for kind, extra in (("photos", {}), ("video", {}), ("stereo", {"vertical_split": True})):
        options = ExtractOptions.read({"crop_sz": 256, "step": 128} | extra)
        extract(folder / "originals" / kind, folder / f"{kind}.lmdb", options)
    import_store([folder / "originals" / "photos"], folder / "pictures.lmdb")
    import_store([open_published("imagefolder", folder / "originals" / "classes")], folder / "classes.lmdb")
    return folder


def in_demo(config: Path, demo: Path, folder: Path) -> Path:
    """Copy a config to ``folder``, with the path of the demo's data in place of ``demo``, and return the copy."""
    copy = folder / config.name
    copy.write_text(config.read_text(encoding="utf-8").replace(" demo/", f" {demo}/"), encoding="utf-8")
    return copy


@pytest.mark.parametrize("kind", ["photos", "video", "stereo"])
def test_sample_photos_are_cut_up_into_patches_of_one_size(demo: Path, kind: str) -> None:
    with open_source(demo / f"{kind}.lmdb") as source:
        assert source.layout == "chunked"
        for number in range(source.image_count):
            image = source.image(number)
            assert image.has_reference
            assert all(image.center_of(position) is not None for position in range(len(image.files)))
            first = source.first_patch(number)
            assert source.read_pixels(range(first, first + len(image.files))).shape[1:] == (256, 256, 3)


@pytest.mark.parametrize("kind", ["photos", "video", "stereo", "classes"])
def test_sample_photos_writes_folders_of_pictures(demo: Path, kind: str) -> None:
    folder = demo / "originals" / kind
    with open_source(folder, layout="pictures") as source:
        assert f"{folder}: {len(source)} pictures" in (demo / "sample_photos.txt").read_text()


def test_sample_photos_leaves_a_folder_that_is_there_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    result = run("sample_photos.py", tmp_path)
    assert result.returncode == 1
    assert "FileExistsError" in result.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["photos"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_config_gives_batches(config: Path, demo: Path, tmp_path: Path) -> None:
    demo_config = in_demo(config, demo, tmp_path)
    for phase in {opt["phase"] for opt in load_config(demo_config)["datasets"].values()}:
        lines = list(describe_batches(demo_config, phase=phase, batches=2))
        assert "2 batches read" in lines[-1]


def test_every_mode_has_a_config_that_says_what_it_shows() -> None:
    modes = set()
    for config in CONFIGS:
        text = config.read_text(encoding="utf-8")
        assert text.startswith("# ")
        modes |= {opt["mode"] for opt in yaml.safe_load(text)["datasets"].values()}
    assert modes == set(MODES)


@pytest.mark.parametrize("config", ["train.yml", "multi_frame.yml"])
def test_train_sr_trains_and_shows_samples(config: str, demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "sr"
    result = run("train_sr.py", in_demo(EXAMPLES / config, demo, tmp_path), "--seconds", 2, "--out", out)
    assert result.returncode == 0, result.stderr
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", result.stdout)]
    assert losses
    assert all(map(isfinite, losses))
    with Image.open(out / "samples.png") as sheet:
        assert sheet.size[0] == 4 * 128
        assert sheet.size[1] % 128 == 0


def test_the_python_of_the_readme_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "div2k" / "0001"
    image.mkdir(parents=True)
    for name in ("ref.jpg", *(f"{number:08d}.jpg" for number in range(13))):
        Image.new("RGB", (16, 16)).save(image / name)
    store = tmp_path / "div2k.lmdb"
    import_store([tmp_path / "div2k"], store)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert "/data/div2k.lmdb" in code
    names: dict[str, Any] = {}
    exec(code.replace("/data/div2k.lmdb", str(store)), names)
    assert capsys.readouterr().out == "13 patches of 1 images\n"
    assert names["encoded"] == (image / "00000000.jpg").read_bytes()
    assert names["batch"].shape == (3, 16, 16, 3)
    assert names["image"].files[names["index"]] == "00000012.jpg"


def test_links_in_the_texts_lead_somewhere() -> None:
    links = {
        text.parent / link
        for text in TEXTS
        for link in re.findall(r"\]\(([^)#:]+)\)", text.read_text(encoding="utf-8"))
    }
    assert len(links) > 10
    assert [link for link in sorted(links) if not link.exists()] == []


def test_paths_in_the_texts_exist() -> None:
    paths = {
        path
        for text in [*TEXTS, *ROOT.glob("tests/**/*.md")]
        for path in re.findall(
            r"`((?:dlas_store|converters|benchmarks|tests|examples|docs)/[\w./-]*\w/?)",
            text.read_text(encoding="utf-8"),
        )
    }
    placeholders = re.compile(r"night|NAME|format_N")
    assert [path for path in sorted(paths) if not (ROOT / path).exists() and not placeholders.search(path)] == []


def test_tables_in_the_texts_have_as_many_cells_in_each_row() -> None:
    for text in TEXTS:
        content = re.sub(r"```.*?```", "", text.read_text(encoding="utf-8"), flags=re.DOTALL)
        for table in re.findall(r"(?:^ *\|.*\|\n)+", content, re.MULTILINE):
            assert len({re.sub(r"`[^`]*`", "", row).count("|") for row in table.splitlines()}) == 1, f"{text}: {table}"
