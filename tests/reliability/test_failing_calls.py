"""Failing calls: after any failure the target has its old or new state, the error is clear, a rerun completes."""

from __future__ import annotations

import errno
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Runs
from tests.reliability.support.commands import Commands
from tests.reliability.support.faults import Call, Faults, Mode, read_log
from tests.reliability.support.tasks import NAMES, STORE, Task

MODES = (Mode.ONCE, Mode.FROM_THERE_ON, Mode.KILL)
ERRORS = (errno.EIO, errno.ENOSPC)
SPARE_CALLS = 3
"""Allowance for a failing run, which may make more calls than a successful run."""


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name.lower())
@pytest.mark.parametrize("name", NAMES)
def test_the_nth_call_fails_and_all_or_nothing_is_there(
    *,
    tmp_path: Path,
    runs: Runs,
    commands: Commands,
    faults: Faults,
    tasks: dict[str, Task],
    record_property: Callable[[str, object], None],
    name: str,
    mode: Mode,
) -> None:
    """N takes every number up to the command's last call. Call N fails, or all calls from N on, or N is killed."""
    task = tasks[name]
    total = _calls(task, tmp_path / "count", commands, faults) + SPARE_CALLS
    stride = next(step for step in range(round(total * 0.618), total) if math.gcd(step, total) == 1)
    statuses: Counter[str] = Counter()
    for number in runs(small=3, full=total * len(ERRORS)):
        at = number % total * stride % total + 1  # the stride spreads even a few runs over the whole command
        folder = tmp_path / f"at_{at}_{number}"
        task.prepare(folder)
        faults.watch(folder, mode=mode, at=at, error=ERRORS[number // total])
        ended = commands.run(task.command(folder))
        faults.stop()
        task.check(folder, ended)
        match ended.status:
            case 0:
                assert mode != Mode.KILL or not faults.failed
            case 1:
                assert faults.failed
                assert ended.err.startswith("dlas-store: ")
                assert ended.err.count("\n") == 1, ended
                assert str(folder) in ended.err, ended
            case _:
                assert (ended.status, mode) == (-9, Mode.KILL), ended
        statuses[f"status {ended.status}"] += 1
        task.complete(folder, commands)
        shutil.rmtree(folder)
    record_property("ends", dict(statuses))


def _calls(task: Task, folder: Path, commands: Commands, faults: Faults) -> int:
    """Return the number of a command's calls that change files."""
    task.prepare(folder)
    faults.watch(folder)
    commands.done(*task.command(folder))
    faults.stop()
    assert faults.calls > 10
    return faults.calls


def _number_of(task: Task, folder: Path, commands: Commands, faults: Faults, *, call: Call, path: str) -> int:
    """Return the number, from 1, of the first call of a kind on a path below the folder."""
    log = folder.with_name("log")
    task.prepare(folder)
    faults.watch(folder, log=log)
    commands.done(*task.command(folder))
    faults.stop()
    records = read_log(log)
    changes = [(record.call, record.path) for record in records if record.call not in (Call.SYNC_ALL,)]
    assert len(changes) == faults.calls, "a call that changed nothing would shift the numbers"
    return changes.index((call, str(folder / path))) + 1


def test_a_file_that_cannot_be_removed_is_named_with_its_folder(
    tmp_path: Path, commands: Commands, faults: Faults, tasks: dict[str, Task]
) -> None:
    task, folder = tasks["append"], tmp_path / "run"
    plan = f"{STORE}.partial/plan.json"
    at = _number_of(task, tmp_path / "before", commands, faults, call=Call.UNLINK, path=plan)
    task.prepare(folder)
    faults.watch(folder, mode=Mode.ONCE, at=at)
    ended = commands.run(task.command(folder))
    faults.stop()
    assert ended.status == 1
    assert ended.err.startswith(f"dlas-store: {folder / STORE}.partial: cannot be written (Input/output error)")


def test_what_went_wrong_first_is_what_is_told_when_tidying_up_fails_too(
    tmp_path: Path, commands: Commands, faults: Faults, tasks: dict[str, Task]
) -> None:
    task, folder = tasks["reindex"], tmp_path / "run"
    index = f"{STORE}/index.lmdb.tmp"
    at = _number_of(task, tmp_path / "before", commands, faults, call=Call.WRITE, path=index)
    task.prepare(folder)
    faults.watch(folder, mode=Mode.FROM_THERE_ON, at=at)
    ended = commands.run(task.command(folder))
    faults.stop()
    assert ended.status == 1
    assert ended.err.startswith(f"dlas-store: {folder / index}: cannot be written")
    assert task.content(folder) == task.old
