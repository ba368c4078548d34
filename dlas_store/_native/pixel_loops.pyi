from typing import Any

import numpy as np
from numpy.typing import NDArray

def write_pixels(pixels: NDArray[np.uint8], /, *chw: NDArray[np.float32]) -> None: ...
def write_reference(
    reference: NDArray[Any],
    small_reference: NDArray[np.float32],
    box: tuple[int, int, int, int],
    outside: float,
    size: tuple[int, int],
    hq: NDArray[np.float32],
    lq: NDArray[np.float32],
    /,
) -> None: ...
def write_patches(pixels: tuple[tuple[Any, ...], ...], references: tuple[tuple[Any, ...], ...], /) -> None: ...
