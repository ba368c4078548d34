"""The command ``dlas-store extract``: flags, merging with a config file, and printed results."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlas_store.atomic import check_report_place
from dlas_store.cli.text import (
    HIDDEN_HELP,
    WORKERS_HELP,
    byte_size,
    file_ending_in,
    natural,
    one_line,
    print_json,
    print_lines,
    shorten,
    summary_text,
)
from dlas_store.errors import ConfigError, ImportFailedError, counted

if TYPE_CHECKING:
    from dlas_store.converters.extraction.extracting import ExtractSummary
    from dlas_store.converters.extraction.plan import SkippedPhoto

_MAX_REASONS = 50
_MAX_BAD_PHOTOS = 20
_MAX_SKIPPED_PHOTOS = 3

_OPTION_OF_FLAG = {
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
"""Flag -> the config option that the flag overrides."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""

    def add(flag: str, text: str, metavar: str, kind: Any = None) -> None:
        command.add_argument(flag, metavar=metavar, type=kind, help=text)

    def add_switch(flag: str, text: str) -> None:
        command.add_argument(flag, action="store_const", const=True, help=text)

    command.add_argument("photos", type=Path, metavar="PHOTOS", help="folder of photos, at any depth")
    command.add_argument(
        "dst", type=Path, metavar="DST", help="NAME.lmdb writes a store; any other name writes a chunked folder"
    )
    add("--config", "YAML file of options with DL-Art-School's names; flags override it", "FILE", Path)
    add("--crop-size", "sides of the squares to crop, in pixels (default: 256,512)", "N,...", _numbers)
    add("--step", "pixels from one square to the next (default: half of each crop size)", "N,...", _numbers)
    add("--threshold", "add a last square if more than N pixels remain (default: 128)", "N", _number)
    add("--resize", "scale factor of each crop size (default: resize all patches to the first size)", "F,...", _numbers)
    add_switch("--only-resize", "make one patch of each photo: the middle square, resized")
    add_switch("--vertical-split", "split each photo, a side-by-side stereo pair, into two images")
    add("--masks", "folder of 256 x 256 masks: keep a square if its mask is at least half white", "DIR")
    command.add_argument(
        "--exclude",
        action="append",
        metavar="[SIZE:]TERM",
        help="skip photos with TERM in their path, or only their crops of SIZE; may be repeated",
    )
    add("--halve-above", "halve photos whose longer side exceeds N pixels (default: 5500)", "N", _number)
    add("--min-size", "skip photos whose shorter side is below N pixels (default: the largest crop size)", "N", _number)
    add("--quality", "quality of the written JPEGs, 1 to 100 (default: 95)", "N", _number)
    add("--subsampling", "chroma subsampling of the written JPEGs: 4:2:0 (default), 4:2:2 or 4:4:4", "S")
    add("--greyscale", "skip greyscale photos (default), or convert them to RGB", "skip|convert")
    add_switch("--ignore-exif", "do not rotate or flip photos by their EXIF orientation")
    add_switch("--fast-decode", "decode large JPEGs at reduced size if that suffices; changes pixels a little")
    add("--workers", WORKERS_HELP, "N", natural)
    add("--shard-size", "estimated bytes of patches a shard (default: 1/64 of all, 1MiB to 256MiB)", "SIZE", byte_size)
    command.add_argument("--append", action="store_true", help="add the photos that the store does not have")
    command.add_argument("--dry-run", action="store_true", help="print an estimate of the result, and write nothing")
    command.add_argument("--include-hidden", action="store_true", help=HIDDEN_HELP)
    add("--report", "write a JSON report of the result, with every file left out", "FILE.json", file_ending_in(".json"))


