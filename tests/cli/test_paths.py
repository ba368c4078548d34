"""Paths on the command line: a path of the wrong kind, or at the wrong place, is named with the command meant."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.command_line import done, error_line, run
from tests.support.file_trees import read, write
from tests.support.sample_data import DATA


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a path of every kind, for reading only."""
    folder = tmp_path_factory.mktemp("paths")
    shutil.copytree(DATA / "chunked_stereo", folder / "tiles")
    done("import", folder / "tiles", folder / "s.lmdb")
    write(folder / "basicsr.lmdb", {"data.mdb": b"m" * 9000, "lock.mdb": b"", "meta_info.txt": b"a.png (4,4,3) 1\n"})
    write(folder / "other.lmdb", {"data.mdb": b"m" * 9000})
    write(folder, {"train.yml": b"datasets: {}\n", "photos.zip": b"PK", "one.png": b"\x89PNG"})
    return folder


SWAPPED = {
    "import s.lmdb tiles": "did you mean 'dlas-store import tiles s.lmdb'?",
    "import new.lmdb tiles": "did you mean 'dlas-store import tiles new.lmdb'?",
    "import s.lmdb new": "did you mean 'dlas-store export s.lmdb new'?",
    "export tiles s.lmdb": "did you mean 'dlas-store export s.lmdb tiles'?",
    "export new s.lmdb": "did you mean 'dlas-store export s.lmdb new'?",
    "extract new.lmdb tiles": "did you mean 'dlas-store extract tiles new.lmdb'?",
    "extract new tiles": "did you mean 'dlas-store extract tiles new'?",
    "verify tiles --against s.lmdb": "did you mean 'dlas-store verify s.lmdb --against tiles'?",
    "salvage new.lmdb s.lmdb": "did you mean 'dlas-store salvage s.lmdb new.lmdb'?",
    "preview left_0 s.lmdb -o p.png": "did you mean 'dlas-store preview s.lmdb left_0 -o p.png'?",
}


@pytest.mark.parametrize("words", SWAPPED)
def test_swapped_arguments_are_shown_in_their_order(words: str, folder: Path) -> None:
    before = read(folder)
    assert SWAPPED[words] in error_line(run(*words.split(), cwd=folder), status=2)
    assert read(folder) == before


WRONG_KIND = {
    **{
        f"{command} tiles{more}": "tiles: is a chunked folder, and {command} takes a store; 'dlas-store import tiles "
        "tiles.lmdb' makes one"
        for command, more in {"info": "", "verify": "", "export": " back", "salvage": " n.lmdb", "reindex": ""}.items()
    },
    "info train.yml": "train.yml: is a config, and info takes a store; dlas-store read takes a config",
    "info photos.zip": "photos.zip: is an archive",
    "info one.png": "one.png: is a picture",
    "info basicsr.lmdb": "basicsr.lmdb: is a BasicSR LMDB, and info takes a store; dlas-store import",
    "verify other.lmdb": "other.lmdb: is another program's LMDB",
    "import basicsr.lmdb n.lmdb": "basicsr.lmdb/data.mdb: not an LMDB file; take a whole copy",
    "import photos.zip n.lmdb": "photos.zip: is an archive, no store; give the folder that it unpacks to",
    "import one.png n.lmdb": "one.png: is a picture, no store; give the folder of the pictures",
    "import train.yml n.lmdb": "train.yml: is a config, no store; give one of the paths that it names",
    "read s.lmdb": "s.lmdb: is a store, and read takes a config, a YAML file; dlas-store info and preview show a store",
    "read tiles": "tiles: is a chunked folder, and read takes a config, a YAML file; dlas-store preview shows a folder",
    "read one.png": "one.png: is a picture, and read takes a config",
    "extract s.lmdb n.lmdb": "s.lmdb: is a store, and extract takes a folder of photos",
}


@pytest.mark.parametrize("words", WRONG_KIND)
def test_a_path_of_another_kind_is_named_with_its_command(words: str, folder: Path) -> None:
    before = read(folder)
    assert WRONG_KIND[words].replace("{command}", words.split(maxsplit=1)[0]) in error_line(
        run(*words.split(), cwd=folder)
    )
    assert read(folder) == before


@pytest.mark.parametrize(
    "words",
    [
        "info s3://bucket/s.lmdb",
        "import s3://bucket/tiles n.lmdb",
        "import tiles gs://bucket/n.lmdb",
        "export s.lmdb https://example.org/tiles",
        "extract tiles s3://bucket/n.lmdb",
        "preview s3://bucket/s.lmdb -o p.png",
        "read hf://datasets/train.yml",
    ],
)
def test_an_address_is_no_local_file(words: str, folder: Path) -> None:
    message = error_line(run(*words.split(), cwd=folder))
    address = next(word for word in words.split() if "://" in word)
    assert message.startswith(
        f"dlas-store: {address}: is an address, and {words.split(maxsplit=1)[0]} works with local files"
    )


def test_an_address_in_a_config_is_no_local_file(tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text("datasets: {train: {mode: pixels, paths: 's3://bucket/x', batch_size: 1}}\n")
    assert "paths names s3://bucket/x, and only local files are read" in error_line(run("read", "c.yml", cwd=tmp_path))
