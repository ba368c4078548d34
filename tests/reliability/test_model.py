"""Model test: a store agrees with a dict after any sequence of operations, including kills."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from dlas_store.converters import exporting, importing, salvaging
from dlas_store.converters.exporting import export_store
from dlas_store.converters.importing import import_store
from dlas_store.converters.salvaging import salvage
from dlas_store.errors import NameNotFoundError, PatchIndexError
from dlas_store.maintenance.reindex import reindex
from dlas_store.maintenance.verify import Sample, verify
from dlas_store.sources.base import Center
from dlas_store.sources.centers import write_centers
from dlas_store.storage.index import INDEX_FILE
from dlas_store.storage.store import Store
from tests.conftest import Runs
from tests.reliability.support.children import work_here
from tests.support.file_trees import ppm, write

Files = dict[str, bytes]

_names = st.text("abcé 1", min_size=1, max_size=3).filter(str.strip)
_images = st.dictionaries(
    _names, st.tuples(st.integers(1, 5), st.booleans(), st.booleans(), st.integers(0, 1 << 20)), min_size=1, max_size=4
)
_shard_sizes = st.sampled_from([1, 60, 1 << 20])


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["dlas_store.maintenance.verify", "dlas_store.maintenance.reindex"]
    work_here(monkeypatch, *names, importing.__name__, exporting.__name__, salvaging.__name__)


class StoreAgainstDict(RuleBasedStateMachine):
    """State machine with a model of the store: image name -> file name -> bytes, in the order of import."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="dlas_store_model_"))
        self.source = self.root / "source"
        self.store = self.root / "s.lmdb"
        self.model: dict[str, Files] = {}
        self.reader: Store | None = None
        self.seen: dict[str, Files] = {}
        """Copy of the model from the moment when ``reader`` was opened."""

    def teardown(self) -> None:
        if self.reader is not None:
            self.reader.close()
        shutil.rmtree(self.root)

    def add_to_source(self, images: dict[str, Any]) -> dict[str, Files]:
        """Write new images into the store's source, and return the images in the form of the model."""
        added = {}
        for name in sorted(images.keys() - self.model.keys()):
            patches, has_reference, has_centers, shade = images[name]
            files = {f"{number:08d}.ppm": ppm((shade + number) % (1 << 24)) for number in range(patches)}
            files |= {"ref.jpg": ppm(shade)} if has_reference else {}
            centers = {number: Center(number, shade, 4) for number in range(patches)}
            write(self.source / name, files | ({"centers.pt": write_centers(centers)} if has_centers else {}))
            added[name] = files | ({"centers.pt": repr(centers).encode()} if has_centers else {})
        return added

    @initialize(images=_images, shard_size=_shard_sizes)
    def begin(self, images: dict[str, Any], shard_size: int) -> None:
        self.model = self.add_to_source(images)
        import_store([self.source], self.store, layout="chunked", shard_size=shard_size, workers=1)
        self.reopen()

    @rule(images=_images, shard_size=_shard_sizes)
    def append(self, images: dict[str, Any], shard_size: int) -> None:
        added = self.add_to_source(images)
        summary = import_store(
            [self.source], self.store, layout="chunked", append=True, shard_size=shard_size, workers=1
        )
        assert (summary.images, summary.changed, summary.missing_from_source) == (len(added), [], [])
        self.model |= added

    @rule(images=_images, shard_size=_shard_sizes, delay=st.integers(0, 30), goes_on=st.booleans())
    def kill_an_append(self, images: dict[str, Any], shard_size: int, delay: int, goes_on: bool) -> None:
        added = self.add_to_source(images)
        child = os.fork()
        if not child:
            try:
                import_store([self.source], self.store, layout="chunked", append=True, shard_size=shard_size, workers=1)
            finally:
                os._exit(0)
        time.sleep(delay / 1000)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with Store(self.store) as store:
            assert store.image_count in (len(self.model), len(self.model) + len(added))
            is_published = store.image_count > len(self.model)
            # The store keeps the shards of an abandoned append, and a reindex without the index would include them.
            has_moved = len(list(self.store.glob("shard-*"))) > len(store.index.shards)
        if not (is_published or has_moved or goes_on):
            for name in added:
                shutil.rmtree(self.source / name)
            shutil.rmtree(self.store.with_name("s.lmdb.partial"), ignore_errors=True)
            return
        import_store([self.source], self.store, layout="chunked", append=True, shard_size=shard_size, workers=1)
        self.model |= added
        assert not self.store.with_name("s.lmdb.partial").exists()

    @rule()
    def reopen(self) -> None:
        if self.reader is not None:
            self.reader.close()
        self.reader, self.seen = Store(self.store), dict(self.model)

    @rule(number=st.integers(0, 1 << 30))
    def read(self, number: int) -> None:
        """Read from the open reader, which keeps its snapshot."""
        assert self.reader is not None
        rng = random.Random(number)
        names = list(self.seen)
        assert [self.reader.image_name(n) for n in range(self.reader.image_count)] == names
        name = rng.choice(names)
        image = self.reader.find_image(name)
        assert names[image] == name
        files = self.seen[name]
        patches = sorted(file for file in files if file.endswith(".ppm"))
        assert self.reader.read_reference(image) == files.get("ref.jpg")
        file = rng.choice(patches)
        index = self.reader.find(name, file)
        assert self.reader.read(index) == files[file]
        assert self.reader.locate(index) == (image, patches.index(file))
        with pytest.raises(PatchIndexError):
            self.reader.read(len(self.reader))
        with pytest.raises(NameNotFoundError):
            self.reader.find_image("no such image")

    @rule()
    def read_all(self) -> None:
        assert self.contents(self.store) == self.model

    @rule(mode=st.sampled_from(["all", "quick", "sample"]))
    def verify(self, mode: str) -> None:
        sample = Sample(0.5, 1) if mode == "sample" else None
        report = verify(self.store, workers=1, quick=mode == "quick", sample=sample)
        assert report.findings == []
        values = sum(1 + len(files) - ("centers.pt" in files) for files in self.model.values())
        assert report.checked <= values if mode == "sample" else report.checked == values

    @rule(lost=st.booleans())
    def reindex(self, lost: bool) -> None:
        if lost:
            (self.store / INDEX_FILE).unlink()
        summary = reindex(self.store, workers=1)
        assert (summary.images, summary.skipped) == (len(self.model), [])

    @rule(lost=st.booleans())
    def salvage(self, lost: bool) -> None:
        copy = shutil.copytree(self.store, self.root / "copy.lmdb")
        if lost:
            (copy / INDEX_FILE).unlink()
        summary = salvage(copy, self.root / "new.lmdb", workers=1)
        assert summary.lost == []
        assert self.contents(self.root / "new.lmdb") == self.model
        shutil.rmtree(copy)
        shutil.rmtree(self.root / "new.lmdb")

    @precondition(lambda self: self.model)
    @rule()
    def export(self) -> None:
        export_store(self.store, self.root / "back", workers=1)
        names = {str(path.relative_to(self.root / "back")) for path in (self.root / "back").glob("*/*")}
        assert names == {f"{name}/{file}" for name, files in self.model.items() for file in files}
        shutil.rmtree(self.root / "back")

    def contents(self, path: Path) -> dict[str, Files]:
        """Return the contents of a store in the form of the model."""
        contents: dict[str, Files] = {}
        with Store(path) as store:
            for number in range(store.image_count):
                image, first = store.image(number), store.first_patch(number)
                contents[image.name] = {file: store.read(first + at) for at, file in enumerate(image.files)}
                reference = store.read_reference(number)
                contents[image.name] |= {} if reference is None else {"ref.jpg": reference}
                if image.centers is not None:
                    contents[image.name]["centers.pt"] = repr(dict(image.centers)).encode()
        assert list(contents) == list(self.model)
        return contents


def test_a_store_agrees_with_a_dict_through_any_history(runs: Runs) -> None:
    numbers = runs(small=6, full=500)
    StoreAgainstDict.TestCase.settings = settings(
        max_examples=len(numbers),
        stateful_step_count=50,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    run_state_machine_as_test(seed(numbers.start)(StoreAgainstDict), settings=StoreAgainstDict.TestCase.settings)
