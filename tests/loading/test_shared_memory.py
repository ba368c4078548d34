"""Workers with too little shared memory or too few files raise an error at once, and never let the reader wait."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dlas_store.datasets import create_dataset
from dlas_store.loading.shared_memory import BufferReceiver, SentZeros, SharedBufferPool, new_slots
from dlas_store.sampling.rng import SampleKey
from tests.loading.test_workers import loader_of
from tests.support.picture_folders import write_pictures
from tests.support.sample_data import noise
from tests.support.small_stores import make_store
from tests.support.toy_datasets import Squares

PROGRAM = """
import json, sys, time
import psutil, torch
from dlas_store.datasets import create_dataloader, create_dataset
from dlas_store.errors import SharedMemoryError

if __name__ == "__main__":
    opt = json.loads(sys.argv[1])
    torch.multiprocessing.set_sharing_strategy(sys.argv[2])
    if sys.argv[3] == "full":
        with open("/dev/shm/filling", "wb", 0) as file:
            try:
                while file.write(bytes(1 << 12)):
                    pass
            except OSError:
                pass
    begin = time.monotonic()
    kept = []
    try:
        for batch in create_dataloader(create_dataset(opt), opt):
            kept.append(batch if sys.argv[3] == "kept" else 0)
        result = f"{len(kept)} batches"
    except SharedMemoryError as error:
        result = str(error)
    del kept
    helpers = ("resource_tracker", "forkserver", "shm_manager")
    children = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    left = [child for child in children if not any(helper in child for helper in helpers)]
    print(json.dumps([result, time.monotonic() - begin, left]))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 40 patches of 128 x 128 pixels, of which 8 make a batch of 3 MB."""
    root = tmp_path_factory.mktemp("shared")
    pictures = {f"a/{number}.png": noise(128, 128, seed=number) for number in range(40)}
    write_pictures(root / "chunked", {**pictures, "a/ref.jpg": noise(128, 128)})
    return make_store(root / "chunked", root / "store.lmdb")


def run(
    tmp_path: Path,
    store: Path,
    *,
    mount: str = "",
    files: int = 0,
    strategy: str = "file_descriptor",
    use: str = "",
    **options: Any,
) -> tuple[str, float, list[str]]:
    """Read a store in a program with a /dev/shm of its own; return the result, seconds, and processes left behind."""
    if mount and (os.geteuid() or not shutil.which("unshare")):
        pytest.skip("only root mounts a small /dev/shm")
    defaults = {"mode": "single_image_extensible", "paths": str(store), "target_size": 128, "batch_size": 8}
    workers = {"loader": "workers", "n_workers": 2, "start_method": "fork"}
    opt = {
        **defaults,
        "scale": 1,
        "phase": "train",
        **({} if options.get("loader") == "threads" else workers),
        **options,
    }
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = f"exec {shlex.join([sys.executable, str(program), json.dumps(opt), strategy, use])}"
    if files:
        command = f"ulimit -n {files} && {command}"
    unshared = ["unshare", "-m"] if mount else []
    if mount:
        command = f"mount -t tmpfs -o {mount} tmpfs /dev/shm && {command}"
    done = subprocess.run([*unshared, "sh", "-c", command], capture_output=True, text=True, timeout=100, check=False)
    if "mount" in done.stderr and "program.py" not in done.stderr:
        pytest.skip(f"no mounting here: {done.stderr}")
    assert done.stdout, done.stderr
    result, seconds, left = json.loads(done.stdout)
    return result, seconds, left


def check_error(outcome: tuple[str, float, list[str]], *advice: str) -> None:
    result, seconds, left = outcome
    for text in (*advice, "loader: threads"):
        assert text in result
    assert "\n" not in result
    assert seconds < 30  # less than 2 s on an idle machine
    assert left == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "case",
    [
        {"mount": "size=8M"},
        {"mount": "size=8M", "start_method": "spawn"},
        {"mount": "size=8M", "strategy": "file_system"},
        {"mount": "size=8M", "need_ref": True},
        {"mount": "size=1M", "need_ref": True, "device": "cpu"},
        {"mount": "size=14M", "use": "kept"},
        {"mount": "size=1M", "use": "full"},
        {"mount": "size=4k", "start_method": "forkserver"},
        {"mount": "ro"},
        {"mount": "ro", "strategy": "file_system"},
    ],
    ids=str,
)
def test_a_small_full_or_read_only_dev_shm_is_an_error_and_no_hang(
    case: dict[str, Any], store: Path, tmp_path: Path
) -> None:
    check_error(run(tmp_path, store, **case), "--shm-size", "/dev/shm")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("files", [24, 40, 56])
def test_too_few_files_are_an_error_and_no_hang(files: int, store: Path, tmp_path: Path) -> None:
    check_error(run(tmp_path, store, files=files, use="kept", need_ref=True, batch_size=2), "ulimit -n")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mount", ["size=1M", "ro"])
def test_threads_need_no_shared_memory(mount: str, store: Path, tmp_path: Path) -> None:
    result, _, _ = run(tmp_path, store, mount=mount, use="full" if "size" in mount else "", loader="threads")
    assert result == "5 batches"


@pytest.mark.timeout(120)
def test_enough_shared_memory_gives_all_batches(store: Path, tmp_path: Path) -> None:
    assert run(tmp_path, store, mount="size=64M", need_ref=True)[::2] == ("5 batches", [])


# Messages


class UnpicklableError(Exception):
    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"{number} {text}")
        self.function = lambda: number


class Broken(Squares):
    """A dataset whose items are errors of a class that cannot be made from its message alone, or that is local."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def __getitem__(self, index: int) -> Any:
        class LocalError(Exception):
            pass

        if self.kind == "batch":
            return index
        raise LocalError("item 7 is broken") if self.kind == "local" else UnpicklableError(7, "is broken")


