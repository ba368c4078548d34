"""Usage of the command line: errors that name the nearest word, help, and options that every command has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dlas_store.converters import import_store
from dlas_store.maintenance import verify
from tests.support.command_line import done, run
from tests.support.sample_data import DATA, noise, png


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store for reading only."""
    store = tmp_path_factory.mktemp("stores") / "s.lmdb"
    done("import", DATA / "chunked_stereo", store)
    return store


MISTAKES: dict[str, tuple[str, str]] = {
    "improt a b": ("dlas-store", "there is no command 'improt'; did you mean 'import'?"),
    "frobnicate": ("dlas-store", "there is no command 'frobnicate'; there are extract, import, export"),
    "": ("dlas-store", "missing: COMMAND"),
    "import data": ("dlas-store import", "missing: STORE"),
    "info --jsn s.lmdb": ("dlas-store info", "there is no option --jsn; did you mean '--json'?"),
    "verify --sampel=3 s.lmdb": ("dlas-store verify", "there is no option --sampel; did you mean '--sample'?"),
    "info s.lmdb more": ("dlas-store info", "too many arguments: more"),
    "import --on-error skp a b": ("dlas-store import", "no such value 'skp'; did you mean 'skip'?"),
    "help improt": ("dlas-store help", "no such value 'improt'; did you mean 'import'?"),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_an_error_of_usage_is_the_error_and_the_place_of_the_help(words: str, tmp_path: Path) -> None:
    result = run(*words.split(), cwd=tmp_path)
    program, message = MISTAKES[words]
    error, advice = result.err.splitlines()
    assert (result.status, result.out) == (2, "")
    assert error.startswith(f"{program}: error: ")
    assert message in error
    assert advice == f"{program} --help lists the arguments"


def test_help_is_a_command_too() -> None:
    assert done("help") == done("--help")
    assert done("help", "import") == done("import", "--help")


def test_version_has_a_short_option() -> None:
    assert done("-V") == done("--version")


def test_debug_stands_before_or_after_the_command(tmp_path: Path) -> None:
    for words in (("--debug", "info"), ("info", "--debug")):
        assert "Traceback" in run(*words, "x.lmdb", cwd=tmp_path).err


def test_json_stands_before_or_after_the_command(store: Path) -> None:
    assert json.loads(done("--json", "info", store)) == json.loads(done("info", store, "--json"))


def test_a_share_needs_no_percent_sign(store: Path) -> None:
    lines = [done("verify", store, "--sample", share, "--seed", "1") for share in ("5", "5%")]
    assert lines[0] == lines[1]


def test_every_command_prints_json(store: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yml"
    config.write_text(f"datasets: {{train: {{mode: pixels, paths: {store}, batch_size: 2}}}}\n")
    commands: dict[str, tuple[tuple[str | Path, ...], set[str]]] = {
        "import": ((DATA / "chunked_stereo", tmp_path / "s.lmdb"), {"images", "skipped", "findings"}),
        "extract": ((DATA / "chunked", tmp_path / "t.lmdb", "--crop-size", "64"), {"images", "skipped"}),
        "export": ((store, tmp_path / "back"), {"images", "refused"}),
        "info": ((store,), {"images", "sizes"}),
        "verify": ((store,), {"ok", "findings"}),
        "salvage": ((store, tmp_path / "new.lmdb"), {"images", "lost"}),
        "reindex": ((store,), {"shards", "images"}),
        "preview": ((store, "-o", tmp_path / "p.png"), {"file", "images"}),
        "read": ((config, "--batches", "1"), {"datasets"}),
    }
    for command, (arguments, keys) in commands.items():
        facts = json.loads(done(command, "--json", "--quiet", *arguments))
        assert keys <= facts.keys(), command


def test_a_number_has_its_noun_in_singular_or_plural(store: Path, tmp_path: Path) -> None:
    done("import", DATA / "chunked_stereo", "--images", "*left*", tmp_path / "one.lmdb")
    assert ": imported 1 image, " in done("import", tmp_path / "one.lmdb", tmp_path / "two.lmdb")
    assert ", 1 shard\n" in done("import", tmp_path / "one.lmdb", tmp_path / "three.lmdb")
    assert "2 images" in done("reindex", store)


@pytest.mark.parametrize("closed", ["2>&-", "1>&-", "0<&-", "0<&- 1>&- 2>&-"])
def test_a_closed_stream_stops_no_command_and_gets_no_file_of_a_store(closed: str, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png(noise(8, 8)))
    program = "import sys; from dlas_store.cli.main import main; sys.exit(main())"
    line = f'"$0" -c "$1" import pictures s.lmdb {closed}'
    done = subprocess.run(["sh", "-c", line, sys.executable, program], check=False, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done
    assert verify(tmp_path / "s.lmdb", tmp_path / "pictures").ok


def test_more_workers_than_there_is_work_are_not_started(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(noise(8, 8)))
    import_store([tmp_path], tmp_path.with_suffix(".lmdb"), workers=100_000)
    assert verify(tmp_path.with_suffix(".lmdb"), workers=100_000).ok
    assert verify(tmp_path.with_suffix(".lmdb"), tmp_path, workers=100_000).ok
