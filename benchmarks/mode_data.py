"""Synthetic data for a mode, as a chunked folder and as the store of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.synthetic import write_chunked_folder
from dlas_store import StoreError
from dlas_store.converters.importing import import_store
from dlas_store.published import open_published


def write_mode_data(mode: str, folder: Path, store: Path, *, patches: int, images: int, size: int, quality: int) -> int:
    """Write a folder of images with a reference and as many patches each, and the store of it.

    Args:
        mode: what will read it; multi_frame takes the images as the frames of a clip, paired_frame as stereo pairs,
            and torch_dataset as classes, whose references count as pictures.
        folder: is made.
        store: is made.
        patches: how many; as many of them as do not go evenly into images are left out.
        images: how many; an even number is enough for every mode.
        size: side of patches and references, in pixels.
        quality: of the JPEGs.

    Returns:
        The number of images.

    Raises:
        StoreError: there are more images than patches.
    """
    if images > patches:
        raise StoreError(f"{images} images need as many patches, got {patches}; give a larger --patches")
    each = patches // images
    images = max(1, patches // each // 2 * 2)
    write_chunked_folder(
        folder,
        patches=images * each,
        size=size,
        quality=quality,
        patches_an_image=each,
        name=_NAMES.get(mode, _plain),
    )
    source = open_published("imagefolder", folder) if mode == "torch_dataset" else folder
    import_store([source], store)
    return images


def _plain(number: int) -> str:
    return f"image_{number:06d}"


def _frame(number: int) -> str:
    # The mode takes the last twelve characters of a name for the frame's number.
    return f"clip_{number:012d}"


def _view(number: int) -> str:
    return f"pair_{number // 2:06d}_{'right' if number % 2 else 'left'}"


_NAMES: dict[str, Callable[[int], str]] = {"multi_frame": _frame, "paired_frame": _view}
