"""Reading DL-Art-School's chunked folder: one sub folder an image, one file a patch."""

from __future__ import annotations

from collections.abc import Iterator

from dlas_store.centers import read_centers
from dlas_store.extra_fields import EXTRA_FILE
from dlas_store.folder_source import FolderSource, FoundImage, is_picture
from dlas_store.folder_walk import FolderWalk
from dlas_store.source import CENTERS_FILE, REFERENCE_FILE, Center

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
                walk.leave_out([name], "link to a folder that it lies in")
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
                walk.leave_out([file], "the scan that DL-Art-School keeps, made anew from the folder")
            elif file != EXTRA_FILE:
                walk.leave_out([file], "not an image folder")
        return folders


def _find_image(walk: FolderWalk, name: str) -> FoundImage | None:
    paths, folders = walk.entries(name)
    files = sorted(path[len(name) + 1 :] for path in paths)
    patches = [file for file in files if is_picture(file) and file != REFERENCE_FILE]
    if not patches:
        walk.leave_out([name], "folder without patches")
        return None
    known = {*patches, REFERENCE_FILE, CENTERS_FILE}
    walk.leave_out((f"{name}/{file}" for file in files if file not in known), "unknown file")
    walk.leave_out(sorted(folders), "folder in an image folder")
    return FoundImage(name, patches, has_reference=REFERENCE_FILE in files, has_centers=CENTERS_FILE in files)
