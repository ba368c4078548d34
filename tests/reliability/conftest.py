"""Fixtures of the reliability tests: fault injection, a server of commands, and the tasks with their results."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reliability.support.commands import Commands
from tests.reliability.support.faults import Faults
from tests.reliability.support.tasks import Task, make_tasks


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    """Control of the preloaded library, which watches the calls of commands."""
    return Faults(tmp_path_factory.mktemp("faults").resolve())


@pytest.fixture(scope="session")
def commands(faults: Faults, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Server of commands that run with the preloaded library."""
    environment = {"LD_PRELOAD": str(faults.library), "FAULTS_CONTROL": str(faults.control)}
    with Commands(tmp_path_factory.mktemp("commands"), environment) as server:
        yield server


@pytest.fixture(scope="session")
def tasks(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    """All tasks, by name."""
    return make_tasks(tmp_path_factory.mktemp("tasks"), commands)
