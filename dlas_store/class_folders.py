"""Reading pictures that are labelled by the folder that they lie in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

from dlas_store.errors import NotASourceError
from dlas_store.folder_source import FoundImage
from dlas_store.folder_walk import FolderWalk
from dlas_store.picture_folder import PictureFolder
from dlas_store.source import Image


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
                walk.leave_out([found.name], "in no folder of a class")

    @cached_property
    def _labels(self) -> dict[str, int]:
        try:
            with os.scandir(self.path) as entries:
                classes = sorted(entry.name for entry in entries if entry.is_dir())
        except OSError as error:
            raise NotASourceError(f"{self.path}: cannot be listed ({error.strerror})") from error
        return {name: label for label, name in enumerate(classes)}
