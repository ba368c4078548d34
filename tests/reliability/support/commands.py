"""Fork server of dlas-store commands: one process loads the program and forks for every run, dozens of times a second.

This file, run as a script, is the server process.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

PATIENCE_SECONDS = 120

_LOADED_LATE = (
    "concurrent.futures.process",
    "dlas_store.converters.exporting",
    "dlas_store.converters.extraction.extracting",
    "dlas_store.converters.importing",
    "dlas_store.maintenance.info",
    "dlas_store.sources.published",
    "dlas_store.maintenance.reindex",
    "dlas_store.maintenance.verify",
    "encodings.cp437",
    "multiprocessing.popen_fork",
    "multiprocessing.sharedctypes",
    "multiprocessing.synchronize",
)
"""Modules that commands import late. The server imports them before a fork, so that runs start faster and runs of a
user without access to the checkout have them."""


class Ended(NamedTuple):
    """Result of a run of commands.

    Attributes:
        status: exit status of the last command; -N if signal N ended the command.
        published: number of completed commands; the run reports each command through a pipe before the next starts.
        out, err: text that the commands printed.
    """

    status: int
    published: int
    out: str
    err: str


class Run:
    """Run of one or more commands, one after another, in a process that leads a process group of its own."""

    def __init__(self, server: Commands, pid: int) -> None:
        self._server = server
        self.pid = pid

    def kill(self, *, with_workers: bool) -> None:
        """Kill the process if it still runs.

        Args:
            with_workers: whether to kill the worker processes too.
        """
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if with_workers else os.kill)(self.pid, signal.SIGKILL)

    def end(self) -> Ended:
        """Wait for the end of the process, and return the result."""
        return self._server.wait(self)


class Commands:
    """Handle of the fork server, which runs commands; ``with`` ends the server.

    Args:
        folder: folder for the output of the commands.
        environment: environment variables to set.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        self._folder = folder
        self._published, write_end = os.pipe()
        os.set_blocking(self._published, False)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(write_end)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[write_end],
            env=os.environ | (environment or {}),
            text=True,
            bufsize=1,
        )
        os.close(write_end)

    def start(self, *commands: Sequence[str | Path], largest_file: int | None = None, user: int = 0) -> Run:
        """Start one process that runs commands until one fails.

        Args:
            commands: arguments of ``dlas-store`` for each command.
            largest_file: maximum size of a file in bytes, which the system enforces; None for no limit.
            user: id of the user that runs the commands; 0 for the user of the tests.
        """
        for name in ("out", "err"):
            (self._folder / name).write_bytes(b"")
        request = {
            "commands": [[str(word) for word in command] for command in commands],
            "out": str(self._folder / "out"),
            "err": str(self._folder / "err"),
            "largest_file": largest_file,
            "user": user,
        }
        return Run(self, self._ask(request)["pid"])

    def run(self, *commands: Sequence[str | Path], largest_file: int | None = None, user: int = 0) -> Ended:
        """Run commands to their end, with the arguments of start()."""
        return self.start(*commands, largest_file=largest_file, user=user).end()

    def done(self, *command: str | Path) -> str:
        """Run a command that must succeed and print nothing to stderr, and return the command's output."""
        ended = self.run(command)
        assert (ended.status, ended.err) == (0, ""), (command, ended)
        return ended.out

    def killed(self, seconds: float, *commands: Sequence[str | Path], with_workers: bool) -> Ended:
        """Run commands and kill them after ``seconds``, with or without their worker processes."""
        run = self.start(*commands)
        time.sleep(seconds)
        run.kill(with_workers=with_workers)
        return run.end()

    def wait(self, run: Run) -> Ended:
        """Wait for the end of a run, and return the result."""
        status = self._ask({"wait": run.pid})["status"]
        try:
            published = len(os.read(self._published, 1 << 16))
        except BlockingIOError:
            published = 0
        out, err = ((self._folder / name).read_text(encoding="utf-8") for name in ("out", "err"))
        return Ended(status, published, out, err)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE_SECONDS)
        if not ready:
            self._process.kill()
        answer = self._process.stdout.readline()
        assert answer, f"the fork server hangs or has died at the request {request}"
        reply: dict[str, Any] = json.loads(answer)
        return reply

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_SECONDS)
        self._process.stdout.close()
        os.close(self._published)


def _serve(published: int, requests: IO[str], answers: IO[str]) -> None:
    from dlas_store.cli.main import main

    for name in _LOADED_LATE:
        importlib.import_module(name)
    for line in requests:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = {"status": os.waitstatus_to_exitcode(status)}
        else:
            pid = os.fork()
            if pid == 0:
                os._exit(_run_commands(main, request, published))
            answer = {"pid": pid}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _run_commands(main: Any, request: dict[str, Any], published: int) -> int:
    with contextlib.suppress(PermissionError):
        os.setsid()
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if request["largest_file"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"],) * 2)
    if request["user"]:
        os.setgroups([])
        os.setgid(request["user"])
        os.setuid(request["user"])
    status = 0
    try:
        for command in request["commands"]:
            status = main(command)
            sys.stdout.flush()
            if status:
                break
            os.write(published, b".")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - reported as the interpreter reports an uncaught exception
        sys.excepthook(*sys.exc_info())
        status = 70
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.stdin, sys.stdout)
