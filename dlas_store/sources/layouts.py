"""Layouts of folders as sources: DL-Art-School's chunked folder, a folder of pictures, class folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from posixpath import basename
from typing import Any

from dlas_store.errors import NotASourceError
from dlas_store.sources.base import CENTERS_FILE, REFERENCE_FILE, Center, Image
from dlas_store.sources.centers import read_centers
from dlas_store.sources.folder import FolderSource, ImageFiles, is_picture, reason_of_ending
from dlas_store.sources.walk import EXTRA_FILE, LOOP, FolderWalk

_CACHE_FILE = "cache.pth"

_NO_PATCHES, _NESTED = "folder without patches", "folder in an image folder"
"""Reasons for which a chunked folder skips a folder."""

_LOOSE = "not an image folder"
"""Reason for which a chunked folder skips a file beside the image folders."""

_CHUNKED_FILES = {REFERENCE_FILE: "reference of a chunked folder", CENTERS_FILE: "centres of a chunked folder"}
"""File of a chunked folder that PictureFolder skips -> the reason."""


class ChunkedFolder(FolderSource):
    """The images of a chunked folder: ROOT/IMAGE/FILE, with ref.jpg and centers.pt beside the patches.

    A patch is a file with the ending of a picture, in lower or upper case, other than ``ref.jpg``. A folder without
    patches is skipped. FolderSource documents the arguments.
    """

    layout = "chunked"

    def _find_images(self, walk: FolderWalk, images: tuple[str, ...] | None) -> Iterator[ImageFiles]:
        around = walk.around_root()
        for name in self._image_folders(walk) if images is None else images:
            if walk.identity(name) in around:
                walk.skip([name], LOOP)
            elif image := _list_image(walk, name):
                yield image

    def skipped_patches(self) -> list[str]:
        """Return the skipped folders that hold patches, which DL-Art-School takes, sorted; lists the folder if needed.

        They are folders in an image's folder, and folders that hold patches only deeper.
        """
        self._load_index()
        folders = [path for path, reason in self.skipped if reason in {_NO_PATCHES, _NESTED}]
        return sorted(folder for folder in folders if _holds_patches(self.path / folder))

    def _reason_of(self, path: str) -> str | None:
        if "/" not in path:
            return _LOOSE
        return None if is_picture(path) else reason_of_ending(path)

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
                walk.skip([file], _LOOSE)
        return folders


def _list_image(walk: FolderWalk, name: str) -> ImageFiles | None:
    paths, folders = walk.entries(name)
    files = sorted(path[len(name) + 1 :] for path in paths)
    patches = [file for file in files if is_picture(file) and file != REFERENCE_FILE]
    if not patches:
        walk.skip([name], _NO_PATCHES)
        return None
    known_files = {*patches, REFERENCE_FILE, CENTERS_FILE}
    for file in files:
        if file not in known_files:
            walk.skip([f"{name}/{file}"], reason_of_ending(file))
    walk.skip(sorted(folders), _NESTED)
    return ImageFiles(name, patches, has_reference=REFERENCE_FILE in files, has_centers=CENTERS_FILE in files)


def _holds_patches(folder: Path) -> bool:
    names = (name for _, _, files in os.walk(folder) for name in files)
    return any(is_picture(name) and name != REFERENCE_FILE and not name.startswith(".") for name in names)


class PictureFolder(FolderSource):
    """The pictures at any depth below a folder, each an image of one patch.

    The name of an image is its path below the folder, with "/" between the parts; images are sorted by that path, by
    code point. ``ref.jpg`` is skipped, so that a chunked folder read as pictures gives its patches. FolderSource
    documents the arguments.
    """

    layout = "pictures"

    def _find_images(self, walk: FolderWalk, images: tuple[str, ...] | None) -> Iterator[ImageFiles]:
        for name in self._pictures(walk) if images is None else images:
            if images is not None and not (walk.root / name).is_file():
                raise NotASourceError(f"{walk.root / name}: no such picture")
            yield ImageFiles(name, [basename(name)], has_reference=False, has_centers=False)

    def _reason_of(self, path: str) -> str | None:
        if path == EXTRA_FILE:
            return None
        return _CHUNKED_FILES.get(basename(path)) or (None if is_picture(path) else reason_of_ending(path))

    def _read_centers(self, image: str) -> dict[int, Center]:
        raise AssertionError(f"{image}: a picture has no centres")

    def _pictures(self, walk: FolderWalk) -> Iterator[str]:
        """Yield the paths of all pictures, sorted."""
        for path in walk.files():
            if reason := self._reason_of(path):
                walk.skip([path], reason)
            elif path != EXTRA_FILE:
                yield path


class ClassFolders(PictureFolder):
    """The pictures of a folder with one sub folder for each class; pictures beside the sub folders are skipped.

    A picture's ``label`` is the position of its class in the sorted names of the sub folders that hold pictures, its
    ``label_name`` the name of the sub folder. A sub folder without pictures is skipped and takes no label.
    FolderSource documents the arguments.
    """

    _labels: dict[str, int] | None = None
    """Class name -> label, once all pictures were listed."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (*super().__reduce__(), {"_labels": self._labels if self._images is not None else None})

    def image(self, number: int) -> Image:
        """Return the names and metadata of an image, with ``label`` and ``label_name`` in ``extra``."""
        image = super().image(number)
        name = image.name.partition("/")[0]
        return replace(image, extra={**image.extra, "label": self._load_labels()[name], "label_name": name})

    def subset(self, names: Sequence[str]) -> FolderSource:
        """Return a source of the named images, which have the labels that they have among all images."""
        source = super().subset(names)
        assert isinstance(source, ClassFolders)
        source._labels = self._load_labels()
        return source

    def _find_images(self, walk: FolderWalk, images: tuple[str, ...] | None) -> Iterator[ImageFiles]:
        classes = set()
        for image in super()._find_images(walk, images):
            folder, separator, _ = image.name.partition("/")
            if separator:
                classes.add(folder)
                yield image
            else:
                walk.skip([image.name], "in no folder of a class")
        if images is None:
            self._labels = {name: label for label, name in enumerate(sorted(classes))}
            skipped = {path for path, _ in walk.skipped}
            _, folders = FolderWalk(self.path, include_hidden=self.include_hidden).entries("")
            without_pictures = (folder for folder in sorted(folders) if folder not in classes | skipped)
            walk.skip(without_pictures, "class folder without pictures, takes no label")

    def _load_labels(self) -> dict[str, int]:
        if self._labels is None:
            for _ in self._find_images(FolderWalk(self.path, include_hidden=self.include_hidden), None):
                pass
        assert self._labels is not None
        return self._labels
