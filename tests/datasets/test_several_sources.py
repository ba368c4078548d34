"""Datasets of several sources: the items of each source in order, repeated by its weight."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlas_store.datasets import create_dataset
from dlas_store.datasets.concat import WeightedPatches
from dlas_store.loading.batch import new_array
from dlas_store.sampling.rng import SampleKey
from dlas_store.sources.base import Image, Source
from dlas_store.sources.concat import members
from tests.support.equality import assert_same
from tests.support.file_trees import centers_file, write
from tests.support.picture_folders import store_of, write_pictures
from tests.support.sample_data import noise
from tests.support.source_contract import jpeg


class EmptySource(Source):
    """A source of images that have given numbers of patches; the patches have no bytes."""

    path = Path("empty")
    layout = "chunked"

    def __init__(self, counts: list[int]) -> None:
        self.firsts = [0, *np.cumsum(counts).tolist()]

    @property
    def image_count(self) -> int:
        return len(self.firsts) - 1

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def first_patch(self, number: int) -> int:
        return int(self.firsts[number])

    def locate(self, index: int) -> tuple[int, int]:
        number = int(np.searchsorted(self.firsts, index, side="right")) - 1
        return number, index - self.first_patch(number)

    def read(self, index: int) -> bytes:
        raise NotImplementedError

    def image(self, number: int) -> Image:
        raise NotImplementedError

    def read_reference(self, number: int) -> bytes | None:
        raise NotImplementedError

    def find_image(self, name: str) -> int:
        raise NotImplementedError

    def listings(self) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        pass


@given(
    st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=4),
    st.integers(0, 2),
)
def test_items_are_the_patches_of_each_source_as_often_as_its_weight_says(
    counts: list[list[int]], entries: list[tuple[int, int]], ignore_first: int
) -> None:
    distinct = [EmptySource(patch_counts) for patch_counts in counts]
    sources = [distinct[number % len(distinct)] for number, _ in entries]
    weights = [weight for _, weight in entries]
    patches = WeightedPatches(sources, weights, ignore_first=ignore_first)
    kept = {s: [n for n in range(len(s)) if s.locate(n)[1] >= ignore_first] for s in distinct}
    expected = [(s, n) for s, weight in zip(sources, weights, strict=True) for _ in range(weight) for n in kept[s]]
    assert len(patches) == len(expected)
    starts, start = {}, 0
    for source in members(patches.source):
        starts[source] = start
        start += len(source)
    assert [patches.patch_at(item) for item in range(len(patches))] == [starts[s] + n for s, n in expected]
    for items in (range(len(patches)), range(len(patches))[::-1]):
        if items:
            assert patches.patches_at(items) == [patches.patch_at(item) for item in items]
    assert patches.unweighted_count == sum(len(kept[source]) for source in sources)


MODES: dict[str, dict[str, Any]] = {
    "single_image_extensible": {"names": ["a", "b"]},
    "multi_frame_extensible": {"names": [f"clip{number:012d}" for number in range(3)], "num_frames": 2},
    "paired_frame": {"names": ["x_left_0", "x_right_0", "y_left_0", "y_right_0"]},
    "pixels": {"names": ["a", "b"]},
}
PATCHES = {"target_size": 32, "scale": 2, "need_ref": True, "strict": True}


def write_chunked(folder: Path, names: list[str], seed: int) -> Path:
    """Write images of two patches each. Pixels follow from the seed; file names and centres do not."""
    for number, name in enumerate(names):
        files = {f"{n}.jpg": jpeg(noise(32, 32, seed=seed + 10 * number + n)) for n in range(2)}
        reference = jpeg(noise(32, 32, seed=seed + 10 * number + 9))
        centers = centers_file({n: ((n + 5, 20 - n), 6 + n) for n in range(2)})
        write(folder / name, {**files, "ref.jpg": reference, "centers.pt": centers})
    return folder


def items_of(dataset: Any) -> list[dict[str, Any]]:
    """Return the items without their index."""
    return [{key: value for key, value in dataset[n].items() if key != "index"} for n in range(len(dataset))]


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_of_patches_reads_each_source_as_if_it_were_alone(mode: str, tmp_path: Path) -> None:
    mode_options = dict(MODES[mode])
    names = mode_options.pop("names")
    options = {"mode": mode, **({} if mode == "pixels" else PATCHES), **mode_options}
    folders = [write_chunked(tmp_path / name, names, seed) for name, seed in (("one", 0), ("two", 500))]
    paths = [store_of(folders[0], "chunked"), folders[1], folders[0]]
    one, two, three = (items_of(create_dataset({**options, "paths": path})) for path in paths)
    dataset: Any = create_dataset({**options, "paths": paths, "weights": [1, 2, 1]})
    assert_same(items_of(dataset), [*one, *two, *two, *three])
    assert_same(items_of(pickle.loads(pickle.dumps(dataset))), items_of(dataset))
    assert [dataset.image_of(n).rpartition("/")[0] for n in (0, len(dataset) // 2, len(dataset) - 1)] == [
        str(path) for path in paths
    ]
    items = dataset.__getitems__([SampleKey(n, 0) for n in range(len(dataset))])
    assert_same([{key: value for key, value in item.items() if key != "index"} for item in items], items_of(dataset))


def test_raw_batches_tell_equal_image_numbers_of_several_sources_apart(tmp_path: Path) -> None:
    paths = [write_chunked(tmp_path / name, ["a", "b"], seed) for name, seed in (("one", 0), ("two", 500))]
    dataset: Any = create_dataset({"mode": "single_image_extensible", **PATCHES, "paths": paths})
    builder = dataset.begin_raw_batch([SampleKey(n, 0) for n in range(8)], new_array)
    builder.fill(0, 8)
    batch = builder.finish()
    assert batch.images.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [image for image, _ in batch.references] == [0, 1, 2, 3]
    assert len({pixels.numpy().tobytes() for _, pixels in batch.references}) == 4


@pytest.mark.parametrize("alternative", ["fetch_alt_image", "fetch_alt_tiled_image"])
def test_alternatives_are_of_the_same_source(alternative: str, tmp_path: Path) -> None:
    folders = []
    for number, name in enumerate(("one", "two")):
        files = {f"v/{n:08d}.png": noise(32, 32, seed=10 * number + n) for n in (1, 2)}
        folders.append(write_pictures(tmp_path / name, files))
    chunked = store_of(write_chunked(tmp_path / "three", ["00000001", "00000002"], 500), "chunked")
    options = {"mode": "imagefolder", "scale": 2, "disable_flip": True, alternative: True, "seed": 0}
    paths = [store_of(folders[0]), chunked, folders[1]]
    expected = [item for path in paths for item in items_of(create_dataset({**options, "paths": path}))]
    assert any(item["has_alt"] for item in expected)
    assert_same(items_of(create_dataset({**options, "paths": paths})), expected)


def test_patches_of_stores_come_in_path_order_beside_folders_of_pictures(tmp_path: Path) -> None:
    chunked = store_of(write_chunked(tmp_path / "stored", ["a", "a-b", "a b"], 0), "chunked")
    pictures = write_pictures(tmp_path / "pictures", {"z.png": noise(32, 32), "y/1.png": noise(32, 32)})
    dataset: Any = create_dataset({"mode": "imagefolder", "paths": [pictures, chunked, pictures], "scale": 1})
    paths = [dataset[n]["HQ_path"] for n in range(len(dataset))]
    picture_paths = [f"{pictures}/{name}" for name in ("y/1.png", "z.png")]
    patch_paths = [f"{chunked}/{image}/{n}.jpg" for image in ("a b", "a-b", "a") for n in range(2)]
    assert paths == [*picture_paths, *patch_paths, *picture_paths]
