"""The command ``dlas-store``: argument parser, commands and exit status."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dlas_store import __version__
from dlas_store.atomic import StagingDirectory, check_report_place
from dlas_store.cli import extract as extract_command
from dlas_store.cli import info as info_command
from dlas_store.cli import verify as verify_command
from dlas_store.cli.interrupts import INTERRUPTED_STATUS, Interrupts
from dlas_store.cli.paths import check_paths
from dlas_store.cli.text import (
    HIDDEN_HELP,
    WORKERS_HELP,
    byte_size,
    escape_unprintable,
    file_ending_in,
    natural,
    one_line,
    open_closed_streams,
    positive,
    print_json,
    print_lines,
    shorten,
    summary_text,
    take_names_as_utf8,
)
from dlas_store.cli.usage import PROGRAM, CommandParser, parse
from dlas_store.errors import ConfigError, StoreError, counted
from dlas_store.progress import DISPLAY, Display


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 success, 1 a finding or failure, 2 wrong usage, 130 Ctrl-C."""
    if arguments is None:
        open_closed_streams()
        take_names_as_utf8()
    escape_unprintable()
    try:
        with Interrupts() as interrupts:
            options = parse(*_parsers(), arguments)
            interrupts.advice = options.when_interrupted
            display = DISPLAY.set(_display(options))
            try:
                return _run(options)
            finally:
                DISPLAY.reset(display)
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS


def _run(options: argparse.Namespace) -> int:
    """Run a command, and print its error in one line."""
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        check_paths(options)
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            return run(options)
    except BrokenPipeError:
        sys.stderr.close()  # the pipe's reader has ended; Python would report the broken pipe again at exit
        return 1
    except (StoreError, OSError) as error:
        if options.debug:
            traceback.print_exc()
        print(f"dlas-store: {one_line(str(error))}", file=sys.stderr)
        return int(options.config_error_status) if isinstance(error, ConfigError) else 1


