"""Limits of the source: directions of imports, heavy libraries, facades, and the measures of tests.architecture."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from tests import architecture
from tests.architecture import MAY_IMPORT, MODULES, Measure, imported_names, own_imports, package_of
from tests.support.sample_data import DATA, ROOT

FACADES = {
    "dlas_store": [
        "Center", "Image", "Source", "StoreDataset", "StoreError", "collate", "create_loader", "open_source",
    ],
    "dlas_store.config": ["ConfigOptions", "OptionWarning", "load_config", "load_mapping"],
    "dlas_store.converters": ["export_store", "import_store", "salvage"],
    "dlas_store.converters.extraction": ["ExtractOptions", "estimate", "extract"],
    "dlas_store.datasets": [
        "CombinedDataset", "DistIterSampler", "FullImageDataset", "ImageFolderDataset", "ItemDataset", "Loader",
        "MultiFrameDataset", "MultiScaleDataset", "OptionWarning", "PairedFrameDataset", "PixelsDataset",
        "SingleImageDataset", "Stylegan2Dataset", "TorchDataset", "TreeNode", "build_tree", "create_dataloader",
        "create_dataset", "dlas_factories", "register_dataset", "take_over", "tree_leaves", "zero_pad",
    ],
    "dlas_store.loading": ["ItemDataset", "Loader", "ThreadsLoader", "WorkersLoader", "zero_pad"],
    "dlas_store.maintenance": ["Finding", "VerifyReport", "info", "reindex", "verify"],
    "dlas_store.sampling": [
        "DistIterSampler", "EpochSampler", "Permutation", "SampleKey", "SampleRng", "StatefulSampler",
    ],
    "dlas_store.sources": [
        "ChunkedFolder", "ClassFolders", "ConcatSource", "PictureFolder", "Source", "open_published",
    ],
    "dlas_store.storage": ["Index", "Shard", "Store"],
    "dlas_store.transforms": ["Corruptions", "matlab_reduce", "random_resized_crop", "resize_area", "to_chw_float"],
}  # fmt: skip
"""Package -> names that the package exports to users."""

EXTENSIONS = {
    "dlas_store._native.patch_reader": "dlas_store.images.libjpeg",
    "dlas_store._native.pixel_loops": "dlas_store.transforms.resize",
    "dlas_store.converters.extraction._jpeg_crop": "dlas_store.converters.extraction.photos",
}
"""C extension -> the only module that imports the extension."""


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_one_way(module: str) -> None:
    """A package imports only the packages that MAY_IMPORT allows."""
    assert architecture.forbidden_imports(module) == set()


def test_imports_have_no_cycle() -> None:
    assert architecture.cycles(architecture.module_graph()) == []
    assert architecture.cycles(architecture.package_graph()) == []


def test_every_layer_names_modules_that_exist() -> None:
    packages = set(map(package_of, MODULES))
    assert packages == set(MAY_IMPORT)
    named = {name for imported in MAY_IMPORT.values() for name in imported} - {"*"}
    assert {name for name in named if name not in packages and f"dlas_store.{name}" not in MODULES} == set()


def test_one_module_uses_the_engine() -> None:
    users = {module for module in MODULES if {"lmdb"} & {name.split(".")[0] for name in imported_names(module)}}
    assert users == {"dlas_store.storage.lmdb_writer"}


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_one_module_imports_an_extension(extension: str) -> None:
    users = [
        module for module in MODULES if any(f"{name}.".startswith(f"{extension}.") for name in imported_names(module))
    ]
    assert users == [EXTENSIONS[extension]]


def test_every_extension_is_named_here() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert sorted(EXTENSIONS) == sorted(module["name"] for module in settings["tool"]["setuptools"]["ext-modules"])


def test_few_packages_load_torch() -> None:
    users = {module for module in MODULES if "torch" in {name.split(".")[0] for name in imported_names(module)}}
    allowed = architecture.LOADING_TORCH
    assert {user for user in users if not allowed & {package_of(user), user.removeprefix("dlas_store.")}} == set()


def test_loading_names_no_dataset() -> None:
    loading = {module for module in MODULES if package_of(module) == "loading"}
    imported = {name for module in loading for name in own_imports(module)}
    assert {name for name in imported if package_of(name) == "datasets"} == set()


@pytest.mark.parametrize(
    "program",
    [
        "import dlas_store",
        "import dlas_store.converters.importing",
        "from dlas_store.cli.main import main; assert main(['import', sys.argv[1], sys.argv[2]]) == 0",
    ],
)
def test_importing_loads_neither_torch_nor_opencv(program: str, tmp_path: Path) -> None:
    program = f"import sys; {program}; assert not {{'torch', 'cv2'}} & set(sys.modules)"
    command = [sys.executable, "-c", program, str(DATA / "chunked"), str(tmp_path / "new.lmdb")]
    subprocess.run(command, cwd=ROOT, check=True)


def test_opening_loads_no_engine() -> None:
    program = "import sys, dlas_store, dlas_store.storage, dlas_store.opening; assert 'lmdb' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_the_readme_maps_every_module() -> None:
    """The README has a row for each package of the library, the converters and the benchmarks; each folder exists."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("\n## Architecture\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)
    packages = [path.parent for path in ROOT.glob("dlas_store/*/__init__.py")]
    folders = [ROOT / "converters", ROOT / "benchmarks", *packages]
    assert sorted(rows) == sorted(f"{folder.relative_to(ROOT)}/" for folder in folders)
    assert [row for row in rows if not (ROOT / row).is_dir()] == []


def test_contributing_says_who_may_import_whom() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("\n## Who may import whom\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| (`.+`) \| (.+) \|$", section, re.MULTILINE))
    stated = {
        package: {"*"} if allowed.startswith("everything") else set(re.findall(r"`([\w.]+)`", allowed.split(";")[0]))
        for packages, allowed in rows.items()
        for package in re.findall(r"`(\w+)`", packages)
    }
    in_a_sentence = {"dlas_store", "__main__"}
    expected = {package: set(others) for package, others in MAY_IMPORT.items() if package not in in_a_sentence}
    expected["storage"].add("sources")  # the row names the package of sources.base, too
    assert stated == expected


@pytest.mark.parametrize("package", FACADES)
def test_the_facade_is_sorted_and_whole(package: str) -> None:
    facade = import_module(package)
    assert facade.__all__ == FACADES[package]
    assert facade.__all__ == sorted(facade.__all__)
    assert all(hasattr(facade, name) for name in facade.__all__)


@pytest.mark.parametrize("package", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_a_package_says_what_it_is_for(package: str) -> None:
    docstring = ast.get_docstring(ast.parse(MODULES[package].read_bytes()))
    assert docstring
    assert docstring.split("\n")[0].endswith((".", ":"))


@pytest.mark.parametrize("measure", architecture.source_measures(), ids=lambda measure: measure.name)
def test_no_measure_is_above_its_limit(measure: Measure) -> None:
    assert measure.value <= measure.limit


def test_few_files_are_entered(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys; from tests.architecture import traced_measures\n"
        "print([m for m in traced_measures(pathlib.Path(sys.argv[1])) if m.value > m.limit])"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output == "[]\n"
