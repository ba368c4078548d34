"""The option device: PyTorch makes HQ and LQ of patches that came as bytes, equal to batches made without it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlas_store.converters.importing import import_store
from dlas_store.datasets import Loader, create_dataloader, create_dataset, device, references
from dlas_store.errors import ConfigError, ImageError, MissingMetadataError, StoreError
from dlas_store.sampling.rng import SampleKey
from dlas_store.storage.store import Store
from tests.conftest import MakeImage
from tests.support.file_trees import write
from tests.support.sample_data import noise
from tests.support.source_contract import jpeg

TOLERANCE = 2e-6
THREADS = {"loader": "threads", "n_threads": 2}
HERE = {"loader": "workers", "n_workers": 0}
WORKERS = {"loader": "workers", "n_workers": 1, "start_method": "fork"}
REFERENCES = {"need_ref": True, "strict": True}

MODES: dict[str, dict[str, Any]] = {
    "single_image_extensible": {},
    "multi_frame_extensible": {"num_frames": 2},
    "paired_frame": {},
}


def frames(make_image: MakeImage, mode: str, **sizes: tuple[int, int]) -> Path:
    """Write two groups of two images, named as a mode needs it; the second group has no references."""
    size, reference = sizes.get("size", (32, 32)), sizes.get("reference", (32, 32))
    for group in range(2):
        for number in range(2):
            name = (
                f"x{group}_{'right' if number else 'left'}_0" if mode == "paired_frame" else f"x{group}_{number:012d}"
            )
            folder = make_image(
                name,
                {f"{n}.jpg": noise(*size, seed=n + 3 * number + 10 * group) for n in range(3)},
                reference=None if group else noise(*reference, seed=40 + number),
                centers={n: ((3 + 9 * n, 30 - 7 * n), 6 + n) for n in range(3)},
            )
    return folder


def loaders(options: Mapping[str, Any], kind: Mapping[str, Any]) -> tuple[Loader, Loader]:
    """Return a loader with the option device, and an equal loader without it."""
    opt = {"seed": 3, "phase": "train", "batch_size": 2, **options, **kind}
    with_device = {**opt, "device": "cpu"}
    return create_dataloader(create_dataset(with_device), with_device), create_dataloader(create_dataset(opt), opt)


def assert_close(batch: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Assert that batches are equal, but for the last bits of floats."""
    assert list(batch) == list(expected)
    for key, value in expected.items():
        if not isinstance(value, torch.Tensor):
            assert batch[key] == value
            continue
        assert batch[key].dtype == value.dtype
        assert batch[key].shape == value.shape
        if value.dtype == torch.int64:
            assert torch.equal(batch[key], value), key
        else:
            assert (batch[key] - value).abs().max() <= TOLERANCE, key


def assert_epochs_close(options: Mapping[str, Any], kind: Mapping[str, Any]) -> None:
    """Assert that two epochs are close with and without the option device."""
    with_device, without = loaders(options, kind)
    for _ in range(2):
        count = 0
        for batch, expected in zip(with_device, without, strict=True):
            assert_close(batch, expected)
            count += 1
        assert count


