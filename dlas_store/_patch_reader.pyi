from collections.abc import Callable, Mapping
from mmap import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

class PatchReader:
    def __new__(
        cls,
        table: mmap,
        chunks: NDArray[np.uint64],
        checked: bytearray,
        count: int,
        shards: Mapping[int, tuple[Any, int]],
        decode: Callable[..., NDArray[np.uint8]],
        max_pixels: int,
        find_turbojpeg: Callable[[], tuple[int, int, int]] | None = None,
        /,
    ) -> PatchReader: ...
    def row(self, index: int, /) -> tuple[int, int, int, int, int] | None: ...
    def claimed_size(self, index: int, /) -> tuple[int, int] | None: ...
    def read_all_into(self, indices: list[int], outs: list[NDArray[np.uint8]], /) -> int: ...
    def read_into(self, index: int, out: NDArray[np.uint8], /) -> bool: ...

def checksum(key: bytes, payload: bytes, /) -> int: ...
