"""Pictures that an import took are read by every reader, with Pillow's pixels; huge files are refused unread."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from dlas_store import open_source
from dlas_store.converters.exporting import export_store
from dlas_store.converters.extraction.headers import parse_header
from dlas_store.converters.extraction.options import ExtractOptions
from dlas_store.converters.extraction.photos import load_photo
from dlas_store.converters.importing import import_store
from dlas_store.datasets import create_dataloader, create_dataset
from dlas_store.errors import ImageError, ImportFailedError
from dlas_store.images.decode import LARGE_FILE_BYTES
from dlas_store.maintenance import verify
from dlas_store.sources.base import Image, Layout, Listing, Source
from dlas_store.storage.records import MAX_PAYLOAD_BYTES
from tests.support.jpeg_files import JFIF, adobe, write_jpeg
from tests.support.sample_data import Array, noise

SIDE = 48
PLANES = [noise(SIDE, SIDE, seed=seed)[:, :, 0] // 4 + 90 for seed in range(4)]

_WHOLE = write_jpeg(PLANES[:3], [(1, 1)] * 3, head=JFIF)
_SCAN = _WHOLE.rindex(b"\xff\xda")

FILES = {
    "3x1": write_jpeg(PLANES[:3], [(3, 1), (1, 1), (1, 1)]),
    "progressive 4x2": write_jpeg(PLANES[:3], [(4, 2), (1, 1), (1, 1)], coding="progressive"),
    "transform 2": write_jpeg(PLANES[:3], [(2, 2), (1, 1), (1, 1)], head=adobe(2)),
    "CMYK": write_jpeg(PLANES, [(2, 2), (1, 1), (1, 1), (1, 1)], head=adobe(0)),
    "YCCK": write_jpeg(PLANES, [(2, 2), (1, 1), (1, 1), (1, 1)], head=adobe(2), restart_interval=2),
    "grey": write_jpeg(PLANES[:1], [(2, 2)]),
    "lossless grey": write_jpeg(PLANES[:1], [(1, 1)], coding="lossless"),
    "zeros before the end": _WHOLE[:-2] + bytes(258) + _WHOLE[-2:],
    "bytes before the end": _WHOLE[:-2] + b"\x12\x34" * 99 + _WHOLE[-2:],
    "bytes before a scan": _WHOLE[:_SCAN] + b"\x12\x34" * 99 + _WHOLE[_SCAN:],
    "fill bytes": _WHOLE[:_SCAN] + b"\xff" * 30 + _WHOLE[_SCAN:],
    "behind the end": _WHOLE + b"garbage",
}


def pillows(data: bytes) -> Array:
    with PillowImage.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


EXPECTED = np.stack([pillows(data) for data in FILES.values()])


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A chunked folder of one image with all files as patches, and its store."""
    folder = tmp_path_factory.mktemp("rare") / "folder"
    (folder / "a").mkdir(parents=True)
    for number, data in enumerate(FILES.values()):
        (folder / "a" / f"{number:08d}.jpg").write_bytes(data)
    (folder / "a" / "ref.jpg").write_bytes(FILES["3x1"])
    torch.save(dict.fromkeys(range(len(FILES)), ((24, 24), 12)), folder / "a" / "centers.pt")
    summary = import_store([folder], folder.with_suffix(".lmdb"), workers=0)
    assert summary.patches == len(FILES)
    return [folder, folder.with_suffix(".lmdb")]


@pytest.mark.parametrize("is_store", [False, True])
def test_rare_jpegs_are_read_alone_and_together(places: list[Path], is_store: bool) -> None:
    with open_source(places[is_store]) as source:
        indices = list(range(len(FILES)))
        np.testing.assert_array_equal(np.asarray(source.read_pixels(indices)), EXPECTED)
        outs = list(np.zeros_like(EXPECTED))
        np.testing.assert_array_equal(np.stack(source.decode_many_into(indices, outs)), EXPECTED)
        for index in indices:
            np.testing.assert_array_equal(source.read_pixels([index])[0], EXPECTED[index])
            assert source.header_size(index) == (SIDE, SIDE)


