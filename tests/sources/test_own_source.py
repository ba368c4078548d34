"""A user's own Source, twelve short members long, works wherever the library takes a source."""

from __future__ import annotations

import doctest
import sys
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dlas_store import errors, open_source
from dlas_store.cli.preview import preview
from dlas_store.converters.importing import import_store
from dlas_store.datasets import create_dataloader, create_dataset
from dlas_store.errors import (
    CentersError,
    ClosedError,
    ConfigError,
    ImportFailedError,
    NameNotFoundError,
    PatchIndexError,
)
from dlas_store.maintenance.verify import compare, verify
from dlas_store.sources import base
from dlas_store.sources.base import CENTERS_FILE, REFERENCE_FILE, Center, Image, Layout, Listing, Source
from dlas_store.sources.centers import read_centers
from tests.support.equality import assert_same
from tests.support.file_trees import read
from tests.support.sample_data import DATA, noise, png
from tests.support.small_stores import content_of, small_folder
from tests.support.source_contract import SourceContract

Images = dict[str, dict[str, bytes]]
"""Image name -> file name -> bytes of the file."""


class MemorySource(Source):
    """Images with references, in a dict of files, and their centres, in another dict."""

    path = Path()
    layout: Layout = "chunked"

    def __init__(self, path: Path, images: Images, centers: Mapping[str, Mapping[int, Center]]) -> None:
        self.path, self._images, self._centers = path, images, centers
        self._names = sorted(images)
        self._files = [tuple(sorted(images[name].keys() - {REFERENCE_FILE})) for name in self._names]
        self._first_patches = [0, *accumulate(map(len, self._files))]
        self._is_closed = False

    @property
    def image_count(self) -> int:
        if self._is_closed:
            raise ClosedError(f"{self.path}: the source is closed")
        return len(self._names)

    def __len__(self) -> int:
        return self._first_patches[self.image_count]

    def locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise PatchIndexError(f"{self.path}: patch {index} of {len(self)}")
        number = bisect_right(self._first_patches, index) - 1
        return number, index - self._first_patches[number]

    def first_patch(self, number: int) -> int:
        if not 0 <= number <= self.image_count:
            raise PatchIndexError(f"{self.path}: image {number} of {self.image_count}")
        return self._first_patches[number]

    def read(self, index: int) -> bytes:
        number, position = self.locate(index)
        return self._images[self._names[number]][self._files[number][position]]

    def read_reference(self, number: int) -> bytes | None:
        return self._images[self._name(number)].get(REFERENCE_FILE)

    def image(self, number: int) -> Image:
        name = self._name(number)
        return Image(name, self._files[number], self._centers.get(name), REFERENCE_FILE in self._images[name])

    def find_image(self, name: str) -> int:
        if self.image_count and name in self._images:
            return self._names.index(name)
        raise NameNotFoundError(f"{self.path}: no image {name!r}")

    def listings(self) -> Iterator[Listing]:
        for number in range(self.image_count):
            sizes = {file: len(data) for file, data in self._images[self._names[number]].items()}
            patch_sizes = np.array([sizes[file] for file in self._files[number]])
            yield Listing(self._names[number], self._files[number], patch_sizes, sizes.get(REFERENCE_FILE))

    def close(self) -> None:
        self._is_closed = True

    def _name(self, number: int) -> str:
        if self.first_patch(number) == len(self):
            raise PatchIndexError(f"{self.path}: image {number} of {self.image_count}")
        return self._names[number]


def memory_source(folder: Path, kind: type[MemorySource] = MemorySource, /) -> MemorySource:
    """Return the images of a chunked folder in memory."""
    images = {path.name: read(path) for path in folder.iterdir() if path.is_dir()}
    has_centers = [name for name, files in images.items() if files.pop(CENTERS_FILE, None)]
    centers = {name: read_centers(folder / name / CENTERS_FILE) for name in has_centers}
    return kind(folder, images, centers)


