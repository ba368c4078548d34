"""Published classification datasets as sources: by name, from the files that their publishers distribute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

from dlas_store.array_pictures import ArrayPictures, LabelledPictures
from dlas_store.cifar_batches import load_cifar
from dlas_store.class_folders import ClassFolders
from dlas_store.errors import ConfigError, NotASourceError
from dlas_store.idx_files import load_idx
from dlas_store.source import Source

SPLITS = ("train", "test", "val")
"""What a dataset may be split into; ``val`` is another name for ``test``."""

_DIGITS = tuple("0123456789")
_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def open_published(name: str, root: Path, *, split: str | None = None) -> Source:
    """Open a dataset, as pictures with ``label`` and ``label_name`` in Image.extra.

    CIFAR-100 has ``coarse_label`` and ``coarse_label_name`` as well. Order is that of the files of the publisher, and
    in folders of classes that of the paths.

    Args:
        name: one of NAMES.
        root: the folder that the files lie in, or the one above it, as torchvision has them.
        split: one of SPLITS; None is train, and for imagefolder the root itself.

    Raises:
        ConfigError: no such name or split.
        NotASourceError: the files are not there.
    """
    if name not in NAMES:
        raise ConfigError(f"no dataset {name!r}; known are {', '.join(NAMES)}")
    if split not in (None, *SPLITS):
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    return _OPENERS[name](root, split)


def _open_idx(folders: tuple[str, ...], class_names: tuple[str, ...], root: Path, split: str | None) -> Source:
    split = "train" if split in (None, "train") else "test"
    start = "train" if split == "train" else "t10k"
    wanted = (f"{start}-images-idx3-ubyte", f"{start}-labels-idx1-ubyte")
    for folder in (root / name for name in folders):
        files = [next(filter(Path.is_file, (folder / file, folder / f"{file}.gz")), None) for file in wanted]
        match files:
            case Path() as images, Path() as labels:
                load = partial(load_idx, images, labels, split=split, class_names=class_names)
                return ArrayPictures(folder, load)
    raise _not_there(root, " and ".join(wanted), folders)


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
    for folder in (root / folder_name, root):
        if (folder / files[0]).is_file():
            for file in files:
                if not (folder / file).is_file():
                    raise NotASourceError(f"{folder / file}: is missing; unpack the publisher's archive again")
            return ArrayPictures(folder, partial(load, [folder / file for file in files], folder / meta))
    raise _not_there(root, files[0], (folder_name, ""))


def _open_imagenet(root: Path, split: str | None) -> Source:
    return _open_classes(root / ("train" if split in (None, "train") else "val"))


def _open_image_folder(root: Path, split: str | None) -> Source:
    return _open_classes(root if split is None else root / split)


def _open_classes(folder: Path) -> Source:
    source = ClassFolders(folder)
    if next(source.listings(), None) is None:
        raise NotASourceError(f"{folder}: holds no pictures in folders of classes")
    return source


def _not_there(root: Path, wanted: str, folders: tuple[str, ...]) -> NotASourceError:
    places = ", ".join(str(root / folder) for folder in folders)
    return NotASourceError(f"{root}: holds no {wanted}, looked for in {places}; download and unpack it there")


_OPENERS: Mapping[str, Callable[[Path, str | None], Source]] = MappingProxyType(
    {
        "mnist": partial(_open_idx, ("MNIST/raw", "raw", ""), _DIGITS),
        "fmnist": partial(_open_idx, ("FashionMNIST/raw", "raw", ""), _CLOTHES),
        "cifar10": _open_cifar10,
        "cifar100": _open_cifar100,
        "imagenet": _open_imagenet,
        "imagefolder": _open_image_folder,
    }
)
NAMES = tuple(_OPENERS)
"""The datasets, by DL-Art-School's names."""
