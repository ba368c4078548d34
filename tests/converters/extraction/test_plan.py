"""Plan of an extraction: selection of photos, names of their images, and groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.plan import SkippedPhoto, plan_extraction
from dlas_store.converters.sharding import MAX_IMAGES_PER_SHARD, split_by_size, target_shard_size
from dlas_store.errors import ImportFailedError, NotASourceError
from tests.support.file_trees import write
from tests.support.photo_files import encoded, flat

SMALL = {"crop_sz": 32, "step": 16}
PNG = encoded(flat(64, 64), "png")


def options(**changes: object) -> ExtractOptions:
    return ExtractOptions.read(SMALL | changes)


def test_photos_come_in_the_order_of_their_images_names(tmp_path: Path) -> None:
    photos = write(tmp_path, dict.fromkeys(["a/z.png", "a.png", "a-b/c.PNG", "a_b.png", "notes.txt"], PNG))
    plan = plan_extraction(photos, options())
    assert plan.paths == ["a.png", "a-b/c.PNG", "a/z.png", "a_b.png"]
    assert (plan.estimate.images, plan.estimate.tiles) == (4, 36)
    assert plan.skipped == [SkippedPhoto("notes.txt", "unknown file", is_error=False)]


@given(sizes=st.lists(st.integers(0, 50)), limit=st.integers(1, 120))
def test_groups_take_images_in_order_and_hold_no_more_than_their_limit(sizes: list[int], limit: int) -> None:
    groups = list(split_by_size(sizes, limit))
    assert [position for start, end in groups for position in range(start, end)] == list(range(len(sizes)))
    assert all(end - start == 1 or sum(sizes[start:end]) <= limit for start, end in groups)
    assert all(sum(sizes[start:end]) + sizes[end] > limit for start, end in groups[:-1])


def test_a_group_holds_a_bounded_number_of_images() -> None:
    assert list(split_by_size([0] * (MAX_IMAGES_PER_SHARD + 1), 1)) == [
        (0, MAX_IMAGES_PER_SHARD),
        (MAX_IMAGES_PER_SHARD, MAX_IMAGES_PER_SHARD + 1),
    ]


@pytest.mark.parametrize(("total", "size"), [(0, 10), (1000, 21), (10**6, 100)])
def test_a_group_is_a_part_of_all_between_two_bounds(total: int, size: int) -> None:
    assert target_shard_size(total, min_shards=50, min_size=10, max_size=100) == size


def test_a_group_is_another_when_a_photo_or_an_option_is(tmp_path: Path) -> None:
    photos = write(tmp_path, {f"{name}.png": PNG for name in "abc"})

    def fingerprints(**changes: object) -> list[str]:
        return [group.fingerprint for group in plan_extraction(photos, options(**changes), group_size=1).groups]

    first = fingerprints()
    assert len(set(first)) == 3
    assert fingerprints() == first
    assert not set(fingerprints(compression_level=90)) & set(first)
    os.utime(photos / "b.png", ns=(5, -5))  # before 1970
    second = fingerprints()
    assert [old == new for old, new in zip(first, second, strict=True)] == [True, False, True]


def test_a_group_is_another_when_a_mask_is(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", {"a.png": PNG})
    fingerprints = set()
    for shade in (255, 254):
        masks = write(tmp_path / "masks", {"a.png.png": encoded(flat(256, 256, (shade,) * 3), "png")})
        (group,) = plan_extraction(photos, options(use_masking=True, mask_path=str(masks))).groups
        fingerprints.add(group.fingerprint)
    assert len(fingerprints) == 2


@pytest.mark.parametrize("name", [".jpg", "..jpg", "...jpg", "metadata.jsonl.jpg", "x" * 251 + ".jpg"])
def test_a_photo_whose_name_no_folder_can_have_is_left_out(tmp_path: Path, name: str) -> None:
    photos = write(tmp_path, {name: PNG, "good.png": PNG})
    plan = plan_extraction(photos, options(vertical_split=True), include_hidden=True)
    assert plan.paths == ["good.png"]
    ((photo, reason, is_error),) = plan.skipped
    assert (photo, is_error) == (name, True)
    assert "rename it" in reason


def test_photos_that_are_left_out_take_no_name(tmp_path: Path) -> None:
    photos = write(tmp_path, {"a.png": PNG, "a.bmp": encoded(flat(8, 8), "bmp")})
    plan = plan_extraction(photos, options())
    plan.check_names()
    assert plan.paths == ["a.png"]
    write(tmp_path, {"a.jpg": encoded(flat(64, 64), "jpg")})
    with pytest.raises(ImportFailedError, match=r"a\.jpg and a\.png"):
        plan_extraction(photos, options()).check_names()


def test_a_folder_without_photos_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, {"notes.txt": b"none"})
    with pytest.raises(NotASourceError, match="holds no photo"):
        plan_extraction(tmp_path, options())
