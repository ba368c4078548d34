"""The reader of LMDB's B+ tree, compared with the LMDB engine."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlas_store.errors import DamagedError
from dlas_store.lmdb_reader import Entry, is_lmdb, iter_entries, read_meta

PAGE = 4096
Values = Mapping[bytes, bytes]


def write_lmdb(path: Path, commits: Iterable[Values], *, append: bool = False) -> bytes:
    """Write a transaction for each mapping and return the file's bytes."""
    with lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 28, lib_version=0) as environment:
        for values in commits:
            with environment.begin(write=True) as transaction:
                for key, value in sorted(values.items()):
                    assert transaction.put(key, value, append=append)
    return path.read_bytes()


def engine_items(path: Path) -> list[tuple[bytes, bytes]]:
    with (
        lmdb.open(str(path), subdir=False, lock=False, readonly=True, lib_version=0) as environment,
        environment.begin() as transaction,
    ):
        return list(transaction.cursor())


def reader_items(data: bytes) -> list[tuple[bytes, bytes]]:
    return [(entry.key, data[entry.offset : entry.offset + entry.length]) for entry in iter_entries(data)]


def keys(count: int, *, size: int = 8) -> list[bytes]:
    return [b"%08d" % number + b"k" * (size - 8) for number in range(count)]


def by_halves(values: Values) -> list[Values]:
    """Split values into two commits with interleaved keys, so that the second commit splits the pages of the first."""
    items = sorted(values.items())
    return [dict(items[::2]), dict(items[1::2])]


FILES: dict[str, Sequence[Values]] = {
    "no commit": [],
    "an empty commit": [{}],
    "one key": [{b"a": b"1"}],
    "an empty value": [{b"a": b"", b"b": b"1"}],
    "one large value": [{b"a": bytes(range(256)) * 4000}],
    "every size around the limit of a page": [{b"%05d" % size: b"v" * size for size in range(1990, 2060)}],
    "every size around whole pages": [{b"%05d" % size: b"v" * size for size in range(4070, 4110)}],
    "inline and overflow values in turn": [
        {key: key * (3 if number % 2 else 900) for number, key in enumerate(keys(300))}
    ],
    "several commits": by_halves(dict.fromkeys(keys(2000), b"value")),
    "as many commits as keys": [{key: key} for key in keys(60)],
    "a deep tree of long keys": [dict.fromkeys(keys(3000, size=511), b"v")],
    "a deep tree in two commits": by_halves(dict.fromkeys(keys(1500, size=400), b"v")),
    "odd key and value sizes": [{b"k" * size: b"v" * (size * 7) for size in range(1, 200, 2)}],
}


@pytest.mark.parametrize("append", [False, True], ids=["put", "append"])
@pytest.mark.parametrize("name", FILES)
def test_a_walk_finds_what_the_engine_finds(name: str, append: bool, tmp_path: Path) -> None:
    sorted_commits = append and "commits" not in name
    data = write_lmdb(tmp_path / "file", FILES[name], append=sorted_commits)
    assert reader_items(data) == engine_items(tmp_path / "file")


VALUE_SIZES = st.integers(0, 40) | st.integers(1900, 2200) | st.integers(0, 20_000)


@settings(max_examples=40)
@given(st.lists(st.dictionaries(st.binary(min_size=1, max_size=60), VALUE_SIZES, max_size=30), max_size=4))
def test_a_walk_finds_what_the_engine_finds_in_any_file(commits: list[dict[bytes, int]]) -> None:
    seen: set[bytes] = set()
    new_values = []
    for commit in commits:
        new_values.append({key: (key * size)[:size] for key, size in commit.items() if key not in seen})
        seen.update(commit)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        assert reader_items(write_lmdb(path, new_values)) == engine_items(path)


def test_a_deep_tree_is_deep(tmp_path: Path) -> None:
    data = write_lmdb(tmp_path / "file", FILES["a deep tree of long keys"])
    assert read_meta(data).depth >= 4


