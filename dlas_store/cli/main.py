"""The command ``dlas-store``: argument parser, commands and exit status."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dlas_store import __version__
from dlas_store.cli import extract as extract_command
from dlas_store.cli.text import (
    WORKERS_HELP,
    byte_size,
    megabytes,
    natural,
    one_line,
    positive,
    print_lines,
    share,
    shorten,
)
from dlas_store.errors import ConfigError, StoreError, WriteError

_MAX_SIZES = 20
"""Number of pixel sizes that ``info`` prints."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 success, 1 a finding or failure, 2 wrong usage, 130 Ctrl-C."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except KeyboardInterrupt:
        print(f"dlas-store: interrupted{options.when_interrupted}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the pipe's reader has ended; Python would report the broken pipe again at exit
        return 1
    except (StoreError, OSError) as error:
        if options.debug:
            traceback.print_exc()
        print(f"dlas-store: {one_line(str(error))}", file=sys.stderr)
        return int(options.config_error_status) if isinstance(error, ConfigError) else 1


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="print the traceback of an error")
    parser = argparse.ArgumentParser(
        prog="dlas-store", description="Stores of image patches in a few memory-mapped LMDB files."
    )
    parser.add_argument("--version", action="version", version=f"dlas-store {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str,
        run: Callable[[argparse.Namespace], int],
        text: str,
        *,
        resumes: bool = False,
        config_error_status: int = 2,
    ) -> Any:
        command = commands.add_parser(name, help=text, description=text, parents=[shared])
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

    command = add("info", _info, "Print the contents of a store: images, patches, sizes and disk space.")
    subject = command.add_mutually_exclusive_group(required=True)
    subject.add_argument("store", type=Path, nargs="?", metavar="STORE", help="the store to describe")
    subject.add_argument("--decoder", action="store_true", help="print what decodes patches here, and why")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = add("verify", _verify, "Check every value of a store; exit status 1 if anything is wrong.")
    _add_verify_arguments(command)
    add_workers(command)

    command = add("salvage", _salvage, "Copy the undamaged images of a damaged store into a new store.", resumes=True)
    command.add_argument("store", type=Path, metavar="STORE", help="the damaged store")
    command.add_argument("new", type=Path, metavar="NEW", help="the store to write, NAME.lmdb")
    command.add_argument("--report", type=Path, metavar="FILE.json", help="write a JSON report that lists every loss")
    add_workers(command)

    command = add("reindex", _reindex, "Rebuild the index of a store from its shards.")
    command.add_argument("store", type=Path, metavar="STORE", help="the store to index")
    add_workers(command)

    command = add(
        "preview", _preview, "Draw images of a store or folder, with the squares of their patches, as a PNG file."
    )
    command.add_argument("store", type=Path, metavar="STORE", help="a store, chunked folder, or folder of pictures")
    command.add_argument("images", nargs="*", metavar="IMAGE", help="names of images (default: the first few)")
    command.add_argument("-o", "--output", type=_png, required=True, metavar="FILE.png", help="the file to write")

    text = "Read batches by a config, and print their contents and speed."
    command = add("read", _read, text, config_error_status=1)  # a wrong config file is not wrong usage
    command.add_argument("config", type=Path, metavar="CONFIG", help="a DL-Art-School config, YAML")
    command.add_argument("--phase", default="train", help="phase of the datasets to read (default: train)")
    command.add_argument(
        "--batches", type=positive, default=10, metavar="N", help="batches of each dataset (default: 10)"
    )
    command.add_argument("--picture", type=_png, metavar="FILE.png", help="also draw the first items of each dataset")
    return parser


def _add_import_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "sources",
        nargs="+",
        metavar="SRC",
        help="chunked folder, folder of pictures or store; or torch:NAME with --root",
    )
    command.add_argument("store", type=Path, metavar="STORE", help="the store to write, NAME.lmdb")
    command.add_argument("--layout", choices=("chunked", "pictures"), help="layout of SRC (default: detected)")
    command.add_argument("--root", type=Path, metavar="R", help="folder of the published files of torch:NAME")
    command.add_argument("--split", help="split of torch:NAME: train (default) or test")
    command.add_argument("--append", action="store_true", help="add the images that STORE does not have")
    command.add_argument(
        "--checksum", action="store_true", help="with --append: compare file contents, not only names and sizes"
    )
    command.add_argument("--images", metavar="PATTERN", help="only images whose names match, such as 'cat_*'")
    command.add_argument(
        "--on-error", choices=("stop", "skip"), default="stop", help="at a bad file: stop (default), or skip the file"
    )
    command.add_argument("--decode", action="store_true", help="decode every picture to check it")
    command.add_argument(
        "--shard-size",
        type=byte_size,
        metavar="SIZE",
        help="bytes of files a shard (default: 1GiB, or 1/8 of all files if they have less than 8GiB)",
    )


