"""Published datasets keep their pictures and labels as sources and in stores, and none of their pickles is run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from dlas_store import open_source
from dlas_store.cli.main import main
from dlas_store.converters.importing import import_store
from dlas_store.errors import (
    ClosedError,
    ConfigError,
    DamagedError,
    NameNotFoundError,
    NotASourceError,
    PatchIndexError,
    StoreError,
)
from dlas_store.sources.arrays import ArrayPictures
from dlas_store.sources.base import Source
from dlas_store.sources.published import load_cifar, open_published
from tests.support.published_files import idx, levels, python2_batch, write_cifar10, write_cifar100, write_mnist
from tests.support.sample_data import noise, png


def labels_of(source: Source) -> list[dict[str, Any]]:
    return [dict(source.image(number).extra) for number in range(source.image_count)]


def store_of(source: Source, path: Path, **options: Any) -> Source:
    import_store([source], path, **options)
    return open_source(path)


# Pictures and labels


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("place", ["MNIST/raw", "raw", ""])
def test_mnist_keeps_its_pictures_and_labels(tmp_path: Path, compressed: bool, place: str) -> None:
    pixels, labels = levels(12, 28, 28), levels(12) % 10
    write_mnist(tmp_path / place, pixels, labels, compressed=compressed)
    store = store_of(open_published("mnist", tmp_path), tmp_path / "mnist.lmdb")
    assert store.layout == "pictures"
    assert [store.image_name(number) for number in (0, 11)] == ["train/000000.png", "train/000011.png"]
    np.testing.assert_array_equal(store.read_pixels(range(12)), pixels[..., None].repeat(3, 3))
    assert PillowImage.open(io.BytesIO(store.read(0))).mode == "L"
    assert labels_of(store) == [{"label": int(label), "label_name": str(label)} for label in labels]


def test_fashion_mnist_has_the_names_of_its_classes(tmp_path: Path) -> None:
    write_mnist(tmp_path / "FashionMNIST" / "raw", levels(2, 28, 28), np.array([9, 0], np.uint8), split="test")
    source = open_published("fmnist", tmp_path, split="test")
    assert labels_of(source) == [{"label": 9, "label_name": "Ankle boot"}, {"label": 0, "label_name": "T-shirt/top"}]
    assert source.image_name(1) == "test/000001.png"


@pytest.mark.parametrize("protocol", [None, 2, 3, 4, 5])
@pytest.mark.parametrize("place", ["cifar-10-batches-py", ""])
def test_cifar10_joins_its_batches_in_order(tmp_path: Path, protocol: int | None, place: str) -> None:
    pixels, labels = write_cifar10(tmp_path / place, protocol=protocol)
    store = store_of(open_published("cifar10", tmp_path), tmp_path / "cifar10.lmdb")
    np.testing.assert_array_equal(store.read_pixels(range(15)), pixels)
    assert labels_of(store) == [{"label": int(label), "label_name": f"class {label}"} for label in labels]


@pytest.mark.parametrize("protocol", [None, 2, 3, 4, 5])
def test_cifar100_has_coarse_labels_as_well(tmp_path: Path, protocol: int | None) -> None:
    pixels, fine, coarse = write_cifar100(tmp_path / "cifar-100-python", protocol=protocol)
    store = store_of(open_published("cifar100", tmp_path, split="train"), tmp_path / "cifar100.lmdb")
    np.testing.assert_array_equal(store.read_pixels(range(20)), pixels)
    assert labels_of(store) == [
        {"label": label, "label_name": f"fine {label}", "coarse_label": group, "coarse_label_name": f"coarse {group}"}
        for label, group in zip(fine.tolist(), coarse.tolist(), strict=True)
    ]


def test_without_meta_classes_have_no_names(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "batches.meta").unlink()
    assert labels_of(open_published("cifar10", tmp_path))[0].keys() == {"label"}


def make_classes(root: Path) -> dict[str, bytes]:
    """Write pictures in class folders, an empty class folder and a stray picture; return the pictures with a class."""
    files = {"dog/b/2.png": png(noise(5, 6)), "dog/1.PNG": png(noise(6, 5)), "Cat/9.png": png(noise(4, 4))}
    for name, data in [*files.items(), ("stray.png", png(noise(3, 3)))]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "bird").mkdir()
    return files


@pytest.mark.parametrize(("name", "folder"), [("imagefolder", ""), ("imagenet", "train")])
def test_folders_of_classes_keep_their_files_and_are_labelled_by_sorted_name(
    tmp_path: Path, name: str, folder: str
) -> None:
    files = make_classes(tmp_path / "data" / folder)
    summary = import_store([open_published(name, tmp_path / "data")], tmp_path / "s.lmdb")
    assert [skipped.path for skipped in summary.skipped] == ["stray.png", "bird"]
    store = open_source(tmp_path / "s.lmdb")
    assert {store.image_name(n): store.read(n) for n in range(3)} == files
    assert labels_of(store) == [
        {"label": 0, "label_name": "Cat"},
        {"label": 1, "label_name": "dog"},
        {"label": 1, "label_name": "dog"},
    ]


def test_splits_are_folders_of_their_own(tmp_path: Path) -> None:
    make_classes(tmp_path / "val")
    for name, split in [("imagenet", "test"), ("imagenet", "val"), ("imagefolder", "val")]:
        assert open_published(name, tmp_path, split=split).path == tmp_path / "val"


def test_a_folder_of_splits_gives_train(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
        (tmp_path / split / "cat/1.png").write_bytes(png(noise(6, 8)))
    assert open_published("imagefolder", tmp_path).path == tmp_path / "train"
    (tmp_path / "train").rename(tmp_path / "test")
    with pytest.raises(NotASourceError, match="--split"):
        open_published("imagefolder", tmp_path)


def test_classes_called_as_splits_are_classes(tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png(noise(6, 8)))
    assert open_published("imagefolder", tmp_path).path == tmp_path


# The source


@pytest.fixture
def cifar(tmp_path: Path) -> Source:
    write_cifar10(tmp_path / "cifar")
    return open_published("cifar10", tmp_path / "cifar")


def test_an_array_gives_what_its_png_decodes_to(cifar: Source) -> None:
    for index in (0, 14):
        decoded = np.asarray(PillowImage.open(io.BytesIO(cifar.read(index))))
        np.testing.assert_array_equal(cifar.read_pixels([index])[0], decoded)
    rgba = cifar.read_pixels([3], alpha=True)[0]
    assert rgba.shape == (32, 32, 4)
    assert (rgba[..., 3] == 255).all()


def test_an_array_numbers_its_pictures_as_any_source_does(cifar: Source) -> None:
    assert len(cifar) == cifar.image_count == 15
    assert [cifar.first_patch(number) for number in (0, 7, 15)] == [0, 7, 15]
    assert cifar.locate(7) == (7, 0)
    assert cifar.patch_path(7) == f"{cifar.path}/train/000007.png"
    assert cifar.find_image("train/000007.png") == cifar.find("train/000007.png", "000007.png") == 7
    assert cifar.read_reference(7) is None
    assert [listing.name for listing in cifar.listings()] == [cifar.image_name(number) for number in range(15)]
    assert [int(listing.sizes[0]) for listing in cifar.listings()] == [len(cifar.read(n)) for n in range(15)]
    for number in (-1, 15):
        for method in (cifar.read, cifar.locate, cifar.image, cifar.image_name, cifar.patch_path):
            with pytest.raises(PatchIndexError):
                method(number)
    for name in ("train/7.png", "test/000007.png", "train/000015.png", "000007.png", "train/000007.jpg", "train/٣.png"):
        with pytest.raises(NameNotFoundError):
            cifar.find_image(name)


def test_an_array_pickles_as_its_path_and_closes(cifar: Source) -> None:
    data = pickle.dumps(cifar)
    assert len(data) < 2000
    with pickle.loads(data) as copy:
        assert copy.read(4) == cifar.read(4)
    with pytest.raises(ClosedError):
        copy.read(4)


def test_imports_are_the_same_for_any_number_of_workers_and_every_time(cifar: Source, tmp_path: Path) -> None:
    by_one = store_of(cifar, tmp_path / "1.lmdb", workers=1, shard_size=5000)
    by_two = store_of(cifar, tmp_path / "2.lmdb", workers=2, shard_size=5000)
    assert [by_one.read(index) for index in range(15)] == [by_two.read(index) for index in range(15)]
    assert len(list((tmp_path / "2.lmdb").glob("shard-*"))) > 2


def test_a_second_split_is_appended(cifar: Source, tmp_path: Path) -> None:
    store_of(cifar, tmp_path / "c.lmdb")
    test_split = open_published("cifar10", tmp_path / "cifar", split="test")
    summary = import_store([test_split], tmp_path / "c.lmdb", append=True)
    assert summary.images == 3
    assert open_source(tmp_path / "c.lmdb").image_name(15) == "test/000000.png"
    second_summary = import_store([cifar], tmp_path / "c.lmdb", append=True, compare_bytes=True)
    assert (second_summary.images, second_summary.changed) == (0, [])


# The command


def test_the_command_imports_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, fine, _ = write_cifar100(tmp_path / "cifar-100-python")
    store = tmp_path / "cifar100.lmdb"
    assert main(["import", "torch:cifar100", "--root", str(tmp_path), str(store)]) == 0
    assert "imported 20 images" in capsys.readouterr().out
    assert open_source(store).image(0).extra["label"] == fine[0]
    assert main(["import", "torch:cifar100", str(store), "--append", "--root", str(tmp_path), "--split", "test"]) == 1
    assert open_source(store).image_count == 40


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["torch:cifar100", "s.lmdb"], 2, "torch:cifar100: give the folder that holds its files with --root"),
        (["folder", "s.lmdb", "--split", "test"], 2, "--root and --split are for torch:NAME"),
        (["torch:svhn", "s.lmdb", "--root", "."], 2, "no dataset 'svhn'; known are mnist, fmnist, cifar10, cifar100"),
        (["torch:mnist", "s.lmdb", "--root", ".", "--split", "dev"], 2, "split must be one of train, test, val"),
        (["torch:mnist", "s.lmdb", "--root", "absent"], 1, "absent: holds no train-images-idx3-ubyte and train-labels"),
        (["torch:cifar10", "s.lmdb", "--root", "."], 1, "holds no data_batch_1, looked for in cifar-10-batches-py, ."),
    ],
)
def test_the_command_says_what_is_missing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["import", *arguments]) == status
    assert message in capsys.readouterr().err


def test_a_folder_may_have_such_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_classes(tmp_path / "torch:mnist")
    assert main(["import", "./torch:mnist", "s.lmdb"]) == 0


def test_importing_loads_neither_torch_nor_opencv(tmp_path: Path) -> None:
    write_mnist(tmp_path, levels(2, 28, 28), levels(2) % 10)
    script = (
        "import sys; from dlas_store.cli.main import main\n"
        f"main(['import', 'torch:mnist', '--root', {str(tmp_path)!r}, {str(tmp_path / 's.lmdb')!r}])\n"
        "sys.exit(bool({'torch', 'cv2', 'torchvision'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# Files that are damaged or hostile


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "is not of the 800 bytes"),
        (lambda data: data + b"x", "is not of the 800 bytes"),
        (lambda data: b"", "no IDX file of bytes in 3 dimensions"),
        (lambda data: data[:10], "no IDX file of bytes in 3 dimensions"),
        (lambda data: b"\0\0\x0d\x03" + data[4:], "no IDX file of bytes in 3 dimensions"),
        (lambda data: b"\0\0\x08\x01" + data[4:], "no IDX file of bytes in 3 dimensions"),
        (lambda data: data[:4] + b"\xff" * 12 + data[16:], "claims 79228162458924105385300197375 bytes"),
        (lambda data: b"\x1f\x8b" + data, "cannot be read"),
        (lambda data: idx(levels(2, 28, 28)), "has 1 labels for the 2 pictures"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    write_mnist(tmp_path, levels(1, 28, 28), levels(1) % 10)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DamagedError, match=message):
        len(open_published("mnist", tmp_path))


def test_a_truncated_gzip_file_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path, levels(1, 28, 28), levels(1) % 10, compressed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DamagedError, match=r"train-images-idx3-ubyte\.gz: cannot be read"):
        len(open_published("mnist", tmp_path))


class Bomb:
    """A pickled object that makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._folder),)


