"""Batches: in every mode they equal the collated items, read one by one or as a list, from any loader."""

from __future__ import annotations

import io
import json
import platform
import random
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import DTypeLike
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

from dlas_store.converters.importing import import_store
from dlas_store.datasets import create_dataset, references, zero_pad
from dlas_store.errors import ImageError, PatchIndexError, StoreError
from dlas_store.loading.dataset import ItemDataset
from dlas_store.loading.threads import BatchExecutor, ThreadsLoader
from dlas_store.loading.workers import WorkersLoader
from dlas_store.sampling.rng import SampleKey
from dlas_store.sources.base import Center
from dlas_store.sources.centers import write_centers
from dlas_store.sources.published import open_published
from dlas_store.storage.store import Store
from dlas_store.transforms.resize import to_unit
from tests.support.equality import assert_same
from tests.support.file_trees import centers_file, write
from tests.support.sample_data import Array, noise, png
from tests.support.small_stores import damage_table, flip_in, shards_of
from tests.support.source_contract import jpeg

BATCH = 5


# Data of every mode


def chunked_image(
    patches: Mapping[str, bytes], *, reference: bytes | None = None, centers: Sequence[Center] | None = None
) -> dict[str, bytes]:
    """Return the files of one image of a chunked folder; the patch of number n has the n-th centre."""
    files = dict(patches)
    if reference is not None:
        files["ref.jpg"] = reference
    if centers is not None:
        files["centers.pt"] = write_centers(dict(enumerate(centers)))
    return files


def jpegs(*shapes: tuple[int, int], seed: int = 0) -> dict[str, bytes]:
    """Return the files of one patch of each shape."""
    return {f"{number:08d}.jpg": jpeg(noise(*shape, seed=seed + number)) for number, shape in enumerate(shapes)}


