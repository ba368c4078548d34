"""WorkersLoader: the batches of ThreadsLoader, with any start method, and no process left behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.utils.data import Dataset

from dlas_store.datasets import create_dataloader, create_dataset, zero_pad
from dlas_store.errors import ImageError
from dlas_store.loading.threads import ThreadsLoader
from dlas_store.loading.workers import WorkersLoader
from dlas_store.sampling.rng import SampleKey
from dlas_store.sampling.samplers import DistIterSampler, EpochSampler
from tests.support.equality import assert_same
from tests.support.picture_folders import write_pictures
from tests.support.sample_data import ROOT, noise
from tests.support.small_stores import make_store, small_folder
from tests.support.toy_datasets import Rolls, Squares, indices_and_rolls

CORRUPTIONS = {"random_corruptions": ["noise", "lq_resampling", "color_jitter"], "num_corrupts_per_image": 2}


def process_ids(items: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the id of the process that made each item of a batch."""
    return [os.getpid()] * len(items)


def collate_tuple(items: Sequence[Mapping[str, Any]]) -> Any:
    """Return a batch that is a tuple rather than a dict."""
    return (torch.tensor([item["index"] for item in items]), [str(item["roll"]) for item in items])


def loader_of(
    dataset: Dataset[Any] | None = None, *, workers: int = 2, threads: int = 1, batch_size: int = 4, **options: Any
) -> WorkersLoader:
    dataset = Rolls() if dataset is None else dataset
    defaults = {
        "sampler": range(len(dataset)),  # type: ignore[arg-type]
        "drop_last": False,
        "collate_fn": indices_and_rolls,
        "start_method": "fork",
    }
    return WorkersLoader(dataset, batch_size=batch_size, workers=workers, threads=threads, **{**defaults, **options})


@pytest.fixture
def processes() -> Callable[[], list[Any]]:
    """A function that returns the worker processes started since the test began."""
    before = {process.pid for process in multiprocessing.active_children()}
    return lambda: [process for process in multiprocessing.active_children() if process.pid not in before]


# PyTorch warns if there are more workers than cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of five images and 20 patches, of two sizes."""
    root = tmp_path_factory.mktemp("workers")
    return make_store(small_folder(root / "chunked", *"abcde"), root / "store.lmdb")


def patches(store: Path, **options: Any) -> dict[str, Any]:
    """Return the options of a dataset of patches."""
    defaults = {"mode": "single_image_extensible", "paths": store, "target_size": 32, "scale": 2, "need_ref": True}
    return {**defaults, "strict": True, "seed": 4, "phase": "train", "batch_size": 3, **CORRUPTIONS, **options}


def epochs_of(options: Mapping[str, Any], count: int = 2, **more: Any) -> list[list[Any]]:
    opt = {**options, **more}
    loader = create_dataloader(create_dataset(opt), opt)
    return [list(loader) for _ in range(count)]


# The same batches as from threads


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_any_number_of_workers_and_threads_gives_the_same_batches(workers: int, threads: int, store: Path) -> None:
    options = patches(store)
    expected = epochs_of(options, loader="threads", n_threads=3 - threads)
    assert len(expected[0]) == 6
    assert not torch.equal(expected[0][0]["hq"], expected[1][0]["hq"])
    epochs = epochs_of(options, loader="workers", n_workers=workers, n_threads=threads, start_method="fork")
    assert_same(epochs, expected)


@pytest.mark.parametrize(
    ("start_method", "workers", "threads"), [("fork", 2, 2), ("forkserver", 2, 1), ("spawn", 1, 2)]
)
def test_any_start_method_gives_the_same_batches(start_method: str, workers: int, threads: int, store: Path) -> None:
    options = patches(store)
    dataset = create_dataset(options)
    dataset[0]  # a worker inherits, or receives, a dataset that was used
    opt = {**options, "loader": "workers", "n_workers": workers, "n_threads": threads, "start_method": start_method}
    loader = create_dataloader(dataset, opt)
    assert (loader.num_workers, loader.num_threads) == (workers, threads)
    loader.set_epoch(1)
    assert_same(list(loader), epochs_of(options, loader="threads")[1])


@pytest.mark.timeout(60)
def test_workers_forked_as_soon_as_a_pass_of_threads_is_over_work(store: Path) -> None:
    # Threads that Python has joined may still free memory of OpenCV, under a lock of OpenCV.
    options = patches(store)
    for _ in range(12):
        expected = epochs_of(options, 1, loader="threads", n_threads=1)
        epochs = epochs_of(options, 1, loader="workers", n_workers=2, n_threads=2, start_method="fork")
        assert_same(epochs, expected)


