"""Synthetic data: photos, and patches in folders and stores, with the size and the decoding time of real pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg

from dlas_store import StoreError
from dlas_store.converters.importing import import_store
from dlas_store.images.memory import Pixels
from dlas_store.sources.base import Center
from dlas_store.sources.centers import write_centers
from dlas_store.sources.published import open_published

PATCHES_AN_IMAGE = 100
_DISTINCT_PICTURES = 200
_PHOTO_PART = 1024
"""Side in pixels of the synthetic picture that a photo repeats, mirrored."""


def _plain_name(number: int) -> str:
    return f"image_{number:06d}"


def write_chunked_folder(
    folder: Path,
    *,
    patches: int,
    size: int,
    quality: int,
    patches_an_image: int = PATCHES_AN_IMAGE,
    name: Callable[[int], str] = _plain_name,
) -> None:
    """Write a chunked folder; equal arguments give equal files.

    Args:
        folder: the folder to make.
        patches: number of patches. Each patch is a file of its own, and the patches repeat 200 pictures.
        size: side of the patches, in pixels.
        quality: JPEG quality, with 4:2:0 subsampling.
        patches_an_image: patches of an image; the last image may have fewer patches.
        name: returns an image's name from its number.
    """
    pictures = synthetic_jpegs(patches, size=size, quality=quality)
    for first in range(0, patches, patches_an_image):
        image = folder / name(first // patches_an_image)
        image.mkdir(parents=True)
        (image / "ref.jpg").write_bytes(pictures[first % len(pictures)])
        centers = {}
        for number in range(min(patches_an_image, patches - first)):
            (image / f"{number:08d}.jpg").write_bytes(pictures[(first + number) % len(pictures)])
            centers[number] = Center(size * (number // 10 % 10 + 1) // 11, size * (number % 10 + 1) // 11, size // 8)
        (image / "centers.pt").write_bytes(write_centers(centers))


def write_photos(folder: Path, *, count: int, megapixels: tuple[float, float], quality: int = 92) -> None:
    """Write photos of shape 4:3, evenly spaced from the smallest to the largest; equal arguments give equal files.

    Args:
        folder: the folder to make.
        count: number of photos.
        megapixels: sizes of the smallest and of the largest photo, in megapixels.
        quality: JPEG quality, with 4:2:0 subsampling.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, pixels in enumerate(rng.permutation(np.linspace(*megapixels, count) * 1e6)):
        height, width = round((pixels * 3 / 4) ** 0.5), round((pixels * 4 / 3) ** 0.5)
        # A synthetic picture of a photo's size takes seconds; mirrored copies of a small one have equal statistics.
        picture = synthetic_picture(rng, _PHOTO_PART, grain=(_PHOTO_PART / 256) ** 0.8)
        photo = np.pad(
            picture, ((0, max(0, height - _PHOTO_PART)), (0, max(0, width - _PHOTO_PART)), (0, 0)), "symmetric"
        )
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(photo[:height, :width]), quality, "RGB", "420")
        (folder / f"photo_{number:04d}.jpg").write_bytes(data)


def synthetic_jpegs(count: int, *, size: int, quality: int) -> list[bytes]:
    """Return different square JPEGs of ``size`` pixels with 4:2:0 subsampling: ``count`` of them, but at most 200."""
    rng = np.random.default_rng(0)
    return [
        simplejpeg.encode_jpeg(synthetic_picture(rng, size), quality, "RGB", "420")
        for _ in range(min(count, _DISTINCT_PICTURES))
    ]


def synthetic_picture(rng: np.random.Generator, size: int, *, grain: float = 1.0) -> Pixels:
    """Return a picture with the statistics of a photo: straight edges, and noise whose amplitude falls with frequency.

    The exponent and the contrasts were chosen so that 256 x 256 pixels at quality 95 take 12.6 kB, like patches of
    photos.

    Args:
        rng: source of the random numbers.
        size: side in pixels.
        grain: factor of the noise. For a larger size, (size / 256)^0.8 keeps the noise spectrum of 256 pixels.

    Returns:
        uint8 (size, size, 3), RGB.
    """
    rows, columns = np.mgrid[0:size, 0:size] / size
    picture = np.full((size, size, 3), rng.uniform(60, 190, 3))
    for _ in range(6):
        angle = rng.uniform(0, 2 * np.pi)
        side = np.cos(angle) * (rows - rng.uniform()) + np.sin(angle) * (columns - rng.uniform()) > 0
        picture[side] += rng.normal(0, 25) + rng.normal(0, 6, 3)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((4, size, size))) * frequency**-1.8
    noise = np.fft.irfft2(spectrum, (size, size))
    noise /= noise.std(axis=(1, 2), keepdims=True)
    brightness, colour = noise[3, :, :, None], np.moveaxis(noise[:3], 0, 2)
    return np.clip(picture + grain * 15 * brightness + grain * 3 * colour, 0, 255).astype(np.uint8, order="C")


def write_mode_data(mode: str, folder: Path, store: Path, *, patches: int, images: int, size: int, quality: int) -> int:
    """Write a folder of images, each with a reference and equally many patches, and import the folder into a store.

    Args:
        mode: the mode that will read the data. multi_frame takes the images as frames of a clip, paired_frame as
            stereo pairs, and torch_dataset as classes, whose references count as pictures.
        folder: the folder to make.
        store: the store to make.
        patches: number of patches, rounded down to a multiple of the images.
        images: number of images; an even number suits every mode.
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
        name=_NAMES.get(mode, _plain_name),
    )
    source = open_published("imagefolder", folder) if mode == "torch_dataset" else folder
    import_store([source], store)
    return images


def _frame_name(number: int) -> str:
    # The mode reads the frame's number from the last twelve characters of a name.
    return f"clip_{number:012d}"


def _view_name(number: int) -> str:
    return f"pair_{number // 2:06d}_{'right' if number % 2 else 'left'}"


_NAMES: dict[str, Callable[[int], str]] = {"multi_frame": _frame_name, "paired_frame": _view_name}
