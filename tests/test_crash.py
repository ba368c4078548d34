"""Commands that are killed: the old or the new state is there, never half of one, and a rerun completes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from cli import await_while_running, done, end, error_line, info, is_whole, run, start
from conftest import Runs
from trees import numbered_images, numbered_pictures, parted, patches, read, states

WORKERS = "2"
SHARD = ("--workers", WORKERS, "--shard-size", "1KiB")


class Prepared(NamedTuple):
    """A folder, and stores of a part and of all of it."""

    source: Path
    part: Path
    whole: Path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("prepared")
    source = numbered_images(root / "data", 60, 20)
    done("import", *SHARD, source, root / "whole.lmdb")
    done("import", *SHARD, "--images", "image_0000?", source, root / "part.lmdb")
    return Prepared(source, root / "part.lmdb", root / "whole.lmdb")


def _shards(folder: Path) -> int:
    """Return how many shards are sealed in a store or beside it."""
    return len(list(folder.glob("s.lmdb*/shard-*.lmdb")))


def _sealed(store: Path) -> dict[int, tuple[int, bytes]]:
    """Return time and bytes of the shards that are sealed, in the store or beside it, by inode."""
    shards = store.parent.glob(f"{store.name}*/shard-*.lmdb")
    return {path.stat().st_ino: (path.stat().st_mtime_ns, path.read_bytes()) for path in shards}


@pytest.mark.parametrize("is_append", [False, True], ids=["import", "append"])
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_rerun_goes_on_where_sealed_shards_end(
    tmp_path: Path, prepared: Prepared, stop: signal.Signals, is_append: bool
) -> None:
    store = tmp_path / "s.lmdb"
    if is_append:
        shutil.copytree(prepared.part, store)
    had = _shards(tmp_path)
    command = ("import", *(("--append",) if is_append else ()), *SHARD, prepared.source, store)
    process = start(*command)
    await_while_running(process, lambda: _shards(tmp_path) >= had + 6)
    os.killpg(process.pid, stop)
    result = end(process)
    if stop == signal.SIGINT:
        assert result.status == 130
    assert "Traceback" not in result.err
    assert store.exists() == is_append
    before = _sealed(store)
    assert len(before) >= had + 6
    done(*command)
    assert before.items() <= _sealed(store).items()
    assert is_whole(store, prepared.source)


def _has_shards(store: Path, count: int) -> bool:
    return len(list(store.glob("shard-*.lmdb"))) >= count


def test_an_append_killed_while_shards_move_in_is_completed(tmp_path: Path, prepared: Prepared, runs: Runs) -> None:
    old, had = patches(prepared.part), len(states(prepared.part))
    for number in runs(small=2, full=50):
        store = shutil.copytree(prepared.part, tmp_path / f"{number}.lmdb")
        command = ("import", "--append", *SHARD, prepared.source, store)
        process = start(*command)
        await_while_running(process, partial(_has_shards, store, had + 1 + number % 5))
        os.killpg(process.pid, signal.SIGKILL)
        end(process)
        assert patches(store) in (old, patches(prepared.whole))
        done(*command)
        assert is_whole(store, prepared.source)
        assert not store.with_name(f"{number}.lmdb.partial").exists()


def _workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes that work for a command; Python's own helpers have another command line."""
    own = psutil.Process(process.pid).cmdline()
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline() == own or any("spawn_main" in word for word in child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def _interrupted(process: subprocess.Popen[str]) -> None:
    """Press Ctrl-C, which all processes of a command get, and hold it to what that must give."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        out, err = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.fail("hangs")
    assert process.returncode == 130, err
    assert err.startswith("dlas-store: interrupted")
    assert err.count("\n") == 1, err
    assert out == ""


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
        "verify": lambda: any(worker.cpu_times().user > 0.02 for worker in _workers(process)),
    }
    process = start(command, *arguments[command])
    await_while_running(process, conditions[command])
    _interrupted(process)
    assert not (tmp_path / "back").exists()
    assert store.exists() == (command != "import")
    if command != "verify":
        done(command, *arguments[command])
        assert is_whole(store, source)


@pytest.mark.parametrize("command", ["import", "verify"])
def test_ctrl_c_while_workers_start_is_status_130_and_one_line(
    tmp_path: Path, prepared: Prepared, command: str, runs: Runs
) -> None:
    for number in runs(small=5, full=100):
        store = tmp_path / f"{number}.lmdb"
        arguments: dict[str, tuple[str | Path, ...]] = {
            "import": (*SHARD, prepared.source, store),
            "verify": ("--workers", WORKERS, prepared.whole, "--against", prepared.source),
        }
        process = start(command, *arguments[command])
        await_while_running(process, psutil.Process(process.pid).children)
        _interrupted(process)
        assert not store.exists()


@pytest.mark.parametrize("is_append", [False, True], ids=["import", "append"])
def test_a_killed_worker_is_a_clear_error_and_a_rerun_completes(
    tmp_path: Path, prepared: Prepared, is_append: bool
) -> None:
    store = tmp_path / "s.lmdb"
    if is_append:
        shutil.copytree(prepared.part, store)
    command = ("import", *(("--append",) if is_append else ()), *SHARD, prepared.source, store)
    process = start(*command)
    await_while_running(process, lambda: _workers(process))
    _workers(process)[0].kill()
    message = error_line(end(process))
    assert "process" in message
    if is_append:
        assert patches(store) == patches(prepared.part)
    else:
        assert not store.exists()
    done(*command)
    assert is_whole(store, prepared.source)


def test_a_killed_export_worker_is_a_clear_error_and_a_rerun_completes(tmp_path: Path, prepared: Prepared) -> None:
    command = ("export", "--workers", WORKERS, prepared.whole, tmp_path / "back")
    process = start(*command)
    await_while_running(process, lambda: _workers(process))
    _workers(process)[0].kill()
    assert "process" in error_line(end(process))
    assert not (tmp_path / "back").exists()
    done(*command)
    assert parted(tmp_path / "back") == parted(prepared.source)


def test_workers_do_not_outlive_a_killed_command(tmp_path: Path, prepared: Prepared) -> None:
    process = start("import", *SHARD, prepared.source, tmp_path / "s.lmdb")
    await_while_running(process, lambda: len(_workers(process)) == int(WORKERS))
    workers = _workers(process)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


def test_a_rerun_with_other_options_is_refused_and_says_what_to_do(tmp_path: Path, prepared: Prepared) -> None:
    store = tmp_path / "s.lmdb"
    process = start("import", *SHARD, prepared.source, store)
    await_while_running(process, lambda: _shards(tmp_path) > 3)
    os.killpg(process.pid, signal.SIGKILL)
    end(process)
    before = read(tmp_path / "s.lmdb.partial")
    message = error_line(run("import", "--shard-size", "2KiB", prepared.source, store))
    assert "s.lmdb.partial" in message
    assert {
        name: content for name, content in read(tmp_path / "s.lmdb.partial").items() if name.startswith("shard-")
    } == {name: content for name, content in before.items() if name.startswith("shard-")}
    done("import", *SHARD, prepared.source, store)
    assert info(store)["images"] == 60


def test_half_a_commit_is_left_out_and_named_by_reindex(tmp_path: Path, prepared: Prepared) -> None:
    store = shutil.copytree(prepared.part, tmp_path / "s.lmdb")
    old, had = patches(store), set(states(store))
    done("import", "--append", *SHARD, prepared.source, store)
    *half, last = sorted(set(states(store)) - had)
    (store / last).unlink()
    (store / "index.lmdb").unlink()
    result = run("reindex", store)
    assert result.status == 1
    for name in half:
        assert name in result.out + result.err
    assert patches(store) == old
    done("import", "--append", *SHARD, prepared.source, store)
    assert is_whole(store, prepared.source)