@pytest.mark.parametrize("kind", [THREADS, HERE, WORKERS], ids=["threads", "here", "workers"])
@pytest.mark.parametrize("references", [{}, {"need_ref": True}, REFERENCES], ids=["none", "references", "metadata"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_what_it_gives_without(
    mode: str, references: dict[str, Any], kind: dict[str, Any], make_image: MakeImage
) -> None:
    options = {"mode": mode, "paths": frames(make_image, mode), "target_size": 32, "scale": 2}
    assert_epochs_close({**options, **MODES[mode], **references}, kind)


@pytest.mark.parametrize(
    ("size", "target", "scale", "multiple"),
    [
        ((32, 32), 32, 1, 1),
        ((32, 32), 32, 4, 1),
        ((64, 64), 32, 2, 1),
        ((48, 48), 32, 2, 1),
        ((24, 24), 32, 2, 1),
        ((16, 16), 32, 2, 1),
        ((64, 32), 32, 2, 1),
        ((40, 50), 32, 2, 1),
        ((20, 28), 32, 2, 1),
        ((24, 48), 32, 2, 1),
        ((64, 20), 32, 2, 1),
        ((33, 33), 33, 4, 4),
        ((48, 40), 35, 3, 11),
        ((30, 30), 30, 3, 1),
    ],
)
def test_any_size_is_resized_and_cropped_alike(
    size: tuple[int, int], target: int, scale: int, multiple: int, make_image: MakeImage
) -> None:
    folder = frames(make_image, "single_image_extensible", size=size, reference=(37, 41))
    options = {"mode": "single_image_extensible", "paths": folder, "target_size": target, "scale": scale}
    assert_epochs_close({**options, "force_multiple": multiple, **REFERENCES}, THREADS)


@pytest.mark.parametrize("reference", [(32, 32), (64, 64), (20, 20), (50, 70), (16, 48)])
def test_references_of_any_size_are_brought_to_the_patch_alike(
    reference: tuple[int, int], make_image: MakeImage
) -> None:
    folder = frames(make_image, "single_image_extensible", reference=reference)
    options = {"mode": "single_image_extensible", "paths": folder, "target_size": 24, "scale": 2}
    assert_epochs_close({**options, **REFERENCES}, THREADS)


def test_eval_and_stores_with_weights_are_alike(tmp_path: Path) -> None:
    for image in "ab":
        files = {f"{n}.jpg": jpeg(noise(32, 32, seed=n)) for n in range(4)}
        write(tmp_path / "chunked" / image, {**files, "ref.jpg": jpeg(noise(32, 32, seed=ord(image)))})
    import_store([tmp_path / "chunked"], tmp_path / "store.lmdb", workers=1)
    options = {"mode": "single_image_extensible", "paths": [tmp_path / "chunked", tmp_path / "store.lmdb"]}
    options |= {"weights": [1, 2], "target_size": 32, "eval": True, "need_ref": True, "phase": "train", "batch_size": 5}
    assert_epochs_close(options, THREADS)
    assert_epochs_close({**options, "phase": "val", "ignore_first": 1}, WORKERS)


def test_batches_of_the_device_may_be_kept_and_changed(make_image: MakeImage) -> None:
    folder = frames(make_image, "single_image_extensible")
    options = {"mode": "single_image_extensible", "paths": folder, "target_size": 32, "scale": 2, **REFERENCES}
    with_device, without = loaders(options, THREADS)
    batches = [batch for _ in range(2) for batch in with_device]
    expected = [batch for _ in range(2) for batch in without]
    for batch in batches[::2]:
        for value in batch.values():
            if isinstance(value, torch.Tensor):
                value.fill_(9)
    for batch, expected_batch in list(zip(batches, expected, strict=True))[1::2]:
        assert_close(batch, expected_batch)


def test_a_state_resumes_with_the_device(make_image: MakeImage) -> None:
    folder = frames(make_image, "single_image_extensible")
    options = {"mode": "single_image_extensible", "paths": folder, "target_size": 32, "scale": 2, **REFERENCES}
    with_device, without = loaders(options, THREADS)
    batches = iter(with_device)
    list(islice(batches, 2))
    without.load_state_dict(with_device.state_dict())
    remaining_batches = list(batches)
    assert len(remaining_batches) == 4
    for batch, expected in zip(remaining_batches, without, strict=True):
        assert_close(batch, expected)


@pytest.mark.parametrize("kind", [THREADS, WORKERS], ids=["threads", "workers"])
@pytest.mark.parametrize("room", [0, 2 * 32 * 32 * 3, 1 << 20])
def test_bounded_caches_of_references_change_nothing(
    room: int, kind: dict[str, Any], make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "DEVICE_CACHE_BYTES", room)
    monkeypatch.setattr(references, "CACHE_BYTES", room)
    folder = frames(make_image, "single_image_extensible")
    options = {"mode": "single_image_extensible", "paths": folder, "target_size": 32, "scale": 2, **REFERENCES}
    with_device, without = loaders(options, kind)
    for _ in range(2):
        for batch, expected in zip(with_device, without, strict=True):
            assert_close(batch, expected)
    transform = with_device._to_device  # type: ignore[attr-defined]
    assert sum(tensor.nbytes for tensor in transform._references.values()) == transform._bytes <= room
    assert len(transform._references) == min(2, room // (32 * 32 * 3))


def test_references_of_several_sizes_keep_to_the_room_that_they_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 10 * 3 * 48**2
    monkeypatch.setattr(references, "CACHE_BYTES", room)
    for number in range(120):
        side = 16 if number % 4 == 3 else 48
        files = {"0.jpg": jpeg(noise(32, 32, seed=number)), "ref.jpg": jpeg(noise(side, side, seed=number))}
        write(tmp_path / "chunked" / f"{number:03d}", files)
    options = {"paths": tmp_path / "chunked", "target_size": 32, "scale": 2, "need_ref": True, "seed": 0}
    dataset: Any = create_dataset({"mode": "single_image_extensible", **options})
    builder = dataset.begin_raw_batch([SampleKey(index, 0) for index in range(120)], np.empty)
    builder.fill(0, 120)
    assert len(builder.finish().references) == 120
    cached = dataset._raw_references._cache.entries.values()
    assert room // 2 < sum(reference.pixels.nbytes for reference in cached) <= room


def test_references_are_decoded_once_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for image in "abc":
        files = {f"{n}.jpg": jpeg(noise(32, 32, seed=n)) for n in range(4)}
        write(tmp_path / "chunked" / image, {**files, "ref.jpg": jpeg(noise(32, 32, seed=ord(image)))})
    import_store([tmp_path / "chunked"], tmp_path / "store.lmdb", workers=1)
    read_reference, numbers = Store.read_reference, []

    def record_and_read(self: Store, number: int) -> bytes | None:
        numbers.append(number)
        return read_reference(self, number)

    monkeypatch.setattr(Store, "read_reference", record_and_read)
    options = {"mode": "single_image_extensible", "paths": tmp_path / "store.lmdb", "target_size": 32, "scale": 2}
    options |= {"need_ref": True, "device": "cpu", "phase": "train", "batch_size": 3, "n_threads": 1}
    loader = create_dataloader(create_dataset(options), options)
    for _ in range(3):
        assert len(list(loader)) == 4
    assert sorted(numbers) == [0, 1, 2]


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fixed_corruptions": ["noise"]}, "device goes neither with corruptions nor with on_error: skip"),
        ({"on_error": "skip"}, "device goes neither with corruptions nor with on_error: skip"),
        ({"needs_collate": True}, "device is for single_image_extensible, multi_frame_extensible and paired_frame"),
        ({"device": "gpu"}, "device must be cpu, cuda, cuda:1 or the like, got 'gpu'"),
        ({"device": "cuda:"}, "device must be cpu, cuda, cuda:1 or the like, got 'cuda:'"),
        ({"device": 0}, "device must be a text, got 0"),
    ],
)
@pytest.mark.parametrize("kind", [THREADS, HERE], ids=["threads", "workers"])
def test_what_does_not_go_with_a_device_is_refused(
    options: dict[str, Any], message: str, kind: dict[str, Any], make_image: MakeImage
) -> None:
    folder = make_image("a", {"1.jpg": noise(32, 32)})
    opt = {
        "mode": "single_image_extensible",
        "paths": folder,
        "target_size": 32,
        "scale": 2,
        "phase": "train",
        "batch_size": 1,
    }
    opt |= {"device": "cpu", **kind, **options}
    with pytest.raises(ConfigError, match=message):
        create_dataloader(create_dataset(opt), opt)


def test_corruptions_that_eval_leaves_out_go_with_a_device(make_image: MakeImage) -> None:
    folder = frames(make_image, "single_image_extensible")
    options = {"mode": "single_image_extensible", "paths": folder, "target_size": 32, "eval": True}
    assert_epochs_close({**options, "fixed_corruptions": ["noise"]}, THREADS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_refused(device: str, make_image: MakeImage) -> None:
    folder = make_image("a", {"1.jpg": noise(32, 32)})
    opt = {
        "mode": "single_image_extensible",
        "paths": folder,
        "target_size": 32,
        "scale": 2,
        "phase": "train",
        "batch_size": 1,
    }
    with pytest.raises(ConfigError, match=f"device is {device}, but PyTorch finds no GPU; leave device out"):
        create_dataloader(create_dataset(opt), {**opt, "device": device})


def test_other_datasets_are_refused(make_image: MakeImage) -> None:
    folder = make_image("a", {"1.jpg": noise(32, 32)})
    for opt in ({"mode": "pixels", "paths": folder}, {"mode": "imagefolder", "paths": folder, "scale": 2}):
        with pytest.raises(ConfigError, match="device is for single_image_extensible"):
            create_dataloader(create_dataset(opt), {**opt, "batch_size": 1, "device": "cpu"})
    with pytest.raises(ConfigError, match="device is for single_image_extensible"):
        create_dataloader(range(4), {"phase": "train", "batch_size": 1, "device": "cpu"})  # type: ignore[arg-type]


def loader_of(folder: Path, kind: Mapping[str, Any], **options: Any) -> Loader:
    opt = {
        "mode": "single_image_extensible",
        "paths": folder,
        "target_size": 32,
        "scale": 2,
        "phase": "train",
        "batch_size": 2,
    }
    opt |= {"phase": "val", "device": "cpu", **kind, **options}
    return create_dataloader(create_dataset(opt), opt)


@pytest.mark.parametrize("kind", [THREADS, HERE], ids=["threads", "workers"])
def test_patches_of_several_sizes_in_one_batch_are_an_error_that_names_one(
    kind: dict[str, Any], make_image: MakeImage
) -> None:
    folder = make_image("a", {"1.jpg": noise(32, 32), "2.jpg": noise(40, 36)})
    message = r"a/2\.jpg: 36 x 40 pixels, where others of its batch have 32 x 32; leave the option device out"
    with pytest.raises(StoreError, match=message):
        list(loader_of(folder, kind))
    assert len(list(loader_of(folder, kind, batch_size=1))) == 2


@pytest.mark.parametrize("file", ["1.jpg", "2.jpg"])
@pytest.mark.parametrize("cut", [slice(0, 12), slice(0, -300)])
def test_damaged_patches_are_named(file: str, cut: slice, make_image: MakeImage) -> None:
    folder = make_image("a", {"1.jpg": noise(32, 32), "2.jpg": noise(32, 32)})
    damaged = folder / "a" / file
    damaged.write_bytes(jpeg(noise(32, 32))[cut])
    with pytest.raises(ImageError, match=f"a/{file}"):
        list(loader_of(folder, THREADS))


def test_damaged_references_and_missing_centres_are_named(make_image: MakeImage) -> None:
    folder = make_image("a", {"1.jpg": noise(32, 32)}, reference=noise(32, 32))
    with pytest.raises(MissingMetadataError, match=r"patch 1\.jpg needs a centre, but image a has no centers\.pt"):
        list(loader_of(folder, THREADS, **REFERENCES))
    (folder / "a" / "ref.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    with pytest.raises(ImageError, match="chunked: reference of image a: "):
        list(loader_of(folder, THREADS, need_ref=True))
