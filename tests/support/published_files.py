"""Tiny datasets in the formats of MNIST and CIFAR, written for one test."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.sample_data import Array


def levels(*shape: int, seed: int = 0) -> Array:
    """Return random levels, a uint8 array of a shape."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def idx(array: Array) -> bytes:
    """Return a uint8 array as an IDX file."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, pixels: Array, labels: Array, *, split: str = "train", compressed: bool = False) -> None:
    """Write the two files of a split."""
    folder.mkdir(parents=True, exist_ok=True)
    start = "train" if split == "train" else "t10k"
    for name, array in ((f"{start}-images-idx3-ubyte", pixels), (f"{start}-labels-idx1-ubyte", labels)):
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))


def python2_batch(fields: dict[str, Any]) -> bytes:
    """Return a batch as Python 2's cPickle writes it at protocol 2, with texts and pixels as byte strings."""
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
    """Write five training batches and the test batch; return the former's pixels (n, 32, 32, 3) and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"class {n}" for n in range(10)]
    (folder / "batches.meta").write_bytes(_dump({"label_names": names, "num_vis": 3072}, protocol))
    everything, all_labels = [], []
    for number in range(1, 7):
        rows, labels = levels(count, 3072, seed=number), levels(count, seed=number) % 10
        batch = {"data": rows, "labels": labels.tolist(), "batch_label": "x", "filenames": ["a.png"] * count}
        name = "test_batch" if number == 6 else f"data_batch_{number}"
        (folder / name).write_bytes(_dump(batch, protocol))
        if number < 6:
            everything.append(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            all_labels.append(labels)
    return np.concatenate(everything), np.concatenate(all_labels)


def write_cifar100(folder: Path, *, count: int = 20, protocol: int | None = None) -> tuple[Array, Array, Array]:
    """Write train, test and meta; return the pixels (n, 32, 32, 3), fine labels and coarse labels of train."""
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
    """Return fields pickled as by Python 2 or, given a protocol, by Python 3, whose keys are then bytes."""
    if protocol is None:
        return python2_batch(fields)
    return pickle.dumps({key.encode(): value for key, value in fields.items()}, protocol)