def _print_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning in one line, as an error is; Python would print the line of code that warned, too."""
    print(f"dlas-store: warning: {one_line(str(message))}", file=sys.stderr)


def _display(options: argparse.Namespace) -> Display | None:
    if options.quiet:
        return "nothing"
    if options.progress:
        return "bar"
    return None if sys.stderr.isatty() else "lines"


def _add_shared_arguments(parser: argparse.ArgumentParser, **default: Any) -> None:
    """Add the options that every command has, before and after its name.

    Args:
        parser: parser of the program or of a command.
        default: the argument ``default`` of the options. argparse.SUPPRESS keeps a value given before the command.
    """
    group = parser.add_argument_group("options of every command")
    group.add_argument("--json", action="store_true", help="print the result as JSON", **default)
    progress = group.add_mutually_exclusive_group()
    progress.add_argument("--quiet", action="store_true", help="show no progress", **default)
    progress.add_argument(
        "--progress",
        action="store_true",
        help="show a bar also where standard error is no terminal (default there: a line every 30 s)",
        **default,
    )
    group.add_argument("--debug", action="store_true", help="print the traceback of an error", **default)


def _parsers() -> tuple[CommandParser, dict[str, CommandParser]]:
    """Return the parser of the command line, and the parser of each command."""
    parser = CommandParser(prog=PROGRAM, description="Stores of image patches in a few memory-mapped LMDB files.")
    parser.add_argument("-V", "--version", action="version", version=f"{PROGRAM} {__version__}")
    _add_shared_arguments(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def add(
        name: str,
        run: Callable[[argparse.Namespace], int],
        text: str,
        *,
        resumes: bool = False,
        config_error_status: int = 2,
    ) -> Any:
        command = commands.add_parser(name, help=text, description=text)
        _add_shared_arguments(command, default=argparse.SUPPRESS)
        if resumes:
            command.add_argument(
                "--restart", action="store_true", help="start over, and drop what an interrupted run did"
            )
        advice = "; run the same command again to go on from here" if resumes else ""
        command.set_defaults(run=run, when_interrupted=advice, config_error_status=config_error_status)
        return command

    def add_workers(command: Any) -> None:
        command.add_argument("--workers", type=natural, metavar="N", help=WORKERS_HELP)

    command = add(
        "extract",
        extract_command.run,
        "Crop square patches from photos, into a store or a chunked folder.",
        resumes=True,
    )
    extract_command.add_arguments(command)

    command = add("import", _import, "Import folders or stores into a store.", resumes=True)
    _add_import_arguments(command)
    add_workers(command)

    command = add("export", _export, "Export a store as a folder, with every file byte for byte.", resumes=True)
    command.add_argument("store", type=Path, metavar="STORE", help="the store to export")
    command.add_argument("folder", type=Path, metavar="DST", help="the folder to write")
    command.add_argument("--images", metavar="PATTERN", help="only images whose names match, such as 'cat_*'")
    add_workers(command)

    command = add("info", info_command.run, "Print the contents of a store: images, patches, sizes and disk space.")
    subject = command.add_mutually_exclusive_group(required=True)
    subject.add_argument("store", type=Path, nargs="?", metavar="STORE", help="the store to describe")
    subject.add_argument("--decoder", action="store_true", help="print what decodes patches here, and why")

    command = add("verify", verify_command.run, "Check every value of a store; exit status 1 if anything is wrong.")
    verify_command.add_arguments(command)
    add_workers(command)

    command = add("salvage", _salvage, "Copy the undamaged images of a damaged store into a new store.", resumes=True)
    command.add_argument("store", type=Path, metavar="STORE", help="the damaged store")
    command.add_argument("new", type=Path, metavar="NEW", help="the store to write, NAME.lmdb")
    command.add_argument(
        "--report", type=file_ending_in(".json"), metavar="FILE.json", help="write a JSON report that lists every loss"
    )
    add_workers(command)

    command = add("reindex", _reindex, "Rebuild the index of a store from its shards.")
    command.add_argument("store", type=Path, metavar="STORE", help="the store to index")
    add_workers(command)

    command = add(
        "preview", _preview, "Draw images of a store or folder, with the squares of their patches, as a PNG file."
    )
    _add_preview_arguments(command)

    text = "Read batches by a config, and print their contents and speed."
    command = add("read", _read, text, config_error_status=1)  # a wrong config file is not wrong usage
    command.add_argument("config", type=Path, metavar="CONFIG", help="a DL-Art-School config, YAML")
    command.add_argument("--phase", default="train", help="phase of the datasets to read (default: train)")
    command.add_argument(
        "--batches", type=positive, default=10, metavar="N", help="batches of each dataset (default: 10)"
    )
    command.add_argument(
        "--picture", type=file_ending_in(".png"), metavar="FILE.png", help="also draw items of each dataset"
    )

    command = add("help", _help, "Print the help of a command.")
    command.add_argument("topic", nargs="?", choices=list(commands.choices), metavar="COMMAND", help="the command")
    command.set_defaults(parser=parser, parsers=commands.choices)
    return parser, dict(commands.choices)


def _add_preview_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("store", type=Path, metavar="STORE", help="a store, chunked folder, or folder of pictures")
    command.add_argument("images", nargs="*", metavar="IMAGE", help="names of images (default: the first few)")
    command.add_argument("--count", type=positive, metavar="N", help="number of images (default: 4, or 24 pictures)")
    command.add_argument("--random", type=natural, metavar="SEED", help="images chosen at random, by this seed")
    command.add_argument(
        "-o", "--output", type=file_ending_in(".png"), required=True, metavar="FILE.png", help="the file to write"
    )


def _add_import_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "sources",
        nargs="+",
        metavar="SRC",
        help="chunked folder, folder of pictures, store, tar or zip archive, or LMDB; or torch:NAME with --root",
    )
    command.add_argument("store", type=Path, metavar="STORE", help="the store to write, NAME.lmdb")
    command.add_argument("--layout", choices=("chunked", "pictures"), help="layout of SRC (default: detected)")
    command.add_argument("--resolution", type=positive, metavar="N", help="of an LMDB with keys such as 256-00001")
    command.add_argument("--root", type=Path, metavar="R", help="folder of the published files of torch:NAME")
    command.add_argument(
        "--split",
        help="split of torch:NAME: train (default), test or val; imagefolder takes R itself if R holds the classes",
    )
    command.add_argument("--append", action="store_true", help="add the images that STORE does not have")
    command.add_argument(
        "--checksum", action="store_true", help="with --append: compare file contents, not only names and sizes"
    )
    command.add_argument("--images", metavar="PATTERN", help="only images whose names match, such as 'cat_*'")
    command.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="at a bad file: stop (default), or skip the file"
    )
    command.add_argument("--decode", action="store_true", help="decode every picture to check it")
    command.add_argument("--include-hidden", action="store_true", help=HIDDEN_HELP)
    command.add_argument(
        "--report",
        type=file_ending_in(".json"),
        metavar="FILE.json",
        help="write a JSON report of the result, with every file left out",
    )
    command.add_argument(
        "--shard-size",
        type=byte_size,
        metavar="SIZE",
        help="bytes of files a shard (default: 1GiB, or 1/8 of all files if they have less than 8GiB)",
    )


def _import(options: argparse.Namespace) -> int:
    from dlas_store.converters.importing import import_store
    from dlas_store.storage.commit import discard_interrupted

    if options.checksum and not options.append:
        raise ConfigError("--checksum compares files with those in the store; use it with --append")
    check_report_place(options.report)
    if options.restart and (options.append or not os.path.lexists(options.store)):
        discard_interrupted(options.store)
    summary = import_store(
        _sources(options),
        options.store,
        layout=options.layout,
        append=options.append,
        shard_size=options.shard_size,
        workers=options.workers,
        images=options.images,
        skip_bad=options.on_error == "skip",
        decode_all=options.decode,
        compare_bytes=options.checksum,
        include_hidden=options.include_hidden,
        report=options.report,
    )
    if options.json:
        print_json(summary.as_dict())
        return 0 if summary.is_clean else 1
    speed = summary.payload_bytes / 1e6 / max(summary.seconds, 1e-9)
    print(f"{options.store}: imported {summary_text(summary)} ({speed:.0f} MB/s), {counted(summary.shards, 'shard')}")
    for reason, count in Counter(skipped.reason for skipped in summary.skipped).items():
        paths = [skipped.path for skipped in summary.skipped if skipped.reason == reason]
        print(f"left out, {reason}: {count:,} ({shorten(paths)})")
    print_lines("kept as it is", summary.warnings, summary.warning_count)
    print_lines("bad file left out", [f"{path}: {message}" for path, message in summary.findings])
    print_lines("changed since it was imported, not touched", summary.changed)
    print_lines("in the store, but no longer in the source", summary.missing_from_source)
    return 0 if summary.is_clean else 1


def _sources(options: argparse.Namespace) -> list[Any]:
    """Return the sources to import: torch:NAME and LMDBs with --resolution as open sources, any other as a path.

    A folder of such a name is written ./torch:NAME.
    """
    from dlas_store.sources.packed import open_lmdb
    from dlas_store.sources.published import open_published

    if options.resolution is not None:
        return [open_lmdb(Path(source).expanduser(), resolution=options.resolution) for source in options.sources]
    names = {source: source.removeprefix("torch:") for source in options.sources if source.startswith("torch:")}
    if names and options.root is None:
        raise ConfigError(f"{next(iter(names))}: give the folder that holds its files with --root")
    if not names and (options.root or options.split):
        raise ConfigError("--root and --split are for torch:NAME, such as torch:cifar100")
    return [
        open_published(
            names[source], options.root.expanduser(), split=options.split, include_hidden=options.include_hidden
        )
        if source in names
        else source
        for source in options.sources
    ]


def _export(options: argparse.Namespace) -> int:
    from dlas_store.converters.exporting import export_store

    if options.restart and not os.path.lexists(options.folder):
        StagingDirectory.discard(options.folder)
    summary = export_store(options.store, options.folder, images=options.images, workers=options.workers)
    if options.json:
        print_json(summary.as_dict())
        return 1 if summary.refused else 0
    print(f"{options.folder}: exported {summary_text(summary)}")
    print_lines("not written", [f"{image!r}: {reason}" for image, reason in summary.refused])
    return 1 if summary.refused else 0


def _salvage(options: argparse.Namespace) -> int:
    from dlas_store.converters.salvaging import salvage
    from dlas_store.storage.commit import discard_interrupted

    check_report_place(options.report)
    if options.restart and not os.path.lexists(options.new):
        discard_interrupted(options.new)
    summary = salvage(options.store, options.new, workers=options.workers, report=options.report)
    if options.json:
        print_json(summary.as_dict())
        return 1 if summary.lost else 0
    print(f"{options.new}: salvaged {summary_text(summary)}")
    print_lines("note", summary.warnings)
    print_lines("lost", [f"{lost.shard} {lost.image}: {lost.reason}".replace(" :", ":") for lost in summary.lost])
    return 1 if summary.lost else 0


def _reindex(options: argparse.Namespace) -> int:
    from dlas_store.maintenance.reindex import reindex

    summary = reindex(options.store, workers=options.workers)
    if options.json:
        print_json(summary.as_dict())
        return 1 if summary.skipped else 0
    counts = (counted(summary.shards, "shard"), counted(summary.images, "image"), counted(summary.patches, "patch"))
    print(f"{options.store}: indexed {', '.join(counts)}")
    print_lines("left out", [f"{path.name}: {reason}" for path, reason in summary.skipped])
    return 1 if summary.skipped else 0


def _preview(options: argparse.Namespace) -> int:
    from dlas_store.cli.preview import preview

    count = preview(options.store, options.images, options.output, count=options.count, seed=options.random)
    if options.json:
        print_json({"file": str(options.output), "images": count})
    else:
        print(f"{options.output}: shows {counted(count, 'image')} of {options.store}")
    return 0


def _read(options: argparse.Namespace) -> int:
    from dlas_store.cli.read import draw_items, read_batches
    from dlas_store.cli.sheet import check_target

    if options.picture is not None:
        check_target(options.picture)
    reports = []
    for report in read_batches(options.config, phase=options.phase, batches=options.batches):
        if options.json:
            reports.append(report.as_dict())
        else:
            print("\n".join(report.lines()), flush=True)
    items = 0 if options.picture is None else draw_items(options.config, options.picture, phase=options.phase)
    if options.json:
        print_json({"datasets": reports})
    elif options.picture is not None:
        print(f"{options.picture}: shows {counted(items, 'item')}")
    return 0


def _help(options: argparse.Namespace) -> int:
    parser: argparse.ArgumentParser = options.parsers[options.topic] if options.topic else options.parser
    parser.print_help()
    return 0
