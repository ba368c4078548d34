"""Tasks: each writing command, the state before the command, and the state after the command without faults."""

from __future__ import annotations

import random
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from dlas_store.maintenance.verify import verify
from dlas_store.sources.base import Center
from dlas_store.sources.centers import write_centers
from dlas_store.storage.commit import read_shard
from dlas_store.storage.index import INDEX_FILE
from dlas_store.storage.shard import shard_file_name
from dlas_store.storage.store import Store
from tests.reliability.support.commands import Commands, Ended
from tests.support.file_trees import Tree, ppm, read, shard_contents, write
from tests.support.photo_files import encoded, scene
from tests.support.small_stores import content_of

STORE = "s.lmdb"
FOLDER = "folder"
NAMES = ("import", "append", "reindex", "extract", "extract-append", "extract-folder", "export")

Content = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Command that writes ``folder / target`` for any folder.

    Attributes:
        words: words of the command; ``{}`` in a word stands for the folder.
        target: path that the command writes: STORE or FOLDER.
        prior: store that prepare() copies to the target; None if the command creates the target.
        old: content() of the target before the command.
        new: content() of the target after the command.
        shards: keys and values of each shard after the command.
        seconds: duration of the command.
    """

    words: tuple[str, ...]
    target: str
    prior: Path | None = None
    old: Content | None = None
    new: Content = field(default_factory=dict)
    shards: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    seconds: float = 0.0

    def prepare(self, folder: Path) -> None:
        """Create the folder of the command, with a copy of the prior store."""
        folder.mkdir()
        if self.prior is not None:
            shutil.copytree(self.prior, folder / self.target)

    def command(self, folder: Path) -> list[str]:
        """Return the command for a folder."""
        return [word.format(folder) for word in self.words]

    def content(self, folder: Path) -> Content | None:
        """Check the whole target and return its content; return None if the target does not exist."""
        target = folder / self.target
        if self.target == FOLDER:
            return dict(read(target)) if target.exists() else None
        return content_of_store(target) if target.exists() else None

    def check(self, folder: Path, ended: Ended) -> None:
        """Check that the target has its old or new state, or only its new state if the command reported success."""
        content = self.content(folder)
        assert content in ((self.new,) if ended.published else (self.old, self.new)), ended
        self._check_untouched(folder)

    def complete(self, folder: Path, commands: Commands) -> None:
        """Run the command again, and check that the command completes and leaves no further file."""
        existed = self.prior is None and (folder / self.target).exists()
        ended = commands.run(self.command(folder))
        if existed:  # the first run ended after its last rename, so the second can only report that the target exists
            assert ended.status == 1, ended
            assert "exists; " in ended.err
        else:
            assert (ended.status, ended.err) == (0, ""), ended
        assert self.content(folder) == self.new
        assert shard_contents(folder / self.target) == self.shards
        self._check_untouched(folder)
        target = folder / self.target
        assert target.suffix != ".lmdb" or verify(target, workers=1).ok
        leftovers = [str(path.relative_to(folder)) for path in folder.rglob("*.partial*/**")]
        assert list(target.parent.iterdir()) == [target], leftovers
        if target.suffix == ".lmdb":
            names = {path.name for path in target.iterdir() if not path.match("shard-?????.lmdb")}
            assert names == {INDEX_FILE}, names

    def _check_untouched(self, folder: Path) -> None:
        """Check that every shard of the prior store is unchanged, byte for byte."""
        for shard in () if self.prior is None else self.prior.glob("shard-*.lmdb"):
            assert (folder / self.target / shard.name).read_bytes() == shard.read_bytes()


def content_of_store(store: Path) -> Content:
    """Check the tree, the metadata and every value of each shard, and return the content of the store."""
    with Store(store) as source:
        for number in source.index.shards:
            read_shard(store / shard_file_name(number), check_values=True)
        return content_of(source)


def image_files(number: int) -> Tree:
    """Return the files of image ``number``: patches of a few bytes to a few LMDB pages, a reference, a centers.pt."""
    rng = random.Random(number)
    count = rng.randrange(2, 7)
    patches = {
        f"{patch:08d}.ppm": ppm(number * 100 + patch) + rng.randbytes(rng.choice((0, 50, 3000, 9000)))
        for patch in range(count)
    }
    centers = write_centers({patch: Center(patch, number, 8) for patch in range(count)})
    return {**patches, "ref.jpg": ppm(0xFF0000 + number), "centers.pt": centers}


def make_source(root: Path, numbers: range) -> Path:
    """Write the images of ``numbers`` into a chunked folder, and return the folder."""
    for number in numbers:
        write(root / f"image_{number:05d}", image_files(number))
    return root


def make_tasks(root: Path, commands: Commands) -> dict[str, Task]:
    """Return all tasks by name, each after a run without faults."""
    source = make_source(root / "source", range(8))
    photos = write(root / "photos", {f"{n // 2}/{n}.png": encoded(scene(80, 80 + n, seed=n), "png") for n in range(5)})
    shards = ("--workers", "1", "--shard-size", "20KiB")
    extract = ("extract", "--crop-size", "64", "--step", "64", "--threshold", "8", "--workers", "1")
    extract_shards = (*extract, "--shard-size", "30KiB")
    into = f"{{}}/{STORE}"
    commands.done("import", *shards, "--images", "image_0000[0-3]", source, root / "part.lmdb")
    commands.done("import", *shards, source, root / "whole.lmdb")
    commands.done(*extract_shards, "--exclude", "2/", photos, root / "extracted_part.lmdb")
    tasks = {
        "import": Task(words=("import", *shards, str(source), into), target=STORE),
        "append": Task(
            words=("import", "--append", *shards, str(source), into), target=STORE, prior=root / "part.lmdb"
        ),
        "reindex": Task(words=("reindex", into), target=STORE, prior=root / "whole.lmdb"),
        "extract": Task(words=(*extract_shards, str(photos), into), target=STORE),
        "extract-append": Task(
            words=(*extract_shards, "--append", str(photos), into), target=STORE, prior=root / "extracted_part.lmdb"
        ),
        "extract-folder": Task(words=(*extract, str(photos), f"{{}}/{FOLDER}"), target=FOLDER),
        "export": Task(words=("export", "--workers", "1", str(root / "whole.lmdb"), f"{{}}/{FOLDER}"), target=FOLDER),
    }
    return {name: _with_results(task, root / f"try_{name}", commands) for name, task in tasks.items()}


def _with_results(task: Task, folder: Path, commands: Commands) -> Task:
    """Run a task without faults, and return the task with its states and its duration."""
    task.prepare(folder)
    old = task.content(folder)
    started = time.monotonic()
    commands.done(*task.command(folder))
    seconds = time.monotonic() - started
    new = task.content(folder)
    assert new is not None
    return replace(task, old=old, new=new, shards=shard_contents(folder / task.target), seconds=seconds)
