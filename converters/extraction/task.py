"""What an extraction is asked to do, checked: where photos are, what is written, and the plan."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from dlas_store.commit import Commit
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.plan import ExtractPlan, plan_extraction
from dlas_store.errors import ConfigError, NotASourceError, TargetExistsError
from dlas_store.index import INDEX_FILE
from dlas_store.processes import count_workers, progress_bar
from dlas_store.publish import StagingDirectory
from dlas_store.store import Store


class Task(NamedTuple):
    """A checked extraction.

    Attributes:
        dst: what is written: a store, by its name, or a folder.
        base: the store that is appended to, None for a new one.
        plan: the photos.
        workers: number of processes; 0 for this one.
    """

    dst: Path
    base: Store | None
    plan: ExtractPlan
    workers: int

    @property
    def is_store(self) -> bool:
        """Whether a store is written."""
        return names_store(self.dst)


def names_store(dst: Path) -> bool:
    """Tell from its name whether a store is written, or else a folder."""
    return dst.suffix == ".lmdb"


def prepare(
    photos: Path | str,
    dst: Path | str,
    options: ExtractOptions,
    *,
    append: bool,
    workers: int | None,
    group_size: int | None,
) -> Task:
    """Check what is asked for and list the photos.

    Args:
        photos: folder of the photos.
        dst: what is written.
        options: of the extraction.
        append: add to the store that is there.
        workers: number of processes; None takes one a core, 0 works in this process.
        group_size: bytes of tiles that a worker makes at a time; see plan_extraction.

    Raises:
        ConfigError, NotASourceError, TargetExistsError: see extract().
    """
    root, dst = Path(photos).expanduser(), Path(dst).expanduser()
    if group_size is not None and group_size < 1:
        raise ConfigError(f"shard size must be at least 1 byte, got {group_size}")
    if workers is not None and workers < 0:
        raise ConfigError(f"workers must be at least 0, got {workers}")
    _check_places(root, dst, append=append)
    base = _open_base(dst) if append else None
    with progress_bar(None, "listing", unit="photos") as bar:
        plan = plan_extraction(root, options, base=base, group_size=group_size, bar=bar)
    return Task(dst, base, plan, count_workers(workers, jobs=len(plan.groups)))


def _check_places(root: Path, dst: Path, *, append: bool) -> None:
    if append and not names_store(dst):
        raise ConfigError(f"{dst}: photos are appended to a store only, whose name ends in .lmdb")
    if not root.is_dir():
        raise NotASourceError(f"{root}: {'is no folder of photos' if root.exists() else 'does not exist'}")
    if not append and os.path.lexists(dst):  # a broken link, too, would be replaced
        (Commit.recover if names_store(dst) else StagingDirectory.recover)(dst)
        more = "add new photos with --append, " if names_store(dst) else "move it away, "
        raise TargetExistsError(f"{dst}: exists; {more}or choose another name")
    # The photos would be listed again with the tiles among them when an interrupted run goes on.
    if not names_store(dst) and dst.absolute().resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"{dst}: lies in the folder of the photos, {root}; choose a place outside of it")


def _open_base(dst: Path) -> Store:
    if not (dst / INDEX_FILE).is_file():
        raise NotASourceError(f"{dst}: is no store to append to; leave --append out to make one")
    base = Store(dst)
    if base.layout != "chunked":
        raise NotASourceError(f"{dst}: is a store of whole pictures; tiles are added to a chunked one only")
    return base
