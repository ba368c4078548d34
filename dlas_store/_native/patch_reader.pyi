from collections.abc import Callable, Mapping
from mmap import mmap
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

class Libjpeg:
    def __new__(cls, file: str | bytes | PathLike[str], own_huffman: bool = True, /) -> Libjpeg: ...
    def decode(self, data: Buffer, out: NDArray[np.uint8], /) -> bool: ...
    @property
    def file(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def refusal(self) -> str | None: ...
    @property
    def scans(self) -> int: ...

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
        find_libjpeg: Callable[[], Libjpeg | None] | None = None,
        /,
    ) -> PatchReader: ...
    def row(self, index: int, /) -> tuple[int, int, int, int, int] | None: ...
    def claimed_size(self, index: int, /) -> tuple[int, int] | None: ...
    def read_all_into(self, indices: list[int], outs: list[NDArray[np.uint8]], /) -> int: ...
    def read_into(self, index: int, out: NDArray[np.uint8], /) -> bool: ...

def checksum(key: bytes, payload: bytes, /) -> int: ...
