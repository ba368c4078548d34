"""Measures of the system: processor time and memory of processes, and files in the page cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.system import (
    cpu_seconds_below,
    drop_from_page_cache,
    memory_bytes,
    page_residency,
    watch_memory,
)
from dlas_store import StoreError


def test_cpu_time_counts_processes_that_have_ended() -> None:
    before = cpu_seconds_below(os.getpid())
    subprocess.run([sys.executable, "-c", "sum(range(5_000_000))"], check=True)
    assert cpu_seconds_below(os.getpid()) > before


def test_peak_memory_sees_what_was_freed_again() -> None:
    start = memory_bytes(os.getpid())
    with watch_memory(os.getpid()) as peak:
        child = subprocess.Popen(
            [sys.executable, "-c", "block = b'1' * (64 << 20); print(); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        child.stdout.readline()
        while peak.value < start + (64 << 20):  # until a sample sees the block; else the test's timeout ends the loop
            pass
        child.communicate(b"\n")
    assert memory_bytes(os.getpid()) < peak.value


def test_files_leave_the_page_cache(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(100_000))
    drop_from_page_cache([tmp_path])
    with file.open("rb") as stream:
        assert not any(page_residency(stream.fileno()))
        stream.read()
        assert all(page_residency(stream.fileno()))


def test_a_mapped_file_that_stays_in_the_page_cache_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "file.npy", np.zeros(100_000))
    mapped = np.load(tmp_path / "file.npy", mmap_mode="r")
    assert mapped.sum() == 0
    with pytest.raises(StoreError, match="stay in the page cache"):
        drop_from_page_cache([tmp_path])
