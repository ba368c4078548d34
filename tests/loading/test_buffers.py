"""Pools of memory: batch buffers are reused once nothing refers to them, and a scratch array has one user at a time."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlas_store.converters.importing import import_store
from dlas_store.datasets import SingleImageDataset
from dlas_store.loading.buffers import BufferPool, ScratchPool
from dlas_store.loading.loader import Loader
from dlas_store.loading.threads import PREFETCH_BATCHES, ThreadsLoader
from dlas_store.loading.workers import WorkersLoader
from dlas_store.sampling.samplers import EpochSampler
from tests.support.file_trees import write
from tests.support.sample_data import ROOT, Array, noise
from tests.support.small_stores import in_child
from tests.support.source_contract import jpeg

BIG = (1 << 17,)
"""The shape of an array large enough for a pool to keep."""

BATCH = 8
ITEMS = 12 * BATCH


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two images of 48 patches, with references."""
    root = tmp_path_factory.mktemp("memory")
    for image in "ab":
        patches = {f"{n:08d}.jpg": jpeg(noise(32, 32, seed=n + 100 * (image == "b"))) for n in range(ITEMS // 2)}
        write(root / "chunked" / image, {**patches, "ref.jpg": jpeg(noise(32, 32, seed=ord(image)))})
    import_store([root / "chunked"], root / "store.lmdb", workers=1)
    return root / "store.lmdb"


def loader_of(store: Path, kind: str = "threads", *, threads: int = 2, **options: Any) -> Loader:
    dataset = SingleImageDataset(
        {"paths": store, "target_size": 32, "scale": 2, "need_ref": True, "seed": 1, **options}
    )
    sampler = EpochSampler(len(dataset), seed=3, shuffle=True, batch_size=BATCH)
    if kind == "threads":
        return ThreadsLoader(dataset, sampler=sampler, batch_size=BATCH, drop_last=False, threads=threads)
    return WorkersLoader(
        dataset, sampler=sampler, batch_size=BATCH, drop_last=False, workers=kind == "workers", threads=threads
    )


def tensors(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}


def copy(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in tensors(batch).items()}


def assert_equal(batch: dict[str, Any], other: dict[str, torch.Tensor]) -> None:
    assert tensors(batch).keys() == other.keys()
    for key, value in other.items():
        assert torch.equal(batch[key], value), key


# BufferPool


def test_memory_in_use_is_given_to_nobody_else() -> None:
    pool = BufferPool(2)
    arrays = [pool.batch_allocator()(BIG, np.uint8) for _ in range(6)]
    assert len({array.ctypes.data for array in arrays}) == 6
    for number, array in enumerate(arrays):
        array[:] = number
    assert [set(array.tolist()) for array in arrays] == [{number} for number in range(6)]


def test_memory_that_nobody_uses_is_given_again() -> None:
    pool = BufferPool(4)
    first = pool.batch_allocator()(BIG, np.uint8)
    address = first.ctypes.data
    second = pool.batch_allocator()(BIG, np.uint8)
    assert second.ctypes.data != address
    del first
    assert pool.batch_allocator()(BIG, np.uint8).ctypes.data == address


HOLDERS: dict[str, Callable[[Array], object]] = {
    "array": lambda array: array,
    "slice": lambda array: array[5:6],
    "view of a view": lambda array: array.view(np.float32).reshape(4, -1)[1][2:3],
    "tensor": torch.from_numpy,
    "slice of a tensor": lambda array: torch.from_numpy(array)[3:4],
    "detached tensor": lambda array: torch.from_numpy(array).view(4, -1)[2].detach(),
    "storage": lambda array: torch.from_numpy(array).untyped_storage(),
    "array of a tensor": lambda array: torch.from_numpy(array)[7:].numpy(),
    "array by DLPack": lambda array: np.from_dlpack(torch.from_numpy(array)),  # type: ignore[arg-type]
    "tensor by DLPack": torch.from_dlpack,
    "DLPack capsule": lambda array: torch.utils.dlpack.to_dlpack(torch.from_numpy(array)),  # type: ignore[attr-defined]
    "memoryview": memoryview,
    "bytes of it": lambda array: memoryview(array)[8:9],
    "cycle": lambda array: [loop := [array], loop.append(loop)],
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_any_reference_keeps_memory(kind: str) -> None:
    pool = BufferPool(2)
    array = pool.batch_allocator()(BIG, np.uint8)
    address = array.ctypes.data
    holder = HOLDERS[kind](array)
    del array
    later_arrays = [pool.batch_allocator()(BIG, np.uint8) for _ in range(5)]
    assert address not in {later.ctypes.data for later in later_arrays}
    del holder


@pytest.mark.parametrize("kind", HOLDERS)
def test_memory_is_free_once_the_reference_is_gone(kind: str) -> None:
    pool = BufferPool(4)
    array = pool.batch_allocator()(BIG, np.uint8)
    address = array.ctypes.data
    holder = HOLDERS[kind](array)
    del array, holder
    gc.collect()
    assert pool.batch_allocator()(BIG, np.uint8).ctypes.data == address


def test_shapes_and_types_have_memory_of_their_own() -> None:
    pool = BufferPool(2)
    for shape, dtype in (
        ((4, 1 << 16), np.uint8),
        ((4, 1 << 15), np.int16),
        ((1 << 16,), np.float32),
        ((3, 5), np.int8),
    ):
        for _ in range(3):
            array = pool.batch_allocator()(shape, dtype)
            assert array.shape == shape
            assert array.dtype == dtype
            assert array.flags.c_contiguous
            assert array.flags.writeable


def test_threads_never_share_memory() -> None:
    pool = BufferPool(3)
    start = threading.Barrier(4)

    def use(number: int) -> bool:
        start.wait()
        is_unchanged = True
        for step in range(400):
            array = pool.batch_allocator()(BIG, np.uint8)
            array[:8] = array[-8:] = (4 * step + number) % 251
            time.sleep(0)
            is_unchanged &= set(array[:8].tolist() + array[-8:].tolist()) == {(4 * step + number) % 251}
            del array
        return is_unchanged

    with ThreadPoolExecutor(4) as executor:
        assert all(executor.map(use, range(4)))


def test_a_process_forked_beside_threads_that_allocate_can_allocate() -> None:
    pool = BufferPool(3)
    is_running = True

    def use() -> None:
        while is_running:
            pool.batch_allocator()(BIG, np.uint8)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            assert in_child(lambda: pool.batch_allocator()(BIG, np.uint8).fill(1), patience=10) == 0
    finally:
        is_running = False
        for thread in threads:
            thread.join()


# Batches of loaders


@pytest.mark.parametrize("kind", ["threads", "workers", "here"])
def test_all_batches_of_two_epochs_may_be_kept(kind: str, store: Path) -> None:
    loader = loader_of(store, kind)
    kept = [(batch, copy(batch)) for _ in range(2) for batch in loader]
    assert len(kept) == 2 * ITEMS // BATCH
    for batch, copied in kept:
        assert_equal(batch, copied)
    addresses = [tensor.data_ptr() for batch, _ in kept for tensor in tensors(batch).values()]
    assert len(set(addresses)) == len(addresses)


@pytest.mark.parametrize("kind", ["threads", "workers", "here"])
def test_two_passes_at_a_time_have_memory_of_their_own(kind: str, store: Path) -> None:
    reference = loader_of(store, kind)
    expected = [[copy(batch) for batch in reference] for _ in range(2)]
    loader = loader_of(store, kind)
    kept = []
    for number, pair in enumerate(zip(iter(loader), iter(loader), strict=True)):
        kept.append((pair, number))
        kept = kept[-3:]
        for batches, position in kept:
            for batch, epoch in zip(batches, expected, strict=True):
                assert_equal(batch, epoch[position])


def test_a_pass_within_a_pass_leaves_the_outer_batch_alone(store: Path) -> None:
    loader = loader_of(store, "workers")
    for number, batch in enumerate(loader):
        copied = copy(batch)
        for inner in loader:
            del inner
        assert_equal(batch, copied)
        if number == 2:
            break


KEEPERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "slice": lambda batch: batch["hq"][3, 1, 4:6, 7],
    "array": lambda batch: batch["hq"].numpy(),
    "slice of an array": lambda batch: batch["gt_fullsize_ref"].numpy()[7, 3, 31:, 31:],
    "view": lambda batch: batch["hq"].permute(0, 2, 3, 1).flatten(2)[1],
    "DLPack": lambda batch: np.from_dlpack(batch["hq"]),
    "storage": lambda batch: torch.tensor([], dtype=torch.float32).set_(batch["hq"].untyped_storage()),
    "parameter": lambda batch: torch.nn.Parameter(batch["hq"], requires_grad=False),
}


def values_of(view: Any) -> Array:
    """Return the values of an array or tensor, without a copy."""
    array: Array = view.numpy() if isinstance(view, torch.Tensor) else view
    return array


@pytest.mark.parametrize("kind", ["threads", "workers"])
@pytest.mark.parametrize("keeper", KEEPERS)
def test_a_part_of_a_batch_keeps_what_it_shows(keeper: str, kind: str, store: Path) -> None:
    kept = []
    for number, batch in enumerate(loader_of(store, kind)):
        if number % 2 == 0:
            view = KEEPERS[keeper](batch)
            kept.append((view, values_of(view).copy()))
        del batch
    for view, copied in kept:
        np.testing.assert_array_equal(values_of(view), copied)


@pytest.mark.parametrize("kind", ["threads", "workers"])
def test_what_a_reader_changes_in_place_shows_in_no_later_batch(kind: str, store: Path) -> None:
    reference, loader = loader_of(store, kind), loader_of(store, kind)
    expected = [copy(batch) for _ in range(2) for batch in reference]
    batches = (batch for _ in range(2) for batch in loader)
    for batch, copied in zip(batches, expected, strict=True):
        assert_equal(batch, copied)
        for tensor in tensors(batch).values():
            tensor.fill_(77)
        batch["GT_path"].clear()
        del batch["LQ_path"]


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("threads", [1, 2])
def test_memory_of_dropped_batches_is_used_again(threads: int, scale: int, store: Path) -> None:
    loader = loader_of(store, threads=threads, scale=scale)
    pool = loader._buffers  # type: ignore[attr-defined]
    batch_allocator = pool.batch_allocator

    def recording_allocator() -> Callable[..., Array]:
        allocate = batch_allocator()

        def allocate_recorded(shape: tuple[int, ...], dtype: Any) -> Array:
            array: Array = allocate(shape, dtype)
            if array.nbytes >= 1 << 16:
                lent.append(weakref.ref(array))
                addresses.add((shape, array.ctypes.data))
            return array

        return allocate_recorded

    pool.batch_allocator = recording_allocator
    lent: list[weakref.ref[Array]] = []
    addresses: set[tuple[tuple[int, ...], int]] = set()
    for _ in range(4):
        for batch in loader:
            del batch
    shapes = {shape for shape, _ in addresses}
    assert shapes == {(BATCH, 1, 3, 32, 32), (BATCH, 1, 4, 32, 32)}
    # LQ is as large as HQ at scale 1. At scale 2 LQ is too small to be kept.
    arrays = len(shapes) * (2 if scale == 1 else 1)
    assert len(lent) == 48 * arrays
    assert len(addresses) <= arrays * (PREFETCH_BATCHES + 2)
    assert all(array() is not None for array in lent)  # so the pool dropped no array


MEASURE = """
import gc, sys
from pathlib import Path
sys.path[:0] = [{root!r}]
from tests.loading.test_buffers import loader_of, resident

loader = loader_of(Path({store!r}), {kind!r}, random_corruptions=["noise", "gaussian_blur"], num_corrupts_per_image=1)
bytes_after = []
for epoch in range(6):
    for batch in loader:
        batch["hq"].sum()
    del batch
    gc.collect()
    bytes_after.append(resident())
print(bytes_after[-1] - bytes_after[1])
"""


def resident() -> int:
    """Return the bytes of memory that belong to this process alone."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_Dirty"))


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="only Linux reports the private memory of a process"
)
@pytest.mark.parametrize("kind", ["threads", "workers"])
def test_memory_does_not_grow_from_epoch_to_epoch(kind: str, store: Path) -> None:
    # An epoch's batches are 4 MB. Batches of four epochs, if kept, would exceed the limit.
    code = MEASURE.format(root=str(ROOT), store=str(store), kind=kind)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2 << 20


# ScratchPool


SHAPE = (4, 8, 6, 3)


def test_arrays_are_one_a_patch() -> None:
    with ScratchPool().patches(SHAPE) as arrays:
        assert [array.shape for array in arrays] == [SHAPE[1:]] * SHAPE[0]
        for number, array in enumerate(arrays):
            array[...] = number
        assert [set(array.flat) for array in arrays] == [{0}, {1}, {2}, {3}]


def test_arrays_given_back_are_lent_again_and_those_in_use_to_nobody() -> None:
    pool = ScratchPool()
    with pool.patches(SHAPE) as first, pool.patches(SHAPE) as second:
        assert {array.ctypes.data for array in first}.isdisjoint(array.ctypes.data for array in second)
    with pool.patches(SHAPE) as again:
        assert again is first  # the arrays returned last


def test_another_shape_has_arrays_of_its_own() -> None:
    pool = ScratchPool()
    with pool.patches(SHAPE):
        pass
    with pool.patches((2, 5, 5, 3)) as arrays:
        assert [array.shape for array in arrays] == [(5, 5, 3)] * 2


def test_after_an_error_they_can_be_had_as_before() -> None:
    pool = ScratchPool()
    with pytest.raises(ZeroDivisionError), pool.patches(SHAPE):
        raise ZeroDivisionError
    with pool.patches(SHAPE) as arrays:
        assert len(arrays) == SHAPE[0]


def test_a_pickled_one_is_empty() -> None:
    pool = ScratchPool()
    with pool.patches(SHAPE):
        pass
    assert pickle.loads(pickle.dumps(pool))._free == []
