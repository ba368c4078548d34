"""Commands that are killed at any moment: nothing published is lost, what is there opens, and a rerun completes."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from conftest import Runs

from reliability.commands import Commands
from reliability.tasks import NAMES, Task


def test_a_kill_at_any_moment_loses_nothing_published_and_a_rerun_completes(
    tmp_path: Path,
    runs: Runs,
    commands: Commands,
    tasks: dict[str, Task],
    record_property: Callable[[str, object], None],
) -> None:
    """One run kills one command once to three times, before it completes it."""
    kills: Counter[str] = Counter()
    for number in runs(small=24, full=1000):
        name, draw = NAMES[number % len(NAMES)], random.Random(number)
        task, folder = tasks[name], tmp_path / str(number)
        task.prepare(folder)
        for _ in range(draw.choice((1, 1, 2, 3))):
            if task.prior is not None or not (folder / task.target).exists():
                moment = draw.uniform(0, 1.1 * task.seconds)
                command = [*task.command(folder), "--workers", str(draw.choice((1, 2)))]
                ended = commands.killed(moment, command, with_workers=draw.random() < 0.5)
                kills[name if ended.status == -9 else "none, it had ended"] += 1
                task.check(folder, ended)
        task.complete(folder, commands)
        shutil.rmtree(folder)
    record_property("kills", dict(kills))
