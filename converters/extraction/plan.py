"""Plan of an extraction: the accepted photos, the names of their images, and their division into groups."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from xxhash import xxh3_128_hexdigest

from dlas_store.converters.extraction.geometry import count_tiles
from dlas_store.converters.extraction.headers import (
    EXCLUDED,
    PHOTO_ENDINGS,
    Header,
    Rejection,
    is_photo,
    open_photo,
    photo_squares,
    read_header,
    rejection_of,
    rejection_without_tiles,
)
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.tiles import Mask, image_name, kept_tiles, read_mask
from dlas_store.converters.sharding import split_by_size, target_shard_size
from dlas_store.errors import ImageError, ImportFailedError, NameNotFoundError, NotASourceError
from dlas_store.sources.folder import reason_of_ending
from dlas_store.sources.walk import EXTRA_FILE, HIDDEN, LOOP, NEITHER, FolderWalk, describe_skipped
from dlas_store.storage.commit import PlannedShard
from dlas_store.storage.store import Store

if TYPE_CHECKING:
    from dlas_store.progress import ProgressBar

MIN_GROUP_SIZE = 1 << 20
MAX_GROUP_SIZE = 256 << 20

_NO_PHOTO = frozenset({HIDDEN, LOOP, NEITHER})
"""Reasons for which a path is left out that is no bad photo, whatever its name is."""

_MIN_GROUPS = 64
_NAMES_IN_MESSAGE = 20
_MAX_NAME_BYTES = 255
"""File systems' limit for an image's name, including the suffix of a split photo."""

_QUALITIES = (1, 50, 75, 90, 95, 100)
_BYTES_PER_PIXEL = (0.015, 0.05, 0.08, 0.13, 0.19, 0.45)
"""JPEG bytes per pixel at those qualities, 4:2:0, of 256 x 256 tiles of the sample photos; for estimates."""


class PhotoEstimate(NamedTuple):
    """Expected output of one or more photos; exact, except for the bytes.

    Attributes:
        photo_pixels: pixels of the photos as stored.
        images: number of images.
        tiles: number of tiles.
        tile_pixels: pixels of all tiles and references.
        tile_bytes: estimated bytes of the encoded tiles and references.
    """

    photo_pixels: int = 0
    images: int = 0
    tiles: int = 0
    tile_pixels: int = 0
    tile_bytes: int = 0


class SkippedPhoto(NamedTuple):
    """A photo that gave no image.

    Attributes:
        photo: path below the folder.
        reason: see Rejection.
        is_error: see Rejection.
    """

    photo: str
    reason: str
    is_error: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the photo in JSON types, with the keys of the report file."""
        return {"photo": self.photo, "reason": self.reason, "bad": self.is_error}


@dataclass
class ExtractPlan:
    """Photos to extract, in order of their images' names, and their division into groups.

    Planning holds a path and a few numbers per photo, and nothing per tile.

    Attributes:
        root: folder of the photos.
        paths: paths of the photos below the folder.
        estimate: expected output of all photos.
        groups: expected output of each group; groups take the photos in order.
        ends: position after the last photo of each group.
        skipped: photos that are skipped because of their names, headers or masks.
        present: number of photos that the store has.
        changed: paths of photos that the store has, but whose file has another size now.
        collisions: pairs of photos whose images would have the same name.
    """

    root: Path
    paths: list[str] = field(default_factory=list)
    estimate: PhotoEstimate = field(default_factory=PhotoEstimate)
    groups: list[PlannedShard] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    skipped: list[SkippedPhoto] = field(default_factory=list)
    present: int = 0
    changed: list[str] = field(default_factory=list)
    collisions: list[tuple[str, str]] = field(default_factory=list)

    def check_names(self) -> None:
        """Raise ImportFailedError if images of several photos would have the same name."""
        if not self.collisions:
            return
        shown = "; ".join(f"{first} and {second}" for first, second in self.collisions[:_NAMES_IN_MESSAGE])
        more = "; ..." if len(self.collisions) > _NAMES_IN_MESSAGE else ""
        raise ImportFailedError(
            f"{self.root}: two photos would give one image name: {shown}{more}; rename one of them, or exclude it "
            "with --exclude"
        )

    def photos_of_group(self, group: int) -> list[str]:
        """Return the paths of a group's photos."""
        return self.paths[self.ends[group - 1] if group else 0 : self.ends[group]]


