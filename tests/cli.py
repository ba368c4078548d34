"""Runs of the dlas-store command in a process of its own, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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
        before: Python statements that run first in the command's process, to set limits that the process keeps.
    """
    program = PROGRAM
    if before is not None:
        become = (
            f"import os, sys\n{before}\nos.execv(sys.executable, [sys.executable, '-m', 'dlas_store', *sys.argv[1:]])"
        )
        program = (sys.executable, "-c", become)
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
    """Return the message of a command that must have failed with one line."""
    assert result.status == status, result
    assert result.err.startswith("dlas-store: "), result
    assert result.err.count("\n") == 1, result
    return result.err.rstrip("\n")


def refused(*arguments: str | Path, cwd: Path | None = None) -> str:
    """Run a command that must fail with one line, and return that line."""
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
    """Wait until a condition holds; the command must still be running."""
    while not condition():
        assert process.poll() is None, f"ended before it came to that: {process.communicate()}"
        time.sleep(0.002)


def info(store: Path) -> dict[str, Any]:
    """Return the JSON that ``info --json`` prints."""
    facts = json.loads(done("info", store, "--json"))
    assert isinstance(facts, dict)
    return facts


def findings(store: Path, *arguments: str | Path) -> list[dict[str, str]]:
    """Return the findings of ``verify --json``; the exit status must agree with them."""
    result = run("verify", store, *arguments, "--json")
    report = json.loads(result.out)
    found = report["findings"]
    assert isinstance(found, list)
    assert (result.status, report["ok"]) == ((1, False) if found else (0, True)), result
    assert found or report["checked"] > 0
    return found


def is_whole(store: Path, source: Path) -> bool:
    """Return whether a store is sound and holds exactly the contents of a source."""
    return findings(store, "--against", source) == []