def encode_one_leaf(page_size: int, values: Values) -> bytes:
    """Return an LMDB file of one leaf page. The engine writes most of these page sizes on other systems only."""
    pointers, nodes, upper = [], b"", page_size
    for key, value in sorted(values.items()):
        node = struct.pack("<HHHH", len(value), 0, 0, len(key)) + key + value
        node += b"\0" * (len(node) % 2)
        upper -= len(node)
        pointers.append(upper)
        nodes = node + nodes
    lower = 16 + 2 * len(pointers)
    leaf = struct.pack("<QHHHH", 2, 0, 2, lower, upper) + struct.pack(f"<{len(pointers)}H", *pointers)
    pages = []
    for number in (0, 1):
        page = struct.pack("<QHHI", number, 0, 8, 0) + struct.pack("<IIQQ", 0xBEEFC0DE, 1, 0, 1 << 20)
        free = struct.pack("<IHHQQQQQ", page_size, 8, 0, 0, 0, 0, 0, (1 << 64) - 1)
        main = struct.pack("<IHHQQQQQ", 0, 0, 1, 0, 1, 0, len(values), 2)
        pages.append((page + free + main + struct.pack("<QQ", 2, number)).ljust(page_size, b"\0"))
    return b"".join(pages) + leaf.ljust(upper, b"\0") + nodes


@pytest.mark.parametrize("page_size", [512, 1024, 4096, 16384, 32768])
def test_other_page_sizes_are_read(page_size: int, tmp_path: Path) -> None:
    data = encode_one_leaf(page_size, {key: key * 2 for key in keys(9)})
    (tmp_path / "file").write_bytes(data)
    assert reader_items(data) == engine_items(tmp_path / "file") == [(key, key * 2) for key in keys(9)]


@pytest.fixture(scope="module")
def leaf_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file whose root is a leaf, with two inline values and two on overflow pages."""
    values = {key: key * (700 if number % 2 else 5) for number, key in enumerate(keys(4))}
    return write_lmdb(tmp_path_factory.mktemp("leaf") / "file", [values])


@pytest.fixture(scope="module")
def branch_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with a branch page over a few leaves."""
    values = {key: key * 150 for key in keys(8)}
    return write_lmdb(tmp_path_factory.mktemp("branch") / "file", [values], append=True)


def assert_bounded(data: bytearray, original: list[Entry]) -> None:
    """Check that a read of all entries raises DamagedError or gives entries inside the file, in key order."""
    entries: list[Entry] = []
    try:
        for entry in iter_entries(data):  # type: ignore[arg-type]
            entries.append(entry)
            assert 0 < entry.offset <= entry.offset + entry.length <= len(data)
            assert len(entries) <= len(original) + 1
    except DamagedError:
        return
    assert [entry.key for entry in entries] == sorted({bytes(entry.key) for entry in entries})


def flip_all(data: bytes, positions: Iterable[int]) -> None:
    original = list(iter_entries(data))
    damaged = bytearray(data)
    for position in positions:
        for bit in range(8):
            damaged[position] ^= 1 << bit
            assert_bounded(damaged, original)
            damaged[position] ^= 1 << bit


def test_no_flipped_bit_in_a_leaf_or_header_does_harm(leaf_file: bytes) -> None:
    assert read_meta(leaf_file).depth == 1
    root = read_meta(leaf_file).root * PAGE
    overflow = [entry.offset - 16 for entry in iter_entries(leaf_file) if entry.length > PAGE]
    assert overflow
    headers = [start + byte for start in (0, PAGE) for byte in range(152)]
    headers += [start + byte for start in overflow for byte in range(16)]
    flip_all(leaf_file, [*headers, *range(root, root + PAGE)])


def test_no_flipped_bit_in_any_page_of_a_tree_does_harm(branch_file: bytes) -> None:
    assert read_meta(branch_file).depth == 2
    flip_all(branch_file, range(2 * PAGE, len(branch_file)))


