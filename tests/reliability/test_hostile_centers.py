"""Hostile centers.pt: reading a file runs no code of the file, and takes bounded memory."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from dlas_store.sources.base import Center
from dlas_store.sources.centers import write_centers
from tests.conftest import Runs
from tests.reliability.support import watched
from tests.reliability.support.children import each_in_child
from tests.reliability.support.mutations import mutated
from tests.support.hostile_centers import CANARY, FOLDER, HOSTILE, KEPT_BYTES, legacy_of, saved, zip_of

GOOD = [
    saved({1: ((2, 3), 4), 70_000: ((-5, 1 << 40), 256)}),
    saved({1: ((torch.tensor(2), 3), torch.tensor([4.0]))}),
    saved({1: (torch.tensor([5, 6]), 4)}, is_zip=False),
    write_centers({number: Center(number, 300, 256) for number in range(5)}),
]
"""Valid files, whose mutations get far into the reader."""


def test_the_files_that_are_kept_are_those_that_are_made() -> None:
    files = {path.stem: path.read_bytes() for path in FOLDER.glob("*.pt")}
    assert len(files) >= 24
    assert files == {name: data for name, data in HOSTILE.items() if len(data) <= KEPT_BYTES}


@pytest.mark.parametrize("program", [b"cposix\nsystem\n.", b"cbuiltins\neval\n(X\x01\x00\x00\x001tR."])
@pytest.mark.parametrize("make", [zip_of, legacy_of])
def test_the_watch_sees_what_a_usual_unpickler_does(
    program: bytes, make: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain unpickler triggers the watch, which shows that the watch can fail."""
    import pickle

    from dlas_store.sources import centers

    def unsafe(*_: object) -> object:
        return pickle.loads(program)

    def read_unsafely(number: int) -> None:
        watched.install()
        monkeypatch.setattr(centers, "_load", unsafe)
        with pytest.raises(watched.RanSomethingError):
            watched.read(make(program))  # type: ignore[operator]

    each_in_child(read_unsafely, range(1))


def test_nothing_is_run_and_memory_is_bounded_whatever_a_file_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Runs
) -> None:
    """Run 0 reads all hostile and valid files. Every run reads a mutated file, every second run a twice mutated one."""
    monkeypatch.chdir(tmp_path)
    hostile = [path.read_bytes() for path in sorted(FOLDER.glob("*.pt"))]
    seeds = hostile + GOOD * 8

    def read(number: int) -> None:
        watched.install()
        if not number:
            assert all(map(watched.read, hostile))
            assert not any(map(watched.read, GOOD))
        rng = random.Random(number)
        data = mutated(rng.choice(seeds), rng, donors=seeds)
        watched.read(mutated(data, rng, donors=seeds) if number % 2 else data)

    each_in_child(read, runs(small=4000, full=1_000_000), memory=800 << 20)
    assert not (tmp_path / CANARY).exists()
