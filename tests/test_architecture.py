"""Imports run one way, heavy libraries stay out where they are not needed, and README.md maps what is there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from samples import DATA

import dlas_store

ROOT = Path(__file__).parents[1]
PACKAGES = {"dlas_store": "dlas_store", "converters": "dlas_store.converters", "benchmarks": "benchmarks"}

LAYERS = {
    "errors and extensions in C": ["_native", "errors"],
    "what needs nothing of ours but errors": [
        "aligned_memory", "bounded_cache", "centers_pickle", "config", "extra_fields", "folder_walk", "inert_pickle",
        "interrupts", "keys", "lmdb_pages", "lmdb_writer", "names", "numpy_pickle", "options",
        "plain_pickle", "processes", "publish", "tables", "terminal",
    ],
    "the storage API and encodings": [
        "centers", "concat_source", "libjpeg", "metadata", "pixels", "pyturbojpeg", "sealed_file", "source",
    ],
    "shard, index, folder": [
        "array_pictures", "chunked_folder", "cifar_batches", "class_folders", "folder_source", "idx_files", "index",
        "index_writer", "picture_folder", "published", "shard", "shard_directory", "shard_remains", "shard_writer",
    ],
    "store and writer": ["commit", "opening", "store", "dlas_store"],
    "what works on whole stores": ["compare", "info", "reindex", "verify"],
    "datasets": ["datasets", "datasets.*"],
    "converters": ["converters", "converters.*"],
    "benchmarks and the command line": [
        "__main__", "benchmarks", "benchmarks.*", "cli", "extract_command", "picture_sheet", "preview",
        "read_command", "read_picture",
    ],
}  # fmt: skip
"""A module may import from its own layer and those before it."""


def module_name(path: Path) -> str:
    folder, *parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join([PACKAGES[folder], *parts]).removesuffix(".__init__")
    return name.removeprefix("dlas_store.")


MODULES = {module_name(path): path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py")}


def imported_names(path: Path) -> set[str]:
    """Every module or name that a file imports anywhere, in full."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def own_imports(module: str) -> set[str]:
    """The modules of ours that a module imports."""
    found = set()
    for name in imported_names(MODULES[module]):
        candidates = (name.removeprefix("dlas_store."), name.rpartition(".")[0].removeprefix("dlas_store."))
        found.update([candidate for candidate in candidates if candidate in MODULES][:1])
    return found


def layers_of(module: str) -> list[int]:
    return [
        number
        for number, patterns in enumerate(LAYERS.values())
        if any(fnmatchcase(module, pattern) for pattern in patterns)
    ]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_one_way(module: str) -> None:
    (layer,) = layers_of(module)
    against = {name for name in own_imports(module) if layers_of(name)[0] > layer}
    assert not against, f"{module} is of layer {list(LAYERS)[layer]!r}"


def test_imports_have_no_cycle() -> None:
    TopologicalSorter({module: own_imports(module) for module in MODULES}).prepare()


def test_every_layer_names_modules_that_exist() -> None:
    patterns = [pattern for patterns in LAYERS.values() for pattern in patterns]
    assert [pattern for pattern in patterns if not any(fnmatchcase(module, pattern) for module in MODULES)] == []


def test_one_module_uses_the_engine() -> None:
    users = {module for module, path in MODULES.items() if {"lmdb"} & {n.split(".")[0] for n in imported_names(path)}}
    assert users == {"lmdb_writer"}


EXTENSIONS = {
    "dlas_store._native.patch_reader": "libjpeg",
    "dlas_store._native.pixel_loops": "datasets.planes",
    "dlas_store.converters.extraction._jpeg_crop": "converters.extraction.tile_encoding",
}
"""An extension in C, and the module of ours that imports it."""


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_one_module_imports_an_extension(extension: str) -> None:
    users = [
        module
        for module, path in MODULES.items()
        if any(f"{name}.".startswith(f"{extension}.") for name in imported_names(path))
    ]
    assert users == [EXTENSIONS[extension]]


def test_every_extension_is_named_here() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert sorted(EXTENSIONS) == sorted(module["name"] for module in settings["tool"]["setuptools"]["ext-modules"])


@pytest.mark.parametrize(
    "program",
    [
        "import dlas_store",
        "import dlas_store.converters.importing",
        "from dlas_store.cli import main; assert main(['import', sys.argv[1], sys.argv[2]]) == 0",
    ],
)
def test_importing_loads_neither_torch_nor_opencv(program: str, tmp_path: Path) -> None:
    program = f"import sys; {program}; assert not {{'torch', 'cv2'}} & set(sys.modules)"
    command = [sys.executable, "-c", program, str(DATA / "chunked"), str(tmp_path / "new.lmdb")]
    subprocess.run(command, cwd=ROOT, check=True)


def test_the_readme_maps_every_module() -> None:
    """One row a package: dlas_store/ stands for its own files alone, any other row for all below its folder."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("\n## Architecture\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+/)` \| \w", section, re.MULTILINE)
    files = [path for folder in (*PACKAGES, "tests") for path in (ROOT / folder).rglob("*.py")]
    folders = {f"{path.parent.relative_to(ROOT).as_posix()}/" for path in files}
    rows_of = {
        folder: [row for row in rows if row == folder or (row != "dlas_store/" and folder.startswith(row))]
        for folder in folders
    }
    assert {folder: found for folder, found in rows_of.items() if len(found) != 1} == {}


def test_the_facade_is_sorted_and_whole() -> None:
    assert dlas_store.__all__ == sorted(dlas_store.__all__)
    assert all(hasattr(dlas_store, name) for name in dlas_store.__all__)
