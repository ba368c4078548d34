"""Mode multi_frame_extensible: the frames of an item, and data that is refused at construction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlas_store.converters.importing import import_store
from dlas_store.datasets import MultiFrameDataset, SingleImageDataset, create_dataset
from dlas_store.errors import ConfigError
from tests.conftest import MakeImage
from tests.support.corruption_cases import expected_strengths
from tests.support.equality import assert_pickled_gives_the_same
from tests.support.sample_data import noise


def frame(clip: str, number: int) -> str:
    """Return the name of a frame."""
    return f"{clip}{number:012d}"


def make_clip(make_image: MakeImage, clip: str, numbers: Sequence[int], *, patches: int = 2) -> Path:
    """Write frames; all pixels of a patch have one value: frame * 10 + position. Return the folder of the clips."""
    for number in numbers:
        files = {f"{n}.jpg": np.full((32, 32, 3), number * 10 + n, np.uint8) for n in range(patches)}
        folder = make_image(frame(clip, number), files)
    return folder


def dataset_of(path: Path | list[Path], **options: Any) -> MultiFrameDataset:
    defaults = {"paths": path, "target_size": 32, "scale": 2, "num_frames": 3}
    return MultiFrameDataset({**defaults, **options})


def values(tensor: Any) -> list[int]:
    """Return the value of each frame, 0 to 255."""
    return [round(float(frame_tensor.mean()) * 255) for frame_tensor in tensor]


def windows(dataset: MultiFrameDataset) -> list[list[int]]:
    """Return the values of the frames of every item."""
    return [values(dataset[index]["hq"]) for index in range(len(dataset))]


def test_an_item_is_a_single_image_item_with_frames_in_front_and_one_path(sample_path: Callable[[str], Path]) -> None:
    path = sample_path("chunked_video")
    options = {"paths": path, "target_size": 64, "scale": 2, "need_ref": True, "strict": True}
    item, single = MultiFrameDataset({**options, "num_frames": 3})[30], SingleImageDataset(options)
    assert item.keys() == single[0].keys() - {"LQ_path"}
    first = single[0]
    for key in item.keys() - {"GT_path"}:
        assert item[key].shape == (3, *first[key].shape)
        assert item[key].dtype == first[key].dtype
        assert item[key].is_contiguous()
    frames = [frame("rise_", number) for number in (1, 2, 3)]
    paths = [single[index]["GT_path"] for index in range(len(single))]
    assert item["GT_path"] == paths[24 + 2 * 4 + 2]  # position 2 of the third frame of the second clip
    for number, name in enumerate(frames):
        (index,) = [n for n, path in enumerate(paths) if Path(path).parent.name == name and n % 4 == 2]
        for key in item.keys() - {"GT_path"}:
            assert torch.equal(item[key][number], single[index][key]), key


def test_a_window_ends_at_its_own_frame_or_is_the_first_of_the_clip(make_image: MakeImage) -> None:
    folder = make_clip(make_image, "a_", [1, 2, 3, 4, 5], patches=1)
    assert windows(dataset_of(folder)) == [[10, 20, 30]] * 3 + [[20, 30, 40], [30, 40, 50]]
    assert windows(dataset_of(folder, num_frames=1)) == [[10], [20], [30], [40], [50]]
    assert windows(dataset_of(folder, num_frames=5)) == [[10, 20, 30, 40, 50]] * 5
    assert [Path(dataset_of(folder)[index]["GT_path"]).parent.name[-1] for index in range(5)] == list("33345")


def test_every_patch_is_an_item_of_the_patches_at_its_position(make_image: MakeImage) -> None:
    folder = make_clip(make_image, "a_", [1, 2, 3])
    assert windows(dataset_of(folder, num_frames=2)) == [[10, 20], [11, 21], [10, 20], [11, 21], [20, 30], [21, 31]]


def test_frames_come_in_the_order_of_their_counters_gaps_and_all(make_image: MakeImage) -> None:
    folder = make_clip(make_image, "a_", [20, 9, 3], patches=1)
    assert windows(dataset_of(folder, num_frames=2)) == [[30, 90], [30, 90], [90, 200]]


def test_clips_whose_names_contain_one_another_do_not_mix(make_image: MakeImage) -> None:
    make_clip(make_image, "pan", [1, 2], patches=1)
    make_clip(make_image, "pan0", [3, 4], patches=1)
    folder = make_clip(make_image, "xpan", [5, 6], patches=1)
    assert windows(dataset_of(folder, num_frames=2)) == [[30, 40]] * 2 + [[10, 20]] * 2 + [[50, 60]] * 2


def test_a_counter_may_be_the_whole_name(make_image: MakeImage) -> None:
    assert windows(dataset_of(make_clip(make_image, "", [1, 2, 3], patches=1))) == [[10, 20, 30]] * 3


def test_frames_that_were_appended_to_a_store_take_their_place_in_the_clip(
    make_image: MakeImage, tmp_path: Path
) -> None:
    first = make_clip(make_image, "a_", [2, 4], patches=1).rename(tmp_path / "first")
    second = make_clip(make_image, "a_", [1, 3], patches=1)
    store = tmp_path / "clip.lmdb"
    import_store([first], store, layout="chunked")
    import_store([second], store, layout="chunked", append=True)
    assert windows(dataset_of(store, num_frames=2)) == [[10, 20], [30, 40], [10, 20], [20, 30]]


def test_weights_repeat_roots_and_clips_stay_within_their_root(make_image: MakeImage, tmp_path: Path) -> None:
    first = make_clip(make_image, "a_", [1, 2], patches=1).rename(tmp_path / "first")
    second = make_clip(make_image, "a_", [3, 4], patches=1)
    dataset = dataset_of([first, second, first], num_frames=2, weights=[1, 2, 1])
    assert windows(dataset) == [[10, 20]] * 2 + [[30, 40]] * 4 + [[10, 20]] * 2


def test_ignore_first_leaves_out_the_first_patches_of_every_frame(make_image: MakeImage) -> None:
    folder = make_clip(make_image, "a_", [1, 2], patches=3)
    assert windows(dataset_of(folder, num_frames=2, ignore_first=1)) == [[11, 21], [12, 22]] * 2


def test_a_root_of_weight_zero_needs_no_clips(make_image: MakeImage, tmp_path: Path) -> None:
    plain = make_image("photo", {"1.jpg": noise(32, 32)}).rename(tmp_path / "plain")
    folder = make_clip(make_image, "a_", [1, 2], patches=1)
    assert len(dataset_of([plain, folder], num_frames=2, weights=[0, 1])) == 2


@pytest.mark.parametrize(
    ("clips", "options", "message"),
    [
        ({"a_": [1, 2, 3], "b_": [1, 2]}, {}, "clip 'b_' has too few frames, 2 for num_frames 3"),
        ({"a_": [1]}, {"num_frames": 2}, "clip 'a_' has too few frames, 1 for num_frames 2"),
        ({"a_": [1, 2, 3]}, {"num_frames": None}, "num_frames is missing; it must be a positive integer"),
        ({"a_": [1, 2, 3]}, {"num_frames": 0}, "num_frames must be a positive integer, got 0"),
        ({"a_": [1, 2, 3]}, {"fixed_corruptions": ["x"]}, "fixed_corruptions names 'x'"),
    ],
)
def test_short_clips_and_wrong_options_are_refused_at_construction(
    make_image: MakeImage, clips: dict[str, list[int]], options: dict[str, Any], message: str
) -> None:
    for clip, numbers in clips.items():
        folder = make_clip(make_image, clip, numbers)
    with pytest.raises(ConfigError, match=f"^multi_frame_extensible 'video': .*{message}"):
        dataset_of(folder, name="video", **options)


def test_frames_of_different_patch_counts_are_refused_by_clip_and_frames(make_image: MakeImage) -> None:
    make_clip(make_image, "a_", [1, 2], patches=2)
    folder = make_clip(make_image, "a_", [3], patches=3)
    with pytest.raises(ConfigError, match=f"{folder}: the frames of clip 'a_' differ .*a_0*[12] has 2, a_0*3 has 3"):
        dataset_of(folder)


def test_a_name_without_a_counter_is_refused(make_image: MakeImage) -> None:
    folder = make_image("short", {"1.jpg": noise(32, 32)})
    with pytest.raises(ConfigError, match="image short has no frame counter of 12 characters"):
        dataset_of(folder)


def test_all_frames_are_corrupted_alike_with_strengths_of_their_own(make_image: MakeImage) -> None:
    folder = make_clip(make_image, "a_", [1, 2, 3], patches=1)
    item = dataset_of(folder, fixed_corruptions=["saturation"], random_seed=4)[2]
    assert values(item["hq"]) == [10, 20, 30]
    strengths = expected_strengths(6, 3)
    brighter = [10 + 255 * 0.3 * strengths[0], 20 + 255 * 0.3 * strengths[1], 30 + 255 * 0.3 * strengths[2]]
    np.testing.assert_allclose([float(lq.mean()) * 255 for lq in item["lq"]], brighter, atol=1e-3)


def test_the_mode_makes_it_and_a_pickled_one_gives_the_same(sample_path: Callable[[str], Path]) -> None:
    path = sample_path("chunked_video")
    options = {"mode": "multi_frame_extensible", "paths": path, "target_size": 64, "scale": 2, "num_frames": 2}
    dataset = create_dataset(options)
    assert isinstance(dataset, MultiFrameDataset)
    assert len(dataset) == 48
    assert_pickled_gives_the_same(dataset, 0, 47)
