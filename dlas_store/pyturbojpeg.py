"""Decode JPEG with PyTurboJPEG and the system's libjpeg-turbo, an optional extra."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, NoReturn

from dlas_store.aligned_memory import Pixels
from dlas_store.errors import ConfigError, ImageError

_REMEDY = "pip install dlas-store[turbojpeg] and the system's libjpeg-turbo, or take decoder simplejpeg"


def decode(data: bytes, colorspace: Literal["RGB", "RGBA", "BGR"]) -> Pixels:
    """Decode a JPEG to uint8 (H, W, 3) RGB or BGR, or (H, W, 4) RGBA; safe in several threads at once.

    Raises:
        ImageError: the JPEG is damaged or truncated.
        ConfigError: PyTurboJPEG or libjpeg-turbo is missing, or too old or too new.
    """
    decoder = _load()
    try:
        # Never pass dst=: some versions write outside a strided array, or into a read-only one.
        pixels: Pixels = decoder.decode(data, pixel_format={"RGB": 0, "BGR": 1, "RGBA": 7}[colorspace])
    except (OSError, ValueError) as error:
        raise ImageError(f"damaged or truncated JPEG ({error})") from error
    return pixels


@cache
def _load() -> Any:
    """Return a TurboJPEG that raises for damaged data, where the package's own warns and returns partial pixels."""
    try:
        from turbojpeg import TurboJPEG  # noqa: PLC0415 - an extra

        decoder = TurboJPEG()
        error_string = decoder._TurboJPEG__get_error_string
        decoder._TurboJPEG__report_error  # noqa: B018 - raises AttributeError if this version lacks it
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"decoder pyturbojpeg cannot be loaded ({reason}); {_REMEDY}") from error

    def report_error(handle: object) -> NoReturn:
        raise OSError(error_string(handle))

    # TurboJPEG calls this for every status but success. A warnings filter would also do, but all threads share it.
    decoder._TurboJPEG__report_error = report_error
    return decoder
