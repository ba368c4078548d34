"""File names with any letters, in any locale: their bytes are kept, and every output can show them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.command_line import PROGRAM
from tests.support.sample_data import noise, png

NAMES = ("größe", "한국", "a\U0001f600b", "two\nlines", "back\\slash", "quote'\"", "plain")

LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "ASCII output": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"},
    "Latin-1": {"LC_ALL": "en_US.ISO-8859-1", "PYTHONUTF8": "0"},
}


@pytest.fixture(scope="module")
def latin1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of locales that has en_US.ISO-8859-1; skip the test where none can be made."""
    folder = tmp_path_factory.mktemp("locales")
    if shutil.which("localedef"):
        words = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", folder / "en_US.ISO-8859-1"]
        subprocess.run(words, capture_output=True, check=False)
    return folder


@pytest.fixture(params=LOCALES)
def locale(request: pytest.FixtureRequest, latin1: Path) -> dict[str, str]:
    """Return the environment of a locale."""
    settings = LOCALES[request.param]
    if "ISO-8859-1" in settings["LC_ALL"]:
        if not (latin1 / "en_US.ISO-8859-1").is_dir():
            pytest.skip("no Latin-1 locale can be made here")
        settings = settings | {"LOCPATH": str(latin1)}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    return inherited | settings


def make_pictures(folder: Path) -> set[bytes]:
    folder.mkdir()
    files = {name.encode() + b".png" for name in NAMES}
    for seed, file in enumerate(sorted(files)):
        Path(os.fsdecode(os.path.join(os.fsencode(folder), file))).write_bytes(png(noise(64, 64, seed=seed)))  # noqa: PTH118
    return files


def run(environment: Mapping[str, str], folder: Path, *words: str | bytes) -> subprocess.CompletedProcess[bytes]:
    ended = subprocess.run(
        [*PROGRAM, *words], cwd=folder, env=environment, capture_output=True, timeout=120, check=False
    )
    assert b"Traceback" not in ended.stdout + ended.stderr, ended
    return ended


def test_every_command_keeps_the_bytes_of_names(locale: dict[str, str], tmp_path: Path) -> None:
    files = make_pictures(tmp_path / "f")
    (tmp_path / "f" / "bad\U0001f600.jpg").write_bytes(b"no picture")
    store = "größe.lmdb".encode()
    imported = run(
        locale,
        tmp_path,
        "import",
        "f",
        store,
        "--on-error",
        "skip",
        "--report",
        "größe.json".encode(),
        "--workers",
        "0",
    )
    assert (imported.returncode, imported.stdout.count(b"bad file left out")) == (1, 1)
    report = json.loads((tmp_path / "größe.json").read_text(encoding="utf-8"))
    assert [Path(finding["path"]).name for finding in report["findings"]] == ["bad\U0001f600.jpg"]
    assert run(locale, tmp_path, "export", store, "한국".encode()).returncode == 0
    assert {os.fsencode(path.name) for path in (tmp_path / "한국").iterdir()} == files
    assert run(locale, tmp_path, "export", store, "one", "--images", "größ*".encode()).returncode == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["größe.png"]
    for words in (
        ("info", store),
        ("verify", store, "--against", "한국".encode(), "--workers", "0"),
        ("salvage", store, "new.lmdb", "--workers", "0"),
        ("preview", store, "größe.png".encode(), "-o", "größe.png".encode()),
        ("extract", "한국".encode(), "patches", "--crop-size", "64", "--min-size", "64", "--workers", "0"),
    ):
        ended = run(locale, tmp_path, *words)
        assert ended.returncode == 0, ended
    extracted = {os.fsencode(path.name) for path in (tmp_path / "patches").iterdir() if path.is_dir()}
    assert extracted == {file.removesuffix(b".png") for file in files}
    missing = run(locale, tmp_path, "info", "größe\U0001f600\udcff.lmdb".encode(errors="surrogateescape"))
    assert missing.returncode == 1


def test_names_that_are_not_utf8_are_an_error(locale: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    folder = os.fsencode(tmp_path / "f")
    for name in (b"gr\xf6\xdfe.png", b"\xed\xb3\xbf.png"):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(png(noise(64, 64)))
    for command in ("import", "extract"):
        ended = run(locale, tmp_path, command, "f", "s.lmdb")
        assert ended.returncode == 1
        assert b"2 names are not UTF-8, rename them" in ended.stderr


def test_a_program_in_another_locale_is_told_so(latin1: Path, tmp_path: Path) -> None:
    if not (latin1 / "en_US.ISO-8859-1").is_dir():
        pytest.skip("no Latin-1 locale can be made here")
    make_pictures(tmp_path / "f")
    utf8 = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    assert run(utf8 | {"LC_ALL": "C.UTF-8"}, tmp_path, "import", "f", "s.lmdb").returncode == 0
    program = (
        "from dlas_store.converters.exporting import export_store\n"
        "from dlas_store.errors import StoreError\n"
        "from dlas_store.opening import open_source\n"
        "for use in (lambda: len(open_source('f')), lambda: export_store('s.lmdb', 'out', workers=0)):\n"
        "    try:\n"
        "        use()\n"
        "    except StoreError as error:\n"
        "        print(ascii(str(error)))\n"
    )
    environment = utf8 | {"LC_ALL": "en_US.ISO-8859-1", "LOCPATH": str(latin1)}
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout.count("takes file names as iso8859-1 in this locale") == 2, ended
