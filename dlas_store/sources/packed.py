"""Archives and LMDBs of other programs, opened by their contents."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from dlas_store.errors import NotASourceError
from dlas_store.images.decode import IMAGE_ENDINGS, MAX_PIXELS, Decoder
from dlas_store.sources.archives import TarArchives, ZipArchives, expand_range, find_archives, is_tar, is_zip
from dlas_store.sources.base import Layout, Source
from dlas_store.sources.containers import Container
from dlas_store.sources.lmdb_foreign import LmdbContainer, find_lmdb_images, is_foreign_lmdb
from dlas_store.sources.record_images import find_images
from dlas_store.sources.records import RecordSource


def open_packed(
    path: Path, layout: Layout | None, *, decoder: Decoder, max_pixels: int, include_hidden: bool
) -> Source | None:
    """Open an archive, a folder of tar archives, or an LMDB of another program; return None for anything else.

    Args:
        path: an existing file or folder that is no store.
        layout: layout of the images; None takes the layout that the contents show.
        decoder: decoder of JPEG.
        max_pixels: height times width above which a patch is refused.
        include_hidden: read hidden files and folders of archives, too.

    Raises:
        NotASourceError: it holds no pictures.
        DamagedError: it is damaged or cut short.
    """
    container = _find_container(path, include_hidden=include_hidden)
    return None if container is None else _open(container, layout, decoder=decoder, max_pixels=max_pixels)


def open_lmdb(path: Path, *, resolution: int, decoder: Decoder = "simplejpeg", max_pixels: int = MAX_PIXELS) -> Source:
    """Open the pictures of one resolution of an LMDB whose keys are such as ``256-00001``.

    Args:
        path: folder of data.mdb, or the file.
        resolution: the number before the dash in a key.
        decoder: decoder of JPEG.
        max_pixels: height times width above which a patch is refused.

    Raises:
        NotASourceError: the path is no LMDB of another program.
        ConfigError: no picture has the resolution.
        DamagedError: the LMDB is damaged or cut short.
    """
    if not is_foreign_lmdb(path):
        raise NotASourceError(f"{path}: is no LMDB with pictures of several resolutions")
    find = partial(find_lmdb_images, resolution=resolution)
    source = RecordSource(LmdbContainer(path.absolute()), find, decoder=decoder, max_pixels=max_pixels)
    assert len(source)  # find_lmdb_images found the resolution
    return source


def open_range(
    path: str | os.PathLike[str], layout: Layout | None, *, decoder: Decoder, max_pixels: int, include_hidden: bool
) -> Source | None:
    """Open the archives of a range such as ``train-{000..127}.tar``; return None if the path is no range.

    Raises:
        NotASourceError: one of the archives is missing, or they hold no pictures.
        DamagedError: an archive is damaged or cut short.
    """
    location = Path(path)
    parts = expand_range(location)
    if not parts or os.path.lexists(location):
        return None
    for part in parts:
        if not part.is_file() or not is_tar(part):
            raise NotASourceError(f"{part}: of the range {location}, is no tar archive")
    archives = TarArchives(
        location.absolute(), [part.absolute() for part in parts], has_prefix=True, include_hidden=include_hidden
    )
    return _open(archives, layout, decoder=decoder, max_pixels=max_pixels)


def _find_container(path: Path, *, include_hidden: bool) -> Container | None:
    location = path.absolute()
    try:
        if is_foreign_lmdb(location):
            return LmdbContainer(location)
        if location.is_dir():
            archives = find_archives(location)
            if not archives:
                return None
            return TarArchives(location, archives, has_prefix=True, include_hidden=include_hidden)
        if is_zip(location):
            return ZipArchives(location, [location], include_hidden=include_hidden)
        return TarArchives(location, [location], include_hidden=include_hidden) if is_tar(location) else None
    except OSError as error:
        raise NotASourceError(f"{path}: cannot be read ({error.strerror})") from error


def _open(container: Container, layout: Layout | None, *, decoder: Decoder, max_pixels: int) -> Source:
    find = find_lmdb_images if isinstance(container, LmdbContainer) else find_images
    source = RecordSource(container, find, layout=layout, decoder=decoder, max_pixels=max_pixels)
    if not source.image_count:
        source.close()
        if isinstance(container, LmdbContainer):
            raise NotASourceError(f"{container.path}: is an LMDB whose values are no pictures")
        raise NotASourceError(f"{container.path}: holds no pictures ({', '.join(sorted(IMAGE_ENDINGS))})")
    return source
