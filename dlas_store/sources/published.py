"""Published classification datasets as sources: MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100, class folders."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlas_store.errors import ConfigError, DamagedError, NotASourceError
from dlas_store.sources.arrays import ArrayPictures, LabelledPictures
from dlas_store.sources.base import Source
from dlas_store.sources.folder import is_picture
from dlas_store.sources.inert_pickle import (
    SAFE_OPCODES,
    DType,
    InertUnpickler,
    PickleRules,
    RefusedError,
    UnfinishedObject,
    encode_latin1,
    make_dtype,
)
from dlas_store.sources.layouts import ClassFolders
from dlas_store.sources.walk import FolderWalk

SPLITS = ("train", "test", "val")
"""Splits of a dataset; ``val`` is another name for ``test``."""

MAX_FILE_BYTES = 1 << 30
"""Largest file that is read; the largest published files are CIFAR-100's train with 155 MB and MNIST's with 47 MB."""

_DIGITS = tuple("0123456789")
_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

_IDX_UINT8 = 8
"""Code of the type uint8 in the header of an IDX file."""

_CIFAR_SIDE = 32
_CIFAR_PICTURE_BYTES = 3 * _CIFAR_SIDE * _CIFAR_SIDE

_FAILURES = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError,
    TypeError, ValueError, pickle.PickleError, struct.error,
)  # fmt: skip
"""Exceptions that the unpickler raises for malformed bytes."""


def open_published(name: str, root: Path, *, split: str | None = None, include_hidden: bool = False) -> Source:
    """Open the files of a published dataset as pictures with ``label`` and ``label_name`` in Image.extra.

    CIFAR-100 has ``coarse_label`` and ``coarse_label_name`` as well. The pictures keep the publisher's order; pictures
    in class folders are sorted by path.

    Args:
        name: one of NAMES.
        root: folder of the publisher's files, or the folder that contains it, as torchvision downloads it.
        split: one of SPLITS. None means ``train``; for imagefolder, None means that ``root`` holds the class
            folders, and ``train`` only if all folders of ``root`` are called as splits and hold folders, no pictures.
        include_hidden: read hidden files and folders of class folders, too; see open_source.

    Raises:
        ConfigError: the name or the split is unknown.
        NotASourceError: the files are missing.
    """
    if name not in NAMES:
        raise ConfigError(f"no dataset {name!r}; known are {', '.join(NAMES)}")
    if split not in (None, *SPLITS):
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if name in _OPENERS:
        return _OPENERS[name](root, split)
    return _open_classes(root, name, split, include_hidden=include_hidden)


def _open_idx(folders: tuple[str, ...], class_names: tuple[str, ...], root: Path, split: str | None) -> Source:
    split = "train" if split in (None, "train") else "test"
    start = "train" if split == "train" else "t10k"
    names = (f"{start}-images-idx3-ubyte", f"{start}-labels-idx1-ubyte")
    for folder in (root.absolute() / name for name in folders):
        files = [next(filter(Path.is_file, (folder / name, folder / f"{name}.gz")), None) for name in names]
        match files:
            case Path() as images, Path() as labels:
                load = partial(load_idx, images, labels, split=split, class_names=class_names)
                return ArrayPictures(folder, load)
    raise _missing_files(root, " and ".join(names), folders)


def _open_cifar10(root: Path, split: str | None) -> Source:
    split = "train" if split in (None, "train") else "test"
    files = [f"data_batch_{number}" for number in range(1, 6)] if split == "train" else ["test_batch"]
    load = partial(load_cifar, split=split, labels={"label": "labels"}, names={"label": "label_names"})
    return _open_cifar(root, files, "cifar-10-batches-py", "batches.meta", load)


def _open_cifar100(root: Path, split: str | None) -> Source:
    split = "train" if split in (None, "train") else "test"
    load = partial(
        load_cifar,
        split=split,
        labels={"label": "fine_labels", "coarse_label": "coarse_labels"},
        names={"label": "fine_label_names", "coarse_label": "coarse_label_names"},
    )
    return _open_cifar(root, [split], "cifar-100-python", "meta", load)


def _open_cifar(
    root: Path, files: list[str], folder_name: str, meta: str, load: Callable[..., LabelledPictures]
) -> Source:
    for folder in (root.absolute() / folder_name, root.absolute()):
        if (folder / files[0]).is_file():
            for file in files:
                if not (folder / file).is_file():
                    raise NotASourceError(f"{folder / file}: is missing; unpack the publisher's archive again")
            return ArrayPictures(folder, partial(load, [folder / file for file in files], folder / meta))
    raise _missing_files(root, files[0], (folder_name, ""))


def _open_classes(root: Path, name: str, split: str | None, *, include_hidden: bool) -> Source:
    if name == "imagenet":
        split = "train" if split in (None, "train") else "val"
    elif split is None and _holds_splits(root, include_hidden=include_hidden):
        split = "train"
        if not (root / split).is_dir():
            raise NotASourceError(f"{root}: holds folders of splits, but none is called train; choose one with --split")
    source = ClassFolders(root if split is None else root / split, include_hidden=include_hidden)
    if next(source.listings(), None) is None:
        raise NotASourceError(f"{source.path}: holds no pictures in folders of classes")
    return source


def _holds_splits(root: Path, *, include_hidden: bool) -> bool:
    """Return whether a folder holds only folders of splits, which hold folders and no pictures of their own."""
    if not root.is_dir():
        return False
    walk = FolderWalk(root, include_hidden=include_hidden)
    _, splits = walk.entries("")
    if not splits or not set(splits).issubset(SPLITS):
        return False
    contents = [walk.entries(split) for split in splits]
    return any(folders for _, folders in contents) and not any(
        is_picture(file) for files, _ in contents for file in files
    )


def _missing_files(root: Path, names: str, folders: tuple[str, ...]) -> NotASourceError:
    paths = ", ".join(str(root / folder) for folder in folders)
    return NotASourceError(f"{root}: holds no {names}, looked for in {paths}; download and unpack it there")


_OPENERS: Mapping[str, Callable[[Path, str | None], Source]] = MappingProxyType(
    {
        "mnist": partial(_open_idx, ("MNIST/raw", "raw", ""), _DIGITS),
        "fmnist": partial(_open_idx, ("FashionMNIST/raw", "raw", ""), _CLOTHES),
        "cifar10": _open_cifar10,
        "cifar100": _open_cifar100,
    }
)
NAMES = (*_OPENERS, "imagenet", "imagefolder")
"""DL-Art-School's names of the datasets."""


