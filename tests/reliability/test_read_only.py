"""Read-only stores: read, verify, info and export work as on any store, and leave no trace."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from dlas_store import open_source
from dlas_store.storage.store import Store
from tests.conftest import Runs
from tests.reliability.support.commands import Commands, Ended
from tests.reliability.support.tasks import STORE, content_of_store, make_source
from tests.support.small_stores import NOBODY, content_of, public_folder, state_of


@contextmanager
def _owned_by_another(store: Path) -> Iterator[None]:
    """A store of another user, in which the commands may not write."""
    yield


@contextmanager
def _without_write_permission(store: Path) -> Iterator[None]:
    """A store without write permission, even for the owner, who runs the commands."""
    paths = [store.parent, store, *store.iterdir()]
    for path in paths:
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        yield
    finally:
        for path in paths:
            path.chmod(0o755)


@contextmanager
def _mounted_read_only(store: Path) -> Iterator[None]:
    """A store on a file system that is mounted read-only, where even root cannot write."""
    place = store.parent
    commands = (["mount", "--bind", place, place], ["mount", "-o", "remount,bind,ro", place])
    for number, command in enumerate(commands):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            if number:
                subprocess.run(["umount", place], check=True)
            pytest.skip(f"no mounting here: {result.stderr}")
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts, and changes the owner of files and processes")
@pytest.mark.parametrize(
    ("make", "user"),
    [(_owned_by_another, NOBODY), (_without_write_permission, NOBODY), (_mounted_read_only, 0)],
    ids=["owned by another", "no write permission", "mounted read-only"],
)
def test_what_only_reads_works_and_writes_nothing(
    *, runs: Runs, commands: Commands, make: Callable[[Path], AbstractContextManager[None]], user: int
) -> None:
    """Each run makes a new store, and then reads, verifies, describes, exports and compares the store."""
    for number in runs(small=1, full=20):
        with public_folder() as place:
            numbers = range(number * 10, number * 10 + 5)
            source = make_source(place / "source", numbers)
            store = place / "shelf" / STORE
            store.parent.mkdir()
            commands.done("import", "--shard-size", "20KiB", source, store)
            (place / "desk").mkdir()
            os.chown(place / "desk", user, user)
            expected = content_of_store(store)
            with open_source(source) as folder:
                assert content_of(folder) == expected

            def run(*words: str | Path) -> Ended:
                return commands.run(words, user=user)

            with make(store):
                before = state_of(store.parent)
                assert content_of_store(store) == expected
                with Store(store) as opened:
                    assert len(opened.read_pixels(range(len(opened)))) == len(opened)
                for words in (
                    ("info", store),
                    ("info", store, "--json"),
                    ("verify", store),
                    ("verify", store, "--against", source),
                    ("export", store, place / "desk" / "back"),
                    ("import", store, place / "desk" / "copy.lmdb"),
                ):
                    ended = run(*words)
                    assert (ended.status, ended.err) == (0, ""), (words, ended)
                for words in (("reindex", store), ("import", "--append", _another(source), store)):
                    ended = run(*words)
                    assert ended.status == 1, (words, ended)
                    assert ended.err.startswith(f"dlas-store: {store}"), ended
                    assert "cannot be written" in ended.err
                    assert ended.err.count("\n") == 1
                assert state_of(store.parent) == before
            assert content_of_store(place / "desk" / "copy.lmdb") == expected
            assert not list(place.glob("**/*.partial"))


def _another(source: Path) -> Path:
    """Return a copy of a source with one more image."""
    more = source.with_name("more")
    if not more.exists():
        shutil.copytree(source, more)
        make_source(more, range(10**4, 10**4 + 1))
    return more
