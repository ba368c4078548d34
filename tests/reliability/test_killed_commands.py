"""Killed commands: after a kill at any moment no published data are lost, the target opens, and a rerun completes."""

from __future__ import annotations

import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Runs
from tests.reliability.support.commands import Commands
from tests.reliability.support.tasks import NAMES, Task


def test_a_kill_at_any_moment_loses_nothing_published_and_a_rerun_completes(
    tmp_path: Path,
    runs: Runs,
    commands: Commands,
    tasks: dict[str, Task],
    record_property: Callable[[str, object], None],
) -> None:
    """A run kills a command one to three times, at least once while the command works, and then completes it."""
    kills: Counter[str] = Counter()
    for number in runs(small=24, full=1000):
        name, rng = NAMES[number % len(NAMES)], random.Random(number)
        task, folder, reach = tasks[name], tmp_path / str(number), 1.1 * tasks[name].seconds
        killed = 0
        while not killed:
            task.prepare(folder)
            for _ in range(rng.choice((1, 1, 2, 3))):
                if task.prior is not None or not (folder / task.target).exists():
                    command = [*task.command(folder), "--workers", str(rng.choice((1, 2)))]
                    moment, with_workers = rng.uniform(0, reach), rng.random() < 0.5
                    ended = commands.killed(moment, command, with_workers=with_workers)
                    killed += ended.status == -signal.SIGKILL
                    task.check(folder, ended)
            task.complete(folder, commands)
            shutil.rmtree(folder)
            reach *= 0.7  # the command ended before its kill, so the next kill comes earlier
        kills[name] += killed
    record_property("kills", dict(kills))
