"""The labeler of mode imagefolder: label files, and boxes that are cropped, flipped and resized with their picture."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlas_store.datasets import ImageFolderDataset, OptionWarning, create_dataloader
from dlas_store.datasets.image_folder_labels import Box
from dlas_store.errors import ConfigError
from dlas_store.sampling.rng import SampleKey
from tests.support.picture_folders import store_of, write_pictures
from tests.support.sample_data import Array, noise


def labelled(path: str, label: str, *box: int) -> dict[str, Any]:
    """Return a labelled image; a box of fewer than four numbers gives an image that lacks the last sides."""
    sides = ("patch_top", "patch_left", "patch_height", "patch_width")
    return {"path": path, "label": label, **dict(zip(sides, box, strict=False))}


def category(label: str, index: int, *images: dict[str, Any]) -> dict[str, Any]:
    return {"label": label, "index": index, "keyBinding": "k", "labeledImages": list(images)}


def write_labels(path: Path, **categories: Any) -> Path:
    path.write_text(json.dumps(categories))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of 48 rows and 64 columns."""
    pictures = {name: noise(48, 64, seed=n) for n, name in enumerate(["a/1.png", "a/2.png", "b/1.png", "c.png"])}
    return write_pictures(tmp_path / "photos", pictures)


def dataset(folder: Path, label_file: Any, **options: Any) -> ImageFolderDataset:
    labeler = {"type": "patch_labels", "label_file": label_file}
    return ImageFolderDataset(
        {"paths": folder, "scale": 1, "disable_flip": True, "name": "faces", "labeler": labeler, **options}
    )


def drawn_boxes(size: tuple[int, int], *boxes: tuple[int, int, int, int, int]) -> Array:
    labels = np.zeros((1, *size), np.int64)
    for top, left, height, width, index in boxes:
        labels[0, top : top + height, left : left + width] = index
    return labels


def test_only_labelled_pictures_are_items_in_path_order(tmp_path: Path, folder: Path) -> None:
    file = write_labels(
        tmp_path / "labels.json",
        x=category("eye", 3, labelled("c.png", "eye", 0, 8, 4, 6), labelled("\\a\\2.png", "eye", 40, 0, 8, 64)),
        y=category("nose", 5, labelled("c.png", "nose", 2, 10, 8, 8), labelled("b/1.png", "nose", 0, 60, 2, 2)),
        z=category("nothing", 0),
    )
    data = dataset(folder, str(file), force_square=False)
    items = [data[index] for index in range(len(data))]
    assert [Path(item["HQ_path"]).relative_to(folder).as_posix() for item in items] == ["a/2.png", "b/1.png", "c.png"]
    expected = drawn_boxes((48, 64), (0, 8, 4, 6, 3), (2, 10, 8, 8, 5))  # later boxes over earlier ones
    np.testing.assert_array_equal(items[2]["labels"], expected)
    np.testing.assert_array_equal(items[2]["labels_mask"], expected > 0)
    assert (items[2]["labels"].dtype, items[2]["labels_mask"].dtype) == (torch.int64, torch.float32)
    assert items[0]["label_strings"] == {3: "eye", 5: "nose", 0: "nothing"}
    assert items[1]["labels_mask"].sum() == 4
    assert len(dataset(folder, file, paths=[folder], weights=[2])) == 6


def test_a_label_of_index_0_shows_in_the_mask(tmp_path: Path, folder: Path) -> None:
    file = write_labels(tmp_path / "labels.json", x=category("eye", 0, labelled("c.png", "eye", 0, 0, 2, 3)))
    item = dataset(folder, file, force_square=False)[0]
    assert item["labels"].sum() == 0
    assert item["labels_mask"].sum() == 6


def test_boxes_follow_the_square_the_flip_and_the_resizing(tmp_path: Path, folder: Path) -> None:
    file = write_labels(tmp_path / "labels.json", x=category("eye", 2, labelled("c.png", "eye", 4, 2, 8, 22)))
    data = dataset(folder, file, disable_flip=False, target_size=24, scale=2)
    # The square has the picture's columns 8 to 56. The box covers its columns 0 to 16, or 32 to 48 after the flip.
    straight, mirrored = drawn_boxes((24, 24), (2, 0, 4, 8, 2)), drawn_boxes((24, 24), (2, 16, 4, 8, 2))
    flips = 0
    plain = dataset(folder, file, target_size=24, scale=2)[0]
    for repetition in range(20):
        item = data[SampleKey(0, repetition)]
        flipped = not torch.equal(item["hq"], plain["hq"])
        np.testing.assert_array_equal(item["labels"], mirrored if flipped else straight)
        flips += flipped
    assert 0 < flips < 20


