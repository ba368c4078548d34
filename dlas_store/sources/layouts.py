"""Reading DL-Art-School's chunked folder: one sub folder an image, one file a patch.

Reading a plain folder of pictures, at any depth: each picture is an image of one patch.

Reading pictures that are labelled by the folder that they lie in.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from posixpath import basename

from dlas_store.errors import NotASourceError
from dlas_store.sources.base import CENTERS_FILE, REFERENCE_FILE, Center, Image
from dlas_store.sources.centers import read_centers
from dlas_store.sources.folder import FolderSource, FoundImage, is_picture
from dlas_store.sources.walk import EXTRA_FILE, FolderWalk

_CACHE_FILE = "cache.pth"


class ChunkedFolder(FolderSource):
    """The images of a chunked folder: ROOT/IMAGE/FILE, with ref.jpg and centers.pt beside the patches.

    Patches are the files with an image ending, in any case, other than ``ref.jpg``. A folder without patches is left
    out. See FolderSource for the arguments.
    """

    layout = "chunked"

    def _find_images(self, walk: FolderWalk, images: tuple[str, ...] | None) -> Iterator[FoundImage]:
        root = walk.identity("")
        for name in self._image_folders(walk) if images is None else images:
            if walk.identity(name) == root:
                walk.skip([name], "link to a folder that it lies in")
            elif found := _find_image(walk, name):
                yield found

    def _read_centers(self, image: str) -> dict[int, Center]:
        return read_centers(self.path / image / CENTERS_FILE)

    def _image_folders(self, walk: FolderWalk) -> list[str]:
        files, folders = walk.entries("")
        files.sort()
        folders.sort()
        for file in files:
            if file == _CACHE_FILE:
                walk.skip([file], "the scan that DL-Art-School keeps, made anew from the folder")
            elif file != EXTRA_FILE:
                walk.skip([file], "not an image folder")
        return folders


def _find_image(walk: FolderWalk, name: str) -> FoundImage | None:
    paths, folders = walk.entries(name)
    files = sorted(path[len(name) + 1 :] for path in paths)
    patches = [file for file in files if is_picture(file) and file != REFERENCE_FILE]
    if not patches:
        walk.skip([name], "folder without patches")
        return None
    known = {*patches, REFERENCE_FILE, CENTERS_FILE}
    walk.skip((f"{name}/{file}" for file in files if file not in known), "unknown file")
    walk.skip(sorted(folders), "folder in an image folder")
    return FoundImage(name, patches, has_reference=REFERENCE_FILE in files, has_centers=CENTERS_FILE in files)


_LEFT_OUT = {REFERENCE_FILE: "reference of a chunked folder", CENTERS_FILE: "centres of a chunked folder"}


class PictureFolder(FolderSource):
    """The pictures below a folder; an image is named by its path below it, with "/" between the parts.

    Order is that of the paths by code point. ``ref.jpg`` is left out, so that a chunked folder read as pictures gives
    its patches. See FolderSource for the arguments.
    """

    layout = "pictures"

    def _find_images(self, walk: FolderWalk, images: tuple[str, ...] | None) -> Iterator[FoundImage]:
        for name in self._pictures(walk) if images is None else images:
            if images is not None and not (walk.root / name).is_file():
                raise NotASourceError(f"{walk.root / name}: no such picture")
            yield FoundImage(name, [basename(name)], has_reference=False, has_centers=False)

    def _read_centers(self, image: str) -> dict[int, Center]:
        raise AssertionError(f"{image}: a picture has no centres")

    def _pictures(self, walk: FolderWalk) -> Iterator[str]:
        """Yield the paths of all pictures, sorted."""
        for path in walk.files():
            if reason := _why_no_picture(path):
                walk.skip([path], reason)
            elif path != EXTRA_FILE:
                yield path


def _why_no_picture(path: str) -> str | None:
    if path == EXTRA_FILE:
        return None
    return _LEFT_OUT.get(basename(path)) or (None if is_picture(path) else "unknown file")


class ClassFolders(PictureFolder):
    """The pictures of a folder with one sub folder a class; those that lie beside the sub folders are left out.

    A picture's ``label`` is the position of its class among the sorted names of the sub folders, ``label_name`` that
    name. See FolderSource for the arguments.
    """

    def image(self, number: int) -> Image:
        """Return what is known of an image, its label included."""
        image = super().image(number)
        name = image.name.partition("/")[0]
        return replace(image, extra={**image.extra, "label": self._labels[name], "label_name": name})

    def _find_images(self, walk: FolderWalk, images: tuple[str, ...] | None) -> Iterator[FoundImage]:
        for found in super()._find_images(walk, images):
            if "/" in found.name:
                yield found
            else:
                walk.skip([found.name], "in no folder of a class")

    @cached_property
    def _labels(self) -> dict[str, int]:
        try:
            with os.scandir(self.path) as entries:
                classes = sorted(entry.name for entry in entries if entry.is_dir())
        except OSError as error:
            raise NotASourceError(f"{self.path}: cannot be listed ({error.strerror})") from error
        return {name: label for label, name in enumerate(classes)}