def load_idx(images: Path, labels: Path, *, split: str, class_names: tuple[str, ...]) -> LabelledPictures:
    """Load MNIST's pictures and their labels from two IDX files.

    Args:
        images: IDX file of the pictures, with three dimensions (n, H, W).
        labels: IDX file of the labels, with one dimension (n,).
        split: see LabelledPictures.
        class_names: class names, indexed by label.

    Raises:
        DamagedError: a file is damaged or no IDX file, or the files differ in length.
    """
    pixels, numbers = read_idx(images, dimensions=3), read_idx(labels, dimensions=1)
    if len(pixels) != len(numbers):
        raise DamagedError(f"{labels}: has {len(numbers)} labels for the {len(pixels)} pictures of {images.name}")
    return LabelledPictures(
        split=split,
        pixels=pixels,
        labels={"label": numbers.astype(np.int64)},
        class_names={"label": class_names},
    )


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of bytes, decompressed if it begins with gzip's magic number.

    Args:
        path: the file.
        dimensions: number of dimensions that the file must have.

    Raises:
        DamagedError: the file cannot be read, is no IDX file of bytes, or has another length than its header says.
    """
    header_size = 4 + 4 * dimensions
    try:
        with path.open("rb") as raw:
            is_compressed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if is_compressed else path.open("rb") as file:
            header = file.read(header_size)
            if len(header) != header_size or header[:4] != bytes([0, 0, _IDX_UINT8, dimensions]):
                raise DamagedError(f"{path}: no IDX file of bytes in {dimensions} dimensions; download it again")
            shape = struct.unpack(f">{dimensions}I", header[4:])
            size = int(np.prod(shape, dtype=object))
            if size > MAX_FILE_BYTES:
                raise DamagedError(f"{path}: claims {size} bytes, more than {MAX_FILE_BYTES}")
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedError(f"{path}: cannot be read ({error}); download it again") from error
    if len(data) != size:
        raise DamagedError(f"{path}: is not of the {header_size + size} bytes that it should be; download it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def load_cifar(
    batches: Sequence[Path], meta: Path, *, split: str, labels: Mapping[str, str], names: Mapping[str, str]
) -> LabelledPictures:
    """Load the pictures in several of CIFAR's pickled batches, read without running the pickles.

    Args:
        batches: the batch files, in order.
        meta: file of the class names; if the file is missing, classes have no names.
        split: see LabelledPictures.
        labels: field of Image.extra -> key of the labels in a batch.
        names: field of Image.extra -> key of the class names in ``meta``.

    Raises:
        DamagedError: a file is damaged, is no batch, or holds a value that no batch holds.
    """
    batch_files = [_Batch(path) for path in batches]
    pixels = np.concatenate([batch.pixels() for batch in batch_files])
    meta_fields = _read_batch(meta) if meta.exists() else {}
    return LabelledPictures(
        split=split,
        pixels=np.ascontiguousarray(pixels.reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE).transpose(0, 2, 3, 1)),
        labels={field: np.concatenate([batch.labels(key) for batch in batch_files]) for field, key in labels.items()},
        class_names={field: _texts(meta_fields[key], meta) for field, key in names.items() if key in meta_fields},
    )


class _Batch:
    """A file of CIFAR's pictures and labels; each method checks the field that it returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fields = _read_batch(path)

    def pixels(self) -> NDArray[np.uint8]:
        data = self._field("data")
        if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _CIFAR_PICTURE_BYTES:
            raise self._error(f"data is no array of {_CIFAR_PICTURE_BYTES} bytes a picture")
        return data

    def labels(self, key: str) -> NDArray[np.int64]:
        labels = self._field(key)
        count = len(self._field("data"))
        if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 256 for label in labels):
            raise self._error(f"{key} is no list of labels")
        if len(labels) != count:
            raise self._error(f"{key} has {len(labels)} labels for {count} pictures")
        return np.array(labels, np.int64)

    def _field(self, key: str) -> Any:
        if key not in self._fields:
            raise self._error(f"holds no {key!r}")
        return self._fields[key]

    def _error(self, problem: str) -> DamagedError:
        return DamagedError(f"{self._path}: {problem}; download it again")