@settings(max_examples=300)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=40))
def test_no_garbage_does_harm(branch_file: bytes, changes: list[tuple[float, int]]) -> None:
    damaged = bytearray(branch_file)
    for position, byte in changes:
        damaged[int(position * len(damaged))] = byte
    assert_bounded(damaged, list(iter_entries(branch_file)))


@pytest.mark.parametrize("file", ["leaf_file", "branch_file"])
def test_a_file_cut_anywhere_is_damaged(file: str, request: pytest.FixtureRequest) -> None:
    data: bytes = request.getfixturevalue(file)
    pages = range(0, len(data), PAGE)
    odd_sizes = [page + offset for page in pages for offset in (1, 15, 17, 151, 152, 2048, PAGE - 1)]
    for size in [*pages, *odd_sizes]:
        with pytest.raises(DamagedError):
            list(iter_entries(data[:size]))


def with_meta(data: bytes, offset: int, layout: str, value: int) -> bytes:
    """Return the file with a field of both meta pages changed."""
    changed = bytearray(data)
    for page in (0, PAGE):
        struct.pack_into(layout, changed, page + offset, value)
    return bytes(changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "not an LMDB file"),
        (lambda data: bytes(len(data)), "not an LMDB file"),
        (lambda data: with_meta(data, 40, "<I", 0), "page size 0"),
        (lambda data: with_meta(data, 40, "<I", 4095), "page size 4095"),
        (lambda data: with_meta(data, 40, "<I", 1 << 31), "page size 2147483648"),
        (lambda data: with_meta(data, 20, "<I", 2), "no valid LMDB meta page"),
        (lambda data: with_meta(data, 94, "<H", 0), "tree depth 0"),
        (lambda data: with_meta(data, 94, "<H", 33), "tree depth 33"),
        (lambda data: with_meta(data, 94, "<H", 1), "not the leaf page"),
        (lambda data: with_meta(data, 94, "<H", 3), "not the branch page"),
        (lambda data: with_meta(data, 120, "<Q", 9), "8 keys in the tree, 9 in the LMDB header"),
        (lambda data: with_meta(data, 128, "<Q", 1), "outside the file"),
        (lambda data: with_meta(data, 128, "<Q", 1 << 40), "outside the file"),
        (lambda data: with_meta(data, 128, "<Q", (1 << 64) - 1), "names no root page"),
        (lambda data: with_meta(data, 136, "<Q", 1 << 60), "cut short"),
    ],
)
def test_a_header_that_lies_is_named(branch_file: bytes, change: Callable[[bytes], bytes], message: str) -> None:
    with pytest.raises(DamagedError, match=message):
        list(iter_entries(change(branch_file)))


def test_a_branch_that_leads_to_itself_ends(branch_file: bytes) -> None:
    root = read_meta(branch_file).root
    changed = bytearray(with_meta(branch_file, 94, "<H", 30))
    start = root * PAGE
    (lower,) = struct.unpack_from("<H", changed, start + 12)
    for (pointer,) in struct.iter_unpack("<H", changed[start + 16 : start + lower]):
        struct.pack_into("<HHH", changed, start + pointer, root, 0, 0)
    with pytest.raises(DamagedError, match="circle"):
        list(iter_entries(bytes(changed)))


def test_the_newer_meta_page_counts_and_one_is_enough(tmp_path: Path) -> None:
    commits: list[Values] = [{b"a": b"1"}, {b"b": b"2"}]
    data = write_lmdb(tmp_path / "file", commits)
    newer = 0 if struct.unpack_from("<Q", data, 144) > struct.unpack_from("<Q", data, PAGE + 144) else PAGE
    assert reader_items(data) == [(b"a", b"1"), (b"b", b"2")]
    without_older = bytearray(data)
    struct.pack_into("<I", without_older, PAGE - newer + 20, 99)
    assert reader_items(bytes(without_older)) == [(b"a", b"1"), (b"b", b"2")]


def test_an_lmdb_file_is_told_by_its_magic(branch_file: bytes) -> None:
    assert is_lmdb(branch_file)
    assert not is_lmdb(branch_file[:151])
    assert not is_lmdb(b"x" * 4096)