def plan_extraction(
    root: Path,
    options: ExtractOptions,
    *,
    base: Store | None = None,
    group_size: int | None = None,
    include_hidden: bool = False,
    bar: ProgressBar | None = None,
) -> ExtractPlan:
    """List the photos below a folder, read their headers, and plan the extraction.

    Args:
        root: folder of the photos.
        options: options of the extraction.
        base: the store that is appended to, None for a new store; photos that it has are not extracted again.
        group_size: estimated bytes that a group of photos may give; None takes a 64th of all, from 1 to 256 MiB.
        include_hidden: extract hidden photos, too; see open_source.
        bar: progress bar that counts photos.

    Raises:
        NotASourceError: the folder cannot be listed, has names that are not UTF-8, or holds no photo.
    """
    plan = ExtractPlan(root)
    suffixes = ("_left", "_right") if options.vertical_split else ("",)
    estimates: dict[str, array[int]] = {key: array("Q") for key in PhotoEstimate._fields}
    states = array("Q")
    last_name = last_path = ""  # of the last photo that is not skipped
    walk = FolderWalk(root, include_hidden=include_hidden, reason_of=_reason_of)
    for path in _list_photos(plan, walk, max(map(len, suffixes)), options):
        if bar is not None:
            bar.update()
        name = image_name(path)
        photo = _inspect(plan, path, options, _find_image(base, [name + suffix for suffix in suffixes]), base)
        if photo is None:
            continue
        if last_name == name:
            plan.collisions.append((last_path, path))
        last_name, last_path = name, path
        if isinstance(photo, _NewPhoto):
            plan.paths.append(path)
            states.extend(photo.state)
            for key, value in photo.estimate._asdict().items():
                estimates[key].append(value)
    _group_photos(plan, estimates, states, options, group_size)
    return plan


def estimate_photo(
    header: Header, options: ExtractOptions, crop_indices: list[int], mask: Mask | None
) -> PhotoEstimate:
    """Return the expected output of a photo.

    Args:
        header: header of the photo.
        options: options of the extraction.
        crop_indices: indices of the crop sizes that the photo is split into.
        mask: the photo's mask, None if the options name no masks.
    """
    counts = []
    for square in photo_squares(header, options).values():
        if mask is None:
            count, pixels = count_tiles(square.side, options, crop_indices)
        else:
            kept = [tile for tiles in kept_tiles(square.side, options, crop_indices, mask) for tile in tiles]
            count, pixels = len(kept), sum(tile.size**2 for tile in kept)
        if count:
            counts.append((count, pixels + options.tile_dimension**2))
    tile_pixels = sum(pixels for _, pixels in counts)
    return PhotoEstimate(
        photo_pixels=header.size.height * header.size.width,
        images=len(counts),
        tiles=sum(count for count, _ in counts),
        tile_pixels=tile_pixels,
        tile_bytes=int(tile_pixels * np.interp(options.quality, _QUALITIES, _BYTES_PER_PIXEL)),
    )


class _NewPhoto(NamedTuple):
    """A photo to extract.

    Attributes:
        state: bytes of the file, its time of change in ns, and the digest of its mask.
        estimate: expected output.
    """

    state: tuple[int, int, int]
    estimate: PhotoEstimate


class _PresentPhoto(NamedTuple):
    """A photo that the store has."""


def _list_photos(plan: ExtractPlan, walk: FolderWalk, suffix_length: int, options: ExtractOptions) -> Iterator[str]:
    """Yield the paths of the photos in order of their images' names; skips photos by their paths and names."""
    paths: list[str] = []
    for path in walk.files():
        if reason := _reason_of(path):
            walk.skip([path], reason)
        elif rejection := _name_rejection(path, suffix_length, options):
            plan.skipped.append(SkippedPhoto(path, *rejection))
        else:
            paths.append(path)
    walk.finish()
    plan.skipped += [
        SkippedPhoto(path, reason, is_error=is_photo(path) and reason not in _NO_PHOTO) for path, reason in walk.skipped
    ]
    if not paths and not any(is_photo(path) for path, _, _ in plan.skipped):
        left_out = describe_skipped(walk.skipped)
        raise NotASourceError(f"{plan.root}: holds no photo ({', '.join(sorted(PHOTO_ENDINGS))}){left_out}")
    paths.sort(key=lambda path: (image_name(path), path))
    yield from paths


