"""Decoding of items group by group: their order, and groups with items that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlas_store import open_source
from dlas_store.datasets import decoding
from dlas_store.datasets.decoding import Frames, decode_groups, decode_items, raise_error
from dlas_store.errors import ImageError, StoreError
from dlas_store.images.memory import Pixels
from dlas_store.loading.buffers import ScratchPool
from tests.support.file_trees import write
from tests.support.sample_data import noise, png

SIZE = (8, 6)
BAD = 5
"""Index of the picture that cannot be decoded."""

OTHER_SIZE = 7
"""Index of the picture of another size."""


@pytest.fixture
def pictures() -> list[Pixels]:
    """Twelve pictures, of which one has another size."""
    return [noise(4, 4) if number == OTHER_SIZE else noise(*SIZE, seed=number) for number in range(12)]


@pytest.fixture
def frames(tmp_path: Path, pictures: list[Pixels]) -> Frames:
    files = {f"{number:02d}.png": png(pixels) for number, pixels in enumerate(pictures)}
    files[f"{BAD:02d}.png"] = files[f"{BAD:02d}.png"][:40]
    write(tmp_path / "pictures", files)
    source = open_source(tmp_path / "pictures", "pictures")
    return Frames(source, range(len(pictures)))


def decoded(groups: Any, count: int) -> dict[int, list[Pixels]]:
    """Return copies of the patches of each item, of which an item has ``count``."""
    patches_of = {}
    for items, pixels in groups:
        assert len(pixels) == len(items) * count
        for position, item in enumerate(items):
            patches_of[item] = [patch.copy() for patch in pixels[position * count : (position + 1) * count]]
    return patches_of


@pytest.mark.parametrize("together", [1, 2, 5, 100])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_sound_item_comes_once_and_every_bad_one_is_told(
    frames: Frames, pictures: list[Pixels], together: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "BYTES_TOGETHER", together * count * SIZE[0] * SIZE[1] * 3)
    bad: list[int] = []
    items = list(range(len(pictures) // count))[::-1]
    frames = frames._replace(per_item=count)
    groups = decode_groups(frames, items, SIZE, ScratchPool(), lambda item, _error: bad.append(item))
    patches_of = decoded(groups, count)
    assert bad == [BAD // count]
    assert list(patches_of) == [item for item in items if item != BAD // count]
    for item, patches in patches_of.items():
        for frame, patch in enumerate(patches):
            np.testing.assert_array_equal(patch, pictures[item * count + frame])


def test_sound_items_are_one_group_decoded_in_place(frames: Frames) -> None:
    outs = [np.empty((*SIZE, 3), np.uint8) for _ in range(3)]
    ((items, pixels),) = decode_items(frames, [2, 0, OTHER_SIZE], outs, raise_error)
    assert items == [2, 0, OTHER_SIZE]
    assert [decoded is out for decoded, out in zip(pixels, outs, strict=True)] == [True, True, False]


def test_the_error_of_the_bad_item_is_raised_where_none_is_to_be_replaced(frames: Frames) -> None:
    outs = [np.empty((*SIZE, 3), np.uint8) for _ in range(3)]
    with pytest.raises(ImageError, match=r"05\.png"):
        list(decode_items(frames, [4, BAD, 6], outs, raise_error))


def test_a_bad_item_is_told_with_its_error(frames: Frames) -> None:
    bad: list[tuple[int, StoreError]] = []
    out = np.empty((*SIZE, 3), np.uint8)
    assert list(decode_items(frames, [BAD], [out], lambda item, error: bad.append((item, error)))) == []
    ((item, error),) = bad
    assert item == BAD
    assert "05.png" in str(error)


def test_rows_of_items_follow_one_another(frames: Frames) -> None:
    assert list(frames.rows_of([3, 1])) == [3, 1]
    assert list(frames._replace(per_item=2).rows_of([3, 1])) == [6, 7, 2, 3]


def test_items_are_read_in_the_order_of_their_first_patches(frames: Frames) -> None:
    assert Frames(frames.source, [7, 2, 9, 2]).argsort_on_disk() == [1, 3, 0, 2]
    assert Frames(frames.source, [7, 0, 2, 1, 9, 3], 2).argsort_on_disk() == [1, 0, 2]
