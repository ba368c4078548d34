"""Packages, imports and sizes of the source: ``python -m tests.architecture`` prints each measure with its limit.

The measures say how many files a reader must open to follow the code. ``tests/test_architecture.py`` enforces the
limits.
"""

from __future__ import annotations

import ast
import re
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]

FOLDERS = {"dlas_store": "dlas_store", "converters": "dlas_store.converters", "benchmarks": "benchmarks"}
"""Folder of the checkout -> package name under which the folder's modules are imported."""

MAY_IMPORT: Mapping[str, frozenset[str]] = {
    package: frozenset(imported.split())
    for package, imported in {
        "dlas_store": "errors opening sources datasets loading",
        "errors": "",
        "_native": "",
        "config": "errors",
        "progress": "",
        "processes": "errors progress",
        "atomic": "errors",
        "sampling": "errors",
        "images": "errors _native",
        "lmdb_reader": "errors",
        "sources": "errors images lmdb_reader",
        "storage": "errors images atomic lmdb_reader sources.base",
        "opening": "errors images sources storage",
        "maintenance": "errors opening storage sources processes progress atomic",
        "transforms": "errors images sampling config _native",
        "loading": "errors images sampling config processes",
        "datasets": "errors images sampling config loading transforms opening sources storage",
        "converters": "errors images atomic processes progress config sources storage opening maintenance",
        "cli": "*",
        "__main__": "cli",
        "benchmarks": "*",
    }.items()
}
"""Package or module of the library -> own packages and modules that it may import; ``*`` stands for all."""

LOADING_TORCH = frozenset({"sampling", "transforms", "loading", "datasets", "cli.read", "benchmarks"})
"""Packages and modules that may load torch."""

VAGUE_OPENINGS = re.compile(r"(What|Where|Which|How|Whoever)\b")
"""First words of a docstring that does not begin with its subject."""


class Measure(NamedTuple):
    """A measure of the source.

    Attributes:
        name: name of the measure.
        value: measured value.
        limit: largest accepted value.
    """

    name: str
    value: int
    limit: int


def module_name(path: Path) -> str:
    """Return the name under which a file is imported."""
    folder, *parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *parts]).removesuffix(".__init__")


MODULES = {
    module_name(path): path
    for folder in FOLDERS
    for ending in ("py", "pyi")
    for path in sorted((ROOT / folder).rglob(f"*.{ending}"))
}
"""Name of each module of the library and the benchmarks -> its file; for a C extension, its stub file."""

SOURCE_MODULES = [
    name
    for name, path in MODULES.items()
    if name.startswith("dlas_store") and path.suffix == ".py" and path.name != "__init__.py"
]
"""Modules of ``dlas_store/`` and ``converters/``, without the packages' ``__init__.py``."""


def package_of(module: str) -> str:
    """Return the package of a module: the first name below the library, or ``dlas_store`` for the library itself.

    >>> package_of("dlas_store.images.decode"), package_of("dlas_store.errors"), package_of("benchmarks.read")
    ('images', 'errors', 'benchmarks')
    """
    return module.removeprefix("dlas_store.").split(".")[0]


@cache
def imported_names(module: str) -> frozenset[str]:
    """Return the full names of all modules and objects that a module imports, in functions as well."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_bytes())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


@cache
def own_imports(module: str) -> frozenset[str]:
    """Return the modules of this project that a module imports."""
    imported = set()
    for name in imported_names(module):
        parts = name.split(".")
        prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        imported.update([prefix for prefix in prefixes if prefix in MODULES][:1])
    return frozenset(imported - {module})


def forbidden_imports(module: str) -> set[str]:
    """Return the modules that a module imports although its package may not."""
    package = package_of(module)
    allowed = MAY_IMPORT[package]
    if "*" in allowed:
        return set()
    return {
        imported
        for imported in own_imports(module)
        if package_of(imported) not in {package, *allowed} and imported.removeprefix("dlas_store.") not in allowed
    }


def cycles(graph: Mapping[str, frozenset[str] | set[str]]) -> list[str]:
    """Return one cycle of a graph, or an empty list if the graph has no cycle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def module_graph() -> dict[str, frozenset[str]]:
    """Return the modules that each module imports."""
    return {module: own_imports(module) for module in MODULES}


def package_graph() -> dict[str, set[str]]:
    """Return the packages that each package imports."""
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        imported = {package_of(name) for name in own_imports(module)}
        graph.setdefault(package_of(module), set()).update(imported - {package_of(module)})
    return graph


