"""Synthetic data for a mode: a chunked folder, and the store made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.synthetic import write_chunked_folder
from dlas_store import StoreError
from dlas_store.converters.importing import import_store
from dlas_store.published import open_published


def write_mode_data(mode: str, folder: Path, store: Path, *, patches: int, images: int, size: int, quality: int) -> int:
    """Write a folder of images, each with a reference and equally many patches, and the store made of it.

    Args:
        mode: the mode that will read the data; multi_frame takes the images as the frames of a clip, paired_frame as
            stereo pairs, and torch_dataset as classes, whose references count as pictures.
        folder: the folder to make.
        store: the store to make.
        patches: number of patches, rounded down to a multiple of the images.
        images: number of images; an even number is enough for every mode.
        size: side of patches and references, in pixels.
        quality: JPEG quality.

    Returns:
        The number of images.

    Raises:
        StoreError: ``images`` is larger than ``patches``.
    """
    if images > patches:
        raise StoreError(f"{images} images need as many patches, got {patches}; give a larger --patches")
    patches_an_image = patches // images
    images = max(1, patches // patches_an_image // 2 * 2)
    write_chunked_folder(
        folder,
        patches=images * patches_an_image,
        size=size,
        quality=quality,
        patches_an_image=patches_an_image,
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
