"""Archives as sources: tar, plain and compressed, zip, samples of WebDataset, labels of StyleGAN2-ADA."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from dlas_store import Source, open_source
from dlas_store.converters import export_store, import_store
from dlas_store.errors import DamagedError, NotASourceError, StoreError
from tests.support.sample_data import noise, png
from tests.support.source_contract import SourceContract


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_zip(path: Path, files: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """Return path -> bytes of all files below a folder, in no order that a source would choose."""
    paths = sorted((path for path in folder.rglob("*") if path.is_file()), reverse=True)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def read_all(path: Path) -> None:
    with open_source(path) as source:
        for index in range(len(source)):
            source.read(index)


def picture(seed: int) -> bytes:
    return png(noise(8, 8, seed=seed))


class ArchiveContract(SourceContract):
    def open(self, path: Path) -> Source:
        return open_source(path, layout=self.layout)


class TestTarOfChunkedFolder(ArchiveContract):
    @classmethod
    def make(cls, folder: Path, scratch: Path) -> Path:
        return write_tar(scratch / "contract.tar", files_of(folder))


class TestTarOfPictures(ArchiveContract):
    layout = "pictures"

    @classmethod
    def make(cls, folder: Path, scratch: Path) -> Path:
        return write_tar(scratch / "contract.tar", files_of(folder))


class TestCompressedTar(ArchiveContract):
    @classmethod
    def make(cls, folder: Path, scratch: Path) -> Path:
        return write_tar(scratch / "contract.tar.gz", files_of(folder), "w:gz")


class TestZipOfChunkedFolder(ArchiveContract):
    @classmethod
    def make(cls, folder: Path, scratch: Path) -> Path:
        return write_zip(scratch / "contract.zip", files_of(folder))


class TestDeflatedZip(ArchiveContract):
    layout = "pictures"

    @classmethod
    def make(cls, folder: Path, scratch: Path) -> Path:
        return write_zip(scratch / "contract.zip", files_of(folder), zipfile.ZIP_DEFLATED)


SAMPLES = {
    "b.jpg.png": picture(1),
    "0002.png": picture(2),
    "0002.cls": b"7",
    "0002.txt": "ein Hügel".encode(),
    "0001.json": b'{"size": [8, 8], "tags": ["a"]}',
    "0001.png": picture(3),
    "0001.seg.png": picture(4),
    "0003.cls": b"1",
}


@pytest.mark.parametrize("name", ["samples.tar", "samples.tar.gz", "samples.tgz"])
def test_the_files_of_a_key_become_a_picture_and_its_fields(name: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / name, SAMPLES, "w:gz" if name.endswith("gz") else "w")
    with open_source(path) as source:
        assert [source.image_name(number) for number in range(source.image_count)] == [
            "0001.png",
            "0002.png",
            "b.jpg.png",
        ]
        assert source.image(0).extra == {"json": {"size": [8, 8], "tags": ["a"]}}
        assert source.image(1).extra == {"cls": 7, "txt": "ein Hügel"}
        assert source.read(0) == SAMPLES["0001.png"]


def test_samples_are_imported_with_their_fields(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "samples.tar", SAMPLES)
    summary = import_store([path], tmp_path / "store.lmdb", workers=2)
    assert {(skipped.path, skipped.reason) for skipped in summary.skipped} == {
        ("0003.cls", "a sample without a picture"),
        ("0001.seg.png", "a field that is no number, text or JSON"),
    }
    with open_source(tmp_path / "store.lmdb") as store, open_source(path) as source:
        for number in range(3):
            assert store.image(number).extra == source.image(number).extra
            assert store.read(number) == source.read(number)


@pytest.mark.parametrize("way", ["folder", "range"])
def test_several_archives_are_one_source(way: str, tmp_path: Path) -> None:
    for number in range(8, 11):
        write_tar(tmp_path / f"train-{number:02}.tar", {"0.png": picture(number), "0.cls": b"%d" % number})
    with open_source(tmp_path if way == "folder" else tmp_path / "train-{08..10}.tar") as source:
        names = [source.image_name(number) for number in range(source.image_count)]
        assert names == ["train-08/0.png", "train-09/0.png", "train-10/0.png"]
        assert [source.image(number).extra["cls"] for number in range(3)] == [8, 9, 10]


@pytest.mark.parametrize("name", ["b.jpg", "cats/b.jpg"])
def test_a_folder_of_pictures_with_an_archive_in_it_is_read_for_its_pictures(name: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "backup.tar", {"a.png": picture(0)})
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(picture(1))
    with open_source(tmp_path) as source:
        assert [source.image_name(number) for number in range(source.image_count)] == [name]
        assert [skipped.path for skipped in source.skipped] == ["backup.tar"]


def test_a_missing_archive_of_a_range_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a-0.tar", {"0.png": picture(0)})
    with pytest.raises(NotASourceError, match=r"a-1\.tar: of the range .*a-\{0\.\.1\}\.tar, is no tar archive"):
        open_source(tmp_path / "a-{0..1}.tar")


@pytest.mark.parametrize("root", ["", "data/"])
def test_labels_of_dataset_json_become_fields(root: str, tmp_path: Path) -> None:
    labels = {"labels": [["00000/img0.png", 6], ["00000/img1.png", [0.5, 1]]]}
    files = {f"{root}00000/img{number}.png": picture(number) for number in range(3)}
    path = write_zip(tmp_path / "faces.zip", {**files, f"{root}dataset.json": json.dumps(labels).encode()})
    with open_source(path) as source:
        assert [source.image(number).extra for number in range(3)] == [{"label": 6}, {"label": [0.5, 1]}, {}]


def test_labels_may_be_null(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "faces.zip", {"a.png": picture(0), "dataset.json": b'{"labels": null}'})
    with open_source(path) as source:
        assert source.image(0).extra == {}


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_a_chunked_folder_comes_back_from_an_archive(kind: str, tmp_path: Path) -> None:
    folder = Path(__file__).parents[1] / "data" / "chunked"
    files = {f"data/{name}": data for name, data in files_of(folder).items()}
    path = tmp_path / f"chunked.{kind}"
    write_zip(path, files) if kind == "zip" else write_tar(path, files, "w:gz" if kind == "tar.gz" else "w")
    import_store([path], tmp_path / "store.lmdb", shard_size=200_000, workers=2)
    export_store(tmp_path / "store.lmdb", tmp_path / "out")
    expected = {name: data for name, data in files_of(folder).items() if name != "cache.pth"}
    assert {name: data for name, data in files_of(tmp_path / "out").items() if not name.endswith(".pt")} == {
        name: data for name, data in expected.items() if not name.endswith(".pt")
    }


def test_pictures_of_an_archive_are_appended_and_compared(tmp_path: Path) -> None:
    files = {f"{number}.png": picture(number) for number in range(6)}
    first = write_tar(tmp_path / "a.tar", dict(list(files.items())[:3]))
    both = write_tar(tmp_path / "b.tar", files)
    import_store([first], tmp_path / "store.lmdb")
    summary = import_store([both], tmp_path / "store.lmdb", append=True, compare_bytes=True)
    assert (summary.images, summary.changed, summary.missing_from_source) == (3, [], [])


# Bad archives


HOSTILE_NAMES = ["../a.png", "/a.png", "x/../../a.png", "a//b.png", "x/./../../b.png"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_name_that_leaves_the_root_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    files = {name: picture(0), "good.png": picture(1)}
    path = (write_tar if kind == "tar" else write_zip)(tmp_path / f"a.{kind}", files)
    summary = import_store([path], tmp_path / "store.lmdb")
    assert summary.images == 1
    assert [skipped.path for skipped in summary.skipped] == [name]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_an_archive_that_is_cut_short_is_an_error_at_every_length(kind: str, tmp_path: Path) -> None:
    files = {f"{number}.png": picture(number) for number in range(3)}
    path = tmp_path / f"a.{kind}"
    write_zip(path, files) if kind == "zip" else write_tar(path, files, "w:gz" if kind == "tar.gz" else "w")
    data = path.read_bytes()
    if kind == "tar":
        data = data[: 3 * 1024 + 512]  # the rest is padding
    for length in range(0, len(data), max(1, len(data) // 150)):
        path.write_bytes(data[:length])
        with pytest.raises(StoreError, match=r"a\."):
            read_all(path)


def test_a_flipped_bit_of_a_zip_is_found_at_reading(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": picture(0)})
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    with open_source(path) as source, pytest.raises(DamagedError, match=r"a\.zip/a\.png: its checksum"):
        source.read(0)


def test_two_files_of_one_name_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for seed in range(2):
            member = tarfile.TarInfo("a.png")
            member.size = len(picture(seed))
            archive.addfile(member, io.BytesIO(picture(seed)))
    with pytest.raises(DamagedError, match=r"a\.tar: holds two files called 'a\.png'"):
        open_source(path)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_hidden_files_are_left_out_unless_asked_for(kind: str, tmp_path: Path) -> None:
    files = {"a.png": picture(0), "__MACOSX/._a.png": picture(1), ".git/b.png": picture(2)}
    path = (write_tar if kind == "tar" else write_zip)(tmp_path / f"a.{kind}", files)
    summary = import_store([path], tmp_path / "store.lmdb")
    assert (summary.images, [skipped.path for skipped in summary.skipped]) == (1, ["__MACOSX/._a.png", ".git/b.png"])
    assert import_store([path], tmp_path / "all.lmdb", include_hidden=True).images == 3


def test_links_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("link.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
        member = tarfile.TarInfo("a.png")
        member.size = len(picture(0))
        archive.addfile(member, io.BytesIO(picture(0)))
    summary = import_store([path], tmp_path / "store.lmdb")
    assert [tuple(skipped) for skipped in summary.skipped] == [("link.png", "a link")]


def test_a_zip_bomb_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": bytes(64 << 20)}, zipfile.ZIP_DEFLATED)
    data = path.read_bytes()
    claimed = (64 << 20).to_bytes(4, "little")
    path.write_bytes(data.replace(claimed, (1000).to_bytes(4, "little")))
    with open_source(path) as source, pytest.raises(DamagedError, match="checksum"):
        source.read(0)


def test_a_member_that_claims_too_much_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": picture(0)})
    size = len(picture(0)).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, (3 << 30).to_bytes(4, "little")))
    with open_source(path) as source, pytest.raises(DamagedError, match="more than the 1073741824 of a picture"):
        source.read(0)


@pytest.mark.parametrize(
    ("name", "data"),
    [("0.cls", b"seven"), ("0.txt", b"\xff\xfe"), ("0.json", b"[" * 100_000), ("0.json", b"NaN"), ("0.json", b"{")],
)
def test_a_bad_field_is_an_error_that_names_it(name: str, data: bytes, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"0.png": picture(0), name: data})
    with open_source(path) as source, pytest.raises(DamagedError, match=rf"a\.tar/{name}: "):
        source.image(0)


@pytest.mark.parametrize(
    "data", [b"{}", b"[]", b'{"labels": 3}', b'{"labels": [["a.png"]]}', b'{"labels": [["a", {}]]}']
)
def test_a_bad_file_of_labels_is_an_error(data: bytes, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": picture(0), "dataset.json": data})
    with pytest.raises(DamagedError, match=r"a\.zip/dataset\.json: is no "):
        open_source(path)


def test_an_archive_without_pictures_is_no_source(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.txt": b"text"})
    with pytest.raises(NotASourceError, match=r"a\.tar: holds no pictures"):
        open_source(path)


def test_a_compressed_file_that_is_no_tar_is_no_source(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"text" * 1000))
    with pytest.raises(NotASourceError):
        open_source(path)


def test_an_archive_may_vanish_after_opening(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": picture(0)})
    with open_source(path) as source:
        shutil.move(path, tmp_path / "b.tar")
        assert source.read(0) == picture(0)
