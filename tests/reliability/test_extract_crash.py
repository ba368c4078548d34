"""Killed, interrupted and failed extractions: the target has its old or new state, and a rerun completes."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from dlas_store.maintenance.verify import compare, verify
from tests.conftest import Runs
from tests.support.command_line import (
    await_while_running,
    done,
    end,
    error_line,
    findings,
    info,
    interrupt,
    interrupt_at_start,
    kill_main_process,
    kill_worker,
    refused,
    run,
    start,
    stop_and_rerun,
    stopped,
)
from tests.support.file_trees import patches, read, sealed_shards, sealed_states, shard_contents, states, write
from tests.support.photo_files import encoded, scene

WORKERS = "2"
OPTIONS = ("--crop-size", "64,128", "--step", "32,64", "--threshold", "8", "--workers", WORKERS)
SHARD = (*OPTIONS, "--shard-size", "100KiB")
"""Options that give one or two shards a photo."""


class Prepared(NamedTuple):
    """Photos, a store of a part of the photos, and a store of all photos."""

    photos: Path
    part_store: Path
    full_store: Path


def _photo(number: int) -> bytes:
    return encoded(scene(300, 300 + number % 7, seed=number), "png")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("prepared")
    photos = write(root / "photos", {f"{n // 10}/{n:02d}.png": _photo(n) for n in range(20)})
    done("extract", *SHARD, photos, root / "full.lmdb")
    part = write(root / "part", {name: content for name, content in read(photos).items() if name.startswith("0/")})
    done("extract", *SHARD, part, root / "part.lmdb")
    return Prepared(photos, root / "part.lmdb", root / "full.lmdb")


def _is_the_same(store: Path, copy: Path) -> bool:
    """Return whether a store is sound and a second source has equal patches, references, centres and metadata."""
    return verify(store).ok and compare(store, copy).ok


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("is_append", [False, True], ids=["new", "append"])
def test_a_rerun_goes_on_where_sealed_shards_end(
    tmp_path: Path, prepared: Prepared, stop: signal.Signals, is_append: bool
) -> None:
    store = tmp_path / "s.lmdb"
    if is_append:
        shutil.copytree(prepared.part_store, store)
    command = ("extract", *(("--append",) if is_append else ()), *SHARD, prepared.photos, store)
    stop_and_rerun(*command, store=store, stop=stop, new_shards=3)
    assert _is_the_same(store, prepared.full_store)


def _killed_midway(store: Path, *options: str | Path) -> None:
    """Kill an extraction to a new store once some of the store's shards are sealed."""
    process = start("extract", *options, store)
    await_while_running(process, lambda: len(sealed_shards(store)) > 3)
    os.killpg(process.pid, signal.SIGKILL)
    end(process)


@pytest.mark.parametrize(
    "changed_options",
    [("--quality", "50"), ("--only-resize",), ("--exclude", "1/1")],
    ids=" ".join,
)
def test_a_rerun_with_other_options_mixes_nothing(
    tmp_path: Path, prepared: Prepared, changed_options: tuple[str, ...]
) -> None:
    store = tmp_path / "s.lmdb"
    _killed_midway(store, *SHARD, prepared.photos)
    before = sealed_states(store)
    result = run("extract", *SHARD, *changed_options, prepared.photos, store)
    if result.status:
        assert "s.lmdb.partial" in error_line(result)
        assert sealed_states(store) == before
        done("extract", *SHARD, prepared.photos, store)
        assert _is_the_same(store, prepared.full_store)
    else:
        done("extract", *SHARD, *changed_options, prepared.photos, tmp_path / "fresh.lmdb")
        assert _is_the_same(store, tmp_path / "fresh.lmdb")


@pytest.mark.parametrize("change", ["content", "added", "removed"])
def test_a_rerun_over_photos_that_changed_mixes_nothing(tmp_path: Path, prepared: Prepared, change: str) -> None:
    photos, store = shutil.copytree(prepared.photos, tmp_path / "photos"), tmp_path / "s.lmdb"
    _killed_midway(store, *SHARD, photos)
    match change:
        case "content":
            write(photos, {"0/00.png": _photo(77)})
        case "added":
            write(photos, {"0/000.png": _photo(77)})
        case _:
            (photos / "0" / "00.png").unlink()
    result = run("extract", *SHARD, photos, store)
    if result.status:
        assert "s.lmdb.partial" in error_line(result)
    else:
        done("extract", *SHARD, photos, tmp_path / "fresh.lmdb")
        assert _is_the_same(store, tmp_path / "fresh.lmdb")


def test_a_rerun_with_other_workers_gives_the_same(tmp_path: Path, prepared: Prepared) -> None:
    store = tmp_path / "s.lmdb"
    _killed_midway(store, *SHARD, prepared.photos)
    done("extract", *SHARD, "--workers", "1", prepared.photos, store)
    assert _is_the_same(store, prepared.full_store)
    assert shard_contents(store) == shard_contents(prepared.full_store)


def test_bad_photos_are_reported_by_the_rerun_too(tmp_path: Path, prepared: Prepared) -> None:
    photos, store = shutil.copytree(prepared.photos, tmp_path / "photos"), tmp_path / "s.lmdb"
    write(photos, {"0/000.jpg": b"", "0/0000.png": encoded(scene(50, 50), "png")})
    _killed_midway(store, *SHARD, photos)
    result = run("extract", *SHARD, photos, store)
    assert result.status == 1
    assert "0/000.jpg" in result.out
    assert "0/0000.png" in result.out
    assert _is_the_same(store, prepared.full_store)


# Ctrl-C and killed workers


