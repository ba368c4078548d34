"""Atomic publication of files and folders: staging beside the target, a lock, syncs, and a durable rename."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from dlas_store.errors import BusyError, StoreError, TargetExistsError, WriteError, write_errors

CONTENT = "tree"
"""Folder in a staging directory that becomes an image folder; it gets the final name, so where it is gone all is done.
"""

LOCK_FILE = "lock"
PLAN_FILE = "plan.json"
_LOCK_PATIENCE_SECONDS = 2.0
"""Workers of a killed import hold its lock until they notice; that takes milliseconds."""


class StagingDirectory:
    """The folder ``NAME.partial`` in which a new store or exported folder grows, for one process at a time.

    The lock dies with its process. The content stays when the process ends early: the next one goes on.
    """

    def __init__(self, target: Path) -> None:
        """Create or take over the folder.

        Args:
            target: what the folder will be renamed to.

        Raises:
            BusyError: another process has it.
            WriteError: it cannot be created.
        """
        self.target = target
        self.path = staging_path(target)
        with write_errors(self.path):
            self._lock = _take_lock(self.path / LOCK_FILE)
            try:
                # Shards of an append that move into the store must not outlive the plan by which a rerun finds them.
                sync_folder(self.path.parent)
            except OSError:
                self.close()
                raise

    @classmethod
    def recover(cls, target: Path, is_published: Callable[[Path], bool] | None = None) -> None:
        """Remove the staging directory that a run left, if it was killed after it had published all of it.

        Args:
            target: what that run wrote.
            is_published: called with the staging directory, once it is locked; tells whether all that was in it is
                published. None: its CONTENT is gone.

        Raises:
            BusyError: another process has the directory.
            WriteError: the disk refused it.
        """
        if not staging_path(target).is_dir():
            return
        with cls(target) as staging:
            if (is_published or _has_no_content)(staging.path):
                staging.remove()

    def record_or_check_plan(self, plan: Mapping[str, Any], *, inputs: str) -> None:
        """Record a plan, or check that an interrupted run recorded the same plan.

        Args:
            plan: the plan, in JSON types only.
            inputs: plural noun for the inputs that a rerun must not change, for the error message.

        Raises:
            StoreError: the interrupted run recorded another plan.
        """
        path = self.path / PLAN_FILE
        if not path.exists():
            write_file(path, json.dumps(plan).encode())
        elif json.loads(path.read_bytes()) != plan:
            raise StoreError(
                f"{self.path}: an interrupted run was started with different {inputs}; run it again with the same "
                f"{inputs}, or remove that folder to start over"
            )

    def publish(self, content: Path | None = None) -> None:
        """Give the folder, or one in it, the name it was made for, durably.

        Args:
            content: the folder to rename; the rest is removed. None takes the whole.

        Raises:
            TargetExistsError: something of that name appeared meanwhile.
        """
        if self.target.exists():
            raise TargetExistsError(f"{self.target}: appeared meanwhile; move it away and run the same command again")
        with write_errors(self.target):
            sync_folder(content or self.path)
            (content or self.path).rename(self.target)
            _sync_folders_above(self.target)
            if content is None:
                # Not before: who waits for the lock would make a new one, and leave it in what is published.
                (self.target / LOCK_FILE).unlink(missing_ok=True)
                sync_folder(self.target)
        if content is not None:
            self.remove()

    def remove(self) -> None:
        """Remove the folder with all that is in it.

        Raises:
            WriteError: the disk refused it.
        """
        with write_errors(self.path):
            shutil.rmtree(self.path)

    def close(self) -> None:
        """Let go of the lock; keep the folder if there is work in it."""
        # One that cannot be removed is taken over by the next; what went wrong before must not be hidden by it.
        with suppress(OSError):
            if _is_file(self.path / LOCK_FILE, self._lock) and len(list(self.path.iterdir())) == 1:
                self.remove()
        self._lock.close()

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of the lock."""
        self.close()


def staging_path(target: Path) -> Path:
    """Return the place of a target's staging directory."""
    return target.with_name(target.name + ".partial")


def _has_no_content(staging: Path) -> bool:
    return not (staging / CONTENT).exists()


def _take_lock(path: Path) -> IO[bytes]:
    import fcntl  # noqa: PLC0415 - reading must work where there is none

    end = time.monotonic() + _LOCK_PATIENCE_SECONDS
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            if time.monotonic() > end:
                raise BusyError(f"{path.parent}: another process is writing there; wait for it to end") from None
            time.sleep(0.05)
            continue
        # The holder before us may have removed the file that we now hold the lock of.
        if _is_file(path, file):
            return file
        file.close()


def _is_file(path: Path, file: IO[bytes]) -> bool:
    """Return whether an open file still is the one of that name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def publish_file(temporary: Path, final: Path) -> None:
    """Rename a synced file into its place, durably; what was there is replaced in one step."""
    with write_errors(final):
        temporary.replace(final)
        sync_folder(final.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write a small file so that it is there whole or not at all.

    Raises:
        WriteError: the disk refused it.
    """
    temporary = path.with_name(path.name + ".tmp")
    with write_errors(path), temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    publish_file(temporary, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a report that people read, too, so that it is there whole or not at all.

    Raises:
        WriteError: the disk refused it.
    """
    write_file(path, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")


def sync_folder(path: Path) -> None:
    """Make renames in a folder durable."""
    if os.name == "nt":
        return  # Windows cannot open folders; its renames are journalled
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folders_above(path: Path) -> None:
    """Make a name durable, and those of the folders above it: of a path just made, none is before."""
    sync_folder(path.parent)
    device = path.parent.stat().st_dev
    with suppress(PermissionError):  # one that we may not open, we did not make
        for folder in path.absolute().parent.parents:
            if folder.stat().st_dev != device:
                return
            sync_folder(folder)


def remove_file(path: Path) -> None:
    """Remove a file, if there is one.

    Raises:
        WriteError: the disk refused it.
    """
    with write_errors(path):
        path.unlink(missing_ok=True)


def check_free_space(folder: Path, needed: int) -> None:
    """Check that a file system has room.

    Args:
        folder: a folder on it, or the place of one that is not there yet.
        needed: bytes.

    Raises:
        WriteError: there is less room than needed.
    """
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise WriteError(
            f"{folder}: {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB free; make room or choose another disk"
        )
