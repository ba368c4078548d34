"""Plan of an extraction: the photos that are taken, the names of their images, and the groups that workers get.

A photo's header tells what it will give.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from xxhash import xxh3_128_hexdigest

from dlas_store.converters.extraction.geometry import count_tiles
from dlas_store.converters.extraction.headers import (
    EXCLUDED,
    PHOTO_ENDINGS,
    Header,
    Rejection,
    open_photo,
    photo_squares,
    read_header,
    rejection_of,
    why_no_tile,
)
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.tiles import Mask, image_name, kept_tiles, read_mask
from dlas_store.converters.sharding import split_by_size, target_shard_size
from dlas_store.errors import ImageError, ImportFailedError, NameNotFoundError, NotASourceError
from dlas_store.sources.walk import EXTRA_FILE, FolderWalk
from dlas_store.storage.commit import PlannedShard
from dlas_store.storage.store import Store

if TYPE_CHECKING:
    from dlas_store.processes import ProgressBar


_QUALITIES = (1, 50, 75, 90, 95, 100)
_BYTES_A_PIXEL = (0.015, 0.05, 0.08, 0.13, 0.19, 0.45)
"""JPEG bytes a pixel at those qualities, 4:2:0, of 256 x 256 tiles of the sample photos; for estimates."""


class PhotoEstimate(NamedTuple):
    """What photos are expected to give: exactly, but for the bytes.

    Attributes:
        photo_pixels: of the photos as stored.
        images: number of images.
        tiles: number of tiles.
        tile_pixels: of all tiles and references.
        tile_bytes: of those, once they are encoded; an estimate.
    """

    photo_pixels: int = 0
    images: int = 0
    tiles: int = 0
    tile_pixels: int = 0
    tile_bytes: int = 0


def estimate_photo(header: Header, options: ExtractOptions, wanted: list[int], mask: Mask | None) -> PhotoEstimate:
    """Return what a photo will give.

    Args:
        header: the photo's.
        options: of the extraction.
        wanted: positions of the crop sizes that it is cut to.
        mask: the photo's, if there is one.
    """
    counts = []
    for square in photo_squares(header, options).values():
        if mask is None:
            count, pixels = count_tiles(square.side, options, wanted)
        else:
            kept = [tile for tiles in kept_tiles(square.side, options, wanted, mask) for tile in tiles]
            count, pixels = len(kept), sum(tile.size**2 for tile in kept)
        if count:
            counts.append((count, pixels + options.tile_dimension**2))
    tile_pixels = sum(pixels for _, pixels in counts)
    return PhotoEstimate(
        photo_pixels=header.size.height * header.size.width,
        images=len(counts),
        tiles=sum(count for count, _ in counts),
        tile_pixels=tile_pixels,
        tile_bytes=int(tile_pixels * np.interp(options.quality, _QUALITIES, _BYTES_A_PIXEL)),
    )


MIN_GROUP_SIZE = 1 << 20
MAX_GROUP_SIZE = 256 << 20
_GROUPS_AT_LEAST = 64
_NAME_BYTES = 255
"""What file systems allow, less than that where the image's name gets a suffix."""
_NAMES_IN_MESSAGE = 20


class Skipped(NamedTuple):
    """A photo that gave no image; ``photo`` is its path below the folder."""

    photo: str
    reason: str
    bad: bool


@dataclass
class ExtractPlan:
    """The photos to cut up, in order of their images' names, and in groups.

    Making one holds a path and a few numbers a photo, and nothing a tile.

    Attributes:
        root: folder of the photos.
        paths: of the photos, below it.
        expected: what all of them will give.
        groups: what each group will give; they take the photos in order.
        ends: for each group, the position after its last photo.
        skipped: photos that are left out, from what their names and headers say.
        present: number of photos that the store has.
        changed: paths of those of them whose file has another size now.
        collisions: pairs of photos that come to one name.
    """

    root: Path
    paths: list[str] = field(default_factory=list)
    expected: PhotoEstimate = field(default_factory=PhotoEstimate)
    groups: list[PlannedShard] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    present: int = 0
    changed: list[str] = field(default_factory=list)
    collisions: list[tuple[str, str]] = field(default_factory=list)

    def check_names(self) -> None:
        """Raise ImportFailedError where photos come to one name."""
        if not self.collisions:
            return
        shown = "; ".join(f"{first} and {second}" for first, second in self.collisions[:_NAMES_IN_MESSAGE])
        more = "; ..." if len(self.collisions) > _NAMES_IN_MESSAGE else ""
        raise ImportFailedError(
            f"{self.root}: two photos come to one image name: {shown}{more}; rename one of them, or leave it out with "
            "--exclude"
        )

    def photos_of(self, group: int) -> list[str]:
        """Return the paths of a group's photos."""
        return self.paths[self.ends[group - 1] if group else 0 : self.ends[group]]


