"""Damaged stores: an error that names the file and the way out, never a wrong byte, never a crash."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from small_stores import (
    append,
    content_of,
    damage_table,
    flip,
    flip_in,
    in_child,
    make_store,
    shards_of,
    small_folder,
)

from dlas_store.errors import DamagedError, ForeignShardError, NotASourceError, StoreError
from dlas_store.index import INDEX_FILE, Index
from dlas_store.sealed_file import SealedFile
from dlas_store.shard import Shard
from dlas_store.store import Store
from dlas_store.verify import verify

FLIPS = 2000
FLIPS_VERIFIED = 150


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of one image each; the first two are of one size."""
    folder = tmp_path_factory.mktemp("damage")
    return make_store(small_folder(folder / "source", "a", "b", "c"), folder / "store.lmdb")


@pytest.fixture(scope="module")
def content(pristine: Path) -> dict[str, object]:
    with Store(pristine) as store:
        return content_of(store)


@pytest.fixture
def store(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "store.lmdb"))


@pytest.fixture(scope="module")
def other_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another import of the same files."""
    folder = tmp_path_factory.mktemp("other")
    return make_store(small_folder(folder / "source", "a", "b", "c"), folder / "store.lmdb")


def open_and_read(path: Path) -> None:
    with Store(path) as store:
        content_of(store)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(100))


def cut_to_a_page(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:4096])


def cut_to_a_few_bytes(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def lose_the_trailer(path: Path) -> None:
    """Put zeros over the end, as a lost disk block does."""
    path.write_bytes(path.read_bytes()[:-64] + bytes(64))


def turn_into_text(path: Path) -> None:
    path.write_text("no LMDB" * 40)


def turn_into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [
    shorten,
    lengthen,
    cut_to_a_page,
    cut_to_a_few_bytes,
    empty,
    zero,
    lose_the_trailer,
    turn_into_text,
    turn_into_a_folder,
]


@pytest.mark.parametrize("damage", [Path.unlink, *DAMAGES])
def test_a_shard_that_is_not_the_one_named_is_an_error_with_a_way_out(
    store: Path, damage: Callable[[Path], object]
) -> None:
    damage(shards_of(store)[1])
    with pytest.raises(DamagedError, match=r"shard-00001\.lmdb: .*restore it from a copy, or run dlas-store reindex"):
        open_and_read(store)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_an_error_with_a_way_out(store: Path, damage: Callable[[Path], object]) -> None:
    damage(store / INDEX_FILE)
    with pytest.raises((DamagedError, NotASourceError), match=r"store\.lmdb.*dlas-store reindex"):
        open_and_read(store)


def test_a_missing_index_is_an_error_with_a_way_out(store: Path) -> None:
    (store / INDEX_FILE).unlink()
    with pytest.raises(NotASourceError, match=r"store\.lmdb: .*dlas-store reindex"):
        open_and_read(store)


@pytest.mark.parametrize("name", ["images", "patches", "names"])
def test_a_damaged_table_is_an_error_with_a_way_out(store: Path, name: str) -> None:
    damage_table(store, name)
    with Store(store) as opened, pytest.raises(DamagedError, match=r"index\.lmdb: .*dlas-store reindex"):
        opened.read(opened.find("a", "00000000.png"))


def test_two_shards_exchanged_are_found(store: Path) -> None:
    one, other = shards_of(store)[:2]
    assert one.stat().st_size == other.stat().st_size  # else the size alone would tell
    aside = store / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    with pytest.raises(ForeignShardError, match=r"shard-0000[01]\.lmdb: is shard [01] of this store, not the one"):
        open_and_read(store)


def test_a_shard_of_another_store_is_found(store: Path, other_store: Path) -> None:
    shutil.copy(shards_of(other_store)[1], shards_of(store)[1])
    with pytest.raises(ForeignShardError, match=r"shard-00001\.lmdb: is shard 1 of another store.*dlas-store reindex"):
        open_and_read(store)


def test_an_index_of_another_store_is_found(store: Path, other_store: Path) -> None:
    shutil.copy(other_store / INDEX_FILE, store / INDEX_FILE)
    with pytest.raises(DamagedError, match=r"shard-00000\.lmdb: is shard 0 of another store"):
        open_and_read(store)


def test_an_index_in_the_place_of_a_shard_is_found(store: Path) -> None:
    shard = shards_of(store)[0]
    shutil.copy(store / INDEX_FILE, shard)
    with pytest.raises(DamagedError, match="is not a store's shard but its index"):
        Store(shard)
    shutil.copy(shards_of(store)[1], store / INDEX_FILE)
    with pytest.raises(DamagedError, match="is not a store's index but its shard"):
        Store(store)


def test_what_the_rest_of_a_damaged_store_holds_is_still_read(store: Path, content: dict[str, object]) -> None:
    payload = content["b/00000001.png"]
    assert isinstance(payload, bytes)
    flip_in(shards_of(store)[1], payload)
    with Store(store) as opened:
        for index in range(len(opened)):
            number, position = opened.locate(index)
            image = opened.image(number)
            name = f"{image.name}/{image.files[position]}"
            if name == "b/00000001.png":
                message = r"shard-00001\.lmdb: .*patch 5, 00000001\.png of image 'b'.*dlas-store verify"
                with pytest.raises(DamagedError, match=message):
                    opened.read(index)
            else:
                assert opened.read(index) == content[name]


def test_a_damaged_reference_is_an_error_that_names_its_image(store: Path, content: dict[str, object]) -> None:
    reference = content["b/ref.jpg"]
    assert isinstance(reference, bytes)
    flip_in(shards_of(store)[1], reference)
    with Store(store) as opened, pytest.raises(DamagedError, match=r"shard-00001\.lmdb: .*ref\.jpg of image 'b'"):
        opened.read_reference(1)


def test_damaged_metadata_is_an_error_that_says_whose(store: Path) -> None:
    flip_in(shards_of(store)[1], b"\xa4name\xa1b")
    with Store(store) as opened, pytest.raises(DamagedError, match=r"shard-00001\.lmdb: .*image 1.*dlas-store verify"):
        opened.image(1)


def test_a_patch_whose_image_cannot_be_named_is_still_an_error_of_ours(store: Path) -> None:
    with Store(store) as opened:
        row = opened.index.images[1]
        patch = opened.index.patches[5]
    flip(shards_of(store)[1], row[0] + 5)
    flip(shards_of(store)[1], patch[0] + 5)
    with Store(store) as opened, pytest.raises(DamagedError, match=r"patch 5, number 1 of image 1"):
        opened.read(5)


def places(store: Path, count: int, *, seed: int) -> list[tuple[Path, int, int]]:
    """Return a fixed sample of bits: half of them anywhere, half where the files are dense."""
    draw = random.Random(seed)
    chosen = []
    files = [store / INDEX_FILE, *shards_of(store)]
    for number in range(count):
        file = draw.choice(files)
        size = file.stat().st_size
        tail = draw.randrange(max(0, size - 600), size)
        chosen.append((file, draw.randrange(size) if number % 2 else tail, draw.randrange(8)))
    for file in shards_of(store)[:1]:  # the used places of a shard, which are few
        for _, entry in Shard(file).values():
            chosen += [(file, entry.offset - 8 + draw.randrange(min(entry.length, 60)), draw.randrange(8))]
    return chosen


def everything_readable(path: Path, content: dict[str, object]) -> bool:
    """Read all that a store gives and check it; return whether there was an error of ours."""
    failed = False
    try:
        opened = Store(path)
    except StoreError:
        return True
    with opened as store:
        for number in range(3):
            name = "abc"[number]
            reads: dict[str, Callable[[], object]] = {
                "order": lambda number=number: store.image(number).name,  # type: ignore[misc]
                f"{name}/ref.jpg": lambda number=number: store.read_reference(number),  # type: ignore[misc]
                f"find {name}": lambda name=name: store.find_image(name),  # type: ignore[misc]
                f"first {name}": lambda number=number: store.first_patch(number),  # type: ignore[misc]
            }
            expected = {
                "order": name,
                f"{name}/ref.jpg": content[f"{name}/ref.jpg"],
                f"find {name}": number,
                f"first {name}": number * 4,
            }
            for patch in range(4):
                file = f"{patch:08d}.png"
                index = number * 4 + patch
                reads |= {
                    f"{name}/{file}": lambda index=index: store.read(index),  # type: ignore[misc]
                    f"find {name}/{file}": lambda name=name, file=file: store.find(name, file),  # type: ignore[misc]
                    f"locate {index}": lambda index=index: store.locate(index),  # type: ignore[misc]
                }
                expected |= {
                    f"{name}/{file}": content[f"{name}/{file}"],
                    f"find {name}/{file}": index,
                    f"locate {index}": (number, patch),
                }
            for key, read in reads.items():
                try:
                    assert read() == expected[key], key
                except StoreError:
                    failed = True
    return failed


def test_no_flipped_bit_gives_a_wrong_byte_or_a_crash(store: Path, content: dict[str, object]) -> None:
    def flip_and_read() -> None:
        outcomes = set()
        for place in places(store, FLIPS, seed=1):
            flip(*place)
            outcomes.add(everything_readable(store, content))
            flip(*place)
        assert outcomes == {False, True}
        assert not everything_readable(store, content)

    assert in_child(flip_and_read) == 0


def test_verify_finds_every_flip_that_changes_what_is_read(store: Path, content: dict[str, object]) -> None:
    harmful = 0
    for place in places(store, FLIPS, seed=2)[::-1]:
        flip(*place)
        if everything_readable(store, content):
            harmful += 1
            with suppress(StoreError):  # a flip may make the index one of a later version
                assert not verify(store, workers=1).ok, place
        flip(*place)
        if harmful == FLIPS_VERIFIED:
            break
    assert harmful == FLIPS_VERIFIED
    assert verify(store, workers=1).ok


def test_no_flipped_bit_makes_a_single_shard_give_a_wrong_byte(store: Path, content: dict[str, object]) -> None:
    shard = shards_of(store)[0]

    def flip_and_read() -> None:
        draw = random.Random(3)
        size = shard.stat().st_size
        for _ in range(FLIPS):
            position, bit = draw.randrange(size), draw.randrange(8)
            flip(shard, position, bit)
            with suppress(StoreError), Store(shard) as opened:
                held = content_of(opened)
                assert held.pop("order") == ["a"]
                assert held.items() <= content.items()
            flip(shard, position, bit)

    assert in_child(flip_and_read) == 0


@pytest.mark.parametrize("step", [4096, 977])
def test_a_cut_store_is_never_a_crash(store: Path, step: int) -> None:
    def cut_and_read() -> None:
        for file in [store / INDEX_FILE, shards_of(store)[0]]:
            data = file.read_bytes()
            for size in range(0, len(data), step):
                file.write_bytes(data[:size])
                with pytest.raises(StoreError):
                    open_and_read(store)
                with pytest.raises(StoreError):
                    open_and_read(file)
            file.write_bytes(data)
        open_and_read(store)

    assert in_child(cut_and_read) == 0


def test_a_store_whose_engine_pages_are_gone_is_still_read_by_slices(store: Path, content: dict[str, object]) -> None:
    for file in [store / INDEX_FILE, *shards_of(store)]:
        with file.open("r+b") as opened:
            opened.write(bytes(8192))  # both meta pages
    with Store(store) as readable:
        assert content_of(readable) == content


def test_a_half_copied_store_says_which_file_is_missing(pristine: Path, tmp_path: Path) -> None:
    part = tmp_path / "part.lmdb"
    part.mkdir()
    shutil.copy(pristine / INDEX_FILE, part)
    with pytest.raises(DamagedError, match=r"shard-00000\.lmdb"):
        Store(part)


def test_an_old_index_beside_newer_shards_is_the_old_store(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "source", "a", "b")
    store = make_store(folder, tmp_path / "store.lmdb", images="a")
    old = (store / INDEX_FILE).read_bytes()
    append(folder, store)
    (store / INDEX_FILE).write_bytes(old)
    with Store(store) as opened:
        assert content_of(opened)["order"] == ["a"]


def test_the_table_id_binds_an_index_to_its_blocks(pristine: Path, other_store: Path) -> None:
    bodies = [SealedFile(path / INDEX_FILE, "index").body for path in (pristine, other_store)]
    assert bodies[0]["table_id"] != bodies[1]["table_id"]
    assert Index.open(pristine / INDEX_FILE).store_id != Index.open(other_store / INDEX_FILE).store_id
