"""PatchReader: its pixels equal those decoded in Python, and it refuses any patch that is not sound."""

from __future__ import annotations

import os
import random
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("dlas_store._native.patch_reader", reason="installed without a C compiler")

from dlas_store._native.patch_reader import Libjpeg, PatchReader, checksum
from dlas_store.converters.importing import import_store
from dlas_store.errors import ClosedError, DamagedError, ImageError, PatchIndexError
from dlas_store.images.decode import decode, decode_into
from dlas_store.images.libjpeg import find_libjpeg
from dlas_store.storage import store as store_module
from dlas_store.storage.records import Kind, encode_value, pack_key, value_checksum
from dlas_store.storage.store import Store
from tests.conftest import Runs
from tests.support.file_trees import write
from tests.support.sample_data import DATA, Array, noise, png
from tests.support.small_stores import append, flip, make_store, shards_of
from tests.support.source_contract import cmyk, jpeg

saved = partial(jpeg, quality=90)


def with_segment(data: bytes, marker: int, content: bytes) -> bytes:
    """Return a JPEG with a segment inserted after its first marker."""
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + data[2:]


PIXELS = noise(32, 48)
READABLE = {
    "444": saved(PIXELS, subsampling=0),
    "420": saved(PIXELS, subsampling=2),
    "progressive": saved(PIXELS, progressive=True),
    "restarts": saved(PIXELS, restart_marker_blocks=1),
    "grey": saved(PIXELS[:, :, 0]),
    "rgb": saved(PIXELS, keep_rgb=True),
    "thumbnail": with_segment(saved(PIXELS), 0xE1, b"Exif\0\0" + saved(noise(8, 8))),
    "comment": with_segment(saved(PIXELS), 0xFE, b""),
    "bytes after": saved(PIXELS) + b"\xff\xd9 and more",
    "opencv": bytes(cv2.imencode(".jpg", PIXELS)[1]),
}


def with_sampling(data: bytes, sampling: int) -> bytes:
    """Return a 4:2:0 JPEG whose header arranges the luma blocks of an MCU differently."""
    changed = bytearray(data)
    changed[data.index(b"\xff\xc0") + 11] = sampling
    return bytes(changed)


REFUSED = {
    "441": with_sampling(READABLE["opencv"], 0x14),
    "png": png(PIXELS),
    "cmyk": cmyk(PIXELS),
    "wider": saved(noise(32, 49)),
    "higher": saved(noise(33, 48)),
    "rotated": saved(noise(48, 32)),
    "smaller": saved(noise(16, 16)),
    "fill bytes": saved(PIXELS)[:2] + b"\xff" + saved(PIXELS)[2:],
}


def open_patches(folder: Path, patches: dict[str, bytes]) -> Store:
    """Import patches of one image, and open its shard by reading them."""
    files = {f"{number:02d}.jpg": data for number, data in enumerate(patches.values())}
    write(folder / "chunked" / "image", files | {"ref.jpg": READABLE["420"]})
    store = Store(make_store(folder / "chunked", folder / "store.lmdb"))
    list(map(store.read, range(len(store))))
    return store


def reader_of(store: Store) -> PatchReader:
    assert store._reader is not None
    return store._reader


def blank() -> Array:
    return np.zeros(PIXELS.shape, np.uint8)


def reads(reader: PatchReader, index: int, out: Array) -> bool:
    """Return whether a patch can be read into an array, and check that reading several patches agrees."""
    is_read = reader.read_into(index, out)
    batch_out = np.zeros_like(out)
    assert reader.read_all_into([index], [batch_out]) == int(is_read)
    assert not is_read or np.array_equal(batch_out, out)
    return is_read


