"""The command line: exit statuses, printed text, and one writer at a time."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import sysconfig
import termios
from pathlib import Path

import pytest

from tests.support.command_line import (
    PROGRAM,
    done,
    end,
    error_line,
    findings,
    info,
    is_sound_copy,
    refused,
    run,
    stopped,
)
from tests.support.file_trees import files_and_centers, numbered_pictures, patches, read, write
from tests.support.sample_data import DATA

COMMANDS = ("import", "export", "info", "verify", "reindex", "preview", "read")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of four images in four shards, for reading only."""
    store = tmp_path_factory.mktemp("stores") / "s.lmdb"
    done("import", "--shard-size", "1", DATA / "chunked", store)
    return store


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough pictures that a test can stop an import in the middle."""
    return numbered_pictures(tmp_path_factory.mktemp("photos") / "photos", 1_000)


@pytest.fixture(scope="module")
def photo_store(photos: Path) -> Path:
    """A store of the pictures, for reading only."""
    store = photos.parent / "photos.lmdb"
    done("import", photos, store)
    return store


# Usage


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_printed(command: str) -> None:
    text = done(*command.split(), "--help")
    assert "usage: dlas-store" in text
    for option in ("--debug",) if command else COMMANDS:
        assert option in text


USAGE: dict[str, tuple[str, ...]] = {
    "no_command": (),
    "unknown_command": ("frobnicate",),
    "unknown_option": ("info", "s.lmdb", "--frobnicate"),
    "no_store": ("info",),
    "one_path": ("import", "data"),
    "no_folder": ("export", "s.lmdb"),
    "layout": ("import", "--layout", "flat", "data", "s.lmdb"),
    "on_error": ("import", "--on-error", "maybe", "data", "s.lmdb"),
    "negative_workers": ("import", "--workers", "-1", "data", "s.lmdb"),
    "many_words": ("verify", "--workers", "many", "s.lmdb"),
    "no_size": ("import", "--shard-size", "big", "data", "s.lmdb"),
    "zero_size": ("import", "--shard-size", "0", "data", "s.lmdb"),
    "negative_size": ("import", "--shard-size", "-1GiB", "data", "s.lmdb"),
}


@pytest.mark.parametrize("name", USAGE)
def test_wrong_usage_is_status_2_and_does_nothing(tmp_path: Path, name: str) -> None:
    result = run(*USAGE[name], cwd=tmp_path)
    assert result.status == 2
    error, advice = result.err.splitlines()
    assert re.match(r"dlas-store( \w+)?: error: ", error)
    assert re.fullmatch(r"dlas-store( \w+)? --help lists the arguments", advice)
    assert result.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["1GiB", "500MiB", "64KiB", "1048576"])
def test_sizes_have_units(tmp_path: Path, size: str) -> None:
    done("import", "--shard-size", size, DATA / "chunked_stereo", tmp_path / "s.lmdb")


def test_the_installed_script_is_the_same_command(store: Path) -> None:
    script = Path(sysconfig.get_path("scripts")) / "dlas-store"
    if not script.exists():
        pytest.skip("not installed")
    ended = subprocess.run([script, "info", "--json", store], capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout) == info(store)


# Errors

NO_STORE: dict[str, tuple[str, ...]] = {
    "info": ("info", "{}"),
    "verify": ("verify", "{}"),
    "reindex": ("reindex", "{}"),
    "export": ("export", "{}", "back"),
    "import": ("import", "{}", "t.lmdb"),
    "preview": ("preview", "{}", "-o", "p.png"),
}


@pytest.mark.parametrize("command", NO_STORE)
@pytest.mark.parametrize("kind", ["missing", "folder", "file"])
def test_what_is_no_store_is_one_line_that_names_it(tmp_path: Path, command: str, kind: str) -> None:
    if kind == "folder":
        write(tmp_path / "x.lmdb", {"notes.txt": b"n"})
    elif kind == "file":
        (tmp_path / "x.lmdb").write_bytes(b"text" * 5000)
    before = read(tmp_path)
    message = refused(*(word.format("x.lmdb") for word in NO_STORE[command]), cwd=tmp_path)
    assert "x.lmdb" in message
    assert read(tmp_path) == before


def test_a_message_stays_one_line_whatever_the_name(tmp_path: Path) -> None:
    source = write(tmp_path / "data", {"two\nlines/1.jpg": b"", "two\nlines/ref.jpg": b""})
    assert "two" in refused("import", source, tmp_path / "s.lmdb")
    assert "no\\nstore" in refused("info", tmp_path / "no\nstore.lmdb")


def test_debug_adds_the_traceback(tmp_path: Path) -> None:
    result = run("info", "--debug", "x.lmdb", cwd=tmp_path)
    plain = error_line(run("info", "x.lmdb", cwd=tmp_path))
    assert result.status == 1
    assert "Traceback (most recent call last)" in result.err
    assert result.err.splitlines()[-1] == plain


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_reader_that_goes_away_is_no_traceback(store: Path, command: str) -> None:
    gone, output = os.pipe()
    os.close(gone)
    ended = subprocess.run([*PROGRAM, command, "--json", store], stdout=output, stderr=subprocess.PIPE, check=False)
    os.close(output)
    assert b"Traceback" not in ended.stderr


# Output


def test_info_json_has_the_promised_keys(store: Path) -> None:
    facts = info(store)
    assert facts.keys() >= {"images", "patches", "bytes", "disk_bytes", "shards", "format_version", "store_id", "sizes"}
    files = list((DATA / "chunked").glob("*/*.jpg"))
    assert facts["images"] == facts["shards"] == 4
    assert facts["patches"] == len([path for path in files if path.name != "ref.jpg"])
    assert facts["bytes"] == sum(path.stat().st_size for path in files)
    assert facts["disk_bytes"] == sum(path.stat().st_size for path in store.iterdir())
    assert facts["sizes"] == {"128x128": facts["patches"]}
    assert facts["format_version"] == 1


def test_sizes_are_width_by_height_as_counted(tmp_path: Path) -> None:
    files = {
        "a.ppm": b"P6 3 1 255\n" + bytes(9),
        "b.ppm": b"P6 3 1 255\n" + bytes(9),
        "c.ppm": b"P6 1 2 255\n" + bytes(6),
    }
    done("import", write(tmp_path / "photos", files), tmp_path / "s.lmdb")
    assert info(tmp_path / "s.lmdb")["sizes"] == {"3x1": 2, "1x2": 1}


def test_info_tells_a_person_what_is_in_a_store(store: Path) -> None:
    text = done("info", store)
    facts = info(store)
    for value in (facts["images"], facts["patches"], facts["store_id"], "128x128"):
        assert str(value) in text


def test_verify_json_has_the_promised_keys(store: Path) -> None:
    report = json.loads(done("verify", "--json", store))
    assert report.keys() >= {"ok", "checked", "findings"}
    assert (report["ok"], report["findings"]) == (True, [])
    assert report["checked"] >= info(store)["patches"]


def test_verify_finds_damage_in_every_file(tmp_path: Path, store: Path) -> None:
    for name in sorted(path.name for path in store.iterdir()):
        copy = tmp_path / f"of_{name}"
        shutil.copytree(store, copy)
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        (finding, *_) = findings(copy)
        assert finding.keys() == {"shard", "image", "patch", "kind", "message"}
        assert name in finding["shard"] + finding["message"]


@pytest.mark.parametrize("workers", ["1", "2", "4"])
def test_verify_finds_the_same_with_any_number_of_workers(tmp_path: Path, store: Path, workers: str) -> None:
    shutil.copytree(store, tmp_path / "s.lmdb")
    content = bytearray((store / "shard-00001.lmdb").read_bytes())
    for position in range(3 << 12, len(content), 100_001):
        content[position] ^= 0x10
    (tmp_path / "s.lmdb" / "shard-00001.lmdb").write_bytes(content)
    of_workers = findings(tmp_path / "s.lmdb", "--workers", workers)
    assert of_workers == findings(tmp_path / "s.lmdb", "--workers", "3")
    assert {finding["shard"] for finding in of_workers} == {"shard-00001.lmdb"}


def test_reindex_rebuilds_an_index_that_is_gone_or_damaged(tmp_path: Path, store: Path) -> None:
    copy = shutil.copytree(store, tmp_path / "s.lmdb")
    expected = list(patches(store).items())
    index = copy / "index.lmdb"
    index.unlink()
    assert "reindex" in refused("info", copy)
    done("reindex", copy)
    assert list(patches(copy).items()) == expected
    index.write_bytes(b"damaged" * 1000)
    assert "reindex" in refused("info", copy)
    done("reindex", copy)
    assert list(patches(copy).items()) == expected
    assert is_sound_copy(copy, DATA / "chunked")
    assert info(copy)["store_id"] == info(store)["store_id"]


def _terminal_output(*arguments: str | Path) -> tuple[int, str]:
    """Run a command whose standard error is a terminal; return its status and the terminal's text."""
    leader, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    process = subprocess.Popen([*PROGRAM, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=terminal)
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(leader, 4096):
            shown += chunk
    except OSError:  # on Linux, the last process has closed the terminal
        pass
    os.close(leader)
    return process.wait(), shown.decode()


@pytest.mark.parametrize("command", ["import", "export", "verify"])
def test_progress_is_shown_on_a_terminal_and_not_in_a_pipe(
    tmp_path: Path, photos: Path, photo_store: Path, command: str
) -> None:
    arguments: dict[str, tuple[str | Path, ...]] = {
        "import": (photos, tmp_path / "s.lmdb"),
        "export": (photo_store, tmp_path / "back"),
        "verify": (photo_store,),
    }
    status, shown = _terminal_output(command, *arguments[command])
    assert status == 0
    assert re.search(r"\d+%|\d+/\d+|/s", shown), shown
    piped = run("verify", photo_store)
    assert piped.err == ""
    assert "\r" not in piped.out


# One writer at a time


def test_a_second_import_is_refused_and_the_first_is_not_disturbed(tmp_path: Path, photos: Path) -> None:
    store = tmp_path / "s.lmdb"
    command = ("import", "--shard-size", "500", photos, store)
    with stopped(*command, until=(tmp_path / "s.lmdb.partial" / "shard-00001.lmdb").exists) as first:
        assert "s.lmdb" in (message := refused(*command))
        assert re.search("another process|busy|locked", message)
        assert not store.exists()
    assert end(first).status == 0
    assert is_sound_copy(store, photos)


def test_a_second_append_is_refused_and_readers_go_on(tmp_path: Path, photos: Path) -> None:
    store = tmp_path / "s.lmdb"
    done("import", "--images", "000000*", photos, store)
    before = patches(store)
    command = ("import", "--append", "--shard-size", "500", photos, store)
    with stopped(*command, until=lambda: len(list(tmp_path.glob("s.lmdb*/shard-*.lmdb"))) > 3) as first:
        for writer in (command, ("reindex", store)):
            assert "s.lmdb" in (message := refused(*writer))
            assert re.search("another process|busy|locked", message)
        assert patches(store) == before
        assert findings(store) == []
    assert end(first).status == 0
    assert is_sound_copy(store, photos)


def test_a_second_export_is_refused_and_the_first_is_not_disturbed(
    tmp_path: Path, photos: Path, photo_store: Path
) -> None:
    folder = tmp_path / "back"
    command = ("export", photo_store, folder)
    with stopped(*command, until=lambda: [*(tmp_path / "back.partial").rglob("*.ppm")]) as first:
        assert "back" in (message := refused(*command))
        assert re.search("another process|busy|locked", message)
        assert not folder.exists()
    assert end(first).status == 0
    assert files_and_centers(folder) == files_and_centers(photos)


# Loaded modules


@pytest.mark.parametrize("command", ["import", "export", "verify", "info"])
def test_commands_load_neither_torch_nor_opencv(tmp_path: Path, store: Path, command: str) -> None:
    arguments: dict[str, list[str | Path]] = {
        "import": [DATA / "chunked_stereo", tmp_path / "s.lmdb"],
        "export": [store, tmp_path / "back"],
    }
    program = (
        "import sys\n"
        "from dlas_store.cli.main import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "assert not {'torch', 'cv2'} & sys.modules.keys()\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, command, *arguments.get(command, [store])], check=True, capture_output=True
    )