def _add_verify_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("store", type=Path, metavar="STORE", help="the store to check")
    scope = command.add_mutually_exclusive_group()
    scope.add_argument("--against", type=Path, metavar="SRC", help="compare with this folder or store, file by file")
    scope.add_argument("--quick", action="store_true", help="check structure and sizes only, and read no value")
    scope.add_argument("--sample", type=share, metavar="P%", help="check a random share of the values, such as 5%%")
    command.add_argument(
        "--seed", type=natural, metavar="N", help="with --sample: repeat the sample that has this seed"
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _import(options: argparse.Namespace) -> int:
    from dlas_store.converters.importing import import_store

    if options.checksum and not options.append:
        raise ConfigError("--checksum compares files with those in the store; use it with --append")
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
    )
    speed = summary.payload_bytes / 1e6 / max(summary.seconds, 1e-9)
    print(
        f"{options.store}: imported {summary.images:,} images, {summary.patches:,} patches, "
        f"{megabytes(summary.payload_bytes)} in {summary.seconds:.1f} s ({speed:.0f} MB/s), {summary.shards} shards"
    )
    for reason, count in Counter(skipped.reason for skipped in summary.skipped).items():
        paths = [skipped.path for skipped in summary.skipped if skipped.reason == reason]
        print(f"left out, {reason}: {count:,} ({shorten(paths)})")
    print_lines("kept as it is", summary.warnings, summary.warning_count)
    print_lines("bad file left out", [f"{path}: {message}" for path, message in summary.findings])
    print_lines("changed since it was imported, not touched", summary.changed)
    print_lines("in the store, but no longer in the source", summary.missing_from_source)
    return 0 if summary.is_clean else 1


def _sources(options: argparse.Namespace) -> list[Any]:
    """Return the sources to import: torch:NAME as an open source, any other as a path.

    A folder of such a name is written ./torch:NAME.
    """
    from dlas_store.sources.published import open_published

    names = {source: source.removeprefix("torch:") for source in options.sources if source.startswith("torch:")}
    if names and options.root is None:
        raise ConfigError(f"{next(iter(names))}: give the folder that holds its files with --root")
    if not names and (options.root or options.split):
        raise ConfigError("--root and --split are for torch:NAME, such as torch:cifar100")
    return [
        open_published(names[source], options.root.expanduser(), split=options.split) if source in names else source
        for source in options.sources
    ]


def _export(options: argparse.Namespace) -> int:
    from dlas_store.converters.exporting import export_store

    summary = export_store(options.store, options.folder, images=options.images, workers=options.workers)
    print(
        f"{options.folder}: exported {summary.images:,} images, {summary.patches:,} patches, "
        f"{megabytes(summary.payload_bytes)} in {summary.seconds:.1f} s"
    )
    print_lines("not written", [f"{image!r}: {reason}" for image, reason in summary.refused])
    return 1 if summary.refused else 0


