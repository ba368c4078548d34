"""Power loss: published data stay intact, whatever other data are lost, and the same command completes.

The tests record the calls of commands, and write disk states without some of the changes that no sync had covered.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Runs
from tests.reliability.support.commands import Commands
from tests.reliability.support.faults import Call, Faults, Mode, read_log
from tests.reliability.support.power_loss import Disk
from tests.reliability.support.tasks import NAMES, STORE, Task
from tests.support.file_trees import read, states

STATES_A_PAST = 20
"""Number of disk states made of one record. In every second record the command was killed and run again."""

RERUN_EVERY = 10
"""Number of disk states for each state that the same command also completes."""


@dataclass
class Past:
    """A recorded command; its result counts as published after the call number ``published``.

    The command may have been killed and run again. Bytes that the first run did not sync can be lost after the second.
    """

    task: Task
    disk: Disk
    published: int
    folder: Path


def _recorded(task: Task, folder: Path, commands: Commands, faults: Faults, *, killed_at: int | None) -> Past:
    log = folder.with_name(f"{folder.name}.log")
    log.touch()
    task.prepare(folder)
    before = shutil.copytree(folder, folder.with_name(f"{folder.name}.before"))
    if killed_at is not None:
        faults.watch(folder, log=log, mode=Mode.KILL, at=killed_at)
        assert commands.run(task.command(folder)).status == -9
    faults.watch(folder, log=log)
    ended = commands.run(task.command(folder))
    faults.stop()
    disk = Disk(folder, before, read_log(log))
    if killed_at is None or ended.published:
        assert (ended.status, ended.published) == (0, 1), ended
        return Past(task, disk, len(disk), folder)
    assert "exists; " in ended.err, ended  # killed after the last rename, before the command reported success
    return Past(task, disk, len(disk) + 1, folder)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_published_is_lost_when_the_power_goes(
    *,
    tmp_path: Path,
    runs: Runs,
    commands: Commands,
    faults: Faults,
    tasks: dict[str, Task],
    record_property: Callable[[str, object], None],
    name: str,
) -> None:
    task = tasks[name]
    calls = len(_recorded(task, tmp_path / "undisturbed", commands, faults, killed_at=None).disk)
    past_number = -1
    counts = {"old": 0, "new": 0}
    for number in runs(small=2 * STATES_A_PAST, full=1250):
        rng = random.Random(number)
        if number // STATES_A_PAST != past_number:
            past_number = number // STATES_A_PAST
            kill = random.Random(past_number).randrange(1, calls) if past_number % 2 else None
            past = _recorded(task, tmp_path / f"past_{past_number}", commands, faults, killed_at=kill)
        # A third of the states come after the end of the command, when the whole result must be on the disk.
        end = min(rng.randrange(len(past.disk) * 3 // 2), len(past.disk))
        state = tmp_path / str(number)
        past.disk.write_after_power_loss(state, end, rng)
        content = task.content(state)
        assert content in ((task.new,) if end >= past.published else (task.old, task.new)), (number, end)
        counts["new" if content == task.new else "old"] += 1
        if number % RERUN_EVERY == 0:
            task.complete(state, commands)
        shutil.rmtree(state)
    record_property("states", counts)


@pytest.mark.parametrize("name", NAMES)
def test_the_record_holds_every_change(
    tmp_path: Path, commands: Commands, faults: Faults, tasks: dict[str, Task], name: str
) -> None:
    past = _recorded(tasks[name], tmp_path / "past", commands, faults, killed_at=None)
    past.disk.write_as_it_was(tmp_path / "replayed", len(past.disk))
    assert read(tmp_path / "replayed") == read(past.folder)


def test_the_plan_of_an_append_is_not_lost_before_its_shards_are_in_the_store(
    tmp_path: Path, commands: Commands, faults: Faults, tasks: dict[str, Task]
) -> None:
    """Without the plan a rerun would write the shards again, and the first copies would stay in the store for ever."""
    task = tasks["append"]
    assert task.prior is not None
    past = _recorded(task, tmp_path / "past", commands, faults, killed_at=None)
    for end in range(len(past.disk)):
        past.disk.write_what_was_synced(tmp_path / str(end), end)
        shards = len(states(tmp_path / str(end) / STORE))
        if shards > len(states(task.prior)) and task.content(tmp_path / str(end)) == task.old:
            assert (tmp_path / str(end) / f"{STORE}.partial" / "plan.json").is_file()


@pytest.mark.parametrize("name", ["append", "extract-append"])
def test_an_append_killed_right_after_its_last_rename_is_durable_when_a_rerun_says_that_all_is_there(
    tmp_path: Path, commands: Commands, faults: Faults, tasks: dict[str, Task], name: str
) -> None:
    task = tasks[name]
    _recorded(task, tmp_path / "undisturbed", commands, faults, killed_at=None)
    calls = [(record.call, Path(record.other).name) for record in read_log(tmp_path / "undisturbed.log")]
    last_rename = len(calls) - calls[::-1].index((Call.RENAME, "index.lmdb"))
    past = _recorded(task, tmp_path / "past", commands, faults, killed_at=last_rename + 1)
    past.disk.write_what_was_synced(tmp_path / "synced", past.published)
    assert task.content(tmp_path / "synced") == task.new
