"""Atomic publication of files and folders, and the lock that lets one process write at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dlas_store.atomic import (
    CONTENT,
    LOCK_FILE,
    PLAN_FILE,
    StagingDirectory,
    check_free_space,
    publish_file,
    write_file,
)
from dlas_store.errors import BusyError, StoreError, TargetExistsError, WriteError
from dlas_store.storage.commit import Commit
from dlas_store.storage.store import Store
from tests.support.small_stores import NOBODY, content_of, in_child, make_store, public_folder, small_folder, state_of


def hold_lock(target: Path, connection: Connection) -> None:
    with StagingDirectory(target) as staging:
        (staging.path / "work").write_text("sealed")
        connection.send(os.getpid())
        connection.recv()


@contextmanager
def lock_holder(target: Path) -> Iterator[multiprocessing.process.BaseProcess]:
    """Run a process that holds the lock of a target's staging directory."""
    context = multiprocessing.get_context("spawn")
    connection_here, connection_there = context.Pipe()
    process = context.Process(target=hold_lock, args=(target, connection_there))
    process.start()
    assert connection_here.recv() == process.pid
    try:
        yield process
    finally:
        if process.is_alive():
            connection_here.send("end")
        process.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "store.lmdb"


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the wait for a lock that is not released."""
    monkeypatch.setattr("dlas_store.atomic._LOCK_PATIENCE_SECONDS", 0.1)


@pytest.mark.usefixtures("short_patience")
def test_a_second_writer_is_an_error_that_names_the_folder(target: Path) -> None:
    with lock_holder(target), pytest.raises(BusyError, match=r"store\.lmdb\.partial: another process is writing there"):
        StagingDirectory(target)
    with StagingDirectory(target) as staging:
        assert (staging.path / "work").read_text() == "sealed"


@pytest.mark.usefixtures("short_patience")
def test_a_second_writer_of_this_process_is_an_error_too(target: Path) -> None:
    with StagingDirectory(target), pytest.raises(BusyError):
        StagingDirectory(target)


def test_the_lock_dies_with_its_process_and_the_work_stays(target: Path) -> None:
    with lock_holder(target) as process:
        process.kill()
        process.join()
        with StagingDirectory(target) as staging:
            assert (staging.path / "work").read_text() == "sealed"


def publish_when_told(target: Path, connection: Connection) -> None:
    with StagingDirectory(target) as staging:
        (staging.path / "work").write_text("sealed")
        connection.send("held")
        connection.recv()
        time.sleep(0.5)  # by now the test's process waits for the lock
        staging.publish()


def test_a_writer_that_waits_while_another_publishes_takes_nothing_from_it(target: Path) -> None:
    context = multiprocessing.get_context("spawn")
    connection_here, connection_there = context.Pipe()
    process = context.Process(target=publish_when_told, args=(target, connection_there))
    process.start()
    assert connection_here.recv() == "held"
    connection_here.send("publish")
    with suppress(BusyError):
        StagingDirectory(target).close()
    process.join()
    assert process.exitcode == 0
    assert [file.name for file in target.iterdir()] == ["work"]


def test_a_lock_that_is_let_go_soon_is_waited_for(target: Path) -> None:
    with lock_holder(target) as process:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)  # the stopped holder keeps the lock, and dies while the next process waits
        os.kill(process.pid, signal.SIGKILL)
        StagingDirectory(target).close()


@pytest.mark.usefixtures("short_patience")
def test_import_and_append_are_refused_while_another_process_writes(target: Path, tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "source", "a")
    with lock_holder(target), pytest.raises(BusyError):
        make_store(folder, target)
    assert not target.exists()
    make_store(folder, target)
    assert not target.with_name("store.lmdb.partial").exists()


def test_a_published_folder_has_its_name_and_no_lock(target: Path) -> None:
    with StagingDirectory(target) as staging:
        (staging.path / "file").write_text("content")
        assert not target.exists()
        staging.publish()
    assert set(state_of(target.parent)) == {".", "store.lmdb", "store.lmdb/file"}


def test_a_folder_inside_may_be_published_and_the_rest_goes(target: Path) -> None:
    with StagingDirectory(target) as staging:
        (staging.path / "tree").mkdir()
        (staging.path / "tree" / "file").write_text("content")
        (staging.path / "plan.json").write_text("{}")
        staging.publish(staging.path / "tree")
    assert set(state_of(target.parent)) == {".", "store.lmdb", "store.lmdb/file"}


def test_recovery_removes_what_a_run_left_that_had_published_its_content(target: Path) -> None:
    StagingDirectory.recover(target)
    assert not target.with_name("store.lmdb.partial").exists()
    with StagingDirectory(target) as staging:
        (staging.path / CONTENT).mkdir()
        (staging.path / PLAN_FILE).write_text("{}")
    StagingDirectory.recover(target)
    assert {file.name for file in staging.path.iterdir()} == {CONTENT, PLAN_FILE, LOCK_FILE}
    (staging.path / CONTENT).rmdir()
    StagingDirectory.recover(target, lambda staging: not (staging / PLAN_FILE).exists())
    assert staging.path.exists()
    StagingDirectory.recover(target)
    assert not staging.path.exists()


@pytest.mark.usefixtures("short_patience")
def test_recovery_leaves_a_writer_at_work_alone(target: Path) -> None:
    with lock_holder(target):
        with pytest.raises(BusyError):
            StagingDirectory.recover(target)
        assert (target.with_name("store.lmdb.partial") / "work").exists()


def test_recovery_removes_a_lock_from_a_store_and_from_nothing_else(target: Path, tmp_path: Path) -> None:
    make_store(small_folder(tmp_path / "source", "a"), target)
    other = tmp_path / "other"
    other.mkdir()
    for folder in (target, other):
        (folder / LOCK_FILE).touch()
        Commit.recover(folder)
    Commit.recover(tmp_path / "none")
    assert not (target / LOCK_FILE).exists()
    assert (other / LOCK_FILE).exists()


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch], ids=["folder", "file"])
def test_nothing_that_appeared_meanwhile_is_replaced(target: Path, make: Callable[[Path], None]) -> None:
    with StagingDirectory(target) as staging:
        (staging.path / "work").write_text("sealed")
        make(target)
        with pytest.raises(TargetExistsError, match=r"store\.lmdb: appeared meanwhile"):
            staging.publish()
        assert (staging.path / "work").read_text() == "sealed"
    assert not list(target.iterdir()) if target.is_dir() else target.read_bytes() == b""


def test_an_unused_folder_goes_and_one_with_work_stays(target: Path) -> None:
    with StagingDirectory(target) as staging:
        assert staging.path.exists()
    assert not staging.path.exists()
    with StagingDirectory(target) as staging:
        (staging.path / "work").touch()
    assert (staging.path / "work").exists()


def test_a_folder_above_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"store\.lmdb\.partial: cannot be written \(No such file or directory\)"):
        StagingDirectory(tmp_path / "new" / "folder" / "store.lmdb")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "write",
    [
        StagingDirectory,
        lambda path: write_file(path, b"data"),
        lambda path: make_store(path.parent / "source", path),
    ],
    ids=["folder", "file", "import"],
)
def test_a_place_where_nothing_may_be_written_is_an_error_of_ours(write: Callable[[Path], object]) -> None:
    with public_folder() as place:
        small_folder(place / "source", "a")

        def attempt() -> None:
            with pytest.raises(WriteError, match=r"store\.lmdb.*cannot be written \(Permission denied\)"):
                write(place / "store.lmdb")

        assert in_child(attempt, user=NOBODY) == 0
        assert {path.name for path in place.iterdir()} == {"source"}


def test_folders_above_that_may_not_be_opened_are_no_hindrance() -> None:
    def publish() -> None:
        with StagingDirectory(target) as staging:
            (staging.path / "file").touch()
            staging.publish()

    with public_folder() as place:
        target = place / "closed" / "open" / "store.lmdb"
        target.parent.mkdir(parents=True)
        target.parent.chmod(0o777)
        target.parent.parent.chmod(0o711)
        assert in_child(publish, user=NOBODY) == 0
        assert [file.name for file in target.iterdir()] == ["file"]


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    write_file(path, b"new" * 1000)
    assert path.read_bytes() == b"new" * 1000
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_publishing_a_file_leaves_those_who_have_the_old_one_open_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "file.tmp").write_bytes(b"new")
    with (tmp_path / "file").open("rb") as opened:
        publish_file(tmp_path / "file.tmp", tmp_path / "file")
        assert opened.read() == b"old"
    assert (tmp_path / "file").read_bytes() == b"new"


def test_too_little_room_is_found_before_anything_is_written(tmp_path: Path) -> None:
    check_free_space(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(WriteError, match=r"GB are needed and .* GB free"):
        check_free_space(tmp_path / "not" / "there" / "yet", 1 << 60)
    assert list(tmp_path.iterdir()) == []


def run_import(folder: Path, store: Path) -> None:
    make_store(folder, store)


@pytest.mark.parametrize("delay", [0.02, 0.1, 0.2, 0.3])
def test_a_killed_import_goes_on_where_it_was(target: Path, tmp_path: Path, delay: float) -> None:
    folder = small_folder(tmp_path / "source", *(f"image {number}" for number in range(30)), patches=6)
    process = multiprocessing.get_context("fork").Process(target=run_import, args=(folder, target))
    process.start()
    time.sleep(delay)  # the outcome must not depend on the moment of the kill
    process.kill()
    process.join()
    if not target.exists():
        with pytest.raises(StoreError):
            Store(target)
        make_store(folder, target)
    with Store(target) as store:
        assert len(store) == 180
        assert len(content_of(store)["order"]) == 30  # type: ignore[arg-type]
    assert not target.with_name("store.lmdb.partial").exists()
