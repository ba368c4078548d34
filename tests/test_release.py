"""Installations that a release supports: the lowest versions of all packages, each tested Pillow, and no compiler.

``pytest --release tests/test_release.py`` runs these tests, which install packages into temporary folders.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.sample_data import ROOT

pytestmark = [pytest.mark.release, pytest.mark.timeout(3600)]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PILLOWS = ("11.0.0", "11.1.0", "11.3.0", "12.0.0", "12.1.0", "12.2.0", "13.0.0", None)
"""A version of Pillow for each libjpeg-turbo in the list of ``entropy_step.c``; None is the newest Pillow."""

DECODERS = ("tests/images", "tests/native")
C_TESTS = (*DECODERS, "tests/transforms", "tests/converters/extraction")


def run(command: Sequence[str | Path], *, cwd: Path = ROOT, environment: Mapping[str, str] | None = None) -> str:
    """Run a command and return its output; fail with the output."""
    variables = {**os.environ, **(environment or {})}
    process = subprocess.run(command, cwd=cwd, env=variables, check=False, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-5000:] + process.stderr[-5000:]
    return process.stdout


def lowest(requirement: str) -> str:
    """Return a requirement of exactly the lower bound."""
    return requirement.partition(";")[0].strip().replace(">=", "==")


def copy_checkout(folder: Path) -> Path:
    """Copy the files that git tracks, without what was built."""
    for file in run(["git", "ls-files", "-z"]).split("\0")[:-1]:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / file).read_bytes())
    return folder


def make_environment(folder: Path) -> Path:
    """Make a virtual environment and return its interpreter."""
    run([sys.executable, "-m", "venv", folder])
    return folder / "bin" / "python"


def test_the_lower_bounds_of_all_packages_pass_together(tmp_path: Path) -> None:
    project = PROJECT["project"]
    python, checkout = make_environment(tmp_path / "venv"), copy_checkout(tmp_path / "checkout")
    extras = [*project["optional-dependencies"]["test"], *project["optional-dependencies"]["demo"]]
    packages = [*PROJECT["build-system"]["requires"], *project["dependencies"], *extras]
    run([python, "-m", "pip", "install", "--quiet", *map(lowest, packages)])
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "-e", "."], cwd=checkout)
    run([python, "-m", "pytest", "-q", "--numprocesses", "auto", "tests"], cwd=checkout)


@pytest.mark.parametrize("version", PILLOWS)
def test_decoders_pass_with_each_pillow(version: str | None, tmp_path: Path) -> None:
    package = "Pillow" if version is None else f"Pillow=={version}"
    run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path, package])
    environment = {"PYTHONPATH": str(tmp_path)}
    run([sys.executable, "-m", "pytest", "-q", *DECODERS], environment=environment)
    facts = run([sys.executable, "-m", "dlas_store", "info", "--decoder"], environment=environment)
    assert str(tmp_path) in facts, "another Pillow was tested"
    if version is not None:
        assert "dlas_store decodes the Huffman code" in facts


def test_the_oldest_pillow_is_the_lower_bound() -> None:
    bound = next(package for package in PROJECT["project"]["dependencies"] if package.startswith("Pillow"))
    assert str(PILLOWS[0]).startswith(bound.removeprefix("Pillow>="))


def test_without_a_compiler_everything_works_and_tests_of_c_skip_or_pass(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    python = make_environment(tmp_path / "venv")
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    next((tmp_path / "venv").rglob("site-packages")).joinpath("packages.pth").write_text(packages)
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "-e", "."]
    run(install, cwd=checkout, environment={"CC": "/bin/false"})
    assert not list(checkout.rglob("*.so"))
    facts = run([python, "-m", "dlas_store", "info", "--decoder"], cwd=checkout)
    assert facts.count("slower") == 4
    run([python, "-m", "pytest", "-q", *C_TESTS], cwd=checkout)
