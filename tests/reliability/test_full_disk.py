"""Full disk: the error is clear, old data stay intact, and the same command completes once there is room."""

from __future__ import annotations

import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import Runs
from tests.reliability.support.commands import Commands
from tests.reliability.support.tasks import NAMES, Task

ROOMY = "size=64m,nr_inodes=10000"
MESSAGE = re.compile(r"No space left|File too large|disk full|room|free")


def _sizes(folder: Path) -> list[int]:
    """Return the size of each file and folder below a folder, in bytes, rounded up to pages."""
    return [-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*")]


def _fill(folder: Path) -> None:
    """Fill the disk of a folder to the last byte."""
    with (folder / "ballast").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
    assert shutil.disk_usage(folder).free == 0


@pytest.mark.parametrize("how", ["bytes", "files", "filled meanwhile", "file size"])
def test_without_room_nothing_old_is_lost_and_a_rerun_with_room_completes(
    *,
    tmp_path: Path,
    runs: Runs,
    commands: Commands,
    tasks: dict[str, Task],
    disk: Callable[[str], Path],
    record_property: Callable[[str, object], None],
    how: str,
) -> None:
    statuses: Counter[str] = Counter()
    mounted = disk(ROOMY)
    for number in runs(small=8, full=7 * len(NAMES)):
        task, rng = tasks[NAMES[number % len(NAMES)]], random.Random(number)
        folder = mounted / "work"
        task.prepare(folder)
        old_sizes = _sizes(folder)
        commands.done(*task.command(folder))  # a run with room shows the space that the command needs
        new_sizes = _sizes(folder)
        shutil.rmtree(folder)
        task.prepare(folder)
        command, limit = task.command(folder), None
        if how == "bytes":
            disk(
                f"size={sum(old_sizes) + 8192 + rng.randrange(sum(new_sizes) - sum(old_sizes) + 4096)},nr_inodes=10000"
            )
        elif how == "files":
            disk(f"size=64m,nr_inodes={len(old_sizes) + 3 + rng.randrange(max(1, len(new_sizes) - len(old_sizes)))}")
        elif how == "filled meanwhile":
            disk(f"size={2 * sum(new_sizes) + (1 << 20)},nr_inodes=10000")  # _fill takes the free space soon
        elif how == "file size":
            limit = rng.randrange(1024, max(new_sizes))  # the limit also applies to the files of stdout and stderr
        run = commands.start(command, largest_file=limit)
        if how == "filled meanwhile":
            time.sleep(task.seconds * rng.random())
            _fill(mounted)
        ended = run.end()
        task.check(folder, ended)
        if ended.status:
            assert ended.status == 1, ended
            assert re.fullmatch(rf"dlas-store: ({folder}|memory that worker processes share, ).*\n", ended.err), ended
            assert MESSAGE.search(ended.err), ended
        statuses["refused" if ended.status else "had room"] += 1
        (mounted / "ballast").unlink(missing_ok=True)
        disk(ROOMY)
        task.complete(folder, commands)
        shutil.rmtree(folder)
    record_property("ends", dict(statuses))