def _read_batch(path: Path) -> dict[str, Any]:
    """Return the fields of a batch, with keys as str."""
    try:
        fields = InertUnpickler(io.BytesIO(_read_file(path)), _BATCH_RULES).load()
    except RefusedError as error:
        raise DamagedError(f"{path}: refused: {error}; take the publisher's file") from error
    except _FAILURES as error:
        raise DamagedError(f"{path}: cannot be read as a batch of CIFAR ({error}); download it again") from error
    if not isinstance(fields, dict):
        raise DamagedError(f"{path}: holds no dict; take the publisher's file")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in fields.items()}


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise RefusedError(f"it is larger than {MAX_FILE_BYTES} bytes")
    return data


def _texts(names: object, path: Path) -> tuple[str, ...]:
    if isinstance(names, list) and all(isinstance(name, str | bytes) for name in names):
        return tuple(name.decode("latin1") if isinstance(name, bytes) else name for name in names)
    raise DamagedError(f"{path}: the names of the classes are no list of texts; download it again")


class _UnfinishedArray(UnfinishedObject):
    """An array without shape and numbers, which follow in its state."""

    def with_state(self, state: object) -> NDArray[np.uint8]:
        match state:
            case (_, tuple(shape), DType() as dtype, bool(is_fortran), str() | bytes() as data):
                return _make_array(data, dtype, shape, "F" if is_fortran else "C")
        raise RefusedError("it holds an array of something other than bytes")


def _make_array(data: object, dtype: object, shape: object, order: object = "C", *_: object) -> NDArray[np.uint8]:
    """Return a uint8 array of pickled bytes; ``data`` is a str if Python 2 wrote the pickle."""
    if isinstance(data, str):
        data = data.encode("latin1")
    if not isinstance(data, bytes) or not isinstance(dtype, DType) or dtype.code[-1] != "B":
        raise RefusedError("it holds an array of something other than bytes")
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise RefusedError("it holds an array without a shape")
    return np.frombuffer(data, np.uint8).reshape(shape, order="F" if order == "F" else "C")


def _start_array(*_: object) -> _UnfinishedArray:
    return _UnfinishedArray()


def _load_long_bytes(unpickler: InertUnpickler) -> None:
    """Read bytes with a length of eight bytes; the base class would reserve the claimed length before it reads."""
    (size,) = struct.unpack("<Q", unpickler.read(8))
    data = unpickler.read(size) if size <= MAX_FILE_BYTES else b""
    if len(data) != size:
        raise RefusedError(f"it claims {size} bytes that it does not have")
    unpickler.append(bytes(data))


_TEXT_OPCODES = (pickle.BINSTRING, pickle.SHORT_BINSTRING)
_LONG_OPCODES = (pickle.BINBYTES8, pickle.BYTEARRAY8)
_OPCODES: dict[int, Callable[[Any], None]] = {
    **SAFE_OPCODES,
    **{code[0]: pickle._Unpickler.dispatch[code[0]] for code in _TEXT_OPCODES},
    **{code[0]: _load_long_bytes for code in _LONG_OPCODES},
}
_BATCH_RULES = PickleRules(
    kind="a batch of CIFAR",
    names={
        ("numpy.core.multiarray", "_reconstruct"): _start_array,  # numpy 1, which wrote the published files
        ("numpy._core.multiarray", "_reconstruct"): _start_array,
        ("numpy.core.numeric", "_frombuffer"): _make_array,
        ("numpy._core.numeric", "_frombuffer"): _make_array,
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): make_dtype,
        ("_codecs", "encode"): encode_latin1,
    },
    opcodes=_OPCODES,
    key_types=frozenset({str, bytes}),
)