def plan_extraction(
    root: Path,
    options: ExtractOptions,
    *,
    base: Store | None = None,
    group_size: int | None = None,
    bar: ProgressBar | None = None,
) -> ExtractPlan:
    """List the photos below a folder, read their headers, and plan.

    Args:
        root: folder of the photos.
        options: of the extraction.
        base: the store that is appended to; photos it has are left alone.
        group_size: bytes that a group of photos may give; None takes a 64th of all, from 1 to 256 MiB.
        bar: where progress is shown, in photos.

    Raises:
        NotASourceError: the folder cannot be listed, has names that are not UTF-8, or holds no photo.
    """
    plan = ExtractPlan(root)
    suffixes = ("_left", "_right") if options.vertical_split else ("",)
    expected: dict[str, array[int]] = {key: array("Q") for key in PhotoEstimate._fields}
    states = array("Q")
    taken: tuple[str, str] = ("", "")  # name and path of the latest photo that is not left out
    for path in _named_photos(plan, max(map(len, suffixes)), options):
        if bar is not None:
            bar.update()
        name = image_name(path)
        found = _look(plan, path, options, _find(base, [name + suffix for suffix in suffixes]), base)
        if found is None:
            continue
        if taken[0] == name:
            plan.collisions.append((taken[1], path))
        taken = name, path
        if isinstance(found, _Seen):
            plan.paths.append(path)
            states.extend(found.state)
            for key, value in found.expected._asdict().items():
                expected[key].append(value)
    _group(plan, expected, states, options, group_size)
    return plan


class _Seen(NamedTuple):
    """A photo that is taken.

    Attributes:
        state: bytes of its file, when that was changed in ns, digest of its mask.
        expected: what it will give.
    """

    state: tuple[int, int, int]
    expected: PhotoEstimate


class _Present(NamedTuple):
    """A photo that the store has."""


def _named_photos(plan: ExtractPlan, suffix_length: int, options: ExtractOptions) -> Iterator[str]:
    """Yield the photos whose names and paths do not leave them out, in order of their images' names."""
    walk = FolderWalk(plan.root)
    paths: list[str] = []
    for path in walk.files():
        if not path.lower().endswith(PHOTO_ENDINGS):
            continue
        if problem := _problem_of_name(path, suffix_length, options):
            plan.skipped.append(Skipped(path, *problem))
        else:
            paths.append(path)
    walk.finish()
    plan.skipped += [Skipped(path, reason, bad=path.lower().endswith(PHOTO_ENDINGS)) for path, reason in walk.skipped]
    if not paths and not plan.skipped:
        raise NotASourceError(f"{plan.root}: holds no photo ({', '.join(sorted(PHOTO_ENDINGS))})")
    paths.sort(key=lambda path: (image_name(path), path))
    yield from paths


def _problem_of_name(path: str, suffix_length: int, options: ExtractOptions) -> Rejection | None:
    name = image_name(path)
    if name in ("", ".", "..", EXTRA_FILE):
        return Rejection(f"its image would be called {name!r}, which no folder can be; rename it", bad=True)
    if len(name.encode()) + suffix_length > _NAME_BYTES:
        return Rejection("its image's name would be longer than file systems allow; rename it", bad=True)
    return None if options.wanted_crops(path) else EXCLUDED


def _look(
    plan: ExtractPlan, path: str, options: ExtractOptions, number: int | None, base: Store | None
) -> _Seen | _Present | None:
    """Return what is known of a photo that is taken or present; note in the plan why others are left out."""
    try:
        state = _state(plan.root / path)
        if number is not None:
            assert base is not None
            plan.present += 1
            if _size_then(base.image(number).extra) not in (None, state.st_size):
                plan.changed.append(path)
            return _Present()
        with open_photo(plan.root / path) as file:
            header = read_header(file)
        problem = rejection_of(header, options)
        mask = None if problem else read_mask(path, options)
    except ImageError as error:
        plan.skipped.append(Skipped(path, str(error), bad=True))
        return None
    wanted = options.wanted_crops(path)
    expected = PhotoEstimate() if problem else estimate_photo(header, options, wanted, mask)
    if expected.tiles:
        return _Seen((state.st_size, state.st_mtime_ns % (1 << 64), mask.digest if mask else 0), expected)
    plan.skipped.append(Skipped(path, *(problem or why_no_tile(header, options, wanted))))
    return None


def _state(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})") from error


def _find(base: Store | None, names: list[str]) -> int | None:
    """Return the number of the first of some images that a store has."""
    for name in names if base else ():
        assert base is not None
        try:
            return base.find_image(name)
        except NameNotFoundError:
            continue
    return None


def _size_then(extra: Mapping[str, object]) -> object:
    """Return the bytes that a photo had when it was extracted, None where that is not known."""
    photo = extra.get("photo")
    return photo.get("bytes") if isinstance(photo, Mapping) else None


def _group(
    plan: ExtractPlan,
    expected: Mapping[str, array[int]],
    states: array[int],
    options: ExtractOptions,
    group_size: int | None,
) -> None:
    plan.expected = PhotoEstimate(**{key: sum(values) for key, values in expected.items()})
    sizes = expected["tile_bytes"]
    limit = group_size or target_shard_size(
        plan.expected.tile_bytes, parts=_GROUPS_AT_LEAST, low=MIN_GROUP_SIZE, high=MAX_GROUP_SIZE
    )
    for start, end in split_by_size(sizes, limit):
        content = repr((plan.paths[start:end], states[3 * start : 3 * end].tolist(), options.fingerprint))
        plan.groups.append(
            PlannedShard(
                images=sum(expected["images"][start:end]),
                patches=sum(expected["tiles"][start:end]),
                payload_bytes=sum(sizes[start:end]),
                fingerprint=xxh3_128_hexdigest(content.encode()),
            )
        )
        plan.ends.append(end)