GOOD = {"data": levels(2, 3072), "labels": [1, 2]}


def load(path: Path) -> Source:
    loader = partial(load_cifar, [path], path.with_name("meta"), split="train", labels={"label": "labels"}, names={})
    return ArrayPictures(path.parent, loader)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_batch_that_calls_something_is_refused_and_calls_nothing(tmp_path: Path, protocol: int) -> None:
    path, folder = tmp_path / "batch", tmp_path / "made by the pickle"
    for fields in ({"data": Bomb(folder), "labels": []}, {**GOOD, "x": Bomb(folder)}):
        path.write_bytes(pickle.dumps(fields, protocol))
        with pytest.raises(DamagedError, match=r"batch: refused: it (names|uses opcode)"):
            len(load(path))
        assert not folder.exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"data": levels(2, 3072).astype(np.int64), "labels": [1, 2]},
        {"data": levels(2, 3072).astype(object), "labels": [1, 2]},
        {"data": np.zeros((2, 3072), [("a", "u1")]), "labels": [1, 2]},
        {"data": levels(2, 3072).astype("datetime64[s]"), "labels": [1, 2]},
        {1: levels(2, 3072)},
        {(1, 2): 3},
        {"x": np.float64(1)},
        {"x": {1, 2}},
        {"x": 1 + 2j},
        {"x": Path("a")},
    ],
)
def test_a_batch_of_other_things_is_refused(tmp_path: Path, fields: dict[Any, Any]) -> None:
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps(fields, 4))
    with pytest.raises(DamagedError, match="batch: refused: it "):
        len(load(path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": [1, 2]}, "holds no 'data'"),
        ({"data": levels(2, 3072)}, "holds no 'labels'"),
        ({"data": [1], "labels": [1]}, "data is no array of 3072 bytes a picture"),
        ({"data": levels(2, 3071), "labels": [1, 2]}, "data is no array of 3072 bytes a picture"),
        ({"data": levels(6144), "labels": [1, 2]}, "data is no array of 3072 bytes a picture"),
        ({"data": levels(2, 3072), "labels": [1]}, "labels has 1 labels for 2 pictures"),
        ({"data": levels(2, 3072), "labels": [1, "a"]}, "labels is no list of labels"),
        ({"data": levels(2, 3072), "labels": [1, -1]}, "labels is no list of labels"),
        ({"data": levels(2, 3072), "labels": levels(2)}, "labels is no list of labels"),
    ],
)
def test_a_batch_that_lacks_something_is_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps(fields, 4))
    with pytest.raises(DamagedError, match=f"batch: {message}"):
        len(load(path))


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b".", b"\x80\x02]q\x00.", b"\x80\x02N."),
        b"\x80\x05\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b"x.",
        b"\x80\x05\x96" + struct.pack("<Q", 5) + b"x.",
        b"\x80\x02cnumpy\nndarray\n(tR.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(tR(K\x01tb.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(tRNb.",
        b"\x80\x02}}b.",
        b"\x80\x02r\xff\xff\xff\xff.",
        python2_batch(GOOD)[:-100],
        python2_batch(GOOD)[:40],
    ],
)
def test_bytes_that_are_no_batch_raise_an_error_of_ours(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "batch"
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=str(path)):
        len(load(path))


