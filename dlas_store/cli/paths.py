"""Paths of a command line: errors for paths of a kind that the command does not take, and for swapped arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from dlas_store.errors import ConfigError, NotASourceError
from dlas_store.opening import COPY_ADVICE, address_of, describe_path

_FOLDERS = ("a chunked folder", "a folder")


def check_paths(options: argparse.Namespace) -> None:
    """Check the kinds of the paths on a command line, before any work.

    Only a path that certainly does not fit is refused here; the command itself checks everything else.

    Raises:
        NotASourceError: a path is of a kind that another command takes, or an address.
        ConfigError: arguments are swapped.
    """
    for path in _paths(options):
        address = address_of(path)
        if address is not None:
            raise NotASourceError(
                f"{address}: is an address, and {options.command} works with local files; {COPY_ADVICE}"
            )
    check = _CHECKS.get(options.command)
    if check is not None:
        check(options)


def _paths(options: argparse.Namespace) -> Iterator[Path]:
    for value in vars(options).values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str | Path):
                yield Path(item)


def _swapped(message: str, command: str) -> ConfigError:
    return ConfigError(f"{message}; did you mean {command!r}?")


def _check_import(options: argparse.Namespace) -> None:
    store: Path = options.store
    first = options.sources[0]
    if store.suffix == ".lmdb":
        return
    kind = describe_path(store)
    others = " ".join([*options.sources[1:], str(store)])
    if first.endswith(".lmdb") and (kind in _FOLDERS or kind == "a store"):
        raise _swapped(f"{store}: the store to write comes last", f"dlas-store import {others} {first}")
    if describe_path(first) == "a store" and kind == "missing" and len(options.sources) == 1:
        raise _swapped(
            f"{store}: import writes a store, whose name ends in .lmdb", f"dlas-store export {first} {store}"
        )


def _check_extract(options: argparse.Namespace) -> None:
    photos, dst = describe_path(options.photos), describe_path(options.dst)
    if dst in _FOLDERS and (options.photos.suffix == ".lmdb" or photos == "missing"):
        raise _swapped(f"{options.photos}: the photos come first", f"dlas-store extract {options.dst} {options.photos}")
    if photos == "a store":
        raise NotASourceError(
            f"{options.photos}: is a store, and extract takes a folder of photos; dlas-store export writes a store's "
            "files into a folder"
        )


def _check_export(options: argparse.Namespace) -> None:
    if describe_path(options.folder) == "a store" and describe_path(options.store) != "a store":
        raise _swapped(
            f"{options.folder}: the store comes first", f"dlas-store export {options.folder} {options.store}"
        )
    _check_store(options)


def _check_verify(options: argparse.Namespace) -> None:
    against: Path | None = options.against
    if against is not None and describe_path(against) == "a store" and describe_path(options.store) in _FOLDERS:
        raise _swapped(
            f"{options.store}: the store comes first, and --against names its source",
            f"dlas-store verify {against} --against {options.store}",
        )
    _check_store(options)


def _check_salvage(options: argparse.Namespace) -> None:
    if describe_path(options.store) == "missing" and describe_path(options.new) == "a store":
        raise _swapped(
            f"{options.store}: the damaged store comes first", f"dlas-store salvage {options.new} {options.store}"
        )
    _check_store(options)


def _check_preview(options: argparse.Namespace) -> None:
    if describe_path(options.store) == "missing" and options.images:
        *others, last = options.images
        if describe_path(last) in ("a store", *_FOLDERS):
            images = " ".join([str(options.store), *others])
            raise _swapped(
                f"{last}: the store or folder comes first", f"dlas-store preview {last} {images} -o {options.output}"
            )


def _check_store(options: argparse.Namespace) -> None:
    """Check the argument STORE of a command that takes nothing else."""
    store: Path | None = options.store
    if store is None:  # info --decoder
        return
    kind = describe_path(store)
    if kind in _FOLDERS and store.suffix not in (".lmdb", ".partial"):
        name = store.with_name(f"{store.name}.lmdb") if store.name else "NAME.lmdb"
        raise NotASourceError(
            f"{store}: is {kind}, and {options.command} takes a store; 'dlas-store import {store} {name}' makes one, "
            "and dlas-store preview draws a folder"
        )
    if kind == "a config":
        raise NotASourceError(
            f"{store}: is a config, and {options.command} takes a store; dlas-store read takes a config"
        )
    if kind == "an archive" or kind.endswith("LMDB"):
        raise NotASourceError(
            f"{store}: is {kind}, and {options.command} takes a store; dlas-store import makes one of it"
        )
    if kind == "a picture":
        raise NotASourceError(
            f"{store}: is a picture, and {options.command} takes a store; dlas-store import makes one of its folder"
        )


def _check_config(options: argparse.Namespace) -> None:
    kind = describe_path(options.config)
    if kind in ("a store", *_FOLDERS, "a picture", "an archive") or kind.endswith("LMDB"):
        info = "dlas-store info and preview show a store" if kind == "a store" else "dlas-store preview shows a folder"
        raise NotASourceError(f"{options.config}: is {kind}, and read takes a config, a YAML file; {info}")


_CHECKS: dict[str, Callable[[argparse.Namespace], None]] = {
    "import": _check_import,
    "extract": _check_extract,
    "export": _check_export,
    "info": _check_store,
    "verify": _check_verify,
    "salvage": _check_salvage,
    "reindex": _check_store,
    "preview": _check_preview,
    "read": _check_config,
}
"""Command -> check of its paths."""