@pytest.mark.parametrize("loader", ["threads", "workers"])
@pytest.mark.parametrize("is_store", [False, True])
@pytest.mark.parametrize("mode", ["pixels", "single_image_extensible"])
def test_rare_jpegs_stop_no_loader(places: list[Path], mode: str, is_store: bool, loader: str) -> None:
    opt = {"name": "rare", "phase": "train", "mode": mode, "paths": str(places[is_store]), "batch_size": 4}
    opt |= {"n_workers": 2, "loader": loader, "use_shuffle": False}
    if mode != "pixels":
        opt |= {"target_size": SIDE, "scale": 1}
    batches = list(create_dataloader(create_dataset(opt), opt))
    if mode == "pixels":
        pixels = np.concatenate([batch["pixels"] for batch in batches])
    else:
        pixels = np.rint(np.concatenate([batch["hq"] for batch in batches]).transpose(0, 2, 3, 1) * 255).astype(
            np.uint8
        )
    assert sorted(item.tobytes() for item in pixels) == sorted(item.tobytes() for item in EXPECTED)


def test_rare_jpegs_are_exported_unchanged_and_verified(places: list[Path], tmp_path: Path) -> None:
    assert verify(places[1], against=places[0]).ok
    export_store(places[1], tmp_path / "out")
    for number, data in enumerate(FILES.values()):
        assert (tmp_path / "out" / "a" / f"{number:08d}.jpg").read_bytes() == data


@pytest.mark.parametrize("is_fast", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in FILES if kind not in ("CMYK", "YCCK")])
def test_rare_jpegs_are_photos(kind: str, is_fast: bool) -> None:
    options = ExtractOptions(tile_sizes=(8,), crop_sizes=(32,), tile_dimension=8, fast_decode=is_fast)
    photo = load_photo(FILES[kind], parse_header(FILES[kind]), options, [0])
    if not photo.is_reduced:
        np.testing.assert_array_equal(photo.pixels, pillows(FILES[kind])[:, :, ::-1])


# Huge files


@pytest.mark.parametrize(
    "head", [b"", FILES["3x1"][:900], b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"P6 8 8 255\n", b"RIFF\0\0\0\0WEBPVP8 "]
)
def test_a_file_of_several_gigabytes_is_refused_before_it_is_read(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.jpg").write_bytes(FILES["3x1"])
    with (tmp_path / "f" / "b.jpg").open("wb") as file:
        file.write(head)
        file.truncate(6 << 30)
    with open_source(tmp_path / "f") as source, pytest.raises(ImageError, match=r"b\.jpg: "):
        source.read(1)
    summary = import_store([tmp_path / "f"], tmp_path / "s.lmdb", workers=0, skip_bad=True)
    assert [Path(finding.path).name for finding in summary.findings] == ["b.jpg"]
    assert summary.images == 1


def test_a_large_file_of_a_large_picture_is_read(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    head = b"P6 11000 8000 255\n"
    with (tmp_path / "f" / "a.ppm").open("wb") as file:
        file.write(head)
        file.truncate(max(LARGE_FILE_BYTES + 1, len(head) + 11000 * 8000 * 3))
    with open_source(tmp_path / "f") as source:
        assert len(source.read(0)) > LARGE_FILE_BYTES


class _LargeValue(Source):
    """A source of one file of zeros that is too large for a value."""

    path = Path("large")
    layout: Layout = "pictures"
    image_count = 1

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> bytes:
        return bytes(MAX_PAYLOAD_BYTES + 1)  # memory that the system never has to fill

    def locate(self, index: int) -> tuple[int, int]:
        return index, 0

    def first_patch(self, number: int) -> int:
        return number

    def image(self, number: int) -> Image:
        return Image(name="a.jpg", files=("a.jpg",), centers=None, has_reference=False)

    def read_reference(self, number: int) -> bytes | None:
        return None

    def find_image(self, name: str) -> int:
        return 0

    def listings(self) -> Iterator[Listing]:
        yield Listing("a.jpg", ("a.jpg",), np.array([MAX_PAYLOAD_BYTES + 1]), None)

    def close(self) -> None:
        """Do nothing."""


def test_a_file_too_large_for_a_value_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ImportFailedError, match=rf"large/a\.jpg: the file has {MAX_PAYLOAD_BYTES + 1} bytes, a store holds at most"
    ):
        import_store([_LargeValue()], tmp_path / "s.lmdb", workers=0)
