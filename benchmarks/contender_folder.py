"""Contenders of ``read`` without a store: a folder of files behind PyTorch's DataLoader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.process import BatchWorkload, OpenWorkload
from benchmarks.reading import Reading, fingerprint
from dlas_store import open_source
from dlas_store.images.memory import Pixels
from dlas_store.processes import available_cores

Decode = Callable[[Path], Any]


def decode_turbojpeg(path: Path) -> Pixels:
    """Return uint8 (H, W, 3), RGB, decoded by TurboJPEG."""
    pixels: Pixels = simplejpeg.decode_jpeg(path.read_bytes(), "RGB")
    return pixels


def decode_opencv(path: Path) -> Any:
    """Return uint8 (H, W, 3), RGB, decoded by OpenCV."""
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert pixels is not None, f"{path}: OpenCV cannot read it"
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def decode_pillow(path: Path) -> Any:
    """Return uint8 (H, W, 3), RGB, decoded by Pillow."""
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"))


_DECODERS: dict[str, Decode] = {"TurboJPEG": decode_turbojpeg, "OpenCV": decode_opencv, "Pillow": decode_pillow}


class FilePatches(Dataset[torch.Tensor]):
    """Dataset of files; an item is one decoded file, uint8 (H, W, 3), RGB."""

    def __init__(self, paths: Sequence[Path], decode: Decode) -> None:
        self._paths = paths
        self._decode = decode

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, position: int) -> torch.Tensor:
        return torch.from_numpy(self._decode(self._paths[position]))


def prepare(reading: Reading, *, decoder: str) -> OpenWorkload:
    """List the files, unmeasured, and return a function that starts a DataLoader with one worker a core.

    The workers live from epoch to epoch.
    """
    assert reading.folder is not None
    with open_source(reading.folder) as source:
        paths = [Path(source.patch_path(index)) for index in range(reading.items)]

    def open_data() -> BatchWorkload:
        loader: Iterable[Any] = DataLoader(
            FilePatches(paths, _DECODERS[decoder]),
            batch_size=reading.batch,
            shuffle=True,
            num_workers=available_cores(),
            persistent_workers=True,
        )
        return BatchWorkload(
            lambda: loader,
            epochs=reading.epochs,
            count=len,
            identify=lambda batch: map(fingerprint, batch.numpy()),
            expected=partial(_expected, paths, _DECODERS[decoder]),
        )

    return open_data


def _expected(paths: Sequence[Path], decode: Decode, _: Counter[Hashable]) -> Counter[Hashable]:
    return Counter(fingerprint(decode(path)) for path in paths)
