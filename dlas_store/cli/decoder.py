"""Description of the decoders and extensions in use: ``dlas-store info --decoder``."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from pathlib import Path

from dlas_store.images.libjpeg import choose_libjpeg

_EXTENSIONS = {
    "dlas_store._native.patch_reader": ("batches", "C finds, checks and decodes patches", "Python reads each patch"),
    "dlas_store._native.pixel_loops": ("pixels", "C makes HQ, LQ and masks", "OpenCV and NumPy make HQ, LQ and masks"),
    "dlas_store.converters.extraction._jpeg_crop": (
        "tiles",
        "C copies the code of a photo's JPEG to tiles",
        "each tile is encoded alone",
    ),
}
"""C extension -> the row about it, its work, and the slower way without it."""


def _missing_extensions() -> dict[str, str]:
    """Return the C extensions that cannot be loaded, each with the reason."""
    missing = {}
    for name in _EXTENSIONS:
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing[name] = str(error)
    return missing


def describe_decoder() -> dict[str, str]:
    """Return what decodes and checks patches in this environment, and why: name of a row -> text.

    Raises:
        ConfigError: see choose_libjpeg.
    """
    missing = _missing_extensions()
    simplejpeg = f"simplejpeg {version('simplejpeg')}"
    rows = {}
    library, reason = choose_libjpeg()
    if library is None:
        rows["JPEG"] = f"{simplejpeg} decodes each patch alone, which is slower: {reason}"
    else:
        rows["JPEG"] = f"libjpeg-turbo {library.version or 'of unknown version'} decodes many patches in one call"
        rows["library"] = str(Path(library.file).resolve())
        rows["Huffman"] = (
            "dlas_store decodes the Huffman code of JPEGs"
            if library.refusal is None
            else f"libjpeg-turbo decodes the Huffman code of JPEGs, which is slower: {library.refusal}"
        )
        rows["other JPEGs"] = f"{simplejpeg} decodes progressive and damaged JPEGs, one at a time"
    rows["other files"] = f"Pillow {version('pillow')} decodes other formats"
    rows["checksums"] = f"{_checksum_place(missing)}, at every read"
    for name, (row, work, slower) in _EXTENSIONS.items():
        rows[row] = f"{slower}, which is slower: {missing[name]}" if name in missing else work
    return rows


def _checksum_place(missing: dict[str, str]) -> str:
    if "dlas_store._native.patch_reader" in missing:
        return f"xxhash {version('xxhash')} checks each value"
    return f"C checks patches in batches, xxhash {version('xxhash')} checks all else"