@pytest.mark.timeout(60)
def test_workers_forked_beside_passes_of_threads_work(store: Path) -> None:
    options = patches(store)
    expected = epochs_of(options, 1, loader="threads")
    is_enough = threading.Event()

    def read() -> None:
        while not is_enough.is_set():
            epochs_of(options, 1, loader="threads", n_threads=2)

    reading = threading.Thread(target=read)
    reading.start()
    try:
        for _ in range(8):
            epochs = epochs_of(options, 1, loader="workers", n_workers=2, n_threads=2, start_method="fork")
            assert_same(epochs, expected)
    finally:
        is_enough.set()
        reading.join()


@pytest.mark.filterwarnings("ignore:.*fewer than the 100 of a batch")
@pytest.mark.parametrize("phase", ["train", "val"])
@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_phases_and_batch_sizes_are_those_of_threads(phase: str, batch_size: int, store: Path) -> None:
    options = patches(store, phase=phase, batch_size=batch_size)
    expected = epochs_of(options, 1, loader="threads")
    assert_same(epochs_of(options, 1, loader="workers", n_workers=2, start_method="fork"), expected)
    assert len(expected[0]) == (20 // batch_size if phase == "train" else -(-20 // batch_size))


@pytest.mark.parametrize("mode", ["imagefolder", "stylegan2", "multiscale", "fullimage", "pixels", "combined"])
def test_other_modes_are_those_of_threads(mode: str, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "photos", {f"{n}.png": noise(40, 48, seed=n) for n in range(7)})
    options: dict[str, Any] = {"mode": mode, "paths": folder, "seed": 4, "phase": "train", "batch_size": 3, "scale": 2}
    if mode == "stylegan2":
        options |= {"path": options.pop("paths"), "aug_prob": 0.5}
    if mode == "fullimage":
        options |= {"dataroot_GT": options.pop("paths"), "min_tile_size": 32, "lq_noise": 3}
    if mode in ("imagefolder", "stylegan2", "fullimage"):
        options |= {"target_size": 32}
    if mode == "multiscale":
        options |= {"hq_tile_size": 8, "num_scales": 2}
    if mode == "combined":
        options.pop("paths")
        options |= {"default": {"mode": "imagefolder", "paths": folder, "target_size": 32}}
    expected = epochs_of(options, loader="threads")
    assert_same(epochs_of(options, loader="workers", n_workers=2, start_method="fork"), expected)


def test_needs_collate_pads_alike(tmp_path: Path) -> None:
    sizes = {f"{n}.png": noise(20 + 4 * n, 40 - 4 * n, seed=n) for n in range(5)}
    options = {
        "mode": "pixels",
        "paths": write_pictures(tmp_path / "photos", sizes),
        "phase": "train",
        "batch_size": 2,
        "seed": 3,
    }
    expected = epochs_of(options, loader="threads", needs_collate=True)
    assert_same(epochs_of(options, loader="workers", n_workers=2, needs_collate=True, start_method="fork"), expected)
    assert len({batch["pixels"].shape for batch in expected[0]}) > 1


@pytest.mark.parametrize("collate", [indices_and_rolls, zero_pad, collate_tuple, list])
def test_collate_functions_get_the_same_items(collate: Callable[..., Any]) -> None:
    threads = ThreadsLoader(Rolls(), sampler=range(40), batch_size=6, drop_last=False, threads=2, collate_fn=collate)
    assert_same(list(loader_of(collate_fn=collate, batch_size=6)), list(threads))


@pytest.mark.parametrize("drop_last", [False, True])
def test_samplers_of_every_kind_give_the_same_order(drop_last: bool) -> None:
    for make in (
        lambda: range(40),
        lambda: [SampleKey(number % 40, number) for number in range(50, 0, -1)],
        lambda: EpochSampler(40, seed=1, shuffle=True, batch_size=7, drop_last=drop_last),
        lambda: EpochSampler(40, seed=1, shuffle=True, batch_size=14, rank=1, ranks=2, drop_last=drop_last),
        lambda: DistIterSampler(40, replicas=3, rank=1, ratio=2),
    ):
        threads = ThreadsLoader(
            Rolls(), sampler=make(), batch_size=7, drop_last=drop_last, threads=2, collate_fn=indices_and_rolls
        )
        workers = loader_of(sampler=make(), batch_size=7, drop_last=drop_last)
        assert len(workers) == len(threads)
        for _ in range(2):
            expected = list(threads)
            assert list(workers) == expected
            assert len(expected) == len(threads)


def test_a_foreign_dataset_gets_plain_indices() -> None:
    for sampler in (range(10), EpochSampler(10, seed=1, shuffle=True, batch_size=4)):
        batches = list(loader_of(Squares(), sampler=sampler, collate_fn=None))
        assert sorted(torch.cat(batches).tolist()) == [number**2 for number in range(10)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sampler_of_ints_gives_patches_of_the_epoch(workers: int, store: Path) -> None:
    dataset: Any = create_dataset(patches(store))
    order = [7, 0, 19, 7, 3]
    loader = loader_of(dataset, workers=workers, sampler=order, batch_size=3, collate_fn=None)
    threads = ThreadsLoader(dataset, sampler=order, batch_size=3, drop_last=False, threads=2)
    expected = [list(threads), list(threads)]
    assert_same([list(loader), list(loader)], expected)
    assert torch.equal(expected[1][0]["lq"][1], dataset[SampleKey(0, 1)]["lq"])


class Halves(Squares):
    """A foreign dataset whose items hold a tensor of a type unknown to NumPy, a view, and a dict."""

    def __getitem__(self, index: int) -> Any:
        big = torch.arange(300.0 * 300).reshape(300, 300) + index
        return {"half": torch.full((3,), index, dtype=torch.bfloat16), "transposed": big.T, "nested": {"n": index}}


def test_tensors_of_any_kind_come_as_they_were_made() -> None:
    threads = ThreadsLoader(Halves(), sampler=range(10), batch_size=4, drop_last=False, threads=2)
    assert_same(list(loader_of(Halves(), collate_fn=None)), list(threads))


def test_two_passes_at_a_time_do_not_disturb_each_other() -> None:
    def loader() -> WorkersLoader:
        return loader_of(workers=1, sampler=EpochSampler(40, seed=3, shuffle=True, batch_size=4))

    reference = loader()
    expected = [list(reference), list(reference)]
    interleaved = loader()
    pairs = list(zip(iter(interleaved), iter(interleaved), strict=True))
    assert [list(batches) for batches in zip(*pairs, strict=True)] == expected


def test_batches_are_made_in_other_processes_and_those_of_no_workers_here() -> None:
    processes = {process for batch in loader_of(workers=2, collate_fn=process_ids) for process in batch}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert {process for batch in loader_of(workers=0, collate_fn=process_ids) for process in batch} == {os.getpid()}


# Errors


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("collate", [indices_and_rolls, None])
def test_an_error_reaches_the_reader_and_ends_the_pass(workers: int, threads: int, collate: Any) -> None:
    dataset = Rolls(bad=[21])
    order = [SampleKey(number - number % 3, 1) for number in range(40)]
    loader = loader_of(dataset, workers=workers, threads=threads, collate_fn=collate, sampler=order)
    batches = iter(loader)
    assert len(list(islice(batches, 5))) == 5
    with pytest.raises(ImageError, match="item 21 is damaged"):
        next(batches)
    assert list(batches) == []
    dataset.bad.clear()
    assert len(list(loader)) == 10


def test_an_error_leaves_no_process_behind(processes: Callable[[], list[Any]]) -> None:
    batches = iter(loader_of(Rolls(bad=[21])))
    try:
        list(batches)
    except ImageError:
        pass
    else:
        pytest.fail("no error")
    remaining = processes()
    gc.collect()
    assert remaining == []


def test_errors_of_foreign_datasets_keep_their_message() -> None:
    with pytest.raises(ValueError, match="13 is unlucky"):
        list(loader_of(Squares(20), collate_fn=None))


def test_a_worker_that_is_killed_is_an_error(processes: Callable[[], list[Any]]) -> None:
    batches = iter(loader_of(Rolls(length=4000), workers=1))
    next(batches)
    (worker,) = processes()
    # A signal handler of PyTorch raises "is killed by signal" at any moment.
    with pytest.raises(RuntimeError, match=r"exited unexpectedly|is killed by signal"):  # noqa: PT012
        worker.kill()
        list(batches)


# Epochs that end early


def by_break(loader: WorkersLoader) -> None:
    for _ in loader:
        break


def by_exception(loader: WorkersLoader) -> None:
    with pytest.raises(KeyError):  # noqa: PT012
        for _ in loader:
            raise KeyError


def by_closing(loader: WorkersLoader) -> None:
    batches = iter(loader)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert list(batches) == []


def by_forgetting(loader: WorkersLoader) -> None:
    batches = iter(loader)
    next(batches)


def by_not_beginning(loader: WorkersLoader) -> None:
    iter(loader)


@pytest.mark.parametrize("end", [by_break, by_exception, by_closing, by_forgetting, by_not_beginning])
def test_a_pass_that_is_broken_off_leaves_no_process_and_the_next_works(
    end: Callable[[WorkersLoader], None], processes: Callable[[], list[Any]]
) -> None:
    loader = loader_of(Rolls(length=400), threads=2)
    end(loader)
    assert processes() == []
    loader.set_epoch(0)
    assert [index for batch in loader for index, _ in batch] == list(range(400))


class TemporaryFolders(Squares):
    """A dataset whose items are the number of folders among the temporary files of their process."""

    def __getitem__(self, item: int) -> int:
        return sum(path.is_dir() for path in Path(tempfile.gettempdir()).iterdir())


def test_the_folder_of_a_workers_socket_is_there_before_a_batch_is_sent_and_gone_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that a worker makes only when it sends its first batch can outlast a worker that ends meanwhile."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # a forked process inherits the setting
    # A forked process also inherits the folder for sockets of this process, if there is one.
    configuration: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    monkeypatch.delitem(configuration, "tempdir", raising=False)
    batches = iter(loader_of(TemporaryFolders(), workers=1, collate_fn=None))
    assert next(batches).tolist() == [1] * 4
    del batches
    assert not list(tmp_path.iterdir())


class BusyThread(Dataset[int]):
    """A dataset with a thread in each process that runs PyTorch code at any time, as the sender of batches may."""

    started = False

    def __len__(self) -> int:
        return 400

    def __getitem__(self, index: int) -> int:
        if not self.started:
            self.started = True
            threading.Thread(target=self._run, daemon=True).start()
        return index

    def _run(self) -> None:
        while True:
            torch.zeros(1 << 16).share_memory_()


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_a_worker_whose_threads_are_in_pytorch_at_its_end_does_not_abort(
    start_method: str, processes: Callable[[], list[Any]]
) -> None:
    """A spawned worker that finalizes its interpreter aborts, and PyTorch raises an error in the parent."""
    batches: Any = iter(loader_of(BusyThread(), workers=2, start_method=start_method, collate_fn=None))
    next(batches)
    workers = processes()
    batches.close()
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_processes_end_with_the_pass(processes: Callable[[], list[Any]]) -> None:
    batches = iter(loader_of(workers=3))
    assert processes() == []
    next(batches)
    assert len(processes()) == 3
    list(batches)
    assert processes() == []


INTERRUPTED = """
import multiprocessing, sys
sys.path[:0] = [{root!r}]
from tests.support.toy_datasets import Rolls
from tests.loading.test_workers import loader_of

if __name__ == "__main__":
    loader = loader_of(Rolls(length=10**7), batch_size=32, threads=2)
    try:
        for number, batch in enumerate(loader):
            if number == 20:
                print("reading", flush=True)
    except KeyboardInterrupt:
        print("processes:", multiprocessing.active_children(), flush=True)
        print(len(next(iter(loader))), flush=True)
        raise
"""


def test_ctrl_c_ends_the_pass_its_workers_and_the_process() -> None:
    code = INTERRUPTED.format(root=str(ROOT))
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
        os.killpg(process.pid, signal.SIGINT)  # a terminal signals the workers, too
        out, _ = process.communicate(timeout=60)
    assert out == "processes: []\n32\n"
    assert process.returncode == -signal.SIGINT
    assert psutil.wait_procs(workers, timeout=30)[1] == []


KEPT = """
import signal, sys
sys.path[:0] = [{root!r}]
from tests.loading.test_workers import loader_of

if __name__ == "__main__":
    batches = iter(loader_of(start_method={start_method!r}))
    next(batches)
    if {interrupted}:
        signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_a_pass_that_is_still_kept_when_the_program_ends_leaves_no_file(
    start_method: str, interrupted: bool, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(KEPT.format(root=str(ROOT), start_method=start_method, interrupted=interrupted))
    with tempfile.TemporaryDirectory() as temporary:  # its name is short enough for sockets
        environment = os.environ | {"TMPDIR": temporary}
        result = subprocess.run(
            [sys.executable, str(program)], env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == (-signal.SIGINT if interrupted else 0), result.stderr
        assert not list(Path(temporary).iterdir())


def test_workers_end_when_their_parent_is_killed() -> None:
    code = INTERRUPTED.format(root=str(ROOT))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert psutil.wait_procs(workers, timeout=30)[1] == []