class TestMemorySource(SourceContract):
    @classmethod
    def make(cls, folder: Path, scratch: Path) -> Path:
        return folder

    def open(self, path: Path) -> Source:
        return memory_source(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_folder(tmp_path / "folder", "a", "b", "c")


@pytest.mark.parametrize("workers", [1, 2])
def test_the_store_of_it_is_that_of_the_folder_with_the_same_files(tmp_path: Path, workers: int) -> None:
    source, store = memory_source(DATA / "chunked"), tmp_path / "store.lmdb"
    summary = import_store([source], store, workers=workers, decode_all=True, shard_size=100_000)
    assert (summary.images, summary.patches, summary.findings) == (source.image_count, len(source), [])
    assert verify(store).ok
    assert compare(store, DATA / "chunked").ok
    with open_source(DATA / "chunked") as original, open_source(store) as imported:
        assert content_of(imported) == content_of(original) == content_of(source)


def test_a_store_is_compared_with_it(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.lmdb"
    source = memory_source(folder)
    import_store([source], store, workers=1)
    assert compare(store, source, workers=2) == compare(store, folder)
    images = {name: dict(files) for name, files in source._images.items() if name != "c"}
    images["a"]["00000001.png"] = images["a"]["00000000.png"]
    changed = MemorySource(folder, images, source._centers)
    findings = [finding[1:4] for finding in compare(store, changed).findings]
    assert findings == [("c", "", "not in source"), ("a", "00000001.png", "differs")]
    assert source.read(0) == changed.read(0)  # both sources are still open


def test_images_of_it_are_appended_to_a_store(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.lmdb"
    import_store([folder], store, images="[ab]", workers=1)
    summary = import_store([memory_source(folder)], store, append=True, compare_bytes=True, workers=1)
    assert (summary.images, summary.changed, summary.missing_from_source) == (1, [], [])
    assert compare(store, folder).ok


class Twice(MemorySource):
    """A source whose last image has the name of the first."""

    def listings(self) -> Iterator[Listing]:
        listings = list(super().listings())
        yield from [*listings[:-1], listings[-1]._replace(name=listings[0].name)]


def test_an_import_refuses_two_images_of_one_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ImportFailedError, match=r"found 1 image name more than once in .*folder: 'a'; rename"):
        import_store([memory_source(folder, Twice)], tmp_path / "store.lmdb", workers=1)
    assert not (tmp_path / "store.lmdb").exists()


def test_what_its_options_refuse_is_named(folder: Path, tmp_path: Path) -> None:
    source = memory_source(folder)
    source.max_pixels = 100
    with pytest.raises(ImportFailedError, match=r"folder/b/00000001\.png: 40 x 40 pixels .* limit of 100"):
        import_store([source], tmp_path / "store.lmdb", workers=1)


class WithoutCenters(MemorySource):
    """A source in which the centres of image b cannot be read."""

    def image(self, number: int) -> Image:
        if self._name(number) == "b":
            raise CentersError(f"{self.path}/b/{CENTERS_FILE}: damaged")
        return super().image(number)


class WithImageBesideCenters(WithoutCenters):
    """A source that can also return image b without its centres."""

    def image_without_centers(self, number: int) -> Image:
        return MemorySource.image(self, number)


def test_centres_that_it_cannot_read_are_a_finding_where_it_knows_the_rest(folder: Path, tmp_path: Path) -> None:
    summary = import_store(
        [memory_source(folder, WithImageBesideCenters)], tmp_path / "skip.lmdb", skip_bad=True, workers=1
    )
    assert [(finding.path, finding.message) for finding in summary.findings] == [
        (f"{folder}/b/{CENTERS_FILE}", "damaged")
    ]
    with pytest.raises(CentersError, match="damaged"):
        import_store([memory_source(folder, WithoutCenters)], tmp_path / "stop.lmdb", skip_bad=True, workers=1)


def test_an_image_is_known_without_its_centres() -> None:
    image = memory_source(DATA / "chunked").image_without_centers(0)
    assert image.centers is None
    assert image.files == memory_source(DATA / "chunked").image(0).files


class Patches(Dataset[Tensor]):
    """A dataset of the pixels of a source's patches."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.source.read_pixels([index])[0])


@pytest.mark.parametrize("options", [{"loader": "threads"}, {"loader": "workers", "n_workers": 2}])
def test_loaders_read_it(folder: Path, options: dict[str, object]) -> None:
    source = memory_source(small_folder(folder.parent / "one size", *"abcd", patches=1))
    opt = {"phase": "val", "batch_size": 2, "pin_memory": False, **options}
    batches = list(create_dataloader(Patches(source), opt))
    assert len(batches) == 2
    assert np.array_equal(torch.cat(batches), source.read_pixels(range(4)))


@pytest.mark.parametrize("loader", [{"loader": "threads"}, {"loader": "workers", "n_workers": 1}])
def test_a_dataset_of_it_has_the_batches_of_the_folder(loader: dict[str, object]) -> None:
    options = {"mode": "single_image_extensible", "target_size": 32, "scale": 2, "need_ref": True, "strict": True}
    loading = {"phase": "val", "batch_size": 16, "pin_memory": False, **loader}
    of_folder, of_source = (
        create_dataloader(create_dataset({**options, "paths": data}), loading)
        for data in (DATA / "chunked", [memory_source(DATA / "chunked")])
    )
    assert len(of_source) == len(of_folder) > 1
    for expected, batch in zip(of_folder, of_source, strict=True):
        assert_same(batch, expected)


def test_a_dataset_of_pictures_takes_its_patches(folder: Path) -> None:
    options = {"mode": "imagefolder", "target_size": 8, "scale": 2, "disable_flip": True}
    of_source, of_folder = (create_dataset({**options, "paths": data}) for data in (memory_source(folder), folder))
    assert len(of_source) == len(of_folder) == 12
    assert_same([of_source[index] for index in range(12)], [of_folder[index] for index in range(12)])


def test_a_chunked_mode_refuses_an_open_source_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(noise(8, 8)))
    with (
        open_source(tmp_path) as pictures,
        pytest.raises(ConfigError, match=r"paths: .* is a source of whole pictures"),
    ):
        create_dataset({"mode": "single_image_extensible", "paths": pictures, "target_size": 8, "scale": 2})


def test_a_dataset_of_its_store_has_the_items_of_the_folder(tmp_path: Path) -> None:
    import_store([memory_source(DATA / "chunked")], tmp_path / "store.lmdb", workers=1)
    options = {"mode": "single_image_extensible", "target_size": 32, "scale": 2}
    of_folder, of_store = (
        create_dataset({**options, "paths": path}) for path in (DATA / "chunked", tmp_path / "store.lmdb")
    )
    assert len(of_store) == len(of_folder)
    for index in range(0, len(of_folder), 50):
        expected, item = of_folder[index], of_store[index]
        assert all(torch.equal(item[key], value) for key, value in expected.items() if isinstance(value, Tensor))


def test_a_preview_of_it_is_that_of_the_folder(folder: Path, tmp_path: Path) -> None:
    source = memory_source(folder)
    assert preview(source, [], tmp_path / "source.png") == preview(folder, [], tmp_path / "folder.png") == 3
    assert (tmp_path / "source.png").read_bytes() == (tmp_path / "folder.png").read_bytes()
    assert source.read(0)  # the source is still open


def test_a_source_without_one_of_the_twelve_members_cannot_be_made() -> None:
    abstract = {
        *("path", "layout", "image_count", "__len__", "read", "locate", "first_patch"),
        *("image", "read_reference", "find_image", "listings", "close"),
    }
    assert Source.__abstractmethods__ == abstract
    for name in abstract:
        other_members = dict.fromkeys(abstract - {name})
        with pytest.raises(TypeError, match=name):
            type("Partial", (Source,), other_members)()


def test_the_source_in_the_docstring_works_wherever_a_source_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = doctest.DocTestParser().get_examples(Source.__doc__ or "")
    code = next(example.source for example in examples if example.source.startswith("class "))
    namespace: dict[str, Any] = {**vars(base), **vars(errors), "__name__": __name__}
    exec(code, namespace)
    monkeypatch.setattr(sys.modules[__name__], "Pictures", namespace["Pictures"], raising=False)  # to be pickled
    pictures = {f"{name}.png": png(noise(8, 8, seed=seed)) for seed, name in enumerate("abcd")}
    source, store = namespace["Pictures"](pictures), tmp_path / "store.lmdb"
    assert import_store([source], store, workers=0).patches == 4
    assert compare(store, source, workers=0).ok
    with open_source(store) as imported:
        assert [imported.read(index) for index in range(4)] == [pictures[name] for name in sorted(pictures)]
    batches = list(create_dataloader(Patches(source), {"phase": "val", "batch_size": 2, "pin_memory": False}))
    assert np.array_equal(torch.cat(batches), source.read_pixels(range(4)))
    assert preview(source, [], tmp_path / "source.png") == 4
