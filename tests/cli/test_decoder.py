"""``info --decoder`` says what decodes and checks patches, and why; ``info`` says once that reading is slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlas_store.converters.importing import import_store
from dlas_store.images.libjpeg import HUFFMAN_VARIABLE, VARIABLE, find_libjpeg
from tests.support.sample_data import DATA

WITHOUT_EXTENSIONS = """
import logging, sys
from importlib.abc import MetaPathFinder

class Refusal(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.rpartition(".")[2] in {"patch_reader", "pixel_loops", "_jpeg_crop"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refusal())
logging.basicConfig(level=logging.DEBUG)
"""
MAIN = "import sys; from dlas_store.cli.main import main; sys.exit(main(sys.argv[1:]))"

needs_library = pytest.mark.skipif(find_libjpeg() is None, reason="Pillow's libjpeg-turbo cannot be called")


def info(*arguments: str | Path, program: str = MAIN, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, "info", *arguments]
    return subprocess.run(command, env={**os.environ, **variables}, check=False, capture_output=True, text=True)


def facts(program: str = MAIN, **variables: str) -> dict[str, str]:
    result: dict[str, str] = json.loads(info("--decoder", "--json", program=program, **variables).stdout)
    return result


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "s.lmdb"
    import_store([DATA / "chunked"], path, workers=0)
    return path


@needs_library
def test_the_decoder_is_described() -> None:
    library = find_libjpeg()
    assert library is not None
    rows = facts()
    assert rows["JPEG"] == f"libjpeg-turbo {library.version} decodes many patches in one call"
    assert Path(rows["library"]) == Path(library.file).resolve()
    assert rows["Huffman"] == "dlas_store decodes the Huffman code of JPEGs"
    assert not any("slower" in text for text in rows.values())
    assert info("--decoder").stdout.splitlines() == [f"{name:13}{text}" for name, text in rows.items()]


@needs_library
def test_the_reason_of_a_slower_way_is_given() -> None:
    assert facts(**{HUFFMAN_VARIABLE: "0"})["Huffman"].endswith("which is slower: it is switched off")
    assert facts(**{VARIABLE: ""})["JPEG"].endswith(f"which is slower: {VARIABLE} is empty")
    wrong = info("--decoder", **{VARIABLE: "/nowhere/libjpeg.so"})
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "is no libjpeg-turbo" in wrong.stderr


def test_a_missing_compiler_is_said_once(store: Path) -> None:
    program = WITHOUT_EXTENSIONS + MAIN
    rows = facts(program)
    assert rows["JPEG"].endswith("which is slower: the package was installed without a C compiler")
    assert [name for name, text in rows.items() if "slower: No module named" in text] == ["batches", "pixels", "tiles"]
    described = info(store, program=program)
    assert described.stdout.splitlines()[-1].startswith("slow      C extensions are missing")
    assert described.stderr.count("simplejpeg decodes each patch, which is slower") == 1
    assert "slow" not in info(store).stdout or find_libjpeg() is None


@pytest.mark.parametrize("arguments", [(), ("s.lmdb", "--decoder")])
def test_a_store_or_the_decoder_is_described(arguments: tuple[str, ...]) -> None:
    result = info(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "--decoder" in result.stderr.splitlines()[0]
