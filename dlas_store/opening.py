"""From a path to a source, whatever lies there."""

from __future__ import annotations

import os
import stat
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import get_args

from dlas_store.errors import ConfigError, NotASourceError
from dlas_store.images.decode import IMAGE_ENDINGS, MAX_PIXELS, Decoder
from dlas_store.images.libjpeg import check_named
from dlas_store.sources.base import CENTERS_FILE, REFERENCE_FILE, Layout, Source
from dlas_store.sources.layouts import ChunkedFolder, PictureFolder
from dlas_store.storage.index import INDEX_FILE
from dlas_store.storage.shard import has_shards
from dlas_store.storage.store import Store


def open_source(
    path: str | os.PathLike[str],
    layout: Layout | None = None,
    *,
    decoder: Decoder = "simplejpeg",
    max_pixels: int = MAX_PIXELS,
) -> Source:
    """Open a store or a folder for reading.

    Args:
        path: a store's folder, its index.lmdb, one shard, a chunked folder, or a folder of pictures; ``~`` is the home.
        layout: how to read a folder; None reads it as chunked when a sub folder has a ref.jpg or centers.pt, else as
            pictures. A store knows its own: asking a store of pictures for "chunked" is an error, and a chunked one
            opens for "pictures" too, since every patch is one.
        decoder: what decodes JPEG: "simplejpeg", or "pyturbojpeg" where that is installed.
        max_pixels: height times width above which a patch is refused.

    Raises:
        NotASourceError: the path holds nothing to read, or not in that layout.
        DamagedError: a store that is not as it was written.
        FormatVersionError: a store of a later version.
        ConfigError: an unknown layout or decoder.
    """
    if layout is not None and layout not in get_args(Layout):
        raise ConfigError(f"layout must be 'chunked' or 'pictures', got {layout!r}")
    if decoder not in get_args(Decoder):
        raise ConfigError(f"decoder must be 'simplejpeg' or 'pyturbojpeg', got {decoder!r}")
    try:
        place = Path(path).expanduser()
        is_folder = stat.S_ISDIR(place.stat().st_mode)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a user without home; ValueError: a null byte
        raise NotASourceError(f"{path!s}: cannot be opened ({getattr(error, 'strerror', error)})") from error
    if _is_store(place, is_folder=is_folder):
        check_named()
        store = Store(place, decoder=decoder, max_pixels=max_pixels)
        if layout == "chunked" and store.layout == "pictures":
            store.close()
            raise NotASourceError(f"{place}: is a store of whole pictures where a chunked one is needed")
        return store
    if layout is None:
        layout = "chunked" if _looks_chunked(place) else "pictures"
    kind = ChunkedFolder if layout == "chunked" else PictureFolder
    folder = kind(place, decoder=decoder, max_pixels=max_pixels)
    if next(folder.listings(), None) is None:
        raise NotASourceError(f"{place}: {_why_empty(place, layout)}")
    return folder


def opened(source: str | os.PathLike[str] | Source, layout: Layout | None = None) -> AbstractContextManager[Source]:
    """Return a context of a source: an open one, which stays open, or what open_source opens of a path."""
    return nullcontext(source) if isinstance(source, Source) else open_source(source, layout)


def _is_store(place: Path, *, is_folder: bool) -> bool:
    """Tell a store from a folder of images; raise NotASourceError for what is neither."""
    if not is_folder:
        if place.suffix == ".lmdb":
            return True
        _refuse_other_lmdb(place.parent, place)
        raise NotASourceError(f"{place}: is no store; give a store's folder, its {INDEX_FILE}, a shard, or a folder")
    if (place / INDEX_FILE).exists() or has_shards(place):
        return True
    _refuse_other_lmdb(place, place / "data.mdb")
    return place.suffix == ".lmdb"


def _refuse_other_lmdb(folder: Path, file: Path) -> None:
    if file.name != "data.mdb" or not file.exists():
        return
    whose = "a BasicSR LMDB" if (folder / "meta_info.txt").exists() else "another program's LMDB"
    raise NotASourceError(f"{folder}: is {whose}, not a store; run dlas-store import on the images it was made from")


def _looks_chunked(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(
                (folder / entry.name / file).exists()
                for entry in entries
                if entry.is_dir()
                for file in (REFERENCE_FILE, CENTERS_FILE)
            )
    except OSError as error:
        raise NotASourceError(f"{folder}: cannot be listed ({error.strerror})") from error


def _why_empty(folder: Path, layout: Layout) -> str:
    if not any(folder.iterdir()):
        return "the folder is empty"
    if layout == "chunked":
        return "no sub folder holds patches; a plain folder of pictures opens with layout 'pictures'"
    return f"neither a store nor a chunked folder, and no pictures below it ({', '.join(sorted(IMAGE_ENDINGS))})"
