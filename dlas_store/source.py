"""The one storage API: what every source of patches offers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from dlas_store.metadata import Image

Layout = Literal["chunked", "pictures"]
"""``chunked``: an image is a group of patches. ``pictures``: an image is one whole picture, named by its path."""

Pixels = NDArray[np.uint8]


class Listing(NamedTuple):
    """The files of one image, without their contents.

    Attributes:
        name: the image's name.
        files: patch file names in item order.
        sizes: bytes of each patch, int64 (len(files),).
        reference_size: bytes of the reference, None without one.
    """

    name: str
    files: tuple[str, ...]
    sizes: NDArray[np.int64]
    reference_size: int | None

    @property
    def total_bytes(self) -> int:
        """Bytes of all patches and the reference."""
        return int(self.sizes.sum()) + (self.reference_size or 0)


class Source(Protocol):
    """Anything patches are read from.

    Index domain: patches are numbered 0 <= index < len(source), images 0 <= number < image_count; the patches of
    image n are ``first_patch(n) <= index < first_patch(n + 1)``. Order is that of images, and within one of file
    names by code point. Other numbers, negative ones too, raise PatchIndexError.

    Determinism: the same index gives the same bytes as long as the source is open, also while a store is appended to.

    Threads: every method may be called from several threads at once. Fork: a source opened before a fork works in the
    child. Pickle: a source pickles as its path and options, and is opened again where it is unpickled.

    Errors: what cannot be read raises a StoreError that names the image and the file; nothing is replaced.
    """

    @property
    def path(self) -> Path:
        """The folder or file that was opened."""

    @property
    def layout(self) -> Layout:
        """How the source groups patches into images."""

    @property
    def image_count(self) -> int:
        """Number of images."""

    def __len__(self) -> int:
        """Return the number of patches."""

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of a patch, exactly those of the original file."""

    def view(self, index: int) -> bytes | memoryview:
        """Return the encoded bytes of a patch, without a copy where the source is mapped.

        What was mapped stays so for as long as a view of it is held, also after close().
        """

    def will_need(self, indices: Sequence[int], /) -> None:
        """Let the system fetch patches and references from the disk, without waiting for it; a hint."""

    def claimed_size(self, index: int) -> tuple[int, int]:
        """Return the height and width in pixels that a patch claims to have."""

    def read_into(self, index: int, out: Pixels) -> Pixels:
        """Decode a patch into an array, where it has exactly that size.

        Args:
            index: of the patch.
            out: uint8 (H, W, 3), contiguous; its content is undefined where something else is returned.

        Returns:
            RGB: ``out``, or a new array where the patch has another size.
        """

    def read_all_into(self, indices: list[int], outs: list[Pixels]) -> list[Pixels]:
        """Decode patches, each into its array; returns what read_into() does for each.

        Args:
            indices: of the patches; reading is fastest in ascending order.
            outs: as many arrays, as in read_into(); their content is undefined after an error.
        """

    def read_pixels(self, indices: Sequence[int], *, alpha: bool = False) -> Pixels | list[Pixels]:
        """Decode patches.

        Args:
            indices: patch indices, in any order, repeats allowed.
            alpha: keep the alpha channel (255 where a patch has none).

        Returns:
            RGB (RGBA with ``alpha``) uint8, in the order asked for: one array (n, H, W, 3 or 4) when all sizes agree,
            else a list of (H, W, 3 or 4) arrays. The arrays are new and belong to the caller.
        """

    def locate(self, index: int) -> tuple[int, int]:
        """Return (image number, position of the patch in its image)."""

    def first_patch(self, number: int) -> int:
        """Return the index of an image's first patch; ``first_patch(image_count)`` is ``len(source)``."""

    def patch_path(self, index: int) -> str:
        """Return the path of a patch: ROOT/IMAGE/FILE in a chunked source, ROOT/IMAGE in one of pictures."""

    def path_of(self, number: int, position: int) -> str:
        """Return the path of a patch by where locate() says that it is."""

    def image_name(self, number: int) -> str:
        """Return the name of an image."""

    def image(self, number: int) -> Image:
        """Return what is known of an image."""

    def read_reference(self, number: int) -> bytes | None:
        """Return the encoded bytes of an image's reference, None without one."""

    def find_image(self, name: str) -> int:
        """Return the number of the image of that name, or raise NameNotFoundError."""

    def find(self, image: str, file: str) -> int:
        """Return the index of a patch by image and file name, or raise NameNotFoundError."""

    def listings(self) -> Iterator[Listing]:
        """Yield the files of every image in order, holding no more than one image's."""

    def close(self) -> None:
        """Let go of files and maps. Closing twice is fine; any other use after it raises ClosedError."""

    def __enter__(self) -> Self:
        """Return self."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""


def relative_path(layout: Layout, image: str, file: str) -> str:
    """Return a patch's path below the root of its folder."""
    return f"{image}/{file}" if layout == "chunked" else image
