"""Runs of the dlas-store command in processes of their own, as a user runs the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from tests.support.file_trees import sealed_shards, sealed_states

PROGRAM = (sys.executable, "-m", "dlas_store")

_LIMIT_SECONDS = 120


class Result(NamedTuple):
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


def run(*arguments: str | Path, cwd: Path | None = None, before: str | None = None) -> Result:
    """Run a command to its end.

    Args:
        arguments: arguments of ``dlas-store``.
        cwd: working directory of the command.
        before: Python statements that run first in the command's process, to set limits that outlast an exec.
    """
    program = PROGRAM
    if before is not None:
        setup = (
            f"import os, sys\n{before}\nos.execv(sys.executable, [sys.executable, '-m', 'dlas_store', *sys.argv[1:]])"
        )
        program = (sys.executable, "-c", setup)
    ended = subprocess.run(
        [*program, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False
    )
    return Result(ended.returncode, ended.stdout, ended.stderr)


def done(*arguments: str | Path, cwd: Path | None = None) -> str:
    """Run a command that must succeed and print no errors, and return its output."""
    result = run(*arguments, cwd=cwd)
    assert (result.status, result.err) == (0, ""), result
    return result.out


def error_line(result: Result, status: int = 1) -> str:
    """Check that a command failed with a one-line message, and return the message."""
    assert result.status == status, result
    assert result.err.startswith("dlas-store: "), result
    assert result.err.count("\n") == 1, result
    return result.err.rstrip("\n")


def refused(*arguments: str | Path, cwd: Path | None = None) -> str:
    """Run a command that must fail with a one-line message, and return the message."""
    return error_line(run(*arguments, cwd=cwd))


def start(*arguments: str | Path, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start a command as the leader of a process group of its own, as a shell does."""
    return subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str]) -> Result:
    """Wait until a started command ends, and return its result."""
    out, err = process.communicate(timeout=_LIMIT_SECONDS)
    return Result(process.returncode, out, err)


def await_while_running(process: subprocess.Popen[str], condition: Callable[[], object]) -> None:
    """Wait until a condition is true; fail if the command ends earlier."""
    while not condition():
        assert process.poll() is None, f"the command ended before the condition was true: {process.communicate()}"
        time.sleep(0.002)


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return a command's worker processes, without Python's helper processes, whose command line differs."""
    own = psutil.Process(process.pid).cmdline()
    workers = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline() == own or any("spawn_main" in word for word in child.cmdline()):
                workers.append(child)
        except psutil.NoSuchProcess:
            continue
    return workers


def interrupt(process: subprocess.Popen[str]) -> None:
    """Send SIGINT to all processes of a command, as Ctrl-C does, and check that the command ends as it promises."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        out, err = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.fail("the command hangs after Ctrl-C")
    assert process.returncode == 130, err
    assert err.startswith("dlas-store: interrupted")
    assert err.count("\n") == 1, err
    assert out == ""


def interrupt_at_start(*arguments: str | Path) -> None:
    """Interrupt a command as soon as it has a child process."""
    process = start(*arguments)
    await_while_running(process, psutil.Process(process.pid).children)
    interrupt(process)


def stop_and_rerun(*arguments: str | Path, store: Path, stop: signal.Signals, new_shards: int) -> None:
    """Stop a command that writes a store, run it again, and check that the second run keeps the sealed shards.

    Args:
        arguments: arguments of ``dlas-store``.
        store: the store that the command writes, or appends to if the store exists.
        stop: signal that stops the command.
        new_shards: number of shards that the command seals before it is stopped.
    """
    existed, sealed = store.exists(), len(sealed_shards(store)) + new_shards
    process = start(*arguments)
    await_while_running(process, lambda: len(sealed_shards(store)) >= sealed)
    os.killpg(process.pid, stop)
    result = end(process)
    if stop == signal.SIGINT:
        assert result.status == 130
    assert "Traceback" not in result.err
    assert store.exists() == existed
    before = sealed_states(store)
    assert len(before) >= sealed
    done(*arguments)
    assert before.items() <= sealed_states(store).items()


def kill_worker(*arguments: str | Path, until: Callable[[], object] = lambda: True) -> None:
    """Kill a worker of a command once a condition is true, and check the command's one-line message."""
    process = start(*arguments)
    await_while_running(process, lambda: until() and workers_of(process))
    workers_of(process)[0].kill()
    assert "process" in error_line(end(process))


def kill_main_process(*arguments: str | Path, workers: int) -> None:
    """Kill a command but not its workers, and check that the workers end too."""
    process = start(*arguments)
    await_while_running(process, lambda: len(workers_of(process)) >= workers)
    processes = workers_of(process)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive


def info(store: Path) -> dict[str, Any]:
    """Return the facts that ``info --json`` prints."""
    facts = json.loads(done("info", store, "--json"))
    assert isinstance(facts, dict)
    return facts


def findings(store: Path, *arguments: str | Path) -> list[dict[str, str]]:
    """Return the findings of ``verify --json``, after a check that the exit status agrees with the findings."""
    result = run("verify", store, *arguments, "--json")
    report = json.loads(result.out)
    reported = report["findings"]
    assert isinstance(reported, list)
    assert (result.status, report["ok"]) == ((1, False) if reported else (0, True)), result
    assert reported or report["checked"] > 0
    return reported


def is_sound_copy(store: Path, source: Path) -> bool:
    """Return whether a store is sound and has exactly the contents of a source."""
    return findings(store, "--against", source) == []


@contextmanager
def stopped(*arguments: str | Path, until: Callable[[], object]) -> Iterator[subprocess.Popen[str]]:
    """Start a command, and stop all its processes with SIGSTOP once ``until`` returns something true."""
    process = start(*arguments)
    try:
        await_while_running(process, until)
        os.killpg(process.pid, signal.SIGSTOP)
        yield process
        os.killpg(process.pid, signal.SIGCONT)
    except BaseException:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
