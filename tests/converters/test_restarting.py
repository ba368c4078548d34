"""A run with other options than an interrupted run: the message names them, and --restart starts over."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import dlas_store.cli.preview
import dlas_store.converters.exporting
import dlas_store.converters.extraction.extracting
import dlas_store.converters.importing
import dlas_store.converters.salvaging  # noqa: F401 - a user without rights to the library cannot load it later
from dlas_store.cli.main import main
from tests.support.command_line import await_while_running, done, end, is_sound_copy, refused, start
from tests.support.file_trees import numbered_pictures, read, write
from tests.support.photo_files import encoded, scene
from tests.support.small_stores import NOBODY, in_child, public_folder

EXTRACT = ("--crop-size", "64", "--step", "16", "--shard-size", "1", "--workers", "1")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = encoded(scene(256, 256), "jpeg")
    return write(tmp_path_factory.mktemp("photos") / "photos", {f"{number:02}.jpg": data for number in range(60)})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return numbered_pictures(tmp_path_factory.mktemp("pictures") / "pictures", 1_000)


def kill(*arguments: str | Path, target: Path, made: str) -> None:
    """Kill a command once its staging directory has files of a name."""
    process = start(*arguments)
    staging = target.with_name(f"{target.name}.partial")
    await_while_running(process, lambda: len(list(staging.glob(made))) > 2)
    os.killpg(process.pid, 9)
    end(process)
    assert staging.is_dir()


def test_extract_into_a_store_says_which_option_differs(photos: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.lmdb"
    kill("extract", photos, store, *EXTRACT, target=store, made="shard-*.lmdb")
    message = refused("extract", photos, store, *EXTRACT, "--quality", "80", "--only-resize")
    assert "--only-resize was off and is on, --quality was 95 and is 80; run it again as before" in message
    assert message.endswith("or start over with --restart")
    done("extract", photos, store, *EXTRACT, "--quality", "80", "--restart")
    assert not store.with_name("s.lmdb.partial").exists()
    again = tmp_path / "again.lmdb"
    done("extract", photos, again, *EXTRACT, "--quality", "80")
    assert is_sound_copy(store, again)


def test_extract_into_a_folder_says_which_option_differs(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    kill("extract", photos, folder, *EXTRACT, target=folder, made="done-*.json")
    assert "--quality was 95 and is 80;" in refused("extract", photos, folder, *EXTRACT, "--quality", "80")
    done("extract", photos, folder, *EXTRACT, "--quality", "80", "--restart")
    assert not (tmp_path / "tiles.partial").exists()


def test_import_says_which_option_differs(pictures: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.lmdb"
    command = ("import", "--shard-size", "500", pictures, store)
    kill(*command, target=store, made="shard-*.lmdb")
    message = refused(*command, "--decode")
    assert "with other files or options: --decode was off and is on; run it again as before" in message
    done(*command, "--decode", "--restart")
    assert is_sound_copy(store, pictures)


def test_import_of_changed_files_says_so(tmp_path: Path) -> None:
    folder, store = numbered_pictures(tmp_path / "pictures", 1_000), tmp_path / "s.lmdb"
    command = ("import", "--shard-size", "500", folder, store)
    kill(*command, target=store, made="shard-*.lmdb")
    (first, *_) = sorted(folder.rglob("*.ppm"))
    first.rename(first.with_name("0.ppm"))
    first.with_name("00.ppm").write_bytes(first.with_name("0.ppm").read_bytes())
    assert ": files were added, removed or changed; " in refused(*command)
    done(*command, "--restart")
    assert is_sound_copy(store, folder)


def test_export_says_which_option_differs(pictures: Path, tmp_path: Path) -> None:
    store, folder = tmp_path / "s.lmdb", tmp_path / "back"
    done("import", pictures, store)
    kill("export", store, folder, "--workers", "1", target=folder, made="tree/*")
    assert "--images was all and is 00*;" in refused("export", store, folder, "--images", "00*")
    done("export", store, folder, "--restart")
    assert read(folder) == read(pictures)


def test_restart_of_an_append_removes_the_shards_that_no_index_names(pictures: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.lmdb"
    done("import", "--images", "000000*", pictures, store)
    command = ("import", "--append", "--shard-size", "500", pictures, store)
    kill(*command, target=store, made="shard-*.lmdb")
    staging = store.with_name("s.lmdb.partial")
    (moved, *_) = sorted(staging.glob("shard-*.lmdb"))
    moved.rename(store / moved.name)  # as an append that is killed while it publishes
    content = (store / moved.name).read_bytes()
    done(*command, "--restart")
    assert all(path.read_bytes() != content for path in store.iterdir())
    assert is_sound_copy(store, pictures)


def test_restart_without_an_interrupted_run_is_a_run(pictures: Path, tmp_path: Path) -> None:
    done("import", "--restart", pictures, tmp_path / "s.lmdb")
    assert "exists" in refused("import", "--restart", pictures, tmp_path / "s.lmdb")


def test_restart_removes_no_folder_of_others(pictures: Path, tmp_path: Path) -> None:
    mine = write(tmp_path / "s.lmdb.partial", {"mine.txt": b"mine"})
    assert "is not the folder of an interrupted run" in refused("import", "--restart", pictures, tmp_path / "s.lmdb")
    assert read(mine) == {"mine.txt": b"mine"}


TARGETS: dict[str, tuple[str, ...]] = {
    "import": ("import", "{data}", "{target}.lmdb"),
    "extract to a store": ("extract", "{photos}", "{target}.lmdb"),
    "extract to a folder": ("extract", "{photos}", "{target}"),
    "export": ("export", "{store}", "{target}"),
    "salvage": ("salvage", "{store}", "{target}.lmdb"),
    "preview": ("preview", "{store}", "-o", "{target}.png"),
    "report": ("salvage", "{store}", "new.lmdb", "--report", "{target}.json"),
}


@pytest.fixture
def arguments(photos: Path, pictures: Path) -> Iterator[dict[str, str]]:
    with public_folder() as folder:
        data = numbered_pictures(folder / "data", 3)
        done("import", data, folder / "s.lmdb")
        yield {"data": str(data), "photos": str(data), "store": str(folder / "s.lmdb"), "folder": str(folder)}


@pytest.mark.parametrize("name", TARGETS)
def test_a_folder_that_does_not_exist_is_not_made(name: str, arguments: dict[str, str], tmp_path: Path) -> None:
    words = [word.format(target="no/new", **arguments) for word in TARGETS[name]]
    assert ": there is no folder no; create it or choose another place" in refused(*words, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a process of another user")
@pytest.mark.parametrize("name", TARGETS)
def test_a_folder_without_permission_is_said_before_any_work(name: str, arguments: dict[str, str]) -> None:
    folder = Path(arguments["folder"]) / "locked"
    folder.mkdir(mode=0o555)
    words = [word.format(target=folder / "new", **arguments) for word in TARGETS[name]]

    def attempt() -> None:
        os.chdir(folder)
        with contextlib.redirect_stderr(io.StringIO()) as err:
            assert main(words) == 1
        assert "cannot be written (Permission denied); you have no permission to write there" in err.getvalue()

    assert in_child(attempt, user=NOBODY) == 0
    assert list(folder.iterdir()) == []
