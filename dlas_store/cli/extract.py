"""The command ``dlas-store extract``: its flags, and what it prints."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlas_store.cli.text import WORKERS_HELP, byte_size, megabytes, natural, one_line, print_lines, shorten
from dlas_store.errors import ConfigError, ImportFailedError, WriteError

if TYPE_CHECKING:
    from dlas_store.converters.extraction.plan import SkippedPhoto

_REASONS_SHOWN = 50
_BAD_SHOWN = 20
_LEFT_OUT_SHOWN = 3

_VALUES = {
    "crop_size": "crop_sz",
    "step": "step",
    "threshold": "thres_sz",
    "resize": "resize_final_img",
    "only_resize": "only_resize",
    "vertical_split": "vertical_split",
    "masks": "mask_path",
    "halve_above": "input_image_max_size_before_being_halved",
    "min_size": "min_size",
    "quality": "compression_level",
    "subsampling": "subsampling",
    "greyscale": "greyscale",
    "ignore_exif": "ignore_exif",
    "fast_decode": "fast_decode",
    "workers": "n_thread",
}
"""Flag -> the option that it overrides."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""

    def add(flag: str, text: str, metavar: str, kind: Any = None) -> None:
        command.add_argument(flag, metavar=metavar, type=kind, help=text)

    def add_switch(flag: str, text: str) -> None:
        command.add_argument(flag, action="store_const", const=True, help=text)

    command.add_argument("photos", type=Path, metavar="PHOTOS", help="folder of photos, at any depth")
    command.add_argument("dst", type=Path, metavar="DST", help="NAME.lmdb: the store to write; else the chunked folder")
    add("--config", "options by DL-Art-School's names, YAML; flags come before it", "FILE", Path)
    add("--crop-size", "sides of the squares to cut out, in pixels (default: 256,512)", "N,...", _numbers)
    add("--step", "pixels from one square to the next (default: half of each crop size)", "N,...", _numbers)
    add("--threshold", "one more square where more pixels than this are left over (default: 128)", "N", _number)
    add("--resize", "factor for each crop size (default: brings each to the first)", "F,...", _numbers)
    add_switch("--only-resize", "do not cut up: one patch a photo, its square resized")
    add_switch("--vertical-split", "photos are side-by-side stereo pairs: two images each")
    add("--masks", "masks of 256 x 256 pixels: keep a tile where its mask is at least half white", "DIR")
    command.add_argument(
        "--exclude",
        action="append",
        metavar="[SIZE:]TERM",
        help="leave out photos with TERM in their path, or do not cut them to SIZE; may be repeated",
    )
    add("--halve-above", "halve photos whose longer side is above this (default: 5500)", "N", _number)
    add("--min-size", "least pixels of a photo's shorter side (default: the largest crop size)", "N", _number)
    add("--quality", "of the JPEGs, 1 to 100 (default: 95)", "N", _number)
    add("--subsampling", "of their colour: 4:2:0 (default), 4:2:2 or 4:4:4", "S")
    add("--greyscale", "skip greyscale photos (default), or convert them to RGB", "skip|convert")
    add_switch("--ignore-exif", "do not turn photos as EXIF says they were held")
    add_switch("--fast-decode", "decode large JPEGs at reduced size where that is enough; changes pixels a little")
    add("--workers", WORKERS_HELP, "N", natural)
    add("--shard-size", "estimated bytes of tiles a shard (default: a 64th of all, 1MiB to 256MiB)", "SIZE", byte_size)
    command.add_argument("--append", action="store_true", help="add photos that the store does not have")
    command.add_argument("--dry-run", action="store_true", help="say what would come of it, and write nothing")
    add("--report", "write what came of it there, with every photo that was left out", "FILE.json", Path)


def run(flags: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from dlas_store.converters.extraction.options import ExtractOptions, workers_of

    given = _merge(flags)
    options, workers = ExtractOptions.read(given, exclude=flags.exclude), workers_of(given)
    if flags.dry_run:
        return _estimate(flags, options, workers)
    if flags.report is not None and not flags.report.absolute().parent.is_dir():
        raise WriteError(f"{flags.report}: there is no folder {flags.report.parent}; create it or choose another place")
    from dlas_store.converters.extraction.extracting import extract

    summary = extract(
        flags.photos,
        flags.dst,
        options,
        append=flags.append,
        workers=workers,
        group_size=flags.shard_size,
        report=flags.report,
    )
    if summary.images:
        print(
            f"{flags.dst}: extracted {summary.images:,} images, {summary.patches:,} patches, "
            f"{megabytes(summary.payload_bytes)} in {summary.seconds:.1f} s"
        )
    elif flags.append:
        print(f"{flags.dst}: no new image, left as it was")
    _print_rest(summary.skipped, summary.present, summary.changed)
    if not summary.images and not flags.append:
        raise ImportFailedError(
            f"{flags.photos}: nothing came out of {len(summary.skipped):,} photos, and nothing was written; "
            "the reasons are listed"
        )
    return _status(summary.skipped)


def _estimate(flags: argparse.Namespace, options: Any, workers: int | None) -> int:
    from dlas_store.converters.extraction.extracting import estimate

    if flags.report is not None:
        raise ConfigError("--report tells what came of an extraction: it does not go with --dry-run")
    found = estimate(
        flags.photos, flags.dst, options, append=flags.append, workers=workers, group_size=flags.shard_size
    )
    print(
        f"{flags.photos}: {found.photos:,} photos give {found.images:,} images, {found.patches:,} patches; "
        f"as estimated, {megabytes(found.payload_bytes)} in {found.seconds:.1f} s; nothing was written"
    )
    _print_rest(found.skipped, found.present, found.changed)
    return _status(found.skipped)


def _merge(flags: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the config file, those overridden for which a flag was given."""
    from dlas_store.converters.extraction.options import PATH_OPTIONS

    given: dict[str, Any] = {}
    if flags.config is not None:
        from dlas_store.config import load_mapping

        given = load_mapping(flags.config)
    set_aside = [key for key in PATH_OPTIONS if given.get(key) is not None]
    if set_aside:
        print(f"{flags.config}: not used, PHOTOS and DST say it: {', '.join(set_aside)}")
    for flag, key in _VALUES.items():
        value = getattr(flags, flag)
        if value is not None:
            given[key] = value
    if flags.masks is not None:
        given["use_masking"] = True
    return given


def _print_rest(skipped: Sequence[SkippedPhoto], present: int, changed: Sequence[str]) -> None:
    by_reason: dict[tuple[bool, str], list[str]] = {}
    for photo, reason, bad in skipped:
        by_reason.setdefault((bad, reason), []).append(photo)
    for (bad, reason), photos in sorted(by_reason.items())[:_REASONS_SHOWN]:
        what, shown = ("bad photo", _BAD_SHOWN) if bad else ("left out", _LEFT_OUT_SHOWN)
        print(f"{what}, {one_line(reason)}: {len(photos):,} ({shorten(photos, shown)})")
    if len(by_reason) > _REASONS_SHOWN:
        print(f"left out for {len(by_reason) - _REASONS_SHOWN:,} more reasons; --report FILE.json lists every photo")
    if present:
        print(f"in the store already: {present:,} photos")
    print_lines("changed since it was extracted, not touched", changed)


def _status(skipped: Iterable[SkippedPhoto]) -> int:
    return 1 if any(photo.is_error for photo in skipped) else 0


def _number(text: str) -> Any:
    """Return the number that a text is, else the text: what it may be, the options say."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _numbers(text: str) -> list[Any]:
    return [_number(item) for item in text.split(",")]
