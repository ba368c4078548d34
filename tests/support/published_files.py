"""Published files: tiny datasets in the formats of MNIST and CIFAR, written for a test."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.sample_data import Array


def levels(*shape: int, seed: int = 0) -> Array:
    """Return a uint8 array of random levels."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def idx(array: Array) -> bytes:
    """Return the bytes of an IDX file of a uint8 array."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, pixels: Array, labels: Array, *, split: str = "train", compressed: bool = False) -> None:
    """Write the two MNIST files of a split."""
    folder.mkdir(parents=True, exist_ok=True)
    start = "train" if split == "train" else "t10k"
    for name, array in ((f"{start}-images-idx3-ubyte", pixels), (f"{start}-labels-idx1-ubyte", labels)):
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))


def python2_batch(fields: dict[str, Any]) -> bytes:
    """Return the pickle of a batch by Python 2's cPickle at protocol 2: texts and pixels are byte strings."""
    return b"\x80\x02}(" + b"".join(_python2(key) + _python2(value) for key, value in fields.items()) + b"u."


def _python2(value: Any) -> bytes:
    match value:
        case int():
            return b"J" + struct.pack("<i", value)
        case str():
            return b"U" + bytes([len(value)]) + value.encode()
        case list():
            return b"](" + b"".join(map(_python2, value)) + b"e"
        case np.ndarray():
            shape = b"(" + b"".join(map(_python2, value.shape)) + b"t"
            dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            data = b"T" + struct.pack("<i", value.size) + value.tobytes()
            start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            return start + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb"
    raise TypeError(type(value))


def write_cifar10(folder: Path, *, count: int = 3, protocol: int | None = None) -> tuple[Array, Array]:
    """Write five training batches and the test batch; return pixels (n, 32, 32, 3) and labels of the training set."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"class {n}" for n in range(10)]
    (folder / "batches.meta").write_bytes(_dump({"label_names": names, "num_vis": 3072}, protocol))
    train_pixels, train_labels = [], []
    for number in range(1, 7):
        rows, labels = levels(count, 3072, seed=number), levels(count, seed=number) % 10
        batch = {"data": rows, "labels": labels.tolist(), "batch_label": "x", "filenames": ["a.png"] * count}
        name = "test_batch" if number == 6 else f"data_batch_{number}"
        (folder / name).write_bytes(_dump(batch, protocol))
        if number < 6:
            train_pixels.append(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            train_labels.append(labels)
    return np.concatenate(train_pixels), np.concatenate(train_labels)


def write_cifar100(folder: Path, *, count: int = 20, protocol: int | None = None) -> tuple[Array, Array, Array]:
    """Write train, test and meta; return pixels (n, 32, 32, 3), fine and coarse labels of the training set."""
    folder.mkdir(parents=True, exist_ok=True)
    meta = {
        "fine_label_names": [f"fine {n}" for n in range(100)],
        "coarse_label_names": [f"coarse {n}" for n in range(20)],
    }
    (folder / "meta").write_bytes(_dump(meta, protocol))
    for number, name in enumerate(("test", "train")):
        rows, fine = levels(count, 3072, seed=number), levels(count, seed=number + 2) % 100
        coarse = fine // 5
        batch = {"filenames": ["a.png"] * count, "batch_label": "x", "fine_labels": fine.tolist()}
        batch |= {"coarse_labels": coarse.tolist(), "data": rows}
        (folder / name).write_bytes(_dump(batch, protocol))
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), fine, coarse


def _dump(fields: dict[str, Any], protocol: int | None) -> bytes:
    """Pickle fields as Python 2 does or, given a protocol, as Python 3 does with bytes as keys."""
    if protocol is None:
        return python2_batch(fields)
    return pickle.dumps({key.encode(): value for key, value in fields.items()}, protocol)