def single_importer_modules() -> list[str]:
    """Return the source modules that exactly one module of this project imports."""
    importers = Counter(imported for module in MODULES for imported in own_imports(module))
    return [module for module in SOURCE_MODULES if importers[module] == 1]


def vague_docstrings() -> list[str]:
    """Return the modules whose docstring does not begin with the module's subject."""
    return [
        module
        for module, path in MODULES.items()
        if VAGUE_OPENINGS.match(ast.get_docstring(ast.parse(path.read_bytes())) or "")
    ]


def longest_module() -> tuple[int, str]:
    """Return the number of lines and the name of the longest source module."""
    return max((len(MODULES[module].read_bytes().splitlines()), module) for module in SOURCE_MODULES)


@contextmanager
def entered_files() -> Iterator[set[str]]:
    """Collect the files of the library whose functions run in the ``with`` block, in any thread of this process."""
    prefixes = tuple(f"{ROOT / folder}/" for folder in ("dlas_store", "converters"))
    files: set[str] = set()

    def record(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and _is_function(frame.f_code) and frame.f_code.co_filename.startswith(prefixes):
            files.add(frame.f_code.co_filename)

    threading.setprofile(record)
    sys.setprofile(record)
    try:
        yield files
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def _is_function(code: CodeType) -> bool:
    """Return whether code belongs to a function; the code of a module or a class runs at the import."""
    return bool(code.co_flags & 1)


def files_to_first_batch(store: Path, folder: Path) -> set[str]:
    """Return the files that the way from a config to a store's first batch enters."""
    import dlas_store.datasets  # noqa: F401 - imported before the trace starts
    from dlas_store.config import load_config
    from dlas_store.datasets import create_dataloader, create_dataset

    config = folder / "train.yml"
    options = "mode: single_image_extensible, batch_size: 4, target_size: 64, scale: 4, need_ref: true, strict: true"
    config.write_text(f"datasets: {{train: {{paths: {store}, {options}}}}}\n")
    with entered_files() as files:
        train: dict[str, Any] = load_config(config)["datasets"]["train"]
        batches = iter(create_dataloader(create_dataset(train), train))
        next(batches)
        batches.close()  # type: ignore[attr-defined]
    return files


def files_to_import(source: Path, store: Path) -> set[str]:
    """Return the files that an import of a chunked folder enters."""
    from dlas_store.converters.importing import import_store

    with entered_files() as files:
        import_store([source], store, workers=0)
    return files


def files_to_verify(store: Path) -> set[str]:
    """Return the files that a check of a store's values enters."""
    from dlas_store.maintenance import verify

    with entered_files() as files:
        verify(store, workers=0)
    return files


def entered(task: Callable[..., set[str]], *arguments: Path) -> int:
    """Return the number of the library's files that a task enters."""
    return len(task(*arguments))


def source_measures() -> list[Measure]:
    """Return the measures that need no run of the library."""
    return [
        Measure("source modules of dlas_store/ and converters/", len(SOURCE_MODULES), 106),
        Measure("lines of the longest source module", longest_module()[0], 400),
        Measure("source modules that one other module imports", len(single_importer_modules()), 21),
        Measure("module docstrings that open with What, Where, Which, How", len(vague_docstrings()), 0),
        Measure("modules in a cycle of imports", len(cycles(module_graph())), 0),
        Measure("packages in a cycle of imports", len(cycles(package_graph())), 0),
    ]


def traced_measures(folder: Path) -> list[Measure]:
    """Return the measures that a trace of the running library gives.

    Args:
        folder: a new, empty folder that the library writes to.
    """
    store = folder / "traced.lmdb"
    return [
        Measure("files entered by an import", entered(files_to_import, ROOT / "tests/data/chunked", store), 30),
        Measure("files entered by a verification", entered(files_to_verify, store), 11),
        Measure("files entered from a config to its first batch", entered(files_to_first_batch, store, folder), 33),
    ]


def main() -> int:
    """Print every measure; return 1 if a measure exceeds its limit, else 0."""
    with tempfile.TemporaryDirectory() as folder:
        measures = [*source_measures(), *traced_measures(Path(folder))]
    for measure in measures:
        verdict = "" if measure.value <= measure.limit else "  too many"
        print(f"{measure.name:60}{measure.value:5} of at most {measure.limit}{verdict}")
    return int(any(measure.value > measure.limit for measure in measures))


if __name__ == "__main__":
    sys.exit(main())
