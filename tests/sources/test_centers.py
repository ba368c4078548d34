"""centers.pt: the reader reads files of torch.save and refuses all other files without running them."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlas_store.errors import CentersError
from dlas_store.sources.base import Center
from dlas_store.sources.centers import MAX_FILE_BYTES, read_centers, write_centers
from tests.support.hostile_centers import CANARY, HOSTILE, legacy_of, saved, zip_of
from tests.support.sample_data import DATA

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
PLAIN = {7: ((16, 300), 256), 3: ((0, 70_000), 1 << 40), 0: ((-1, 2), 3)}


@pytest.mark.parametrize("path", sorted(DATA.glob("chunked*/*/centers.pt")), ids=lambda path: path.parent.name)
def test_the_real_files_give_what_torch_loads(path: Path) -> None:
    expected = torch.load(path, weights_only=True)
    assert read_centers(path) == {number: (*center, width) for number, (center, width) in expected.items()}
    assert read_centers(path.read_bytes()) == read_centers(str(path))


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numbers_of_every_kind_are_read_as_ints(is_zip: bool, protocol: int) -> None:
    rows = torch.arange(20, dtype=torch.int32)
    value = {
        1: ((torch.tensor(2), np.int64(3)), torch.tensor([4])),
        np.int64(2): (torch.tensor([5, 6]), 7.0),
        torch.tensor(3): [rows[10:12], np.uint8(200)],
        4: ([torch.tensor(9, dtype=torch.uint8), np.float32(10)], torch.tensor(11.0)),
        5: (rows[::5][1:3], torch.tensor(-2, dtype=torch.int8)),
        6: ((np.int32(-70_000), torch.tensor(1, dtype=torch.int16)), torch.tensor(3.0, dtype=torch.float64)),
    }
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=is_zip, pickle_protocol=protocol)
    expected = {1: (2, 3, 4), 2: (5, 6, 7), 3: (10, 11, 200), 4: (9, 10, 11), 5: (5, 10, -2), 6: (-70_000, 1, 3)}
    centers = read_centers(file.getvalue())
    assert centers == expected
    assert {type(number) for center in centers.values() for number in center} == {int}


def test_the_names_of_numpy_1_and_ordered_dicts_are_read() -> None:
    value = OrderedDict({5: ((np.int64(1), 2), np.int32(3))})
    pickled = pickle.dumps(value, 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in pickled
    assert read_centers(zip_of(pickled)) == {5: (1, 2, 3)}


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_order_and_any_archive_name_are_kept(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "another name.pt"
    torch.save(PLAIN, path, _use_new_zipfile_serialization=is_zip)
    assert list(read_centers(path).items()) == [(number, (*center, width)) for number, (center, width) in PLAIN.items()]
    torch.save({}, path, _use_new_zipfile_serialization=is_zip)
    assert read_centers(path) == {}


@given(st.dictionaries(INT64, st.builds(Center, INT64, INT64, INT64), max_size=50))
def test_what_is_written_reads_the_same_here_and_in_torch(centers: dict[int, Center]) -> None:
    data = write_centers(centers)
    assert list(read_centers(data).items()) == list(centers.items())
    expected = {number: ((center.row, center.col), center.width) for number, center in centers.items()}
    for weights_only in (True, False):
        assert torch.load(io.BytesIO(data), weights_only=weights_only) == expected


def test_the_same_centers_are_written_as_the_same_bytes() -> None:
    center = Center(300, 300, 300)
    shared, copied = write_centers({1: center, 2: center}), write_centers({1: center, 2: Center(300, 300, 300)})
    assert shared == copied
    with zipfile.ZipFile(io.BytesIO(shared)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "centers.pt"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(CentersError, match=f"^{path}: (refused: it|damaged, )") as caught:
        read_centers(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("name", [name for name in HOSTILE if name.startswith("os_system")])
def test_what_a_file_wanted_to_run_is_named(name: str) -> None:
    with pytest.raises(CentersError, match=r"it names '(os|posix)\.system', which a centers.pt never holds"):
        read_centers(HOSTILE[name])


_READ_ALL = r"""
import json, pathlib, re, sys
from dlas_store.sources.centers import read_centers
from dlas_store.errors import CentersError
refused = []
for path in sorted(pathlib.Path().glob("*.pt")):
    try:
        read_centers(path)
    except CentersError:
        refused.append(path.stem)
# Not ru_maxrss, which counts the memory of the parent process at the start of this process too.
peak = int(re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) << 10
print(json.dumps([refused, peak, "torch" in sys.modules]))
"""


def test_hostile_files_are_refused_in_bounded_memory_without_torch(tmp_path: Path) -> None:
    for name, data in HOSTILE.items():
        (tmp_path / f"{name}.pt").write_bytes(data)
    command = [sys.executable, "-c", _READ_ALL]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    refused, peak, has_torch = json.loads(process.stdout)
    assert refused == sorted(HOSTILE)
    assert not has_torch
    assert peak < 800 << 20
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_a_file_cut_anywhere_is_an_error(is_zip: bool) -> None:
    data = saved({1: ((torch.tensor(2), 3), 4)}, is_zip=is_zip)
    for length in range(len(data)):
        with pytest.raises(CentersError):
            read_centers(data[:length])


@settings(max_examples=300)
@given(data=st.data(), is_zip=st.booleans())
def test_no_change_of_bytes_raises_anything_else(data: st.DataObject, is_zip: bool) -> None:
    changed = bytearray(saved({1: ((torch.tensor(2), np.int32(3)), 4)}, is_zip=is_zip))
    for _ in range(data.draw(st.integers(1, 8))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with suppress(CentersError):
        read_centers(bytes(changed))


@settings(max_examples=300)
@given(pickled=st.binary(max_size=80), is_zip=st.booleans())
def test_no_pickle_raises_anything_else(pickled: bytes, is_zip: bool) -> None:
    with suppress(CentersError):
        read_centers(zip_of(pickled) if is_zip else legacy_of(pickled))


@pytest.mark.parametrize("name", ["missing", "folder"])
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(CentersError, match=f"{tmp_path}/{name}: cannot be read"):
        read_centers(tmp_path / name)


def test_a_photo_cut_into_very_many_patches_fits() -> None:
    centers = {number: Center(number % 700, number // 700, 256) for number in range(300_000)}
    data = write_centers(centers)
    assert len(data) < MAX_FILE_BYTES
    assert read_centers(data) == centers
