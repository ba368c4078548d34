"""LMDBs of other programs as sources: BasicSR, StyleGAN2, LSUN, text recognition, any of pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import lmdb
import pytest
from PIL import Image

from dlas_store import Source, open_source
from dlas_store.cli.main import main
from dlas_store.converters import import_store
from dlas_store.errors import ConfigError, DamagedError, NotASourceError
from dlas_store.maintenance import verify
from dlas_store.sources.packed import open_lmdb
from tests.sources.test_archives import files_of, picture
from tests.support.sample_data import noise
from tests.support.source_contract import SourceContract


def write_lmdb(path: Path, values: Mapping[str, bytes], info: list[str] | None = None) -> Path:
    with lmdb.open(str(path), map_size=1 << 28) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
    if info is not None:
        (path / "meta_info.txt").write_text("".join(f"{line}\n" for line in info), encoding="utf-8")
    return path


def encoded(kind: str, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(16, 16, seed=seed)).save(buffer, kind)
    return buffer.getvalue()


class TestLmdbOfPictures(SourceContract):
    layout = "pictures"

    @classmethod
    def make(cls, folder: Path, scratch: Path) -> Path:
        files = {name: data for name, data in files_of(folder).items() if not name.endswith(("ref.jpg", ".pt"))}
        return write_lmdb(scratch / "contract.lmdb", files)

    def open(self, path: Path) -> Source:
        return open_source(path, layout="pictures")


def names_of(source: Source) -> list[str]:
    return [source.image_name(number) for number in range(source.image_count)]


@pytest.mark.parametrize("has_slash", [False, True])
def test_meta_info_names_the_pictures_of_basicsr(has_slash: bool, tmp_path: Path) -> None:
    keys = ["000/00000000", "000/00000001", "001/00000000"] if has_slash else ["0001_s001", "0001_s002", "0002_s001"]
    values = {key: picture(number) for number, key in enumerate(keys)}
    path = write_lmdb(tmp_path / "a.lmdb", values, [f"{key}.png (8,8,3) 1" for key in keys])
    with open_source(path) as source:
        assert names_of(source) == [f"{key}.png" for key in keys]
        assert [source.read(number) for number in range(3)] == list(values.values())


def test_meta_info_may_name_a_subset(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "a.lmdb", {"a": picture(0), "b": picture(1)}, ["b.png (8,8,3) 1"])
    summary = import_store([path], tmp_path / "store.lmdb")
    assert summary.images == 1
    assert [tuple(skipped) for skipped in summary.skipped] == [("a", "not in meta_info.txt")]


def test_a_name_without_a_key_is_an_error(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "a.lmdb", {"a": picture(0)}, ["a.png (8,8,3) 1", "b.png (8,8,3) 1"])
    with pytest.raises(DamagedError, match=r"meta_info\.txt: names 'b\.png', for which the LMDB has no key"):
        open_source(path)


def test_all_resolutions_of_stylegan2_are_pictures(tmp_path: Path) -> None:
    values = {f"{side}-{number:05d}": encoded("JPEG", number) for side in (128, 256) for number in range(2)}
    path = write_lmdb(tmp_path / "faces", {**values, "length": b"2"})
    with open_source(path) as source:
        assert names_of(source) == ["128-00000.jpg", "128-00001.jpg", "256-00000.jpg", "256-00001.jpg"]


def test_one_resolution_of_stylegan2_is_imported(tmp_path: Path) -> None:
    values = {f"{side}-{number:05d}": encoded("JPEG", number) for side in (128, 256) for number in range(2)}
    path = write_lmdb(tmp_path / "faces", {**values, "length": b"2"})
    assert main(["import", "--resolution", "256", str(path), str(tmp_path / "store.lmdb")]) == 0
    with open_source(tmp_path / "store.lmdb") as store:
        assert names_of(store) == ["256-00000.jpg", "256-00001.jpg"]


def test_a_resolution_that_is_not_there_is_an_error_that_lists_those_that_are(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "faces", {"128-00000": encoded("JPEG"), "256-00000": encoded("JPEG")})
    with pytest.raises(ConfigError, match="has no pictures of resolution 64; it has 128, 256"):
        open_lmdb(path, resolution=64)


@pytest.mark.parametrize(("kind", "ending"), [("JPEG", ".jpg"), ("WEBP", ".webp"), ("PNG", ".png"), ("BMP", ".bmp")])
def test_any_key_gets_the_ending_of_its_picture(kind: str, ending: str, tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "lsun", {"0a1b": encoded(kind)})
    with open_source(path) as source:
        assert names_of(source) == [f"0a1b{ending}"]
        assert source.read_pixels([0]).shape == (1, 16, 16, 3)


def test_labels_of_text_recognition_are_fields(tmp_path: Path) -> None:
    values = {f"image-{number:09d}": encoded("JPEG", number) for number in (1, 2)}
    labels = {f"label-{number:09d}": f"wörd {number}".encode() for number in (1, 2, 3)}
    path = write_lmdb(tmp_path / "ocr", {**values, **labels, "num-samples": b"2"})
    summary = import_store([path], tmp_path / "store.lmdb")
    assert [tuple(skipped) for skipped in summary.skipped] == [("label-000000003", "a label without a picture")]
    with open_source(tmp_path / "store.lmdb") as store:
        assert [store.image(number).extra for number in range(2)] == [{"label": "wörd 1"}, {"label": "wörd 2"}]


def test_a_store_is_verified_against_the_lmdb(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "lsun", {f"{number}": encoded("PNG", number) for number in range(5)})
    import_store([path], tmp_path / "store.lmdb", workers=2)
    assert verify(tmp_path / "store.lmdb", against=path).ok


def test_an_lmdb_of_other_values_is_no_source(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "a", {"a": b"text", "b": b""})
    with pytest.raises(NotASourceError, match="is an LMDB whose values are no pictures"):
        open_source(path)


def test_a_damaged_lmdb_is_an_error_at_every_length(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "a", {f"{number}": encoded("PNG", number) for number in range(20)})
    file = path / "data.mdb"
    data = file.read_bytes()
    for length in range(4096, len(data) - 4096, 4096):
        file.write_bytes(data[:length])
        with pytest.raises(DamagedError, match=r"data\.mdb: "):
            open_source(path)


def test_a_key_that_leaves_the_root_is_refused(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "a", {"../a": picture(0), "b": picture(1)})
    summary = import_store([path], tmp_path / "store.lmdb")
    assert (summary.images, [skipped.path for skipped in summary.skipped]) == (1, ["../a"])
