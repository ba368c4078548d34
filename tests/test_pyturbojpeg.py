"""PyTurboJPEG as decoder: the pixels and the errors are those of simplejpeg."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from samples import DATA

from dlas_store.errors import ConfigError, ImageError
from dlas_store.pixels import decode

PATCHES = [path.read_bytes() for path in sorted((DATA / "chunked/retina_left_3").glob("*.jpg"))]


def _is_usable() -> bool:
    if importlib.util.find_spec("turbojpeg") is None:
        return False
    try:
        decode(PATCHES[0], decoder="pyturbojpeg")
    except ConfigError:
        return False
    return True


IS_USABLE = _is_usable()
needs_pyturbojpeg = pytest.mark.skipif(not IS_USABLE, reason="PyTurboJPEG or libjpeg-turbo is not installed")


@pytest.mark.skipif(IS_USABLE, reason="PyTurboJPEG is installed")
def test_a_missing_package_is_an_error_that_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"pip install dlas-store\[turbojpeg\].*libjpeg-turbo"):
        decode(PATCHES[0], decoder="pyturbojpeg")


@needs_pyturbojpeg
@pytest.mark.parametrize("alpha", [False, True])
def test_pixels_are_those_of_simplejpeg(alpha: bool) -> None:
    for data in PATCHES[:20]:
        np.testing.assert_array_equal(decode(data, alpha=alpha, decoder="pyturbojpeg"), decode(data, alpha=alpha))


@needs_pyturbojpeg
@pytest.mark.filterwarnings("ignore")
def test_truncated_and_damaged_files_are_errors_in_every_thread() -> None:
    def is_refused(number: int) -> bool:
        data = PATCHES[number % len(PATCHES)]
        broken = number % 3 == 0
        if broken:
            data = data[: len(data) * (number % 7 + 2) // 10]
        try:
            decode(data, decoder="pyturbojpeg")
        except ImageError:
            return broken
        return not broken

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_refused, range(2000)))