def _info(options: argparse.Namespace) -> int:
    from dlas_store.images.libjpeg import PatchReader
    from dlas_store.maintenance.info import info

    if options.decoder:
        from dlas_store.cli.decoder import describe_decoder

        decoder = describe_decoder()
        print(json.dumps(decoder, indent=2) if options.json else "\n".join(f"{k:13}{v}" for k, v in decoder.items()))
        return 0
    facts = info(options.store)
    if options.json:
        print(json.dumps(facts.as_dict(), indent=2))
        return 0
    overhead = 100 * (facts.disk_bytes / max(facts.bytes, 1) - 1)
    rows = {
        "layout": facts.layout,
        "images": f"{facts.images:,} ({facts.references:,} with a reference)",
        "patches": f"{facts.patches:,}",
        "bytes": f"{megabytes(facts.bytes)} of files",
        "on disk": f"{megabytes(facts.disk_bytes)} in {facts.shards} shards and the index ({overhead:+.1f} %)",
        "format": f"version {facts.format_version}, index generation {facts.generation}",
        "store id": facts.store_id,
    }
    for name, value in rows.items():
        print(f"{name:10}{value}")
    sizes = list(facts.sizes.items())
    for row, (size, count) in enumerate(sizes[:_MAX_SIZES]):
        percent = 100 * count / max(facts.patches, 1)
        print(f"{'' if row else 'pixels':10}{size:>11}  {count:>12,}  {percent:5.1f} %  {'#' * round(percent / 2)}")
    if len(sizes) > _MAX_SIZES:
        print(f"{'':10}and {len(sizes) - _MAX_SIZES} more sizes")
    if PatchReader is None:
        print(f"{'slow':10}C extensions are missing, so reading is slower: see dlas-store info --decoder")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from dlas_store.maintenance.verify import Sample, verify

    if options.seed is not None and options.sample is None:
        raise ConfigError("--seed chooses a sample; use it with --sample")
    sample = None
    if options.sample is not None:
        sample = Sample(options.sample, secrets.randbits(32) if options.seed is None else options.seed)
    report = verify(options.store, options.against, workers=options.workers, quick=options.quick, sample=sample)
    if options.json:
        sample_facts = {"sample": sample._asdict()} if sample else {}
        print(json.dumps(report.as_dict() | sample_facts, indent=2))
    else:
        for finding in report.findings:
            place = " ".join(part for part in (finding.shard, finding.image, finding.patch) if part)
            print(f"{finding.kind}: {place}: {finding.message}")
        agreement = f", all as in {options.against}" if options.against is not None else ""
        scope = "values placed, none read" if options.quick else "values checked"
        scope += f" ({100 * sample.share:g}% of patches and references, --seed {sample.seed})" if sample else ""
        print(
            f"{options.store}: {report.checked:,} {scope}, "
            + (f"no finding{agreement}" if report.ok else f"{len(report.findings):,} findings")
        )
    return 0 if report.ok else 1


def _salvage(options: argparse.Namespace) -> int:
    from dlas_store.converters.salvaging import salvage

    if options.report is not None and not options.report.absolute().parent.is_dir():
        raise WriteError(f"{options.report}: there is no folder {options.report.parent}; create it first")
    summary = salvage(options.store, options.new, workers=options.workers, report=options.report)
    print(
        f"{options.new}: salvaged {summary.images:,} images, {summary.patches:,} patches, "
        f"{megabytes(summary.payload_bytes)} in {summary.seconds:.1f} s"
    )
    print_lines("note", summary.warnings)
    print_lines("lost", [f"{lost.shard} {lost.image}: {lost.reason}".replace(" :", ":") for lost in summary.lost])
    return 1 if summary.lost else 0


def _reindex(options: argparse.Namespace) -> int:
    from dlas_store.maintenance.reindex import reindex

    summary = reindex(options.store, workers=options.workers)
    print(f"{options.store}: indexed {summary.shards} shards, {summary.images:,} images, {summary.patches:,} patches")
    print_lines("left out", [f"{path.name}: {reason}" for path, reason in summary.skipped])
    return 1 if summary.skipped else 0


def _preview(options: argparse.Namespace) -> int:
    from dlas_store.cli.preview import preview

    count = preview(options.store, options.images, options.output)
    print(f"{options.output}: shows {count:,} images of {options.store}")
    return 0


def _read(options: argparse.Namespace) -> int:
    from dlas_store.cli.read import describe_batches

    if options.picture is not None:
        from dlas_store.cli.sheet import check_target

        check_target(options.picture)
    for line in describe_batches(options.config, phase=options.phase, batches=options.batches):
        print(line, flush=True)
    if options.picture is not None:
        from dlas_store.cli.read import draw_items

        count = draw_items(options.config, options.picture, phase=options.phase)
        print(f"{options.picture}: shows {count:,} items")
    return 0


def _png(text: str) -> Path:
    path = Path(text).expanduser()
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"must be a file name that ends in .png, got {text!r}")
    return path