def test_a_shape_that_does_not_fit_its_bytes_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    batch = python2_batch({"data": levels(2, 3072), "labels": [1, 2]})
    path.write_bytes(batch.replace(b"(J\x02\0\0\0J\0\x0c\0\0t", b"(J\xff\xff\xff\x7fJ\0\x0c\0\0t", 1))
    with pytest.raises(DamagedError, match="batch: cannot be read as a batch"):
        len(load(path))


@pytest.mark.parametrize("names", ["text", [1, 2], {"a": 1}])
def test_names_of_classes_are_texts(tmp_path: Path, names: Any) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, 4))
    with pytest.raises(DamagedError, match="names of the classes are no list of texts"):
        len(open_published("cifar10", tmp_path))


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_4").unlink()
    with pytest.raises(NotASourceError, match=r"data_batch_4: is missing; unpack the publisher's archive again"):
        open_published("cifar10", tmp_path)
    with pytest.raises(NotASourceError, match=r"holds no train, looked for in .*cifar-100-python"):
        open_published("cifar100", tmp_path / "absent")
    with pytest.raises(NotASourceError, match="holds no pictures in folders of classes"):
        open_published("imagefolder", tmp_path)
    with pytest.raises(StoreError, match="not a folder"):
        open_published("imagenet", tmp_path)
    with pytest.raises(ConfigError, match="no dataset 'svhn'"):
        open_published("svhn", tmp_path)
