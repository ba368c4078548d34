"""open_source: the store, folder of images or folder of pictures at a path, as a source."""

from __future__ import annotations

import os
import stat
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import get_args

from dlas_store.errors import ConfigError, NotASourceError
from dlas_store.images.decode import IMAGE_ENDINGS, MAX_PIXELS, Decoder
from dlas_store.images.libjpeg import check_variables
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
        path: a store's folder, its index.lmdb, one shard, a chunked folder, or a folder of pictures. ``~`` is expanded.
        layout: layout of a folder. None means ``chunked`` if a sub folder has a ref.jpg or centers.pt, else
            ``pictures``. A store knows its layout: a store of pictures cannot be opened as ``chunked``, but a chunked
            store opens as ``pictures`` too, because each patch is a picture.
        decoder: decoder of JPEG: "simplejpeg", or "pyturbojpeg" if that package is installed.
        max_pixels: height times width above which a patch is refused.

    Raises:
        NotASourceError: the path holds nothing to read, or nothing in that layout.
        DamagedError: the store's index is damaged, or a shard is missing or has another size.
        FormatVersionError: a later version wrote the store.
        ConfigError: the layout or decoder is unknown.
    """
    _check_options(layout, decoder)
    location, is_folder = _resolve(path)
    if _is_store(location, is_folder=is_folder):
        return _open_store(location, layout, decoder=decoder, max_pixels=max_pixels)
    return _open_folder(location, layout, decoder=decoder, max_pixels=max_pixels)


def open_if_path(
    source: str | os.PathLike[str] | Source, layout: Layout | None = None
) -> AbstractContextManager[Source]:
    """Return a context with a source: a path is opened and closed by the context, an open source stays open."""
    return nullcontext(source) if isinstance(source, Source) else open_source(source, layout)


def _check_options(layout: Layout | None, decoder: Decoder) -> None:
    if layout is not None and layout not in get_args(Layout):
        raise ConfigError(f"layout must be 'chunked' or 'pictures', got {layout!r}")
    if decoder not in get_args(Decoder):
        raise ConfigError(f"decoder must be 'simplejpeg' or 'pyturbojpeg', got {decoder!r}")


def _resolve(path: str | os.PathLike[str]) -> tuple[Path, bool]:
    """Return the path of an existing file or folder with ``~`` expanded, and whether it is a folder."""
    try:
        expanded = Path(path).expanduser()
        return expanded, stat.S_ISDIR(expanded.stat().st_mode)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a user without home; ValueError: a null byte
        raise NotASourceError(f"{path!s}: cannot be opened ({getattr(error, 'strerror', error)})") from error


def _is_store(path: Path, *, is_folder: bool) -> bool:
    """Return whether a path should be opened as a store, not as a folder of images.

    Raises:
        NotASourceError: the path is another program's LMDB, or a file without the ending ``.lmdb``.
    """
    if not is_folder:
        if path.suffix == ".lmdb":
            return True
        _refuse_foreign_lmdb(path.parent, path)
        raise NotASourceError(f"{path}: is no store; give a store's folder, its {INDEX_FILE}, a shard, or a folder")
    if (path / INDEX_FILE).exists() or has_shards(path):
        return True
    _refuse_foreign_lmdb(path, path / "data.mdb")
    return path.suffix == ".lmdb"


def _refuse_foreign_lmdb(folder: Path, file: Path) -> None:
    if file.name != "data.mdb" or not file.exists():
        return
    kind = "a BasicSR LMDB" if (folder / "meta_info.txt").exists() else "another program's LMDB"
    raise NotASourceError(f"{folder}: is {kind}, not a store; run dlas-store import on the images it was made from")


def _open_store(path: Path, layout: Layout | None, *, decoder: Decoder, max_pixels: int) -> Store:
    check_variables()
    store = Store(path, decoder=decoder, max_pixels=max_pixels)
    if layout == "chunked" and store.layout == "pictures":
        store.close()
        raise NotASourceError(f"{path}: is a store of whole pictures where a chunked one is needed")
    return store


def _open_folder(path: Path, layout: Layout | None, *, decoder: Decoder, max_pixels: int) -> Source:
    if layout is None:
        layout = "chunked" if _looks_chunked(path) else "pictures"
    kind = ChunkedFolder if layout == "chunked" else PictureFolder
    folder = kind(path, decoder=decoder, max_pixels=max_pixels)
    if next(folder.listings(), None) is None:
        raise NotASourceError(f"{path}: {_why_empty(path, layout)}")
    return folder


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
