"""Reading a plain folder of pictures, at any depth: each picture is an image of one patch."""

from __future__ import annotations

from collections.abc import Iterator
from posixpath import basename

from dlas_store.errors import NotASourceError
from dlas_store.extra_fields import EXTRA_FILE
from dlas_store.folder_source import FolderSource, FoundImage, is_picture
from dlas_store.folder_walk import FolderWalk
from dlas_store.source import CENTERS_FILE, REFERENCE_FILE, Center

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
                walk.leave_out([path], reason)
            elif path != EXTRA_FILE:
                yield path


def _why_no_picture(path: str) -> str | None:
    if path == EXTRA_FILE:
        return None
    return _LEFT_OUT.get(basename(path)) or (None if is_picture(path) else "unknown file")