@pytest.fixture(params=["simplejpeg", "libjpeg"], autouse=True)
def libjpeg(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Libjpeg | None:
    """The library with which readers decode many patches: libjpeg-turbo, or None for simplejpeg."""
    library = find_libjpeg() if request.param == "libjpeg" else None
    if request.param == "libjpeg" and library is None:
        pytest.skip("Pillow's libjpeg-turbo cannot be called")
    monkeypatch.setattr(store_module, "find_libjpeg", lambda: library)
    monkeypatch.setattr(sys.modules[__name__], "LIBRARY", library)
    return library


LIBRARY: Libjpeg | None = None


def test_jpegs_of_the_arrays_size_are_read_as_python_decodes_them(tmp_path: Path) -> None:
    store = open_patches(tmp_path, READABLE)
    for index, (name, data) in enumerate(READABLE.items()):
        out = blank()
        assert reads(reader_of(store), index, out), name
        assert np.array_equal(out, decode(data)), name
        out = blank()
        assert store.decode_into(index, out) is out
        assert np.array_equal(out, decode(data)), name


def test_all_else_is_left_to_python(tmp_path: Path) -> None:
    store = open_patches(tmp_path, REFUSED)
    for index, (name, data) in enumerate(REFUSED.items()):
        out = blank()
        assert not reads(reader_of(store), index, out), name
        assert not out.any()
        assert np.array_equal(store.decode_into(index, out), decode(data)), name


def test_several_are_read_up_to_the_first_that_is_left_to_python(tmp_path: Path) -> None:
    store = open_patches(tmp_path, READABLE | REFUSED)
    all_indices = list(range(len(store)))
    for indices in (all_indices, all_indices[::-1], [3, 1, len(READABLE), 2], [len(READABLE)], [0, 0, 0], []):
        outs = [blank() for _ in indices]
        refused = [position for position, index in enumerate(indices) if index >= len(READABLE)]
        count = reader_of(store).read_all_into(indices, outs)
        assert count == (refused[0] if refused else len(indices))
        for index, out in zip(indices[:count], outs, strict=False):
            assert np.array_equal(out, decode(store.read(index)))
        for index, pixels in zip(indices, store.decode_many_into(indices, outs), strict=True):
            assert np.array_equal(pixels, decode(store.read(index)))


def test_several_that_are_no_patches_or_no_arrays_are_left_to_python(tmp_path: Path) -> None:
    store = open_patches(tmp_path, {"one": READABLE["420"]})
    numbers: list[Any] = [1, -1, 1 << 62, 1 << 70, -(1 << 70), 0.0, "0", None, np.int64(0), True]
    for number in numbers:
        assert reader_of(store).read_all_into([number], [blank()]) == 0
        assert reader_of(store).read_all_into([0, number, 0], [blank(), blank(), blank()]) == 1
    wrong_outs: list[Any] = [None, b"", np.zeros(PIXELS.size, np.uint8)]
    for wrong_out in wrong_outs:
        assert reader_of(store).read_all_into([0, 0], [blank(), wrong_out]) == 1
    assert reader_of(store).read_all_into([0, 0], [blank()]) == 1
    assert reader_of(store).read_all_into([0], [blank(), blank()]) == 1
    arguments: list[Any] = [((0,), [blank()]), ([0], (blank(),)), ([0], None)]
    for pair in arguments:
        with pytest.raises(TypeError):
            reader_of(store).read_all_into(*pair)


def test_more_are_read_than_are_held_at_a_time(tmp_path: Path) -> None:
    store = open_patches(tmp_path, READABLE)
    for count in (63, 64, 65, 128, 200):
        indices = [number % len(READABLE) for number in range(count)]
        outs = [blank() for _ in indices]
        assert reader_of(store).read_all_into(indices, outs) == count
        assert all(np.array_equal(out, decode(store.read(index))) for index, out in zip(indices, outs, strict=True))


def segments_of(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and end of each well-formed segment before a JPEG's scan."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield at, end
        at = end


def without_segments(data: bytes, marker: int, *, kept: int) -> bytes:
    """Return a JPEG with only the first few segments of a kind."""
    segments = [segment for segment in segments_of(data) if data[segment[0] + 1] == marker]
    for start, end in reversed(segments[kept:]):
        data = data[:start] + data[end:]
    return data


@pytest.mark.parametrize("other", ["420", "progressive", "grey"])
@pytest.mark.parametrize("marker", [0xDB, 0xC4])
@pytest.mark.parametrize("kept", [0, 1])
def test_no_table_of_a_picture_is_used_for_the_next_one(other: str, marker: int, kept: int) -> None:
    lacking = without_segments(READABLE[other], marker, kept=kept)
    values = [saved(PIXELS, quality=40, optimize=True), READABLE["444"], lacking, lacking]
    reader, _ = crafted([encode(data, number) for number, data in enumerate(values)])
    outs = [blank() for _ in values]
    count = reader.read_all_into([0, 1, 2, 3], outs)
    expected = blank()
    is_picture = True
    try:
        decode_into(lacking, expected)
    except ImageError:
        is_picture = False
    assert count == (4 if is_picture else 2)
    for out in outs[2:count]:
        assert np.array_equal(out, expected)


def test_lists_that_change_meanwhile_end_the_reading(libjpeg: Libjpeg | None) -> None:
    if libjpeg is not None:
        pytest.skip("libjpeg-turbo decodes without calling Python")
    indices, outs = [0] * 3, [blank() for _ in range(3)]

    def shortening(*_: Any, buffer: Array) -> Array:
        indices.clear()
        outs.clear()
        return buffer

    assert crafted([VALUE], shortening)[0].read_all_into(indices, outs) == 1


def test_claimed_sizes_are_those_of_what_can_be_read(tmp_path: Path) -> None:
    store = open_patches(tmp_path, READABLE | REFUSED)
    for index, (name, data) in enumerate((READABLE | REFUSED).items()):
        size = reader_of(store).claimed_size(index)
        assert size == decode(data).shape[:2] if name in READABLE else size in (None, decode(data).shape[:2])
        assert tuple(store.header_size(index)) == decode(data).shape[:2]
    numbers: list[Any] = [len(store), -1, 1 << 70, 0.0, "0", None]
    for number in numbers:
        assert reader_of(store).claimed_size(number) is None


def test_arrays_of_another_kind_are_left_to_python(tmp_path: Path) -> None:
    store = open_patches(tmp_path, {"one": READABLE["420"]})
    read_only = blank()
    read_only.setflags(write=False)
    wrong_outs: list[Any] = [
        read_only,
        blank().astype(np.int8),
        np.zeros(PIXELS.shape, np.uint16),
        np.zeros((*PIXELS.shape[:2], 4), np.uint8),
        np.zeros((*PIXELS.shape, 1), np.uint8),
        np.zeros((32, 96, 3), np.uint8)[:, ::2],
        np.zeros(PIXELS.size, np.uint8),
        bytes(PIXELS.size),
        None,
    ]
    for wrong_out in wrong_outs:
        assert reader_of(store).read_into(0, wrong_out) is False
    assert not any(np.any(wrong_out) for wrong_out in wrong_outs[:-2])


def test_numbers_of_no_patch_are_left_to_python(tmp_path: Path) -> None:
    store = open_patches(tmp_path, {"one": READABLE["420"]})
    numbers: list[Any] = [1, -1, 1 << 62, 1 << 70, -(1 << 70), 0.0, "0", None]
    for number in numbers:
        assert reader_of(store).read_into(number, blank()) is False
        with pytest.raises((PatchIndexError, TypeError)):
            store.decode_into(number, blank())
    assert reader_of(store).read_into(np.uint8(0), blank())  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        reader_of(store).read_into(0)  # type: ignore[call-arg]


def test_rows_are_those_of_the_index(tmp_path: Path) -> None:
    store = open_patches(tmp_path, READABLE | REFUSED)
    for index in range(len(store)):
        assert reader_of(store).row(index) == store.index.patches[index] == store._patch_values(index)
    numbers: list[Any] = [len(store), -1, 1 << 70, 0.0, "0", None]
    for number in numbers:
        assert reader_of(store).row(number) is None


def test_shards_and_blocks_are_opened_and_checked_by_python_first(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "chunked" / f"{number}", {"0.jpg": saved(noise(32, 48, seed=number))})
    store = Store(make_store(tmp_path / "chunked", tmp_path / "store.lmdb"))
    assert len(shards_of(store.path)) == 3
    for index in range(3):
        assert not reads(reader_of(store), index, blank())
        expected = store.decode_into(index, blank())
        out = blank()
        assert reads(reader_of(store), index, out)
        assert np.array_equal(out, expected)


def test_appended_images_are_read_by_who_opens_the_store_again(tmp_path: Path) -> None:
    """A skipped image makes the numbers of later images in the store differ from their ids in the shard."""
    write(tmp_path / "a" / "first", {"0.jpg": READABLE["420"]})
    store = make_store(tmp_path / "a", tmp_path / "store.lmdb")
    write(tmp_path / "b" / "second", {"0.jpg": READABLE["444"], "1.jpg": READABLE["grey"]})
    append(tmp_path / "b", store)
    opened = Store(store)
    for index, name in enumerate(("420", "444", "grey")):
        opened.read(index)
        out = blank()
        assert reads(reader_of(opened), index, out)
        assert np.array_equal(out, decode(READABLE[name]))


def test_the_sample_is_read_in_c(tmp_path: Path) -> None:
    import_store([DATA / "chunked"], tmp_path / "store.lmdb")
    store = Store(tmp_path / "store.lmdb")
    list(map(store.read, range(len(store))))
    for index in range(len(store)):
        expected = decode(store.read(index))
        out = np.zeros_like(expected)
        assert reads(reader_of(store), index, out)
        assert np.array_equal(out, expected)


def test_a_flipped_bit_is_left_to_python_which_says_so(tmp_path: Path) -> None:
    store = open_patches(tmp_path, {"one": READABLE["420"]})
    (shard,) = shards_of(store.path)
    offset, *_ = store._patch_values(0)
    generator = np.random.default_rng(0)
    for position in [
        *range(offset - 8, offset + 40),
        *generator.integers(offset, offset + len(READABLE["420"]), 100).tolist(),
    ]:
        flip(shard, position, position % 8)
        opened = Store(store.path)
        with pytest.raises(DamagedError):
            opened.read(0)
        assert not reads(reader_of(opened), 0, blank())
        assert reader_of(opened).claimed_size(0) is None
        for read in (opened.header_size, lambda index, opened=opened: opened.decode_many_into([index], [blank()])):
            with pytest.raises(DamagedError, match="checksum"):
                read(0)
        with pytest.raises(DamagedError, match="checksum"):
            opened.decode_into(0, blank())
        flip(shard, position, position % 8)


def test_a_truncated_jpeg_with_a_sound_checksum_is_left_to_python() -> None:
    truncated = [READABLE["420"][:size] for size in (300, 700, len(READABLE["420"]) - 40)]
    reader, _ = crafted([encode(data, number) for number, data in enumerate(truncated)])
    for index in range(len(truncated)):
        assert not reads(reader, index, blank())


def test_a_picture_above_the_limit_is_left_to_python_which_refuses_it(tmp_path: Path) -> None:
    path = open_patches(tmp_path, {"one": READABLE["420"]}).path
    for limit, is_read in ((PIXELS.shape[0] * PIXELS.shape[1], True), (PIXELS.shape[0] * PIXELS.shape[1] - 1, False)):
        store = Store(path, max_pixels=limit)
        store.read(0)
        assert reads(reader_of(store), 0, blank()) == is_read
        assert (reader_of(store).claimed_size(0) is not None) == is_read
        if not is_read:
            with pytest.raises(ImageError, match="limit"):
                store.decode_into(0, blank())
            with pytest.raises(ImageError, match="limit"):
                store.header_size(0)


@pytest.mark.parametrize(("limit", "is_read"), [(-1, False), (0, False), (float("inf"), True), (1 << 70, True)])
def test_any_limit_is_that_of_python(tmp_path: Path, limit: Any, is_read: bool) -> None:
    store = Store(open_patches(tmp_path, {"one": READABLE["420"]}).path, max_pixels=limit)
    store.read(0)
    assert reads(reader_of(store), 0, blank()) == is_read
    if not is_read:
        with pytest.raises(ImageError, match="limit"):
            store.decode_into(0, blank())


def test_a_shard_that_was_let_go_of_is_left_to_python(tmp_path: Path) -> None:
    store = open_patches(tmp_path, {"one": READABLE["420"]})
    shard = store.shard(0)
    shard.view.release()
    shard.data.close()
    assert reads(reader_of(store), 0, blank()) is False


def test_single_shards_and_other_decoders_are_read_in_python(tmp_path: Path) -> None:
    store = open_patches(tmp_path, READABLE)
    assert Store(shards_of(store.path)[0])._reader is None
    assert Store(store.path, decoder="pyturbojpeg")._reader is None


def test_pixels_are_the_same_where_it_was_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_patches(tmp_path, READABLE | REFUSED)
    monkeypatch.setattr(store_module, "PatchReader", None)
    without = Store(store.path)
    assert without._reader is None
    for index in range(len(store)):
        assert np.array_equal(store.decode_into(index, blank()), without.decode_into(index, blank()))


def test_a_closed_store_lets_go_of_its_files(tmp_path: Path) -> None:
    store = open_patches(tmp_path, {"one": READABLE["420"]})
    assert store.decode_into(0, blank()).any()
    assert str(store.path) in Path("/proc/self/maps").read_text()
    store.close()
    with pytest.raises(ClosedError):
        store.decode_into(0, blank())
    assert str(store.path) not in Path("/proc/self/maps").read_text()


def test_threads_read_side_by_side(tmp_path: Path) -> None:
    store = open_patches(tmp_path, READABLE)
    expected = [decode(data) for data in READABLE.values()]
    wrong = []

    def read() -> None:
        for step in range(200):
            index = step % len(expected)
            wrong.extend([index] * (not np.array_equal(store.decode_into(index, blank()), expected[index])))
            batch = store.decode_many_into(list(range(len(expected))), [blank() for _ in expected])
            wrong.extend([index] * (not all(map(np.array_equal, batch, expected))))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(key=st.binary(min_size=17, max_size=17), size=st.integers(241, 5000), seed=st.integers(0, 1 << 32))
def test_the_checksum_is_that_of_the_format(key: bytes, size: int, seed: int) -> None:
    payload = np.random.default_rng(seed).bytes(size)
    assert checksum(key, payload) == value_checksum(key, payload)


@pytest.mark.parametrize("size", [*range(241, 260), *range(1020, 1030), 16384, 65537, 1_000_003])
def test_the_checksum_is_that_of_the_format_around_whole_blocks(size: int) -> None:
    key, payload = os.urandom(17), os.urandom(size)
    assert checksum(key, payload) == value_checksum(key, payload)


@pytest.mark.parametrize(
    ("key", "payload"), [(bytes(16), bytes(300)), (bytes(18), bytes(300)), (bytes(17), bytes(240))]
)
def test_the_checksum_of_other_sizes_is_an_error(key: bytes, payload: bytes) -> None:
    with pytest.raises(ValueError, match="17 bytes"):
        checksum(key, payload)


# Crafted rows and shards, which no command writes


class Open(NamedTuple):
    """A stand-in for the entry of an open shard in a Store."""

    shard: Any
    image_id_offset: Any


class Mapped(NamedTuple):
    """A stand-in for a shard."""

    view: Any


ROW = struct.Struct("<QQIII")
VALUES_AT = 100


def encode(data: bytes, patch_id: int) -> bytes:
    return encode_value(pack_key(7, Kind.PATCH, patch_id), data)


def table_of(*rows: bytes) -> bytes:
    return b"".join(rows).ljust(4096, b"\0")


def crafted(
    values: list[bytes], decode: Callable[..., Any] = simplejpeg.decode_jpeg
) -> tuple[PatchReader, dict[int, Any]]:
    """Return a reader of patches of image 2 with id 7 in shard 5, and the open shards."""
    rows, at = [], VALUES_AT
    for patch_id, value in enumerate(values):
        rows.append(ROW.pack(at + 8, patch_id, len(value) - 8, 2, 5))
        at += len(value)
    shards: dict[int, Any] = {5: Open(Mapped(memoryview(bytes(VALUES_AT) + b"".join(values))), 5)}
    return reader_over(table_of(*rows), shards, count=len(rows), decode=decode), shards


def reader_over(
    table: bytes,
    shards: Any,
    *,
    count: int = 1,
    chunks: Any = (0,),
    checked: bytes = b"\1",
    decode: Any = simplejpeg.decode_jpeg,
) -> PatchReader:
    return PatchReader(
        table, np.array(chunks, np.uint64), bytearray(checked), count, shards, decode, 1 << 30, lambda: LIBRARY
    )  # type: ignore[arg-type]


def test_a_crafted_row_is_read() -> None:
    reader, _ = crafted([encode(READABLE["420"], 0), encode(READABLE["grey"], 1)])
    for index, name in enumerate(("420", "grey")):
        out = blank()
        assert reads(reader, index, out)
        assert np.array_equal(out, decode(READABLE[name]))


VALUE = encode(READABLE["420"], 0)
LENGTH = len(VALUE) - 8
FILE = bytes(VALUES_AT) + VALUE


@pytest.mark.parametrize(
    "row",
    [
        (VALUES_AT + 8, 1, LENGTH, 2, 5),
        (VALUES_AT + 8, 0, LENGTH, 3, 5),
        (VALUES_AT + 8, 0, LENGTH, 2, 6),
        (VALUES_AT + 8, 0, LENGTH - 1, 2, 5),
        (VALUES_AT + 8, 0, LENGTH + 1, 2, 5),
        (VALUES_AT + 8, 0, 0, 2, 5),
        (VALUES_AT + 8, 0, 2**32 - 1, 2, 5),
        (VALUES_AT + 9, 0, LENGTH - 1, 2, 5),
        (0, 0, LENGTH, 2, 5),
        (7, 0, LENGTH, 2, 5),
        (len(FILE), 0, LENGTH, 2, 5),
        (len(FILE) + 1, 0, LENGTH, 2, 5),
        (2**63, 0, LENGTH, 2, 5),
        (2**64 - 1, 0, LENGTH, 2, 5),
        (2**64 - LENGTH, 0, LENGTH, 2, 5),
        (VALUES_AT + 8, 2**64 - 1, LENGTH, 2**32 - 1, 5),
    ],
)
def test_rows_that_cannot_be_are_left_to_python(row: tuple[int, ...]) -> None:
    reader = reader_over(table_of(ROW.pack(*row)), {5: Open(Mapped(memoryview(FILE)), 5)})
    assert reads(reader, 0, blank()) is False
    assert reader.read_all_into([1, 0, 0], [blank()] * 3) == 0
    assert reader.claimed_size(0) is None


@pytest.mark.parametrize(
    "shards",
    [
        {},
        {5: None},
        {5: (1, 2, 3)},
        {5: Open(None, 5)},
        {5: Open(Mapped(FILE), 5)},
        {5: Open(Mapped(memoryview(b"")), 5)},
        {5: Open(Mapped(memoryview(FILE)), None)},
        {5: Open(Mapped(memoryview(FILE)), -3)},
        {5: Open(Mapped(memoryview(FILE)), 2**63 - 1)},
        {5: Open(Mapped(memoryview(FILE)), 2**70)},
    ],
)
def test_shards_that_cannot_be_are_left_to_python(shards: Any) -> None:
    reader = reader_over(table_of(ROW.pack(VALUES_AT + 8, 0, LENGTH, 2, 5)), shards)
    assert reads(reader, 0, blank()) is False
    assert reader.read_all_into([0, 0], [blank()] * 2) == 0
    assert reader.claimed_size(0) is None


@pytest.mark.parametrize(
    "table",
    [
        {"checked": b"\0"},
        {"checked": b""},
        {"chunks": ()},
        {"chunks": (1,)},
        {"chunks": (4096,)},
        {"chunks": (2**64 - 1,)},
        {"chunks": (2**64 - 4096,)},
        {"count": 0},
        {"count": -1},
    ],
)
def test_tables_that_cannot_be_are_left_to_python(table: dict[str, Any]) -> None:
    rows = table_of(ROW.pack(VALUES_AT + 8, 0, LENGTH, 2, 5))
    shards = {5: Open(Mapped(memoryview(FILE)), 5)}
    assert reader_over(rows, shards).row(0) == (VALUES_AT + 8, 0, LENGTH, 2, 5)
    assert reads(reader_over(rows, shards), 0, blank())
    assert reader_over(rows, shards, **table).row(0) is None
    assert reads(reader_over(rows, shards, **table), 0, blank()) is False


def test_any_row_and_any_bytes_are_a_picture_or_left_to_python() -> None:
    generator = np.random.default_rng(0)
    for _ in range(3000):
        data = bytearray(READABLE["420"])
        for at in generator.integers(0, 700, generator.integers(0, 4)):
            data[at] = generator.integers(0, 256)
        values = bytes(generator.integers(0, 2000)) + encode(bytes(data[: generator.integers(0, len(data))]), 0)
        row = [generator.integers(0, 2600), 0, generator.integers(0, 2600), generator.integers(0, 3), 5]
        reader = reader_over(table_of(ROW.pack(*map(int, row))), {5: Open(Mapped(memoryview(values)), 5)})
        assert reads(reader, 0, blank()) in (True, False)


SAMPLED = [simplejpeg.encode_jpeg(PIXELS, 80, "RGB", sampling) for sampling in ("440", "411", "422")]


def changed(data: bytes, generator: random.Random) -> bytes:
    """Return a JPEG after one or more changes: changed or missing bytes, truncation, or a missing segment."""
    result = bytearray(data)
    for _ in range(generator.choice([0, 1, 1, 1, 2, 4])):
        if len(result) < 300:
            break
        end = min(len(result), generator.choice([700, len(result)]))
        place = generator.randrange(2, end)
        kind = generator.randrange(8)
        if kind < 5:
            result[place] = generator.randrange(256)
        elif kind == 5:
            del result[max(place, 260) :]
        elif kind == 6:
            del result[place : place + generator.randrange(1, 8)]
        else:
            segments = list(segments_of(bytes(result)))
            if segments:
                del result[slice(*generator.choice(segments))]
    return bytes(result)


def test_what_is_read_of_changed_jpegs_is_what_simplejpeg_decodes(runs: Runs) -> None:
    decoded_count = 0
    numbers = runs(small=200, full=60_000)
    for number in numbers:
        generator = random.Random(number)
        pictures = [changed(generator.choice([*READABLE.values(), *SAMPLED]), generator) for _ in range(16)]
        reader, _ = crafted([encode(data, patch_id) for patch_id, data in enumerate(pictures)])
        first = 0
        while first < len(pictures):
            outs = [blank() for _ in pictures[first:]]
            count = reader.read_all_into(list(range(first, len(pictures))), outs)
            for data, out in zip(pictures[first:], outs[:count], strict=False):
                assert np.array_equal(simplejpeg.decode_jpeg(data, "RGB"), out), f"run {number}"
            decoded_count += count
            first += count
            if first < len(pictures):
                assert not reader.read_into(first, blank())
                first += 1
    assert decoded_count > 5 * len(numbers)


def test_what_the_decoder_does_is_looked_at(libjpeg: Libjpeg | None) -> None:
    def other_size(*_: Any, buffer: Array) -> Array:
        return buffer[:-1]

    def no_array(*_: Any, buffer: Array) -> None:
        return None

    def failing(*_: Any, buffer: Array) -> None:
        raise MemoryError

    def interrupted(*_: Any, buffer: Array) -> None:
        raise KeyboardInterrupt

    for decoder in (other_size, no_array, failing):
        assert crafted([VALUE], decoder)[0].read_into(0, blank()) is False
    with pytest.raises(KeyboardInterrupt):
        crafted([VALUE], interrupted)[0].read_into(0, blank())
    if libjpeg is None:
        with pytest.raises(KeyboardInterrupt):
            crafted([VALUE], interrupted)[0].read_all_into([0], [blank()])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_a_shard_raises_is_looked_at(error: type[BaseException]) -> None:
    class Raising:
        @property
        def view(self) -> memoryview:
            raise error

    reader = reader_over(table_of(ROW.pack(VALUES_AT + 8, 0, LENGTH, 2, 5)), {5: Open(Raising(), 5)})
    calls: list[Callable[[], int]] = [
        lambda: reader.read_into(0, blank()),
        lambda: reader.read_all_into([0, 0], [blank(), blank()]),
    ]
    for call in calls:
        if error is ValueError:
            assert not call()
        else:
            with pytest.raises(error):
                call()


def test_progressive_pictures_among_others_are_read(tmp_path: Path) -> None:
    pictures = [saved(PIXELS, progressive=number % 3 == 0, quality=50 + number) for number in range(20)]
    store = open_patches(tmp_path, {str(number): data for number, data in enumerate(pictures)})
    indices = [number % 20 for number in range(150)]
    outs = [blank() for _ in indices]
    assert reader_of(store).read_all_into(indices, outs) == 150
    assert all(np.array_equal(out, decode(pictures[index])) for index, out in zip(indices, outs, strict=True))


def test_arguments_of_another_kind_are_an_error() -> None:
    arguments: list[Any] = [b"", np.zeros(0, np.uint64), bytearray(), 0, {}, simplejpeg.decode_jpeg, 1]
    PatchReader(*arguments)
    wrong_results: list[Any] = [0, (), "libjpeg", Libjpeg]
    for wrong in wrong_results:
        with pytest.raises(TypeError, match="a Libjpeg or None"):
            PatchReader(*arguments, lambda wrong=wrong: wrong).read_all_into([], [])
    assert PatchReader(*arguments, lambda: None).read_all_into([], []) == 0
    with pytest.raises(ZeroDivisionError):
        PatchReader(*arguments, lambda: 1 // 0).read_all_into([], [])  # type: ignore[arg-type, return-value]
    for at in (0, 1, 2, 3, 4, 6):
        with pytest.raises(TypeError):
            PatchReader(*arguments[:at], "text" if at > 2 else 1, *arguments[at + 1 :])
    with pytest.raises(TypeError):
        PatchReader(*arguments[:-1])
    with pytest.raises(TypeError):
        PatchReader(*arguments, max_pixels=1)  # type: ignore[call-arg]


def test_nothing_is_kept_of_what_was_read() -> None:
    reader, shards = crafted([VALUE])
    view, out = shards[5].shard.view, blank()
    counts = [sys.getrefcount(value) for value in (view, out)]
    for _ in range(100):
        reader.read_into(0, out)
        reader.read_into(1, out)
        reader.read_all_into([0, 0, 1], [out, out, out])
        reader.claimed_size(0)
        reader.claimed_size(1)
    assert counts == [sys.getrefcount(value) for value in (view, out)]