def run(flags: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from dlas_store.converters.extraction.options import ExtractOptions, workers_of

    config_options = _merge(flags)
    options, workers = ExtractOptions.read(config_options, exclude=flags.exclude), workers_of(config_options)
    if flags.dry_run:
        return _estimate(flags, options, workers)
    check_report_place(flags.report)
    from dlas_store.converters.extraction.extracting import extract
    from dlas_store.storage.commit import discard_interrupted

    if flags.restart and (flags.append or not os.path.lexists(flags.dst)):
        discard_interrupted(flags.dst)

    summary = extract(
        flags.photos,
        flags.dst,
        options,
        append=flags.append,
        workers=workers,
        group_size=flags.shard_size,
        include_hidden=flags.include_hidden,
        report=flags.report,
    )
    if flags.json:
        print_json(summary.as_dict())
    else:
        _print_summary(flags, summary)
    if not summary.images and not flags.append:
        raise ImportFailedError(
            f"{flags.photos}: no photo gave a patch, and nothing was written; see the reasons above"
        )
    return _status(summary.skipped)


def _print_summary(flags: argparse.Namespace, summary: ExtractSummary) -> None:
    if summary.images:
        print(f"{flags.dst}: extracted {summary_text(summary)}")
    elif flags.append:
        print(f"{flags.dst}: no new image, left as it was")
    _print_not_extracted(summary.skipped, summary.present, summary.changed)


def _estimate(flags: argparse.Namespace, options: Any, workers: int | None) -> int:
    from dlas_store.converters.extraction.extracting import estimate

    if flags.report is not None:
        raise ConfigError("--report describes the result of an extraction; leave it out with --dry-run")
    estimated = estimate(
        flags.photos,
        flags.dst,
        options,
        append=flags.append,
        workers=workers,
        group_size=flags.shard_size,
        include_hidden=flags.include_hidden,
    )
    if flags.json:
        print_json(estimated.as_dict())
        return _status(estimated.skipped)
    print(
        f"{flags.photos}: {counted(estimated.photos, 'photo')} would give {summary_text(estimated)}, as estimated; "
        "nothing was written"
    )
    _print_not_extracted(estimated.skipped, estimated.present, estimated.changed)
    return _status(estimated.skipped)


def _merge(flags: argparse.Namespace) -> dict[str, Any]:
    """Return the config file's options, overridden by the flags."""
    from dlas_store.converters.extraction.options import PATH_OPTIONS

    merged: dict[str, Any] = {}
    if flags.config is not None:
        from dlas_store.config import load_mapping

        merged = load_mapping(flags.config)
    unused = [key for key in PATH_OPTIONS if merged.get(key) is not None]
    if unused:
        print(f"{flags.config}: not used, PHOTOS and DST take their place: {', '.join(unused)}", file=sys.stderr)
    for flag, key in _OPTION_OF_FLAG.items():
        value = getattr(flags, flag)
        if value is not None:
            merged[key] = value
    if flags.masks is not None:
        merged["use_masking"] = True
    return merged


def _print_not_extracted(skipped: Sequence[SkippedPhoto], present: int, changed: Sequence[str]) -> None:
    by_reason: dict[tuple[bool, str], list[str]] = {}
    for photo, reason, is_error in skipped:
        by_reason.setdefault((is_error, reason), []).append(photo)
    for (is_error, reason), photos in sorted(by_reason.items())[:_MAX_REASONS]:
        heading, max_photos = ("bad photo", _MAX_BAD_PHOTOS) if is_error else ("left out", _MAX_SKIPPED_PHOTOS)
        print(f"{heading}, {one_line(reason)}: {len(photos):,} ({shorten(photos, max_photos)})")
    if len(by_reason) > _MAX_REASONS:
        more = counted(len(by_reason) - _MAX_REASONS, "more reason")
        print(f"left out for {more}; --report FILE.json lists every photo")
    if present:
        print(f"in the store already: {counted(present, 'photo')}")
    print_lines("changed since it was extracted, not touched", changed)


def _status(skipped: Iterable[SkippedPhoto]) -> int:
    return 1 if any(photo.is_error for photo in skipped) else 0


def _number(text: str) -> Any:
    """Parse a number; return other text as it is, since ExtractOptions checks every value."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _numbers(text: str) -> list[Any]:
    return [_number(item) for item in text.split(",")]