def cmyk(pixels: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(file, "JPEG", quality=95)
    return file.getvalue()


CENTERS = [Center(5 * n, 31 - 4 * n, 8 + n) for n in range(6)]

IMAGES: dict[str, dict[str, dict[str, bytes]]] = {
    "patches": {
        "a": chunked_image(jpegs(*[(32, 32)] * 5), reference=jpeg(noise(32, 32, seed=50)), centers=CENTERS),
        "b": chunked_image(jpegs(*[(32, 32)] * 4, seed=10), reference=png(noise(48, 40, seed=51)), centers=CENTERS),
        "c": chunked_image(jpegs(*[(32, 32)] * 3, seed=20)),
    },
    "sizes": {
        "a": chunked_image(
            jpegs((32, 32), (48, 48), (24, 40), (64, 64), (33, 33)),
            reference=png(noise(40, 30, seed=52)),
            centers=CENTERS,
        ),
        "b": chunked_image({"grey.jpg": jpeg(noise(32, 32)[..., 0]), "ink.jpg": cmyk(noise(32, 32))}),
    },
    "video": {
        f"{clip}_{number:012d}": chunked_image(
            jpegs((32, 32), (32, 32), seed=10 * number), reference=jpeg(noise(32, 32, seed=number)), centers=CENTERS
        )
        for clip in "xy"
        for number in range(4)
    },
    "stereo": {
        f"{pair}_{side}_0": chunked_image(
            jpegs((32, 32), (32, 32), (32, 32), seed=seed), reference=jpeg(noise(32, 32, seed=seed)), centers=CENTERS
        )
        for pair, side, seed in (("x", "left", 1), ("x", "right", 2), ("y", "left", 3), ("y", "right", 4))
    },
}

PICTURES: dict[str, dict[str, bytes]] = {
    "pictures": {
        "a/0_00000001.jpg": jpeg(noise(40, 56, seed=1)),
        "a/0_00000002.jpg": jpeg(noise(64, 48, seed=2)),
        "b/1.png": png(noise(50, 50, seed=3)),
        "c.png": png(noise(70, 41, seed=4)),
    },
    "classes": {f"{name}/{n}.png": png(noise(36, 44, seed=n)) for name in ("cat", "dog") for n in range(3)},
}

LABELS = {
    "x": {
        "label": "eye",
        "index": 3,
        "keyBinding": "k",
        "labeledImages": [
            {"path": path, "label": "eye", "patch_top": 4, "patch_left": 6, "patch_height": 20, "patch_width": 9}
            for path in ("a/0_00000001.jpg", "b/1.png", "c.png")
        ],
    }
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of folders, and NAME.lmdb beside each."""
    root = tmp_path_factory.mktemp("batches")
    for name, images in IMAGES.items():
        write(root / name, {f"{image}/{file}": data for image, files in images.items() for file, data in files.items()})
        import_store([root / name], root / f"{name}.lmdb", layout="chunked", workers=1)
    for name, files in PICTURES.items():
        write(root / name, files)
    import_store([root / "pictures"], root / "pictures.lmdb", layout="pictures", workers=1)
    import_store([open_published("imagefolder", root / "classes")], root / "classes.lmdb", workers=1)
    (root / "labels.json").write_text(json.dumps(LABELS))
    return root


class Case(NamedTuple):
    """A config.

    Attributes:
        data: name of the folder or store that the config reads.
        options: of the dataset, without the path of the data.
        key: name of the option with the path of the data.
    """

    data: str
    options: Mapping[str, Any]
    key: str = "paths"


def single(data: str = "patches", **options: Any) -> Case:
    defaults = {"mode": "single_image_extensible", "target_size": 32, "scale": 2}
    return Case(data, {**defaults, **options})


CORRUPTIONS = {
    "random_corruptions": ["noise", "motion_blur", "color_jitter", "lq_resampling", "gaussian_blur"],
    "num_corrupts_per_image": 2,
    "fixed_corruptions": ["jpeg-normal"],
}
REFERENCES = {"need_ref": True, "strict": True}
TRAIN_TILES = {"phase": "train", "min_tile_size": 32, "target_size": 32, "scale": 2, "use_flip": True, "use_rot": True}

CASES = {
    "single": single(),
    "references": single(**REFERENCES),
    "references without metadata": single(need_ref=True),
    "metadata without references": single(strict=True),
    "scale 1": single(scale=1, **REFERENCES),
    "eval": single(eval=True, **REFERENCES, **CORRUPTIONS),
    "sizes": single("sizes", **REFERENCES),
    "brought down": single(target_size=16, **REFERENCES),
    "brought down unevenly": single(target_size=20, **REFERENCES),
    "cropped": single("sizes", target_size=33, scale=4, force_multiple=4, **REFERENCES),
    "corrupted": single(**CORRUPTIONS, **REFERENCES),
    "corrupted before": single(corrupt_before_downsize=True, **CORRUPTIONS),
    "corrupted by a seed": single(random_seed=3, **CORRUPTIONS),
    "corrupted and resized": single("sizes", target_size=24, **CORRUPTIONS),
    "weights": single(weights=[3], ignore_first=2, **REFERENCES),
    "multi frame": Case(
        "video", {"mode": "multi_frame_extensible", "num_frames": 3, "target_size": 32, "scale": 2, **REFERENCES}
    ),
    "multi frame corrupted": Case(
        "video", {"mode": "multi_frame_extensible", "num_frames": 2, "target_size": 24, "scale": 2, **CORRUPTIONS}
    ),
    "paired": Case("stereo", {"mode": "paired_frame", "target_size": 32, "scale": 4, **REFERENCES, **CORRUPTIONS}),
    "imagefolder": Case(
        "pictures", {"mode": "imagefolder", "target_size": 32, "scale": 2, "normalize": "imagenet", **CORRUPTIONS}
    ),
    "imagefolder plain": Case("patches", {"mode": "imagefolder", "scale": 4, "fixed_parameters": {"n": [0.5, 2]}}),
    "imagefolder resized": Case("pictures", {"mode": "imagefolder", "target_size": 32, "scale": 2}),
    "imagefolder cut": Case(
        "pictures", {"mode": "imagefolder", "center_crop_hq_sz": 37, "scale": 2, "force_multiple": 3, "skip_lq": True}
    ),
    "imagefolder mapped": Case(
        "pictures",
        {"mode": "imagefolder", "target_size": 32, "scale": 2, "normalize": "imagenet", "rgb_n1_to_1": True},
    ),
    "imagefolder next": Case(
        "pictures",
        {"mode": "imagefolder", "target_size": 32, "scale": 2, "fetch_alt_image": True, "fixed_parameters": {"n": 0.5}},
    ),
    "imagefolder tiles": Case(
        "patches", {"mode": "imagefolder", "target_size": 32, "scale": 2, "fetch_alt_tiled_image": True, **CORRUPTIONS}
    ),
    "imagefolder labels": Case(
        "pictures",
        {
            "mode": "imagefolder",
            "target_size": 32,
            "scale": 2,
            "labeler": {"type": "patch_labels", "label_file": "labels.json"},
        },
    ),
    "stylegan2": Case("pictures", {"mode": "stylegan2", "target_size": 32, "aug_prob": 0.5}, "path"),
    "multiscale": Case("pictures", {"mode": "multiscale", "hq_tile_size": 8, "num_scales": 3, "scale": 2}),
    "fullimage": Case(
        "pictures", {"mode": "fullimage", "use_blurring": True, "lq_noise": 2, **TRAIN_TILES}, "dataroot_GT"
    ),
    "torch_dataset": Case("classes", {"mode": "torch_dataset", "image_size": 32, "random_crop": True}),
    "combined": Case(
        "", {"mode": "combined", "scale": 2, "default": single(**REFERENCES, **CORRUPTIONS), "other": single("sizes")}
    ),
    "combined pictures": Case(
        "",
        {
            "mode": "combined",
            "scale": 2,
            "default": Case("pictures", {"mode": "imagefolder", "target_size": 32}),
            "trees": Case("patches", {"mode": "multiscale", "hq_tile_size": 8, "num_scales": 2}),
        },
    ),
    "pixels": Case("patches", {"mode": "pixels"}),
}


def options_of(case: Case, data: Path, kind: str) -> dict[str, Any]:
    ending = ".lmdb" if kind == "store" else ""
    options: dict[str, Any] = {"phase": "val", "seed": 7}
    if case.data:
        path = data / f"{case.data}{ending}"
        options[case.key] = [path] if "weights" in case.options else path
    for key, value in case.options.items():
        options[key] = options_of(value, data, kind) if isinstance(value, Case) else value
    if "labeler" in options:
        options["labeler"] = {**options["labeler"], "label_file": data / options["labeler"]["label_file"]}
    if case.data == "classes" and kind == "folder":
        options.pop(case.key)
        options |= {"dataset": "imagefolder", "kwargs": {"root": data / case.data}}
    return options


def make_dataset(name: str, data: Path, kind: str, **more: Any) -> ItemDataset:
    dataset = create_dataset({**options_of(CASES[name], data, kind), **more})
    assert isinstance(dataset, ItemDataset)
    return dataset


def sample_keys(dataset: ItemDataset, count: int = 3 * BATCH - 2) -> list[SampleKey]:
    """Return sample keys in random order; some repeat, one with another repetition."""
    shuffled = random.Random(1)
    keys = [SampleKey(shuffled.randrange(len(dataset)), 4) for _ in range(count - 3)]
    return [*keys, keys[0], SampleKey(keys[1].index, 9), SampleKey(len(dataset) - 1, 4)]


def by_batch(keys: list[SampleKey]) -> list[list[SampleKey]]:
    return [keys[start : start + BATCH] for start in range(0, len(keys), BATCH)]


@pytest.fixture(params=["folder", "store"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def dirty(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return an array whose memory holds old bytes."""
    return np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize, 0xA5, np.uint8).view(dtype).reshape(shape)


# Equality


@pytest.mark.parametrize("name", CASES)
def test_items_and_batches_of_this_process_are_equal(name: str, data: Path, kind: str) -> None:
    dataset = make_dataset(name, data, kind)
    keys = sample_keys(dataset)
    expected = [default_collate([dataset[key] for key in batch]) for batch in by_batch(keys)]
    assert_same([default_collate(list(dataset.__getitems__(batch))) for batch in by_batch(keys)], expected)
    assert_same(list(DataLoader(dataset, batch_size=BATCH, sampler=keys)), expected)  # type: ignore[arg-type]
    for threads in (1, 2):
        loader = ThreadsLoader(dataset, sampler=keys, batch_size=BATCH, drop_last=False, threads=threads)
        assert_same(list(loader), expected)
    here = WorkersLoader(dataset, sampler=keys, batch_size=BATCH, drop_last=False, workers=0, threads=1)
    assert_same(list(here), expected)


@pytest.mark.parametrize("name", CASES)
def test_batches_of_a_worker_process_are_equal(name: str, data: Path) -> None:
    dataset = make_dataset(name, data, "store" if len(name) % 2 else "folder")
    keys = sample_keys(dataset)
    loader = WorkersLoader(
        dataset, sampler=keys, batch_size=BATCH, drop_last=False, workers=1, threads=2, start_method="fork"
    )
    assert_same(list(loader), [default_collate([dataset[key] for key in batch]) for batch in by_batch(keys)])


@pytest.mark.parametrize("name", CASES)
def test_items_of_a_list_are_those_read_alone(name: str, data: Path) -> None:
    dataset = make_dataset(name, data, "store")
    keys = sample_keys(dataset, 6)
    items = dataset.__getitems__(keys)
    assert len(items) == len(keys)
    for item, sample_key in zip(items, keys, strict=True):
        single_item = dataset[sample_key]
        assert list(item) == list(single_item)
        for key, value in single_item.items():
            if isinstance(value, bool | int | float):  # in the list a number may be a tensor without dimensions
                assert torch.equal(torch.as_tensor(item[key]), torch.as_tensor(value))
            else:
                assert_same(item[key], value)


@pytest.mark.parametrize(
    "name",
    [
        "references", "cropped", "corrupted", "multi frame", "pixels", "imagefolder", "imagefolder plain",
        "imagefolder resized", "imagefolder cut", "combined", "combined pictures",
    ],
)  # fmt: skip
def test_memory_of_any_content_and_parts_in_any_order_make_the_same_batch(name: str, data: Path, kind: str) -> None:
    dataset = make_dataset(name, data, kind)
    keys = sample_keys(dataset, 9)
    expected = default_collate([dataset[key] for key in keys])
    for bounds in ([0, 9], [0, 1, 2, 9], [0, 0, 4, 4, 9], list(range(10))):
        builder = dataset.batch_builder(keys, dirty)
        assert len(builder) == 9
        parts = list(pairwise(bounds))
        for start, stop in reversed(parts):
            builder.fill(start, stop)
        assert_same(builder.finish(), expected)


class RecordingBuilder:
    """A builder that records the parts it is asked to fill."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return 8

    def fill(self, start: int, stop: int) -> None:
        self.parts.append((start, stop))

    def finish(self) -> int:
        return len(self)


def test_as_many_threads_share_a_batch_as_was_said_last() -> None:
    with ThreadPoolExecutor(2) as pool:
        executor = BatchExecutor(pool, parts=4)
        for parts in (4, 1, 2):
            executor.split_into(parts)
            for make in (executor.make, lambda builder: executor.begin_and_make(lambda: builder)):
                builder = RecordingBuilder()
                assert make(builder).result() == 8
                assert sorted(builder.parts) == [(8 * part // parts, 8 * (part + 1) // parts) for part in range(parts)]


def test_ints_are_read_as_draws_of_the_epoch(data: Path, kind: str) -> None:
    dataset = make_dataset("corrupted", data, kind)
    dataset.set_epoch(4)
    numbers = [3, np.int64(0), torch.tensor(5), np.uint8(3)]
    expected = default_collate([dataset[SampleKey(int(number), 4)] for number in numbers])
    assert_same(default_collate(list(dataset.__getitems__(numbers))), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["references", "multi frame", "imagefolder", "imagefolder plain", "combined pictures", "pixels"]
)
@pytest.mark.parametrize("index", [-1, 10**6])
def test_an_index_outside_is_an_error_of_the_whole_batch(name: str, index: int, data: Path) -> None:
    dataset = make_dataset(name, data, "store", on_error="skip")
    with pytest.raises(PatchIndexError, match=f"no item {index}: the dataset has {len(dataset)}"):
        dataset.__getitems__([0, index])


@pytest.mark.parametrize("case", [Case("pictures", {"mode": "fullimage", "scale": 2}, "dataroot_GT"), single("sizes")])
def test_pytorchs_own_loader_pads_items_of_several_sizes(case: Case, data: Path) -> None:
    options = {"mode": "pixels", "paths": data / "sizes"} if case.data == "sizes" else options_of(case, data, "store")
    dataset: Any = create_dataset(options)
    expected = zero_pad([dataset[index] for index in range(4)])
    assert_same(list(DataLoader(dataset, batch_size=4, collate_fn=zero_pad, sampler=range(4))), [expected])
    for loader in (
        ThreadsLoader(dataset, sampler=range(4), batch_size=4, drop_last=False, threads=2, collate_fn=zero_pad),
        WorkersLoader(
            dataset, sampler=range(4), batch_size=4, drop_last=False, workers=0, threads=1, collate_fn=zero_pad
        ),
    ):
        assert_same(list(loader), [expected])


@pytest.mark.parametrize("name", CASES)
def test_what_an_item_is_named_after_is_announced(name: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(name, data, "store")
    keys = [SampleKey(0, 0), SampleKey(len(dataset) - 1, 0)]
    items = [dataset[key] for key in keys]
    prefetched: list[str] = []

    def record_prefetch(self: Store, indices: Sequence[int], /) -> None:
        prefetched.extend(map(self.patch_path, indices))

    monkeypatch.setattr(Store, "prefetch", record_prefetch)
    dataset.prefetch(keys)
    paths = [value for item in items for key, value in item.items() if key.endswith("_path")]
    assert prefetched
    assert [path for path in paths if not any(patch_path.endswith(path) for patch_path in prefetched)] == []


FAULTS = """
import resource, sys, numpy as np
from torch.utils.data import Dataset
from dlas_store.datasets import create_dataloader

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones((3, 256, 256), np.float32), np.ones((3, 256, 256), np.float32), np.ones((4, 256, 256), np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

class Faults(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return faults()

opt = {"phase": "train", "batch_size": 1, "loader": sys.argv[1], "n_workers": int(sys.argv[2]), "n_threads": 1}
print(int(list(create_dataloader(Faults(), opt))[-1]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory by other rules")
@pytest.mark.parametrize(("loader", "workers"), [("threads", 1), ("workers", 0), ("workers", 1)])
def test_memory_of_an_item_is_that_of_the_item_before(loader: str, workers: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, loader, str(workers)], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 200  # new memory for 60 arrays would cost 192 faults or more an array


# Bad samples


@pytest.fixture(params=["folder", "store"])
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A chunked source with damage in patches 1, 2 and 5 of 6, and in the reference of image b, but nowhere else."""
    for seed, image in ((1, "a"), (5, "b"), (9, "c")):
        files = chunked_image(
            jpegs(*[(32, 32)] * 2, seed=seed), reference=jpeg(noise(32, 32, seed=60 + seed)), centers=CENTERS
        )
        write(tmp_path / "chunked" / image, files)
    folder = tmp_path / "chunked"
    damaged_files = [folder / "a" / "00000001.jpg", folder / "b" / "00000000.jpg", folder / "c" / "00000001.jpg"]
    damaged_files.append(folder / "b" / "ref.jpg")
    if request.param == "folder":
        for file in damaged_files:
            file.write_bytes(file.read_bytes()[:-200])
        return folder
    store = tmp_path / "chunked.lmdb"
    import_store([folder], store, workers=1)
    for file in damaged_files:
        flip_in(shards_of(store)[0], file.read_bytes())
    return store


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "single_image_extensible", "target_size": 32, "scale": 2, **REFERENCES, **CORRUPTIONS},
        {"mode": "single_image_extensible", "target_size": 32, "scale": 2},
        {"mode": "pixels"},
        {"mode": "imagefolder", "target_size": 32, "scale": 2},
    ],
    ids=lambda options: options["mode"],
)
def test_bad_samples_are_replaced_alike_in_items_and_batches(options: dict[str, Any], damaged: Path) -> None:
    dataset: Any = create_dataset({**options, "paths": damaged, "on_error": "skip", "seed": 2})
    keys = [SampleKey(index, 1) for index in (5, 1, 0, 2, 2, 4, 1, 3)]
    for size in (1, 3, 8):
        batches = [keys[start : start + size] for start in range(0, len(keys), size)]
        expected = [default_collate([dataset[key] for key in batch]) for batch in batches]
        replaced = dataset.take_skipped()
        assert replaced
        for loader in (
            ThreadsLoader(dataset, sampler=keys, batch_size=size, drop_last=False, threads=2),
            WorkersLoader(dataset, sampler=keys, batch_size=size, drop_last=False, workers=0, threads=1),
            WorkersLoader(
                dataset, sampler=keys, batch_size=size, drop_last=False, workers=1, threads=1, start_method="fork"
            ),
        ):
            assert_same(list(loader), expected)


def test_a_batch_counts_bad_samples_as_items_do(damaged: Path) -> None:
    def dataset() -> Any:
        return create_dataset(
            {"mode": "single_image_extensible", "paths": damaged, "target_size": 32, "scale": 2, "on_error": "skip"}
        )

    by_items, by_batch = dataset(), dataset()
    for index in range(6):
        by_items[index]
    by_batch.__getitems__(list(range(6)))
    assert by_batch.take_skipped() == by_items.take_skipped() > 0


@pytest.mark.parametrize("mode", ["single_image_extensible", "pixels"])
def test_without_skipping_a_bad_sample_is_an_error_that_names_it(mode: str, damaged: Path) -> None:
    options = {"mode": mode, "paths": damaged}
    if mode != "pixels":
        options |= {"target_size": 32, "scale": 2}
    dataset: Any = create_dataset(options)
    for indices in ([1], [0, 1], [1, 0], [2, 4]):
        with pytest.raises(StoreError, match=r"0000000[01]\.jpg"):
            dataset.__getitems__(indices)


@pytest.mark.parametrize("mode", ["single_image_extensible", "multi_frame_extensible", "pixels"])
def test_a_damaged_index_is_skipped_by_item_and_by_batch(mode: str, tmp_path: Path) -> None:
    images = 200  # their rows of patches fill several blocks; the first block is damaged
    small = png(noise(2, 2))
    write(tmp_path / "many", {f"{n:012d}/{patch}.png": small for n in range(images) for patch in range(2)})
    store = tmp_path / "many.lmdb"
    import_store([tmp_path / "many"], store, layout="chunked", workers=1)
    damage_table(store, "patches")
    options = {"mode": mode, "paths": store, "on_error": "skip"}
    if mode != "pixels":
        options |= {"target_size": 2, "scale": 1}
    if mode == "multi_frame_extensible":
        options["num_frames"] = 1
    dataset: Any = create_dataset(options)
    keys = [SampleKey(0, 0), SampleKey(399, 0)]
    expected = default_collate([dataset[key] for key in keys])
    assert dataset.take_skipped()
    assert_same(default_collate(list(dataset.__getitems__(keys))), expected)


# References


@pytest.fixture
def reference_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the images whose references are read from a store, in the order of the reads."""
    numbers: list[int] = []
    read = Store.read_reference

    def record_read(self: Store, number: int) -> bytes | None:
        numbers.append(number)
        return read(self, number)

    monkeypatch.setattr(Store, "read_reference", record_read)
    return numbers


@pytest.mark.parametrize("name", ["references", "multi frame", "paired"])
def test_a_reference_is_decoded_once_an_image(name: str, data: Path, reference_reads: list[int]) -> None:
    dataset = make_dataset(name, data, "store")
    loader = ThreadsLoader(dataset, sampler=range(len(dataset)), batch_size=BATCH, drop_last=False, threads=1)
    for _ in range(3):
        list(loader)
    assert sorted(reference_reads) == list(range(len(IMAGES[CASES[name].data])))


def test_references_that_do_not_fit_the_cache_change_nothing(
    data: Path, reference_reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset("references", data, "store")
    expected = [dataset[SampleKey(index, 0)] for index in range(len(dataset))]
    for room, reads in ((0, 6), (1 << 20, 3)):
        reference_reads.clear()
        monkeypatch.setattr(references, "CACHE_BYTES", room)
        bounded = make_dataset("references", data, "store")
        assert_same([bounded[SampleKey(index, 0)] for index in range(len(dataset))], expected)
        assert_same([bounded[SampleKey(index, 0)] for index in range(len(dataset))], expected)
        assert len(reference_reads) == reads
        backwards = [SampleKey(index, 0) for index in range(len(dataset) - 1, -1, -1)]
        loader = ThreadsLoader(bounded, sampler=backwards, batch_size=BATCH, drop_last=False, threads=2)
        paths = [path for batch in loader for path in batch["GT_path"]]
        assert paths == [item["GT_path"] for item in reversed(expected)]


@pytest.fixture
def twelve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A dataset of 12 images of two patches, of the size of HQ as are the references; its cache holds one reference."""
    monkeypatch.setattr(references, "CACHE_BYTES", 0)
    for number in range(12):
        files = {name: jpeg(noise(32, 32, seed=3 * number + place)) for place, name in enumerate(("0.jpg", "1.jpg"))}
        write(tmp_path / "chunked" / f"{number:02d}", {**files, "ref.jpg": jpeg(noise(32, 32, seed=3 * number + 2))})
    options = {"paths": tmp_path / "chunked", "target_size": 32, "scale": 2, "need_ref": True}
    return create_dataset({"mode": "single_image_extensible", **options})


def test_references_of_both_kinds_keep_to_the_room_that_they_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of every four references differ in size from their patches, so that the cache holds them as float32."""
    room = 20 * (3 * 32**2 + 4 * 3 * 16**2)
    monkeypatch.setattr(references, "CACHE_BYTES", room)
    for number in range(40):
        side = 32 if number % 4 == 3 else 48
        files = {"0.jpg": jpeg(noise(32, 32, seed=number)), "ref.jpg": jpeg(noise(side, side, seed=number))}
        write(tmp_path / "chunked" / f"{number:02d}", files)
    options = {"paths": tmp_path / "chunked", "target_size": 32, "scale": 2, "need_ref": True}
    dataset: Any = create_dataset({"mode": "single_image_extensible", **options})
    for index in range(40):
        dataset[index]
    cached = dataset._references._cache.entries.values()
    assert {reference.hq.dtype for reference in cached} == {np.dtype(np.uint8), np.dtype(np.float32)}
    largest = max(reference.hq.nbytes + reference.lq.nbytes for reference in cached)
    assert sum(reference.hq.nbytes + reference.lq.nbytes for reference in cached) <= room + largest


def test_references_that_make_room_for_each_other_in_threads_are_right(twelve: Any) -> None:
    expected = [twelve[index] for index in range(24)]
    order = [*range(0, 24, 2), *range(1, 24, 2)]
    loader = ThreadsLoader(twelve, sampler=order, batch_size=3, drop_last=False, threads=4)
    for _ in range(10):
        items = [{key: value[row] for key, value in batch.items()} for batch in loader for row in range(3)]
        assert_same(sorted(items, key=lambda item: item["GT_path"]), expected)


def test_a_reference_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    write(tmp_path / "chunked" / "a", {"0.jpg": jpeg(noise(32, 32)), "ref.jpg": jpeg(noise(32, 32))[:-300]})
    dataset: Any = create_dataset(
        {
            "mode": "single_image_extensible",
            "paths": tmp_path / "chunked",
            "target_size": 32,
            "scale": 2,
            "need_ref": True,
        }
    )
    for _ in range(2):  # an error is not cached
        with pytest.raises(ImageError, match="chunked: reference of image a: damaged or truncated JPEG"):
            dataset.__getitems__([0])
    (tmp_path / "chunked" / "a" / "ref.jpg").write_bytes(jpeg(noise(32, 32)))
    assert dataset.__getitems__([0])[0]["gt_fullsize_ref"][:3].any()


def test_centers_as_tensors_of_an_old_folder_read_the_same(tmp_path: Path) -> None:
    patches = {"0.jpg": jpeg(noise(32, 32)), "1.jpg": jpeg(noise(32, 32)), "ref.jpg": jpeg(noise(32, 32))}
    centers = {n: ((torch.tensor(9 + n), torch.tensor(8)), torch.tensor(6)) for n in range(2)}
    write(tmp_path / "chunked" / "a", {**patches, "centers.pt": centers_file(centers)})
    dataset: Any = create_dataset(
        {"mode": "single_image_extensible", "paths": tmp_path / "chunked", "target_size": 32, "scale": 2, **REFERENCES}
    )
    assert default_collate(list(dataset.__getitems__([1, 0])))["gt_center"].tolist() == [[10, 8], [9, 8]]


# Executors of batches, and their parts


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 32), (3, 1, 256), (4, 256, 1)])
def test_bytes_become_floats_as_a_division_makes_them(shape: tuple[int, int, int]) -> None:
    values = np.resize(np.arange(256, dtype=np.uint8), shape)
    out = np.full(shape, np.nan, np.float32)
    assert to_unit(values, out) is out
    np.testing.assert_array_equal(out, values.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(out, (values.astype(np.float64) / 255).astype(np.float32))


class Parts:
    """A builder that records its parts as the batch, and fails at a chosen item."""

    def __init__(self, count: int, *, fails_at: int | None = None) -> None:
        self.count = count
        self.fails_at = fails_at
        self.parts: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.count

    def fill(self, start: int, stop: int) -> None:
        self.parts.append((start, stop))
        if self.fails_at is not None and start <= self.fails_at < stop:
            raise ImageError(f"item {self.fails_at} is damaged")

    def finish(self) -> list[tuple[int, int]]:
        return sorted(self.parts)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_parts_cover_every_item_once(threads: int, count: int, parts: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        executor = BatchExecutor(pool, parts=parts)
        futures = [executor.make(Parts(count)), *(executor.begin_and_make(lambda: Parts(count)) for _ in range(4))]
        for future in futures:
            bounds = future.result(60)
            assert len(bounds) == min(parts, count)
            assert [number for start, stop in bounds for number in range(start, stop)] == list(range(count))


@pytest.mark.parametrize("fails_at", [0, 3, 6])
def test_an_error_in_any_part_is_that_of_the_batch(fails_at: int) -> None:
    with ThreadPoolExecutor(2) as pool:
        executor = BatchExecutor(pool, parts=3)
        for _ in range(20):
            for future in (
                executor.make(Parts(7, fails_at=fails_at)),
                executor.begin_and_make(lambda: Parts(7, fails_at=fails_at)),
            ):
                with pytest.raises(ImageError, match=f"item {fails_at} is damaged"):
                    future.result(60)

        def begin() -> Parts:
            raise StoreError("cannot begin")

        with pytest.raises(StoreError, match="cannot begin"):
            executor.begin_and_make(begin).result(60)


def test_a_batch_that_was_begun_is_made_before_another_is_begun() -> None:
    steps: list[Any] = []

    class RecordedParts(Parts):
        def __init__(self, number: int) -> None:
            super().__init__(8)
            self.number = number
            steps.append(f"begin {number}")

        def fill(self, start: int, stop: int) -> None:
            steps.append((self.number, start))

    with ThreadPoolExecutor(1) as pool:
        executor = BatchExecutor(pool, parts=4)
        all_submitted = threading.Event()
        pool.submit(all_submitted.wait)
        futures = [executor.begin_and_make(partial(RecordedParts, number)) for number in range(3)]
        all_submitted.set()
        for future in futures:
            future.result(60)
    assert steps == [
        step for number in range(3) for step in (f"begin {number}", *((number, at) for at in (0, 2, 4, 6)))
    ]


class SquareNumbers(Dataset[int]):
    """A plain PyTorch dataset, whose items are numbers; it does not know sample keys."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> int:
        return index * index


def test_a_foreign_dataset_is_read_item_by_item() -> None:
    expected = [[0, 1, 4], [9, 16, 25], [36]]
    for loader in (
        ThreadsLoader(SquareNumbers(), sampler=range(7), batch_size=3, drop_last=False, threads=2),
        WorkersLoader(SquareNumbers(), sampler=range(7), batch_size=3, drop_last=False, workers=1, threads=2),
    ):
        assert [batch.tolist() for batch in loader] == expected
