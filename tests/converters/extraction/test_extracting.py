"""Extraction: stores and folders, any number of workers, other programs, and memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dlas_store import open_source
from dlas_store.datasets import SingleImageDataset
from tests.support.command_line import PROGRAM, is_sound_copy, run
from tests.support.file_trees import read, states, write
from tests.support.photo_files import SMALL, encoded, images_of, scene

pytestmark = pytest.mark.usefixtures("opencv_without_threads")


# Stores and folders, workers


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of several sizes in several folders; some are skipped."""
    files = {
        f"{number % 3}/{number:02d}.png": encoded(scene(40 + number % 5 * 9, 60, seed=number), "png")
        for number in range(24)
    }
    files["0/bad.jpg"] = b""
    return write(tmp_path_factory.mktemp("many") / "photos", files)


OPTIONS = ("--crop-size", "24,48", "--step", "16,24", "--threshold", "4", "--quality", "90")


def test_a_store_and_a_folder_are_the_same_for_any_number_of_workers(many: Path, tmp_path: Path) -> None:
    folders, stores = [], []
    for workers in ("1", "2", "3"):
        folder, store = tmp_path / f"f{workers}", tmp_path / f"s{workers}.lmdb"
        for target in (folder, store):
            options = ("--workers", workers, "--shard-size", "5KiB", "--report", tmp_path / "r.json")
            result = run("extract", *OPTIONS, *options, many, target)
            assert (result.status, result.err) == (1, ""), result  # a bad photo
            assert "0/bad.jpg" in result.out
        assert is_sound_copy(store, folder)  # metadata.jsonl included
        folders.append(read(folder))
        stores.append((images_of(store), {name: state[2] for name, state in states(store).items()}.keys()))
    assert folders[0] == folders[1] == folders[2]
    assert stores[0] == stores[1] == stores[2]
    names = {name.partition("/")[0] for name in folders[0]}
    assert names == {"metadata.jsonl", *stores[0][0]}
    for name in stores[0][0]:
        files = sorted(path.rpartition("/")[2] for path in folders[0] if path.startswith(f"{name}/"))
        assert files == [*stores[0][0][name].files, "centers.pt", "ref.jpg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "f1",
        "f2",
        "f3",
        "r.json",
        "s1.lmdb",
        "s2.lmdb",
        "s3.lmdb",
    ]


def test_images_come_in_the_order_of_their_names(many: Path, tmp_path: Path) -> None:
    run("extract", *OPTIONS, many, tmp_path / "s.lmdb")
    run("extract", *OPTIONS, many, tmp_path / "f")
    with open_source(tmp_path / "s.lmdb") as store, open_source(tmp_path / "f") as folder:
        names = [store.image_name(number) for number in range(store.image_count)]
        assert names == [folder.image_name(number) for number in range(folder.image_count)]


@pytest.mark.parametrize("to", ["s.lmdb", "folder"])
def test_every_item_is_read_by_the_dataset(many: Path, tmp_path: Path, to: str) -> None:
    run("extract", *OPTIONS, many, tmp_path / to)
    dataset = SingleImageDataset(
        {"paths": str(tmp_path / to), "target_size": 24, "scale": 2, "need_ref": True, "strict": True}
    )
    count = 0
    for index in range(len(dataset)):
        item = dataset[index]
        assert item["hq"].shape == (3, 24, 24)
        assert item["gt_fullsize_ref"].shape == (4, 24, 24)
        count += 1
    assert count == sum(len(image.files) for image in images_of(tmp_path / to).values())


def test_a_shard_size_divides_a_store(many: Path, tmp_path: Path) -> None:
    run("extract", *OPTIONS, "--shard-size", "5KiB", many, tmp_path / "small.lmdb")
    run("extract", *OPTIONS, "--shard-size", "1GiB", many, tmp_path / "large.lmdb")
    assert len(states(tmp_path / "small.lmdb")) > 3
    assert len(states(tmp_path / "large.lmdb")) == 1
    assert images_of(tmp_path / "small.lmdb") == images_of(tmp_path / "large.lmdb")


# Inside other programs

_IN_A_PROGRAM = """
import sys, cv2, numpy
cv2.resize(numpy.zeros((3000, 3000, 3), numpy.uint8), (700, 700), interpolation=cv2.INTER_AREA)  # starts threads
from dlas_store.cli.main import main
sys.exit(main(["extract", *sys.argv[1:]]))
"""


def test_a_program_that_used_opencv_before_can_extract(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", {"a.png": encoded(scene(100, 100), "png")})
    program = [sys.executable, "-c", _IN_A_PROGRAM, *SMALL, str(photos), str(tmp_path / "s.lmdb")]
    process = subprocess.Popen(program, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        assert process.wait(20) == 0
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        pytest.fail("hangs")
    assert images_of(tmp_path / "s.lmdb").keys() == {"a"}


# Memory


def _tree_bytes(process: psutil.Process) -> int:
    total = 0
    for member in (process, *process.children(recursive=True)):
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _peak_bytes(*arguments: str | Path) -> int:
    """Return the peak memory of a command and its processes, sampled every few milliseconds."""
    process = subprocess.Popen([*PROGRAM, *map(str, arguments)], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, _tree_bytes(psutil.Process(process.pid)))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.005)
    assert process.wait() == 0
    return peak


@pytest.mark.parametrize("to", ["s.lmdb", "folder"])
def test_memory_does_not_grow_with_photos(tmp_path: Path, to: str) -> None:
    pixels = scene(1000, 1200)
    content = encoded(pixels, "jpg", quality=60)
    peaks = []
    for count in (12, 120):
        photos = write(tmp_path / f"photos{count}", {"0.jpg": content})
        for number in range(1, count):
            os.link(photos / "0.jpg", photos / f"{number}.jpg")
        options = ("--workers", "2", "--crop-size", "500", "--step", "500", "--quality", "100")
        peaks.append(_peak_bytes("extract", *options, photos, tmp_path / f"{count}{to}"))
    assert peaks[1] - peaks[0] <= 6 * pixels.nbytes
