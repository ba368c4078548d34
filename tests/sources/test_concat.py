"""ConcatSource keeps the contract of a source and numbers every patch and image of its members once."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from dlas_store import open_source
from dlas_store.converters.importing import import_store
from dlas_store.errors import ClosedError, NameNotFoundError, PatchIndexError, StoreError
from dlas_store.sources.base import Source
from dlas_store.sources.concat import ConcatSource, concat, member_at, members
from dlas_store.sources.layouts import ChunkedFolder
from tests.support.file_trees import write
from tests.support.picture_folders import store_of, write_pictures
from tests.support.sample_data import noise, png
from tests.support.source_contract import SourceContract


class TestFoldersAsOne(SourceContract):
    @classmethod
    def make(cls, folder: Path, scratch: Path) -> Path:
        return folder

    def open(self, path: Path) -> Source:
        names_of_members = (["a"], [], ["b same size", "é 日本"])
        return ConcatSource([ChunkedFolder(path, images=names) for names in names_of_members])


class TestNestedAndStored(SourceContract):
    @classmethod
    def make(cls, folder: Path, scratch: Path) -> Path:
        import_store([folder], scratch / "new.lmdb", workers=1)
        return scratch / "new.lmdb"

    def open(self, path: Path) -> Source:
        return ConcatSource([ConcatSource([open_source(path, "chunked")])])


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    """Two chunked sources, both with an image b, and one source of pictures."""
    for name, images in (("one", {"a": 2, "b": 1}), ("two", {"b": 3, "c": 2})):
        for image, count in images.items():
            files = {f"{n}.png": png(noise(4, 4, seed=n + ord(image) + ord(name[0]))) for n in range(count)}
            write(tmp_path / name / image, files)
    two = store_of(tmp_path / "two", "chunked")
    pictures = store_of(write_pictures(tmp_path / "three", {"x/1.png": noise(5, 5), "y.png": noise(4, 6)}))
    return [open_source(tmp_path / "one", "chunked"), open_source(two), open_source(pictures)]


@pytest.fixture
def joined(sources: list[Source]) -> ConcatSource:
    return ConcatSource(sources)


def patches_of(sources: list[Source]) -> list[tuple[Source, int]]:
    return [(source, index) for source in sources for index in range(len(source))]


def test_patches_and_images_are_numbered_behind_those_of_the_sources_before(
    sources: list[Source], joined: ConcatSource
) -> None:
    assert len(joined) == sum(map(len, sources)) == 10
    assert joined.image_count == 6
    for index, (source, source_index) in enumerate(patches_of(sources)):
        assert joined.member_at(index) == member_at(joined, index) == (source, source_index)
        assert joined.read(index) == source.read(source_index)
        assert joined.patch_path(index) == source.patch_path(source_index)
        number, position = joined.locate(index)
        assert joined.first_patch(number) + position == index
        assert joined.source_path(number) == source.path
        assert joined.image_name(number) == source.image_name(source.locate(source_index)[0])
    assert [joined.first_patch(number) for number in range(7)] == [0, 2, 3, 6, 8, 9, 10]
    assert [listing.name for listing in joined.listings()] == ["a", "b", "b", "c", "x/1.png", "y.png"]


def test_patches_of_several_sources_are_decoded_in_any_order(sources: list[Source], joined: ConcatSource) -> None:
    expected = [source.read_pixels([index])[0] for source, index in patches_of(sources)]
    for indices in ([9, 0, 3, 4, 1, 8, 2], list(range(10)), [5, 5, 0, 5]):
        outs = [np.empty_like(expected[index]) for index in indices]
        decoded = joined.decode_many_into(indices, list(outs))
        assert all(pixels is out for pixels, out in zip(decoded, outs, strict=True))
        for pixels, new_pixels, index in zip(decoded, joined.read_pixels(indices), indices, strict=True):
            np.testing.assert_array_equal(pixels, expected[index])
            np.testing.assert_array_equal(new_pixels, expected[index])


def test_names_are_looked_up_in_the_first_source_that_has_them(joined: ConcatSource) -> None:
    assert [joined.find_image(name) for name in ("a", "b", "c", "y.png")] == [0, 1, 3, 5]
    assert (joined.find("b", "0.png"), joined.find("b", "2.png"), joined.find("c", "1.png")) == (2, 5, 7)
    with pytest.raises(NameNotFoundError, match=r"no image 'd' in .*one.*two_chunked\.lmdb"):
        joined.find_image("d")
    with pytest.raises(NameNotFoundError, match=r"no patch '9\.png' of image 'b'"):
        joined.find("b", "9.png")


def test_path_and_layout_are_as_the_docstring_says(sources: list[Source], joined: ConcatSource) -> None:
    assert (joined.path, joined.layout) == (sources[0].path, "chunked")
    assert ConcatSource(sources[2:]).layout == "pictures"


@pytest.mark.parametrize("use", ["read", "locate", "member_at", "image", "member_of_image", "source_path"])
@pytest.mark.parametrize("index", [-1, 10, 1 << 70])
def test_other_numbers_are_refused(joined: ConcatSource, use: str, index: int) -> None:
    with pytest.raises(PatchIndexError, match=r"is not in 0 .. \d: of .*one"):
        getattr(joined, use)(index)


def test_patches_are_announced_to_the_source_that_has_them(
    joined: ConcatSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, list[int]]] = []
    for member, source in enumerate(joined.sources):
        monkeypatch.setattr(source, "prefetch", lambda indices, member=member: calls.append((member, list(indices))))
    joined.prefetch([9, 0, 4, 3, 8])
    assert calls == [(0, [0]), (1, [1, 0]), (2, [1, 0])]


def test_an_error_names_the_source_that_holds_the_patch(tmp_path: Path) -> None:
    for name in ("good", "bad"):
        write(tmp_path / name / "a", {"1.png": png(noise(4, 4))[: 40 if name == "bad" else None]})
    joined = ConcatSource([open_source(tmp_path / name, "chunked") for name in ("good", "bad")])
    with pytest.raises(StoreError, match=r"/bad/a/1\.png"):
        joined.decode_many_into([0, 1], [np.empty((4, 4, 3), np.uint8)] * 2)
    with pytest.raises(StoreError, match=r"/bad/a/1\.png"):
        joined.header_size(1)


def test_closing_closes_all_and_a_pickled_one_is_open(sources: list[Source], joined: ConcatSource) -> None:
    copy = pickle.loads(pickle.dumps(joined))
    joined.close()
    for source in sources:
        with pytest.raises(ClosedError):
            len(source)
    assert [copy.read_pixels([index])[0].shape for index in (0, 9)] == [(4, 4, 3), (4, 6, 3)]


def test_sources_are_joined_once_each_and_one_alone_stays_itself(sources: list[Source]) -> None:
    assert concat([sources[0], sources[0]]) is sources[0]
    assert members(sources[0]) == (sources[0],)
    assert member_at(sources[0], 1) == (sources[0], 1)
    assert members(concat([sources[1], sources[0], sources[1]])) == (sources[1], sources[0])
