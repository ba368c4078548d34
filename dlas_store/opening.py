"""open_source: the store, folder, archive or LMDB at a path, as a source."""

from __future__ import annotations

import os
import re
import stat
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import get_args

from dlas_store.errors import ConfigError, NotASourceError
from dlas_store.images.decode import IMAGE_ENDINGS, MAX_PIXELS, Decoder
from dlas_store.images.libjpeg import check_variables
from dlas_store.sources.base import CENTERS_FILE, REFERENCE_FILE, Layout, Source
from dlas_store.sources.folder import FolderSource
from dlas_store.sources.layouts import ChunkedFolder, PictureFolder
from dlas_store.sources.packed import open_packed, open_range
from dlas_store.sources.walk import FolderWalk, describe_skipped
from dlas_store.storage.index import INDEX_FILE
from dlas_store.storage.shard import has_shards
from dlas_store.storage.store import Store

COPY_ADVICE = "copy the data to a local disk, or mount it"
"""Advice to a user who names data at an address."""

_ADVICE_ON_FILES = {
    "a picture": "the folder of the pictures",
    "an archive": "the folder that it unpacks to",
    "a config": "one of the paths that it names",
}
"""Kind of a file -> the argument to give in place of the file."""


def open_source(
    path: str | os.PathLike[str],
    layout: Layout | None = None,
    *,
    decoder: Decoder = "simplejpeg",
    max_pixels: int = MAX_PIXELS,
    include_hidden: bool = False,
) -> Source:
    """Open a store, a folder, an archive or an LMDB for reading.

    A relative path keeps its meaning if the program changes its working directory afterwards.

    Args:
        path: a store's folder, its index.lmdb, one shard, a chunked folder, a folder of pictures, a tar or zip archive
            of either, a folder or range of tar archives, or an LMDB of pictures. ``~`` is expanded.
        layout: layout of a folder. None means ``chunked`` if a sub folder has a ref.jpg or centers.pt, else
            ``pictures``. A store knows its layout: a store of pictures cannot be opened as ``chunked``, but a chunked
            store opens as ``pictures`` too, because each patch is a picture.
        decoder: decoder of JPEG: "simplejpeg", or "pyturbojpeg" if that package is installed.
        max_pixels: height times width above which a patch is refused.
        include_hidden: read a folder's hidden files and folders, too: names that begin with a dot, and folders that
            systems make, such as ``__MACOSX``, ``@eaDir`` and ``lost+found``.

    Raises:
        NotASourceError: the path holds nothing to read, or nothing in that layout.
        DamagedError: the store's index is damaged, or a shard is missing or has another size.
        FormatVersionError: a later version wrote the store.
        ConfigError: the layout or decoder is unknown.
    """
    _check_options(layout, decoder)
    if source := open_range(path, layout, decoder=decoder, max_pixels=max_pixels, include_hidden=include_hidden):
        return source
    location, is_folder = _resolve(path)
    if not (is_folder and has_shards(location)) and (
        source := open_packed(location, layout, decoder=decoder, max_pixels=max_pixels, include_hidden=include_hidden)
    ):
        return source
    if _is_store(location, is_folder=is_folder):
        return _open_store(location, layout, decoder=decoder, max_pixels=max_pixels)
    return _open_folder(location, layout, decoder=decoder, max_pixels=max_pixels, include_hidden=include_hidden)


def open_if_path(
    source: str | os.PathLike[str] | Source, layout: Layout | None = None, *, include_hidden: bool = False
) -> AbstractContextManager[Source]:
    """Return a context with a source: a path is opened and closed by the context, an open source stays open."""
    if isinstance(source, Source):
        return nullcontext(source)
    return open_source(source, layout, include_hidden=include_hidden)


def describe_path(path: str | os.PathLike[str]) -> str:
    """Return the kind of a path for a message: "a store", "a chunked folder", "a config", "missing" and the like.

    The answer comes from names and from the first level of a folder, so that it is fast.
    """
    location = Path(path).expanduser()
    if address_of(path) is not None:
        return "an address"
    if location.is_file():
        return _describe_file(location)
    if not location.is_dir():
        return "missing"
    if (location / INDEX_FILE).is_file() or has_shards(location):
        return "a store"
    if (location / "data.mdb").exists():
        return _foreign_lmdb(location)
    return "a chunked folder" if _looks_chunked(location, include_hidden=False) else "a folder"


def address_of(path: str | os.PathLike[str]) -> str | None:
    """Return the address that a path is, such as s3://bucket/name; None for a path of the file system.

    pathlib.Path drops one of the two slashes, which the answer has again.
    """
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", os.fspath(path), re.DOTALL)
    return None if match is None or os.path.lexists(path) else f"{match[1]}://{match[2]}"


