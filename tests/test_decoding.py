"""Items are decoded group by group, in the order asked for; after an error each alone, and the bad ones are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import noise, png
from trees import write

from dlas_store import open_source
from dlas_store.aligned_memory import Pixels
from dlas_store.datasets import decoding
from dlas_store.datasets.decoding import decode_groups, decode_items, raise_error, rows_of
from dlas_store.datasets.decoding_memory import DecodingMemory
from dlas_store.errors import ImageError, StoreError

SIZE = (8, 6)
BAD = 5
OTHER = 7


@pytest.fixture
def pictures() -> list[Pixels]:
    """Twelve pictures, of which one has another size."""
    return [noise(4, 4) if number == OTHER else noise(*SIZE, seed=number) for number in range(12)]


@pytest.fixture
def places(tmp_path: Path, pictures: list[Pixels]) -> list[tuple[Any, int]]:
    files = {f"{number:02d}.png": png(pixels) for number, pixels in enumerate(pictures)}
    files[f"{BAD:02d}.png"] = files[f"{BAD:02d}.png"][:40]
    write(tmp_path / "pictures", files)
    source = open_source(tmp_path / "pictures", "pictures")
    return [(source, index) for index in range(len(pictures))]


def decoded(groups: Any, frames: int = 1) -> dict[int, list[Pixels]]:
    """Return copies of the patches of each item."""
    made = {}
    for items, pixels in groups:
        assert len(pixels) == len(items) * frames
        for position, item in enumerate(items):
            made[item] = [each.copy() for each in pixels[position * frames : (position + 1) * frames]]
    return made


@pytest.mark.parametrize("together", [1, 2, 5, 100])
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_every_sound_item_comes_once_and_every_bad_one_is_told(
    places: list[Any], pictures: list[Pixels], together: int, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "BYTES_TOGETHER", together * frames * SIZE[0] * SIZE[1] * 3)
    bad: list[int] = []
    items = list(range(len(pictures) // frames))[::-1]
    groups = decode_groups(places, items, SIZE, DecodingMemory(), lambda item, _error: bad.append(item), frames=frames)
    made = decoded(groups, frames)
    assert bad == [BAD // frames]
    assert [*made, *bad] == [*(item for item in items if item != BAD // frames), BAD // frames]
    for item, patches in made.items():
        for frame, patch in enumerate(patches):
            np.testing.assert_array_equal(patch, pictures[item * frames + frame])


def test_sound_items_are_one_group_decoded_in_place(places: list[Any]) -> None:
    outs = [np.empty((*SIZE, 3), np.uint8) for _ in range(3)]
    ((items, pixels),) = decode_items(places, [2, 0, OTHER], outs, raise_error)
    assert items == [2, 0, OTHER]
    assert [one is out for one, out in zip(pixels, outs, strict=True)] == [True, True, False]


def test_the_error_of_the_bad_item_is_raised_where_none_is_to_be_replaced(places: list[Any]) -> None:
    outs = [np.empty((*SIZE, 3), np.uint8) for _ in range(3)]
    with pytest.raises(ImageError, match=r"05\.png"):
        list(decode_items(places, [4, BAD, 6], outs, raise_error))


def test_a_bad_item_is_told_with_its_error(places: list[Any]) -> None:
    told: list[tuple[int, StoreError]] = []
    out = np.empty((*SIZE, 3), np.uint8)
    assert list(decode_items(places, [BAD], [out], lambda item, error: told.append((item, error)))) == []
    ((item, error),) = told
    assert item == BAD
    assert "05.png" in str(error)


def test_rows_of_items_follow_one_another() -> None:
    assert list(rows_of([3, 1], 1)) == [3, 1]
    assert list(rows_of([3, 1], 2)) == [6, 7, 2, 3]