def test_boxes_follow_the_centre_crop_and_the_crop_to_the_multiple(tmp_path: Path, folder: Path) -> None:
    boxes = [labelled("c.png", "eye", *box) for box in ((0, 0, 12, 20), (30, 40, 18, 24), (0, 0, 3, 3))]
    file = write_labels(tmp_path / "labels.json", x=category("eye", 1, *boxes))
    item = dataset(folder, file, center_crop_hq_sz=30, force_multiple=8)[0]  # rows 9 to 39, columns 17 to 47
    assert item["hq"].shape == (3, 24, 24)
    np.testing.assert_array_equal(item["labels"], drawn_boxes((24, 24), (0, 0, 3, 3, 1), (21, 23, 9, 7, 1)))


def test_boxes_of_a_picture_that_is_not_square_are_resized_by_each_side(tmp_path: Path, folder: Path) -> None:
    file = write_labels(tmp_path / "labels.json", x=category("eye", 1, labelled("c.png", "eye", 7, 9, 6, 8)))
    item = dataset(folder, file, force_square=False, target_size=16)[0]
    np.testing.assert_array_equal(item["labels"], drawn_boxes((16, 16), (2, 2, 2, 2, 1)))  # 7/3, 9/4, 6/3, 8/4


@pytest.mark.parametrize("flip", [True, False])
def test_a_box_beyond_the_picture_is_cut_at_its_border(tmp_path: Path, folder: Path, flip: bool) -> None:
    file = write_labels(tmp_path / "labels.json", x=category("eye", 1, labelled("c.png", "eye", 40, 60, 99, 99)))
    data = dataset(folder, file, force_square=False, disable_flip=not flip)
    for repetition in range(8):
        assert data[SampleKey(0, repetition)]["labels_mask"].sum() == 8 * 4


def test_labels_are_not_normalized(tmp_path: Path, folder: Path) -> None:
    file = write_labels(tmp_path / "labels.json", x=category("eye", 1, labelled("c.png", "eye", 0, 0, 48, 64)))
    item = dataset(folder, file, normalize="imagenet", rgb_n1_to_1=True)[0]
    assert item["labels"].unique().tolist() == item["labels_mask"].unique().tolist() == [1]


def test_several_files_are_one(tmp_path: Path, folder: Path) -> None:
    first = write_labels(tmp_path / "1.json", x=category("eye", 1, labelled("c.png", "eye", 0, 0, 2, 2)))
    second = write_labels(
        tmp_path / "2.json",
        x=category("eye", 1, labelled("a/1.png", "eye", 0, 0, 1, 1), labelled("c.png", "nose", 1, 1, 2, 2)),
        y=category("nose", 2),
    )
    data = dataset(folder, [str(first), second], force_square=False)
    assert len(data) == 2
    assert data[0]["label_strings"] == {1: "eye", 2: "nose"}
    np.testing.assert_array_equal(data[1]["labels"], drawn_boxes((48, 64), (0, 0, 2, 2, 1), (1, 1, 2, 2, 2)))


def test_labels_come_alike_from_stores_workers_and_a_pickle(tmp_path: Path, folder: Path) -> None:
    (folder / "c.png").unlink()
    paths = ["a/1.png", "a/2.png", "b/1.png"]
    images = [labelled(path, "eye", 5 * n, 10, 20, 20) for n, path in enumerate(paths)]
    file = write_labels(tmp_path / "labels.json", x=category("eye", 1, *images))
    expected = [dataset(folder, file, seed=0)[index] for index in range(3)]
    for store in (store_of(folder), store_of(folder, "chunked")):
        data = dataset(store, file, seed=0)
        for dataset_of_store in (data, pickle.loads(pickle.dumps(data))):
            for index, item in enumerate(expected):
                assert dataset_of_store[index]["HQ_path"].endswith(paths[index])
                assert all(
                    torch.equal(dataset_of_store[index][key], item[key]) for key in ("hq", "labels", "labels_mask")
                )
    (batch,) = create_dataloader(
        data, {"phase": "train", "batch_size": 3, "n_workers": 2, "pin_memory": False}, shuffle=False
    )
    assert torch.equal(batch["labels"], torch.stack([item["labels"] for item in expected]))
    assert batch["label_strings"] == {1: ["eye"] * 3}


