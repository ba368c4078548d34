"""Atomic publication of files and folders: a staging directory with a lock, syncs, and a durable rename."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from dlas_store.errors import BusyError, ConfigError, StoreError, TargetExistsError, WriteError, write_errors

CONTENT = "tree"
"""Name of the folder in a staging directory in which an exported or extracted folder is built. Publication renames this
folder to the target, so the folder is missing once all content is published."""

LOCK_FILE = "lock"
PLAN_FILE = "plan.json"
_LOCK_PATIENCE_SECONDS = 2.0
"""Time to wait for a lock. Workers of a killed import hold the lock until they exit, some milliseconds later."""


class StagingDirectory:
    """The folder ``NAME.partial`` in which a new store or exported folder is built, by one process at a time.

    A lock file keeps other processes out; the system releases the lock when the process ends. If a process ends early,
    the folder and its content stay for the rerun.

    Attributes:
        target: path that the folder gets when it is published.
        path: path of the staging directory.
    """

    def __init__(self, target: Path) -> None:
        """Create the folder, or open one that an interrupted run left, and take its lock.

        Args:
            target: path that the folder gets when it is published.

        Raises:
            BusyError: another process holds the lock.
            WriteError: the folder cannot be created.
        """
        self.target = target
        self.path = staging_path(target)
        with write_errors(self.path):
            self._lock = _take_lock(self.path / LOCK_FILE)
            try:
                # An append renames shards from this folder into the store, and a rerun finds them by the plan in this
                # folder. So a power loss must not undo the creation of the folder after such a rename.
                sync_folder(self.path.parent)
            except OSError:
                self.close()
                raise

    @classmethod
    def recover(cls, target: Path, is_published: Callable[[Path], bool] | None = None) -> None:
        """Remove the staging directory of a run that was killed after it had published all content.

        Args:
            target: path that the run published.
            is_published: predicate, called with the locked staging directory, that says whether all its content is
                published. None asks whether CONTENT is gone.

        Raises:
            BusyError: another process holds the lock.
            WriteError: the disk refused the removal.
        """
        if not staging_path(target).is_dir():
            return
        with cls(target) as staging:
            if (is_published or _has_no_content)(staging.path):
                staging.remove()

    @classmethod
    def discard(cls, target: Path) -> None:
        """Remove the staging directory that an interrupted run left, if there is one, so that a run starts over.

        Args:
            target: path that the run was to publish.

        Raises:
            BusyError: another process holds the lock.
            StoreError: the folder is not one of an interrupted run.
            WriteError: the disk refused the removal.
        """
        path = staging_path(target)
        if not path.is_dir():
            return
        if not any((path / name).exists() for name in (LOCK_FILE, PLAN_FILE)):
            raise StoreError(f"{path}: is not the folder of an interrupted run; move it away")
        with cls(target) as staging:
            staging.remove()

    def record_or_check_plan(self, plan: Mapping[str, Any], *, options: Mapping[str, str]) -> None:
        """Record a plan, or check that an interrupted run recorded the same plan.

        Args:
            plan: the plan, in JSON types only.
            options: options from which the plan was made, by their names on the command line, for the error message.

        Raises:
            StoreError: the interrupted run recorded another plan.
        """
        path = self.path / PLAN_FILE
        recorded = json.loads(path.read_bytes()) if path.exists() else None
        if recorded is None:
            write_file(path, json.dumps({**plan, "options": dict(options)}).encode())
        elif {key: value for key, value in recorded.items() if key != "options"} != plan:
            raise other_plan_error(self.path, recorded.get("options", {}), options)

    def publish(self, content: Path | None = None) -> None:
        """Rename the staging directory, or a folder in it, to the target, durably.

        Args:
            content: folder to rename; the rest of the staging directory is removed. None renames the staging directory.

        Raises:
            TargetExistsError: the target appeared meanwhile.
            WriteError: the disk refused a write.
        """
        if self.target.exists():
            raise TargetExistsError(f"{self.target}: appeared meanwhile; move it away and run the same command again")
        with write_errors(self.target):
            sync_folder(content or self.path)
            (content or self.path).rename(self.target)
            _sync_folders_above(self.target)
            if content is None:
                # Removed after the rename: a process that waits for the lock would otherwise create a new lock file in
                # the folder that is about to be published.
                (self.target / LOCK_FILE).unlink(missing_ok=True)
                sync_folder(self.target)
        if content is not None:
            self.remove()

    def remove(self) -> None:
        """Remove the folder with all its content.

        Raises:
            WriteError: the disk refused the removal.
        """
        with write_errors(self.path):
            shutil.rmtree(self.path)

    def close(self) -> None:
        """Release the lock, and remove the folder if it holds nothing but the lock file."""
        # A failed removal must not hide an earlier error. The next process opens the folder that stays.
        with suppress(OSError):
            if _leads_to(self.path / LOCK_FILE, self._lock) and len(list(self.path.iterdir())) == 1:
                self.remove()
        self._lock.close()

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock."""
        self.close()


