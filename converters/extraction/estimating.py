"""What an extraction will come to, found without writing anything."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.photos import single_threaded
from dlas_store.converters.extraction.plan import ExtractPlan, Skipped
from dlas_store.converters.extraction.task import prepare
from dlas_store.converters.extraction.tiles import cut_photo
from dlas_store.processes import progress_bar

_PHOTOS_TRIED = 8


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What an extraction is expected to come to.

    Attributes:
        photos: number of photos to cut up.
        images: number of images they give.
        patches: number of patches.
        payload_bytes: bytes of patches and references, about.
        seconds: how long it will take, about.
        skipped: photos that are left out, from what their names and headers say.
        present: number of photos that the store has.
        changed: paths of those of them whose file has another size now.
    """

    photos: int
    images: int
    patches: int
    payload_bytes: int
    seconds: float
    skipped: list[Skipped]
    present: int
    changed: list[str]


def estimate(
    photos: Path | str,
    dst: Path | str,
    options: ExtractOptions,
    *,
    append: bool = False,
    workers: int | None = None,
    group_size: int | None = None,
) -> Estimate:
    """Say what extract() of the same arguments would come to.

    Cuts up to eight photos in memory, spread over all of them, and goes on from there by pixels of photos and of tiles.

    Raises:
        StoreError: as extract(), before it writes.
    """
    task = prepare(photos, dst, options, append=append, workers=workers, group_size=group_size)
    plan = task.plan
    plan.check_names()
    tried = _try_some(plan, options)
    expected = plan.expected
    seconds = expected.photo_pixels * tried.seconds_a_photo_pixel + expected.tile_pixels * tried.seconds_a_tile_pixel
    return Estimate(
        photos=len(plan.paths),
        images=expected.images,
        patches=expected.tiles,
        payload_bytes=round(expected.tile_pixels * tried.bytes_a_tile_pixel),
        seconds=seconds / max(1, task.workers),
        skipped=plan.skipped,
        present=plan.present,
        changed=plan.changed,
    )


@dataclass(frozen=True, slots=True)
class _Tried:
    seconds_a_photo_pixel: float
    seconds_a_tile_pixel: float
    bytes_a_tile_pixel: float


def _try_some(plan: ExtractPlan, options: ExtractOptions) -> _Tried:
    count = min(len(plan.paths), _PHOTOS_TRIED)
    decoding = encoding = 0.0
    photo_pixels = tile_pixels = tile_bytes = 0
    with single_threaded(), progress_bar(count, "estimating", unit="photos") as bar:
        for number in range(count):
            started = time.perf_counter()
            images = cut_photo(plan.root, plan.paths[number * len(plan.paths) // count], options).images
            decoding += time.perf_counter() - started
            started = time.perf_counter()
            for cut in images:
                tile_bytes += len(cut.reference()) + sum(len(tile.data) for tile in cut.encoded())
                tile_pixels += options.tile_dimension**2 + sum(tile.size**2 for tile in cut.tiles)
                photo_pixels += cut.photo_pixels if cut is images[0] else 0
            encoding += time.perf_counter() - started
            if bar is not None:
                bar.update()
    if not tile_pixels:
        return _Tried(0, 0, plan.expected.tile_bytes / max(1, plan.expected.tile_pixels))
    return _Tried(decoding / photo_pixels, encoding / tile_pixels, tile_bytes / tile_pixels)