@pytest.mark.parametrize(
    ("box", "crop", "expected"),
    [
        (Box(2, 3, 4, 5, 1), (0, 0, (9, 9)), Box(2, 3, 4, 5, 1)),
        (Box(2, 3, 4, 5, 1), (3, 5, (9, 9)), Box(0, 0, 3, 3, 1)),
        (Box(2, 3, 4, 5, 1), (0, 0, (4, 4)), Box(2, 3, 2, 1, 1)),
        (Box(2, 3, 4, 5, 1), (6, 0, (4, 4)), Box(0, 3, 0, 1, 1)),
    ],
)
def test_a_box_is_cut_to_a_part_of_the_picture(box: Box, crop: tuple[int, int, tuple[int, int]], expected: Box) -> None:
    assert box.crop(*crop) == expected


EYE = category("eye", 1, labelled("c.png", "eye", 0, 0, 2, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read .Expecting"),
        ("[]", "a mapping of key bindings is expected, got list"),
        ({}, "label_file labels no picture"),
        ({"x": 1}, "binding 'x' has no label"),
        ({"x": category("eye", -1)}, "index of binding 'x' must be an integer of at least 0, got -1"),
        ({"x": category("eye", 1.5)}, "index of binding 'x' must be an integer of at least 0, got 1.5"),  # type: ignore[arg-type]
        ({"x": {**EYE, "labeledImages": {}}}, "labeledImages of binding 'x' must be a list"),
        ({"x": EYE, "y": category("nose", 1)}, "index 1 stands for both 'eye' and 'nose'"),
        ({"x": EYE, "y": category("eye", 2)}, "label 'eye' has more than one index"),
        ({"x": category("eye", 1, labelled("c.png", "nose", 0, 0, 1, 1))}, "has label 'nose', which no binding has"),
        ({"x": category("eye", 1, labelled("c.png", "eye", 0, 0, 1))}, r"labeledImages\[0\] of .* has no patch_width"),
        ({"x": category("eye", 1, labelled("c.png", "eye", 0, -2, 1, 1))}, "patch_left of .* got -2"),
        ({"x": category("eye", 1, labelled("d.png", "eye", 0, 0, 1, 1))}, "photos lacks: d.png$"),
        (
            {"x": category("eye", 1, *(labelled(f"{n}.png", "eye", 0, 0, 1, 1) for n in range(9)))},
            "lacks: 0.png, 1.png, 2.png and 6 more",
        ),
    ],
)
def test_a_label_file_that_is_ill_formed_or_does_not_fit_is_named(
    tmp_path: Path, folder: Path, content: Any, message: str
) -> None:
    file = tmp_path / "labels.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(
        ConfigError, match=f"^imagefolder 'faces': labeler: label_file .*{message.removeprefix('label_file ')}"
    ):
        dataset(folder, file)


@pytest.mark.parametrize(
    ("labeler", "message"),
    [
        ({"label_file": "x"}, "type is missing; it must be one of patch_labels"),
        ({"type": "boxes", "label_file": "x"}, "type must be one of patch_labels, got 'boxes'"),
        ({"type": "patch_labels"}, "label_file is missing; it must be a path or a list of paths"),
        ({"type": "patch_labels", "label_file": "/absent.json"}, "label_file '/absent.json' cannot be read .No such"),
    ],
)
def test_a_wrong_option_of_the_labeler_is_refused_by_name(folder: Path, labeler: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^imagefolder 'faces': labeler: {message}"):
        dataset(folder, None, labeler=labeler)


def test_labels_need_one_path(tmp_path: Path, folder: Path) -> None:
    file = write_labels(tmp_path / "labels.json", x=EYE)
    with pytest.raises(ConfigError, match="labels need one path, the dataset has 2"):
        dataset(folder, file, paths=[folder, folder / "a"])
    with pytest.warns(OptionWarning, match="labeler: option 'files' is not known"):
        dataset(folder, file, labeler={"type": "patch_labels", "label_file": file, "files": 1})