@pytest.mark.parametrize("to", ["s.lmdb", "folder"])
def test_ctrl_c_at_work_is_status_130_and_a_rerun_completes(tmp_path: Path, prepared: Prepared, to: str) -> None:
    command = ("extract", *SHARD, prepared.photos, tmp_path / to)
    process = start(*command)
    inside = "shard-*1.lmdb" if to == "s.lmdb" else "**/*.jpg"
    await_while_running(process, lambda: list(tmp_path.glob(f"{to}?*/{inside}")))
    interrupt(process)
    assert not (tmp_path / to).exists()
    done(*command)
    assert _is_the_same(prepared.full_store, tmp_path / to)
    assert [path.name for path in tmp_path.iterdir()] == [to]


def test_ctrl_c_while_workers_start_is_status_130_and_one_line(tmp_path: Path, prepared: Prepared, runs: Runs) -> None:
    for number in runs(small=2, full=100):
        store = tmp_path / f"{number}.lmdb"
        interrupt_at_start("extract", *SHARD, prepared.photos, store)
        assert not store.exists()


@pytest.mark.parametrize("to", ["s.lmdb", "folder"])
def test_a_killed_worker_is_a_clear_error_and_a_rerun_completes(tmp_path: Path, prepared: Prepared, to: str) -> None:
    command = ("extract", *SHARD, prepared.photos, tmp_path / to)
    kill_worker(*command, until=lambda: list(tmp_path.glob(f"{to}?*")))
    assert not (tmp_path / to).exists()
    done(*command)
    assert _is_the_same(prepared.full_store, tmp_path / to)


def test_workers_do_not_outlive_a_killed_command(tmp_path: Path, prepared: Prepared) -> None:
    kill_main_process("extract", *SHARD, prepared.photos, tmp_path / "s.lmdb", workers=int(WORKERS))


# One writer at a time


@pytest.mark.parametrize("to", ["s.lmdb", "folder"])
def test_a_second_extraction_is_refused_and_the_first_is_not_disturbed(
    tmp_path: Path, prepared: Prepared, to: str
) -> None:
    command = ("extract", *SHARD, prepared.photos, tmp_path / to)
    inside = "shard-*1.lmdb" if to == "s.lmdb" else "**/*.jpg"
    with stopped(*command, until=lambda: list(tmp_path.glob(f"{to}?*/{inside}"))) as first:
        message = refused(*command)
        assert to in message
        assert re.search("another process|busy|locked", message)
        assert not (tmp_path / to).exists()
    assert end(first).status == 0
    assert _is_the_same(prepared.full_store, tmp_path / to)


def test_a_second_append_is_refused_and_readers_go_on(tmp_path: Path, prepared: Prepared) -> None:
    store = shutil.copytree(prepared.part_store, tmp_path / "s.lmdb")
    before, shard_count = patches(store), len(sealed_shards(store))
    command = ("extract", "--append", *SHARD, prepared.photos, store)
    with stopped(*command, until=lambda: len(sealed_shards(store)) > shard_count + 2) as first:
        writers = [start(*writer) for writer in (command, ("reindex", store))]  # each writer waits a while for the lock
        for writer in writers:
            message = error_line(end(writer))
            assert "s.lmdb" in message
            assert re.search("another process|busy|locked", message)
        assert patches(store) == before
        assert findings(store) == []
    assert end(first).status == 0
    assert _is_the_same(store, prepared.full_store)


# No room


@pytest.mark.parametrize(
    "options",
    ["size=40m,nr_inodes=20", "size=1600k"],  # out of files, which no check of free bytes foresees; out of bytes
)
@pytest.mark.parametrize("to", ["s.lmdb", "folder"])
def test_a_full_disk_is_an_error_and_a_rerun_goes_on(
    tmp_path: Path, prepared: Prepared, disk: Callable[[str], Path], to: str, options: str
) -> None:
    small = disk(options)
    command = ("extract", *SHARD, prepared.photos, small / to)
    message = refused(*command)
    assert to in message
    assert re.search("No space left|free|room", message)
    assert not (small / to).exists()
    sealed = {path.name: path.stat().st_ino for path in small.glob("s.lmdb*/shard-*.lmdb")}
    assert sealed or to == "folder" or "nr_inodes" not in options
    disk("size=60m,nr_inodes=50000")
    done(*command)
    assert _is_the_same(prepared.full_store, small / to)
    assert sealed.items() <= {path.name: path.stat().st_ino for path in small.glob("s.lmdb/shard-*.lmdb")}.items()


def test_a_write_that_the_system_refuses_is_an_error_and_a_rerun_goes_on(tmp_path: Path, prepared: Prepared) -> None:
    command = ("extract", *OPTIONS, "--shard-size", "1GiB", prepared.photos, tmp_path / "s.lmdb")
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"
    assert "s.lmdb" in error_line(run(*command, before=limit))
    assert not (tmp_path / "s.lmdb").exists()
    done(*command)
    assert _is_the_same(tmp_path / "s.lmdb", prepared.full_store)


def test_an_append_without_room_leaves_the_store_as_it_was(
    tmp_path: Path, prepared: Prepared, disk: Callable[[str], Path]
) -> None:
    old_bytes = sum(len(state[2]) for state in states(prepared.part_store).values())
    small = disk(f"size={old_bytes + (600 << 10)}")
    store = shutil.copytree(prepared.part_store, small / "s.lmdb")
    before, old = states(store), patches(store)
    refused("extract", "--append", *SHARD, prepared.photos, store)
    assert patches(store) == old
    assert findings(store) == []
    assert info(store)["images"] == 10
    assert before.items() <= states(store).items()
    disk("size=60m")
    done("extract", "--append", *SHARD, prepared.photos, store)
    assert _is_the_same(store, prepared.full_store)
