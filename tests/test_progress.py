"""Progress on standard error: a bar on a terminal, lines elsewhere in a command, and nothing with --quiet."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from dlas_store.progress import ProgressLines, progress_bar
from tests.support.file_trees import numbered_pictures

FAST_LINES = (
    "import sys\n"
    "from dlas_store import progress\n"
    "from dlas_store.cli.main import main\n"
    "progress.LINE_SECONDS = 0.02\n"
    "sys.exit(main(sys.argv[1:]))\n"
)
"""Program that is the command, with more lines of progress."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return numbered_pictures(tmp_path_factory.mktemp("photos") / "photos", 2_000)


def errors_of(*arguments: str | Path) -> str:
    """Run a command with more lines of progress, and return its standard error, which is no terminal."""
    command = [sys.executable, "-c", FAST_LINES, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return ended.stderr


def test_without_a_terminal_a_command_writes_lines_of_progress(photos: Path, tmp_path: Path) -> None:
    lines = errors_of("import", photos, tmp_path / "s.lmdb").splitlines()
    assert lines
    assert "\r" not in "".join(lines)
    for line in lines:
        assert re.match(r"listing: [\d,]+ images, \d+ s$|importing: [\d,]+ of 2,000 patches \(\d+ %\), \d+ s", line)


def test_quiet_turns_progress_off(photos: Path, tmp_path: Path) -> None:
    assert errors_of("import", "--quiet", photos, tmp_path / "s.lmdb") == ""


def test_progress_forces_the_bar(photos: Path, tmp_path: Path) -> None:
    shown = errors_of("import", "--progress", photos, tmp_path / "s.lmdb")
    assert re.search(r"importing: 100%\|.*\| 2.00k/2.00k", shown)


def test_without_a_terminal_the_first_line_comes_after_30_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ProgressLines(10, "testing", "patches")
    lines.update(3)
    assert capsys.readouterr().err == ""
    lines._started -= 30
    lines._next_line -= 30
    lines.update(2)
    lines.update(1)
    assert capsys.readouterr().err == "testing: 5 of 10 patches (50 %), 30 s, about 30 s left\n"


def test_a_program_that_uses_the_library_gets_no_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(10, "testing") as bar:
        assert bar is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("columns", [40, 80])
def test_a_bar_is_no_wider_than_the_terminal(columns: int, photos: Path, tmp_path: Path) -> None:
    leader, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, columns))
    command = [sys.executable, "-m", "dlas_store", "import", photos, tmp_path / "s.lmdb"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=terminal):
        os.close(terminal)
        shown = b""
        try:
            while chunk := os.read(leader, 4096):
                shown += chunk
        except OSError:  # on Linux, the last process has closed the terminal
            pass
    os.close(leader)
    lines = re.split(r"[\r\n]+", shown.decode())
    assert any(line.startswith("importing") for line in lines)
    assert max(map(len, lines)) <= columns