def unpicklable_batch(items: list[Any]) -> Any:
    return lambda: items


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["local", "arguments"])
def test_an_error_that_cannot_be_pickled_reaches_the_reader(kind: str) -> None:
    with pytest.raises(Exception, match="7 is broken"):
        list(loader_of(Broken(kind), collate_fn=None))


@pytest.mark.timeout(60)
def test_a_batch_that_cannot_be_pickled_is_an_error_and_no_hang() -> None:
    with pytest.raises(Exception, match=r"unpicklable_batch.*<lambda>|[Cc]an't (pickle|get local)"):
        list(loader_of(Broken("batch"), collate_fn=unpicklable_batch))


@pytest.mark.timeout(60)
def test_a_sampler_of_what_cannot_be_pickled_is_an_error_and_no_hang() -> None:
    with pytest.raises(Exception, match=r"<lambda>|[Cc]an't (pickle|get local)"):
        list(loader_of(Squares(), sampler=[lambda: 1] * 8, collate_fn=None))


class Missing:
    """A sampler whose file is missing."""

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[int]:
        yield 1
        Path("/nonexistent/order.txt").read_text()


def test_an_error_of_the_sampler_is_not_taken_for_one_of_shared_memory() -> None:
    with pytest.raises(FileNotFoundError, match="order"):
        list(loader_of(Squares(), sampler=Missing(), collate_fn=None))


def test_arrays_and_bytes_of_a_batch_come_as_they_are() -> None:
    import numpy as np

    def collate(items: list[Any]) -> Any:
        return {"array": np.array(items), "bytes": b"x", "tensor": torch.tensor(items)}

    for batch in loader_of(Squares(), collate_fn=collate):
        assert isinstance(batch["array"], np.ndarray)
        assert batch["bytes"] == b"x"
        assert isinstance(batch["tensor"], torch.Tensor)


# Zeros


@pytest.mark.parametrize("need_ref", [False, True])
def test_references_that_are_all_zero_are_not_sent(need_ref: bool, store: Path) -> None:
    dataset: Any = create_dataset(
        {"mode": "single_image_extensible", "paths": store, "target_size": 128, "scale": 1, "need_ref": need_ref}
    )
    slots = new_slots(1)
    pool, receiver = SharedBufferPool(slots, 0), BufferReceiver(slots, pin_memory=False)
    builder = dataset.batch_builder([SampleKey(number, 0) for number in range(4)], pool.allocate)
    builder.fill(0, 4)
    made = builder.finish()
    message = pool.send(made)
    zeros = {key for key, value in message.items() if isinstance(value, SentZeros)}
    assert zeros == (set() if need_ref else {"gt_fullsize_ref", "lq_fullsize_ref"})
    received = receiver.receive(message)
    for key in ("hq", "lq", "gt_fullsize_ref", "lq_fullsize_ref"):
        assert torch.equal(received[key], made[key])
        assert received[key].dtype == torch.float32
