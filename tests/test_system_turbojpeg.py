"""The system's libjpeg-turbo is taken where it is there and decodes as simplejpeg does."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from samples import DATA

from dlas_store.converters.importing import import_store
from dlas_store.errors import ConfigError
from dlas_store.system_turbojpeg import NO_ADDRESSES, VARIABLE, find_addresses

find = find_addresses.__wrapped__

needs_library = pytest.mark.skipif(find_addresses() == NO_ADDRESSES, reason="libturbojpeg is not installed")


@needs_library
def test_it_is_found_without_being_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    found = find()
    assert all(found)
    monkeypatch.setenv(VARIABLE, "libturbojpeg.so.0")
    assert find() == found


def test_nothing_is_taken_where_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    assert find() == NO_ADDRESSES == (0, 0, 0)


@pytest.mark.parametrize("name", ["/nowhere/libturbojpeg.so", ctypes.util.find_library("c") or "libc.so.6"])
def test_a_named_file_that_is_none_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(ConfigError, match=f"^{VARIABLE} names '{name}', which is no libturbojpeg .*; unset it$"):
        find()


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@pytest.mark.parametrize("made", ["1", "0"])
def test_a_library_that_decodes_to_other_pixels_is_not_taken(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that says that all went well and writes nothing, or has no decoder to give."""
    source, library = tmp_path / "other.c", tmp_path / "libturbojpeg.so.0"
    source.write_text(
        f"void *tjInitDecompress(void) {{ return (void *){made}; }}\n"
        "int tjDecompress2(void) { return 0; }\n"
        "int tjDestroy(void) { return 0; }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    monkeypatch.setenv(VARIABLE, str(library))
    with pytest.raises(ConfigError, match="which decodes to other pixels than simplejpeg; unset it"):
        find()
    program = "from dlas_store.system_turbojpeg import find_addresses; print(find_addresses())"
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    # As if it were the system's.
    environment["LD_LIBRARY_PATH"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "(0, 0, 0)"


def test_a_wrong_name_is_met_when_a_store_is_opened(tmp_path: Path) -> None:
    store = tmp_path / "sample.lmdb"
    import_store([DATA / "chunked"], store, workers=1)
    environment = {**os.environ, VARIABLE: "/nowhere/libturbojpeg.so"}
    program = "import sys; from dlas_store import open_source; open_source(sys.argv[1])"
    command = [sys.executable, "-c", program, str(store)]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ConfigError: {VARIABLE} names '/nowhere/libturbojpeg.so'" in done.stderr


DIGESTS = """
import hashlib, sys
from dlas_store.datasets import create_dataloader, create_dataset
options = {"mode": "single_image_extensible", "paths": sys.argv[1], "seed": 1, "batch_size": 8, "target_size": 64,
           "scale": 2, "need_ref": True, "strict": True}
for batch in create_dataloader(create_dataset(options), options):
    tensors = [batch[key].numpy() for key in ("hq", "lq", "gt_fullsize_ref")]
    print(batch["GT_path"], *(hashlib.sha256(tensor).hexdigest() for tensor in tensors))
"""


@needs_library
def test_batches_with_and_without_it_are_equal(tmp_path: Path) -> None:
    store = tmp_path / "sample.lmdb"
    import_store([DATA / "chunked"], store, workers=1)
    printed = []
    for file in ("", "libturbojpeg.so.0"):
        environment = {**os.environ, VARIABLE: file}
        command = [sys.executable, "-c", DIGESTS, str(store)]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        printed.append(done.stdout.splitlines())
    assert len(printed[0]) > 3
    assert printed[0] == printed[1]