def other_plan_error(staging: Path, earlier: Mapping[str, str], options: Mapping[str, str]) -> StoreError:
    """Return the error for a staging directory of a run with another plan; it names the options that differ.

    Args:
        staging: the staging directory.
        earlier: options of the interrupted run, by their names on the command line.
        options: options of this run.
    """
    changes = [
        f"{name} was {earlier[name]} and is {value}"
        for name, value in options.items()
        if name in earlier and earlier[name] != value
    ]
    difference = ", ".join(changes) or "files were added, removed or changed"
    return StoreError(
        f"{staging}: holds an interrupted run with other files or options: {difference}; run it again as before, or "
        "start over with --restart"
    )


def check_place(path: Path) -> None:
    """Check that a file or folder may be created at a path; call this before any work.

    Raises:
        WriteError: the folder above the path does not exist, or may not be written.
    """
    folder = path.parent
    if not folder.is_dir():
        raise WriteError(errno.ENOENT, f"{path}: there is no folder {folder}; create it or choose another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        number = errno.EROFS if os.access(folder, os.X_OK) and os.geteuid() == 0 else errno.EACCES
        with write_errors(path):
            raise OSError(number, os.strerror(number))


def check_report_place(path: Path | None) -> None:
    """Check that a report may be written at a path, or may replace an earlier one; call this before any work.

    Args:
        path: path of the report, None if no report is wanted.

    Raises:
        ConfigError: the name does not end in .json, so the file may be anything, such as a photo.
        TargetExistsError: the path exists and is no regular file.
        WriteError: the folder above the path does not exist, or may not be written.
    """
    if path is None:
        return
    if path.suffix.lower() != ".json":
        raise ConfigError(f"{path}: the name of a report ends in .json; choose another name")
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise TargetExistsError(f"{path}: exists and is no regular file, so no report replaces it; choose another name")
    check_place(path)


def check_outside(target: Path, source: Path) -> None:
    """Check that a target does not lie in the folder that is read; call this before any work.

    Args:
        target: path to write, which need not exist.
        source: folder, store, or file of a store that is read.

    Raises:
        StoreError: the target lies in the folder.
    """
    if source.suffix == source.parent.suffix == ".lmdb":  # a store's index or shard
        source = source.parent
    if Path(os.path.realpath(target)).is_relative_to(os.path.realpath(source)):
        raise StoreError(f"{target}: is inside {source}, which is read; choose a path outside of that folder")


def staging_path(target: Path) -> Path:
    """Return the path of a target's staging directory."""
    return target.with_name(target.name + ".partial")


def publish_file(temporary: Path, final: Path) -> None:
    """Rename a synced file to its final path, durably. A file that is already there is replaced atomically.

    Raises:
        WriteError: the disk refused the rename.
    """
    with write_errors(final):
        temporary.replace(final)
        sync_folder(final.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write a small file atomically and durably.

    Raises:
        WriteError: the disk refused a write.
    """
    temporary = path.with_name(path.name + ".tmp")
    with write_errors(path), temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    publish_file(temporary, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON report, indented for people, atomically and durably; bytes of a path that are no UTF-8 are escaped.

    Raises:
        WriteError: the disk refused a write.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_file(path, text.encode(errors="backslashreplace") + b"\n")


def sync_folder(path: Path) -> None:
    """Make renames in a folder durable."""
    if os.name == "nt":
        return  # Windows cannot open folders, and it journals renames
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_file(path: Path) -> None:
    """Remove a file if it exists.

    Raises:
        WriteError: the disk refused the removal.
    """
    with write_errors(path):
        path.unlink(missing_ok=True)


def check_free_space(folder: Path, needed: int) -> None:
    """Check that a file system has enough free space.

    Args:
        folder: folder on the file system, which need not exist yet.
        needed: required space in bytes.

    Raises:
        WriteError: less space is free.
    """
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise WriteError(
            f"{folder}: {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB free; make room or choose another disk"
        )


def _has_no_content(staging: Path) -> bool:
    return not (staging / CONTENT).exists()


def _take_lock(path: Path) -> IO[bytes]:
    """Create a lock file and its folder, and return the file, locked."""
    import fcntl  # noqa: PLC0415 - Windows has no fcntl, and reading must work there

    deadline = time.monotonic() + _LOCK_PATIENCE_SECONDS
    while True:
        path.parent.mkdir(exist_ok=True)
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            if time.monotonic() > deadline:
                raise BusyError(f"{path.parent}: another process is writing there; wait for it to end") from None
            time.sleep(0.05)
            continue
        # The previous holder may have removed the lock file. A lock on a removed file excludes nobody, so try again.
        if _leads_to(path, file):
            return file
        file.close()


def _leads_to(path: Path, file: IO[bytes]) -> bool:
    """Return whether a path still leads to an open file, which may have been removed or replaced."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _sync_folders_above(path: Path) -> None:
    """Sync all folders above a path, because any of them may be new; this makes the path durable."""
    sync_folder(path.parent)
    device = path.parent.stat().st_dev
    with suppress(PermissionError):  # a folder that this process may not open is none that it created
        for folder in path.absolute().parent.parents:
            if folder.stat().st_dev != device:
                return
            sync_folder(folder)