def _reason_of(path: str) -> str | None:
    """Return the reason to leave out a file that is no photo, None for a photo."""
    return None if is_photo(path) else reason_of_ending(path)


def _name_rejection(path: str, suffix_length: int, options: ExtractOptions) -> Rejection | None:
    name = image_name(path)
    if name in ("", ".", "..", EXTRA_FILE):
        return Rejection(f"its image would be called {name!r}, which is no valid folder name; rename it", is_error=True)
    if len(name.encode()) + suffix_length > _MAX_NAME_BYTES:
        return Rejection("its image's name would be longer than file systems allow; rename it", is_error=True)
    return None if options.crop_indices(path) else EXCLUDED


def _inspect(
    plan: ExtractPlan, path: str, options: ExtractOptions, number: int | None, base: Store | None
) -> _NewPhoto | _PresentPhoto | None:
    """Return a photo that is new or present, None if it is skipped; adds skipped and present photos to the plan.

    Args:
        plan: the plan.
        path: the photo's path below the folder.
        options: options of the extraction.
        number: number of the photo's image in the base, None if the base does not have it.
        base: the store that is appended to, if any.
    """
    try:
        state = _stat(plan.root / path)
        if number is not None:
            assert base is not None
            plan.present += 1
            if _extracted_bytes(base.image(number).extra) not in (None, state.st_size):
                plan.changed.append(path)
            return _PresentPhoto()
        with open_photo(plan.root / path) as file:
            header = read_header(file)
        rejection = rejection_of(header, options)
        mask = None if rejection else read_mask(path, options)
    except ImageError as error:
        plan.skipped.append(SkippedPhoto(path, str(error), is_error=True))
        return None
    crop_indices = options.crop_indices(path)
    estimate = PhotoEstimate() if rejection else estimate_photo(header, options, crop_indices, mask)
    if estimate.tiles:
        return _NewPhoto((state.st_size, state.st_mtime_ns % (1 << 64), mask.digest if mask else 0), estimate)
    plan.skipped.append(SkippedPhoto(path, *(rejection or rejection_without_tiles(header, options, crop_indices))))
    return None


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})") from error


def _find_image(base: Store | None, names: list[str]) -> int | None:
    """Return the number of the first image, of several names, that the store has; None if it has none of them."""
    for name in names if base else ():
        assert base is not None
        try:
            return base.find_image(name)
        except NameNotFoundError:
            continue
    return None


def _extracted_bytes(extra: Mapping[str, object]) -> object:
    """Return the size of a photo's file when it was extracted, None if it is not known."""
    photo = extra.get("photo")
    return photo.get("bytes") if isinstance(photo, Mapping) else None


def _group_photos(
    plan: ExtractPlan,
    estimates: Mapping[str, array[int]],
    states: array[int],
    options: ExtractOptions,
    group_size: int | None,
) -> None:
    """Add to a plan its total and its groups.

    Args:
        plan: the plan, with the paths of all photos.
        estimates: values of each field of PhotoEstimate, one per photo.
        states: three numbers per photo; see _NewPhoto.
        options: options of the extraction.
        group_size: as in plan_extraction.
    """
    plan.estimate = PhotoEstimate(**{key: sum(values) for key, values in estimates.items()})
    sizes = estimates["tile_bytes"]
    limit = group_size or target_shard_size(
        plan.estimate.tile_bytes, min_shards=_MIN_GROUPS, min_size=MIN_GROUP_SIZE, max_size=MAX_GROUP_SIZE
    )
    for start, end in split_by_size(sizes, limit):
        content = repr((plan.paths[start:end], states[3 * start : 3 * end].tolist(), options.fingerprint))
        plan.groups.append(
            PlannedShard(
                images=sum(estimates["images"][start:end]),
                patches=sum(estimates["tiles"][start:end]),
                payload_bytes=sum(sizes[start:end]),
                fingerprint=xxh3_128_hexdigest(content.encode()),
            )
        )
        plan.ends.append(end)
