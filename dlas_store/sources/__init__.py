"""Sources of patches: the contract Source, and the kinds of data that keep it."""

from dlas_store.sources.base import Source
from dlas_store.sources.concat import ConcatSource
from dlas_store.sources.layouts import ChunkedFolder, ClassFolders, PictureFolder
from dlas_store.sources.published import open_published

__all__ = ["ChunkedFolder", "ClassFolders", "ConcatSource", "PictureFolder", "Source", "open_published"]
