"""Killed commands: the target has its old or its new state, never a mixture, and a rerun completes."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Runs
from tests.support.command_line import (
    await_while_running,
    done,
    end,
    error_line,
    info,
    interrupt,
    interrupt_at_start,
    is_sound_copy,
    kill_main_process,
    kill_worker,
    run,
    start,
    stop_and_rerun,
    workers_of,
)
from tests.support.file_trees import (
    files_and_centers,
    numbered_images,
    numbered_pictures,
    patches,
    read,
    sealed_shards,
    states,
)

WORKERS = "2"
SHARD = ("--workers", WORKERS, "--shard-size", "1KiB")


class Prepared(NamedTuple):
    """A folder, a store of a part of its images, and a store of all its images."""

    source: Path
    part_store: Path
    full_store: Path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("prepared")
    source = numbered_images(root / "data", 60, 20)
    done("import", *SHARD, source, root / "full.lmdb")
    done("import", *SHARD, "--images", "image_0000?", source, root / "part.lmdb")
    return Prepared(source, root / "part.lmdb", root / "full.lmdb")


@pytest.mark.parametrize("is_append", [False, True], ids=["import", "append"])
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_rerun_goes_on_where_sealed_shards_end(
    tmp_path: Path, prepared: Prepared, stop: signal.Signals, is_append: bool
) -> None:
    store = tmp_path / "s.lmdb"
    if is_append:
        shutil.copytree(prepared.part_store, store)
    command = ("import", *(("--append",) if is_append else ()), *SHARD, prepared.source, store)
    stop_and_rerun(*command, store=store, stop=stop, new_shards=6)
    assert is_sound_copy(store, prepared.source)


def _has_shards(store: Path, count: int) -> bool:
    return len(list(store.glob("shard-*.lmdb"))) >= count


def test_an_append_killed_while_shards_move_in_is_completed(tmp_path: Path, prepared: Prepared, runs: Runs) -> None:
    old, shard_count = patches(prepared.part_store), len(states(prepared.part_store))
    for number in runs(small=2, full=50):
        store = shutil.copytree(prepared.part_store, tmp_path / f"{number}.lmdb")
        command = ("import", "--append", *SHARD, prepared.source, store)
        process = start(*command)
        await_while_running(process, partial(_has_shards, store, shard_count + 1 + number % 5))
        os.killpg(process.pid, signal.SIGKILL)
        end(process)
        assert patches(store) in (old, patches(prepared.full_store))
        done(*command)
        assert is_sound_copy(store, prepared.source)
        assert not store.with_name(f"{number}.lmdb.partial").exists()


@pytest.mark.parametrize("command", ["import", "export", "verify"])
def test_ctrl_c_at_work_is_status_130_and_one_line(tmp_path: Path, prepared: Prepared, command: str) -> None:
    source = numbered_pictures(tmp_path / "photos", 4000)
    store = tmp_path / "photos.lmdb"
    small = ("--workers", WORKERS, "--shard-size", "1KiB")
    if command != "import":
        done("import", "--workers", WORKERS, "--shard-size", "4KiB", source, store)
    arguments: dict[str, tuple[str | Path, ...]] = {
        "import": (*small, source, store),
        "export": ("--workers", WORKERS, store, tmp_path / "back"),
        "verify": ("--workers", WORKERS, store, "--against", source),
    }
    conditions: dict[str, Callable[[], object]] = {
        "import": lambda: list(tmp_path.glob("photos.lmdb.partial/shard-*1.lmdb")),
        "export": lambda: list(tmp_path.glob("back.partial/*/*.ppm")),
        "verify": lambda: any(worker.cpu_times().user > 0.02 for worker in workers_of(process)),
    }
    process = start(command, *arguments[command])
    await_while_running(process, conditions[command])
    interrupt(process)
    assert not (tmp_path / "back").exists()
    assert store.exists() == (command != "import")
    if command != "verify":
        done(command, *arguments[command])
        assert is_sound_copy(store, source)


@pytest.mark.parametrize("command", ["import", "verify"])
def test_ctrl_c_while_workers_start_is_status_130_and_one_line(
    tmp_path: Path, prepared: Prepared, command: str, runs: Runs
) -> None:
    for number in runs(small=5, full=100):
        store = tmp_path / f"{number}.lmdb"
        arguments: dict[str, tuple[str | Path, ...]] = {
            "import": (*SHARD, prepared.source, store),
            "verify": ("--workers", WORKERS, prepared.full_store, "--against", prepared.source),
        }
        interrupt_at_start(command, *arguments[command])
        assert not store.exists()


@pytest.mark.parametrize("is_append", [False, True], ids=["import", "append"])
def test_a_killed_worker_is_a_clear_error_and_a_rerun_completes(
    tmp_path: Path, prepared: Prepared, is_append: bool
) -> None:
    store = tmp_path / "s.lmdb"
    if is_append:
        shutil.copytree(prepared.part_store, store)
    command = ("import", *(("--append",) if is_append else ()), *SHARD, prepared.source, store)
    kill_worker(*command)
    if is_append:
        assert patches(store) == patches(prepared.part_store)
    else:
        assert not store.exists()
    done(*command)
    assert is_sound_copy(store, prepared.source)


def test_a_killed_export_worker_is_a_clear_error_and_a_rerun_completes(tmp_path: Path, prepared: Prepared) -> None:
    command = ("export", "--workers", WORKERS, prepared.full_store, tmp_path / "back")
    kill_worker(*command)
    assert not (tmp_path / "back").exists()
    done(*command)
    assert files_and_centers(tmp_path / "back") == files_and_centers(prepared.source)


def test_workers_do_not_outlive_a_killed_command(tmp_path: Path, prepared: Prepared) -> None:
    kill_main_process("import", *SHARD, prepared.source, tmp_path / "s.lmdb", workers=int(WORKERS))


def _shards(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name.startswith("shard-")}


def test_a_rerun_with_other_options_is_refused_and_says_what_to_do(tmp_path: Path, prepared: Prepared) -> None:
    store = tmp_path / "s.lmdb"
    process = start("import", *SHARD, prepared.source, store)
    await_while_running(process, lambda: len(sealed_shards(store)) > 3)
    os.killpg(process.pid, signal.SIGKILL)
    end(process)
    before = read(tmp_path / "s.lmdb.partial")
    message = error_line(run("import", "--shard-size", "2KiB", prepared.source, store))
    assert "s.lmdb.partial" in message
    after = read(tmp_path / "s.lmdb.partial")
    assert _shards(after) == _shards(before)
    done("import", *SHARD, prepared.source, store)
    assert info(store)["images"] == 60


def test_half_a_commit_is_left_out_and_named_by_reindex(tmp_path: Path, prepared: Prepared) -> None:
    store = shutil.copytree(prepared.part_store, tmp_path / "s.lmdb")
    old, old_shards = patches(store), set(states(store))
    done("import", "--append", *SHARD, prepared.source, store)
    *incomplete, last = sorted(set(states(store)) - old_shards)
    (store / last).unlink()
    (store / "index.lmdb").unlink()
    result = run("reindex", store)
    assert result.status == 1
    for name in incomplete:
        assert name in result.out + result.err
    assert patches(store) == old
    done("import", "--append", *SHARD, prepared.source, store)
    assert is_sound_copy(store, prepared.source)