def _describe_file(file: Path) -> str:
    if file.suffix == ".lmdb" and file.parent != file:
        return "a store" if file.name == INDEX_FILE or file.name.startswith("shard-") else "a file"
    if file.name == "data.mdb":
        return _foreign_lmdb(file.parent)
    kinds = {
        "a config": {".yml", ".yaml"},
        "a picture": {f".{ending.removeprefix('.')}" for ending in IMAGE_ENDINGS},
        "an archive": {".zip", ".tar", ".tgz", ".gz", ".7z", ".rar", ".bz2", ".xz", ".zst"},
    }
    return next((kind for kind, endings in kinds.items() if file.suffix.lower() in endings), "a file")


def _foreign_lmdb(folder: Path) -> str:
    return "a BasicSR LMDB" if _is_file(folder / "meta_info.txt") else "another program's LMDB"


def _check_options(layout: Layout | None, decoder: Decoder) -> None:
    if layout is not None and layout not in get_args(Layout):
        raise ConfigError(f"layout must be 'chunked' or 'pictures', got {layout!r}")
    if decoder not in get_args(Decoder):
        raise ConfigError(f"decoder must be 'simplejpeg' or 'pyturbojpeg', got {decoder!r}")


def _resolve(path: str | os.PathLike[str]) -> tuple[Path, bool]:
    """Return the path of an existing file or folder with ``~`` expanded, and whether it is a folder."""
    address = address_of(path)
    if address is not None:
        raise NotASourceError(f"{address}: is an address, and only local files are read; {COPY_ADVICE}")
    try:
        expanded = Path(path).expanduser()
        return expanded, stat.S_ISDIR(expanded.stat().st_mode)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a user without home; ValueError: a null byte
        raise NotASourceError(f"{path!s}: cannot be opened ({getattr(error, 'strerror', error)})") from error


def _is_store(path: Path, *, is_folder: bool) -> bool:
    """Return whether a path should be opened as a store, not as a folder of images.

    Raises:
        NotASourceError: the path is another program's LMDB, a file without the ending ``.lmdb``, or may not be read.
    """
    if not is_folder:
        if path.suffix == ".lmdb":
            return True
        kind = _describe_file(path)
        if advice := _ADVICE_ON_FILES.get(kind):
            raise NotASourceError(f"{path}: is {kind}, no store; give {advice}")
        raise NotASourceError(f"{path}: is no store; give a store's folder, its {INDEX_FILE}, a shard, or a folder")
    if has_shards(path):
        return True
    if _is_file(path / INDEX_FILE):
        return path.suffix == ".lmdb" or not _holds_pictures(path)
    return path.suffix == ".lmdb" and not _holds_pictures(path)


def _is_file(path: Path) -> bool:
    """Return whether a path leads to a file; Path.is_file would raise an error in a folder that may not be searched."""
    return os.path.isfile(path)  # noqa: PTH113


def _holds_pictures(path: Path) -> bool:
    """Return whether a folder without shards holds pictures; it is no store then, whatever names it has."""
    return next(PictureFolder(path).listings(), None) is not None


def _open_store(path: Path, layout: Layout | None, *, decoder: Decoder, max_pixels: int) -> Store:
    check_variables()
    store = Store(path, decoder=decoder, max_pixels=max_pixels)
    if layout == "chunked" and store.layout == "pictures":
        store.close()
        raise NotASourceError(f"{path}: is a store of whole pictures where a chunked one is needed")
    return store


def _open_folder(
    path: Path, layout: Layout | None, *, decoder: Decoder, max_pixels: int, include_hidden: bool
) -> Source:
    if layout is None:
        layout = "chunked" if _looks_chunked(path, include_hidden=include_hidden) else "pictures"
    kind = ChunkedFolder if layout == "chunked" else PictureFolder
    folder = kind(path, decoder=decoder, max_pixels=max_pixels, include_hidden=include_hidden)
    if next(folder.listings(), None) is None:
        raise NotASourceError(f"{path}: {_why_empty(folder)}")
    return folder


def _looks_chunked(path: Path, *, include_hidden: bool) -> bool:
    walk = FolderWalk(path, include_hidden=include_hidden)
    _, folders = walk.entries("")
    # os.path.exists is false for a folder that may not be searched; listing that folder is an error that names it.
    return any(
        os.path.exists(f"{path}/{folder}/{file}") and walk.identity(folder) not in walk.around_root()  # noqa: PTH110
        for folder in folders
        for file in (REFERENCE_FILE, CENTERS_FILE)
    )


def _why_empty(folder: FolderSource) -> str:
    if not any(folder.path.iterdir()):
        return "the folder is empty"
    if folder.layout == "chunked":
        reason = "no sub folder holds patches; a plain folder of pictures opens with layout 'pictures'"
    else:
        endings = ", ".join(sorted(IMAGE_ENDINGS))
        reason = f"neither a store nor a chunked folder, and no pictures below it ({endings})"
    return reason + describe_skipped(folder.skipped)
