"""Sources as sequences: an index of any integer type, items, iteration, and a repr that reads nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlas_store.errors import ClosedError, PatchIndexError
from dlas_store.opening import open_source
from dlas_store.sources.base import Source
from dlas_store.sources.concat import ConcatSource
from tests.support.picture_folders import store_of, write_pictures
from tests.support.sample_data import noise
from tests.support.source_contract import CALLS

PICTURES = 300

KINDS = ("store", "folder", "concat")

WIDTHS = (np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 300 pictures beside a store of it: more than a byte can count."""
    folder = tmp_path_factory.mktemp("indices") / "pictures"
    write_pictures(folder, {f"{number:03d}.png": noise(4, 5, seed=number) for number in range(PICTURES)})
    store_of(folder)
    return folder


@pytest.fixture
def open_kind(folder: Path) -> Callable[[str], Source]:
    def open_it(kind: str) -> Source:
        store = folder.with_name("pictures_pictures.lmdb")
        if kind == "concat":
            return ConcatSource([open_source(store), open_source(folder)])
        return open_source(store if kind == "store" else folder)

    return open_it


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, open_kind: Callable[[str], Source]) -> Iterator[Source]:
    with open_kind(request.param) as source:
        yield source


def methods() -> dict[str, Callable[[Source, Any], Any]]:
    return {
        **CALLS,
        "header_size": lambda source, number: source.header_size(number),
        "image_name": lambda source, number: source.image_name(number),
        "path_at": lambda source, number: source.path_at(number, type(number)(0)),
        "source_path": lambda source, number: source.source_path(number),
        "without centres": lambda source, number: source.image_without_centers(number).name,
        "into": lambda source, number: source.decode_into(number, np.empty((4, 5, 3), np.uint8)),
        "many": lambda source, number: source.decode_many_into([number], [np.empty((4, 5, 3), np.uint8)])[0],
        "item": lambda source, number: source[number],
        "alpha": lambda source, number: source.read_pixels([number], alpha=True),
        "array": lambda source, number: source.read_pixels(np.array([number, number])),  # type: ignore[arg-type]
    }


@pytest.mark.parametrize("name", methods())
def test_an_index_at_the_end_of_a_narrow_integers_range_is_no_other_patch(name: str, source: Source) -> None:
    call = methods()[name]
    for width, number in product(WIDTHS, (255, 127, 0)):
        value, expected = call(source, width(number)), call(source, number)
        if name == "image":
            value, expected = value.name, expected.name
        assert np.array_equal(value, expected)


@pytest.mark.parametrize("width", WIDTHS)
def test_what_locate_returns_can_be_added_to(width: Callable[[int], Any], source: Source) -> None:
    assert [type(number) for number in source.locate(width(255))] == [int, int]


def test_a_single_index_is_a_type_error_that_names_the_way_to_read_one_patch(source: Source) -> None:
    for index in (0, 7, np.int64(0), np.uint8(3), True):
        with pytest.raises(TypeError, match=r"must be a sequence of integers.*source\[.*\] reads one patch"):
            source.read_pixels(index)  # type: ignore[arg-type]
    for wrong in ("a", ["a"], [1.5], 1.5, None):
        with pytest.raises(TypeError):
            source.read_pixels(wrong)  # type: ignore[arg-type]
    assert list(source.read_pixels([])) == []


def test_an_item_is_the_pixels_of_a_patch_and_iteration_gives_them_all(source: Source) -> None:
    assert np.array_equal(source[2], source.read_pixels([2])[0])
    pictures = list(source)
    assert len(pictures) == len(source)
    assert all(np.array_equal(pictures[index], source[index]) for index in (0, 255, len(source) - 1))
    for number in (-1, len(source)):
        with pytest.raises(PatchIndexError):
            source[number]
    for wrong in ("000.png", 1.5, None):
        with pytest.raises(TypeError):
            source[wrong]  # type: ignore[index]


@pytest.mark.parametrize("kind", KINDS)
def test_a_repr_names_class_path_and_contents_and_lists_no_folder(
    kind: str, folder: Path, open_kind: Callable[[str], Source]
) -> None:
    source = open_kind(kind)
    assert str(source.path) in repr(source)
    if kind == "folder":
        assert repr(source) == f"<PictureFolder {folder}: not listed yet>"
    len(source)
    assert "300 images, 300 patches, layout pictures" in repr(source)
    source.close()
    assert "closed" in repr(source)
    with pytest.raises(ClosedError):
        source[0]
