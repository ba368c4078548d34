"""GzipFile: any bytes of a compressed file, from any thread, and errors for files that are damaged or cut short."""

from __future__ import annotations

import gzip
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dlas_store.errors import DamagedError
from dlas_store.sources.gzip_file import GzipFile, SpanCache

NUMBERS = random.Random(1)
DATA = NUMBERS.randbytes(3_000_000) + bytes(9_000_000) + NUMBERS.randbytes(3_000_000)


@pytest.fixture(scope="module", params=["one member", "three members", "padded"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed file of DATA."""
    parts = {"three members": [DATA[:7], DATA[7:5_000_000], DATA[5_000_000:]]}.get(request.param, [DATA])
    path = tmp_path_factory.mktemp("gzip") / "a.gz"
    path.write_bytes(b"".join(gzip.compress(part, 1) for part in parts) + bytes(512 * (request.param == "padded")))
    return path


def test_any_bytes_are_read_in_any_order_by_several_threads(path: Path) -> None:
    file = GzipFile(path, SpanCache())
    places = [(NUMBERS.randrange(len(DATA)), NUMBERS.randrange(3_000_000)) for _ in range(60)]

    def read(place: tuple[int, int]) -> bool:
        offset, size = place
        return file.read(offset, size) == DATA[offset : offset + size]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, places))
    assert file.read(len(DATA), 5) == file.read(len(DATA) + 10**9, 5) == b""
    assert file.read(0, 10**9) == DATA
    file.close()


def test_a_file_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    whole = gzip.compress(DATA[:100_000])
    for length in (0, 1, 5, 10, 11, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path = tmp_path / f"{length}.gz"
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError, match=rf"{length}\.gz: cannot be decompressed"):
            GzipFile(path, SpanCache()).read(0, 200_000)


def test_changed_bytes_are_an_error(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(DATA[:100_000]))
    whole[50_000] ^= 1
    path = tmp_path / "a.gz"
    path.write_bytes(whole)
    with pytest.raises(DamagedError, match=r"a\.gz: cannot be decompressed"):
        GzipFile(path, SpanCache()).read(0, 200_000)
