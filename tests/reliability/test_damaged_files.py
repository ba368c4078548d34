"""Damaged files: no read returns a wrong byte or ends the process, and verify finds all damage that matters."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from dlas_store.converters import salvaging
from dlas_store.converters.salvaging import salvage
from dlas_store.errors import StoreError
from dlas_store.maintenance.verify import verify
from dlas_store.storage.index import INDEX_FILE
from dlas_store.storage.shard import Shard
from dlas_store.storage.store import Store
from tests.conftest import Runs
from tests.reliability.support.children import each_in_child, work_here
from tests.support.small_stores import append, content_of, flip, make_store, shards_of, small_folder

NAMES = "abcd"
PATCHES = 4


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two imported and two appended shards, one image a shard."""
    root = tmp_path_factory.mktemp("damaged")
    folder = small_folder(root / "source", *NAMES, patches=PATCHES)
    store = make_store(folder, root / "store.lmdb", images="[ab]")
    append(folder, store)
    return store


@pytest.fixture(scope="module")
def content(pristine: Path) -> dict[str, object]:
    with Store(pristine) as store:
        return content_of(store)


@pytest.fixture
def store(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "store.lmdb"))


@pytest.fixture(scope="module")
def foreign_stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A store of the same files, and a store of other files."""
    root = tmp_path_factory.mktemp("foreign")
    equal = small_folder(root / "equal", *NAMES, patches=PATCHES)
    different = small_folder(root / "different", "a", "z", patches=PATCHES, seed=9)
    return [make_store(equal, root / "equal.lmdb"), make_store(different, root / "different.lmdb")]


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    work_here(monkeypatch, "dlas_store.maintenance.verify", salvaging.__name__)


def fails(path: Path, content: dict[str, object]) -> bool:
    """Read everything in a store in every way. Return whether a read raised StoreError; fail if a byte is wrong."""
    try:
        opened = Store(path)
    except StoreError:
        return True
    failed = False
    with opened as store:
        for number, name in enumerate(NAMES):
            first = number * PATCHES
            reads: list[tuple[object, Callable[..., object], tuple[object, ...]]] = [
                (name, store.image_name, (number,)),
                (content[f"{name}/ref.jpg"], store.read_reference, (number,)),
                (number, store.find_image, (name,)),
                (first, store.first_patch, (number,)),
            ]
            for position in range(PATCHES):
                file = f"{position:08d}.png"
                reads.append((content[f"{name}/{file}"], store.read, (first + position,)))
                reads.append((first + position, store.find, (name, file)))
                reads.append(((number, position), store.locate, (first + position,)))
            for expected, read, arguments in reads:
                try:
                    assert read(*arguments) == expected, (read, arguments)
                except StoreError:
                    failed = True
    return failed


def is_sound(store: Path) -> bool:
    """Return whether verify reports no finding."""
    try:
        return verify(store, workers=1).ok
    except StoreError:
        return False


def place(store: Path, number: int, values: list[tuple[Path, int, int]]) -> tuple[Path, int, int]:
    """Return (file, byte, bit) to flip in a run: anywhere, near the end of a file, or at the start of a value."""
    rng = random.Random(number)
    file = rng.choice([store / INDEX_FILE, *shards_of(store)])
    size = file.stat().st_size
    match number % 3:
        case 0:
            position = rng.randrange(size)
        case 1:
            position = rng.randrange(max(0, size - 600), size)
        case _:
            file, start, length = rng.choice(values)
            position = start + rng.randrange(length)
    return file, position, rng.randrange(8)


def test_no_flipped_bit_gives_a_wrong_byte_and_verify_finds_all_that_matter(
    store: Path, content: dict[str, object], runs: Runs
) -> None:
    values = [
        (file, entry.offset - 8, min(entry.length, 60))
        for file in shards_of(store)
        for _, entry in Shard(file).values()
    ]
    assert not fails(store, content)
    assert is_sound(store)

    def flip_and_read(number: int) -> None:
        file, position, bit = place(store, number, values)
        flip(file, position, bit)
        failed = fails(store, content)
        assert not (failed and is_sound(store)), (file.name, position, bit)
        flip(file, position, bit)

    numbers = runs(small=2400, full=100_000)
    each_in_child(flip_and_read, numbers)
    outcomes = set()
    for number in numbers[:60]:  # some of these flips make a read fail, and some do not
        file, position, bit = place(store, number, values)
        flip(file, position, bit)
        outcomes.add(fails(store, content))
        flip(file, position, bit)
    assert outcomes == {False, True}
    assert not fails(store, content)


def test_no_flipped_bit_makes_a_single_shard_give_a_wrong_byte(
    store: Path, content: dict[str, object], runs: Runs
) -> None:
    shard = shards_of(store)[0]
    size = shard.stat().st_size

    def flip_and_read(number: int) -> None:
        rng = random.Random(number)
        position, bit = rng.randrange(size), rng.randrange(8)
        flip(shard, position, bit)
        try:
            with Store(shard) as opened:
                shard_content = content_of(opened)
            assert shard_content.pop("order") == ["a"]
            assert shard_content.items() <= content.items()
        except StoreError:
            pass
        flip(shard, position, bit)

    each_in_child(flip_and_read, runs(small=1000, full=20_000))


def truncate(store: Path, foreign_stores: list[Path], number: int) -> None:
    """Truncate a file: at each page in turn, or anywhere."""
    rng = random.Random(number)
    files = [store / INDEX_FILE, *shards_of(store)]
    pages = [(file, page * 4096) for file in files for page in range(file.stat().st_size // 4096 + 1)]
    file, size = pages[number // 4 % len(pages)]
    if number % 8 >= 4:
        file = rng.choice(files)
        size = rng.randrange(file.stat().st_size)
    with file.open("r+b") as opened:
        opened.truncate(size)


def swap(store: Path, foreign_stores: list[Path], number: int) -> None:
    """Swap the names of two files of the store."""
    rng = random.Random(number)
    first, second = rng.sample([store / INDEX_FILE, *shards_of(store)], 2)
    first.rename(store / "aside")
    second.rename(first)
    (store / "aside").rename(second)


def replace(store: Path, foreign_stores: list[Path], number: int) -> None:
    """Replace a file by a file of a foreign store, or by another file of the same store."""
    rng = random.Random(number)
    file = rng.choice([store / INDEX_FILE, *shards_of(store)])
    sources = [path for folder in (store, *foreign_stores) for path in folder.glob("*.lmdb") if path.name != file.name]
    sources += [folder / file.name for folder in foreign_stores if (folder / file.name).exists()]
    shutil.copy(rng.choice(sources), file)


def overwrite(store: Path, foreign_stores: list[Path], number: int) -> None:
    """Empty a file, or overwrite it or its end with zeros, noise or text, or append noise, or remove its start."""
    rng = random.Random(number)
    file = rng.choice([store / INDEX_FILE, *shards_of(store)])
    data = file.read_bytes()
    size = len(data)
    start = rng.randrange(1, size - 40)
    file.write_bytes(
        rng.choice(
            [
                b"",
                bytes(size),
                rng.randbytes(size),
                b"text" * 100,
                data + rng.randbytes(100),
                data[start:],
                data[:start] + bytes(size - start),
                data[:start] + rng.randbytes(size - start),
            ]
        )
    )


def test_a_cut_emptied_swapped_or_foreign_file_is_an_error_of_ours(
    pristine: Path, tmp_path: Path, content: dict[str, object], foreign_stores: list[Path], runs: Runs
) -> None:
    def damage_and_read(number: int) -> None:
        store = Path(shutil.copytree(pristine, tmp_path / "store.lmdb"))
        [truncate, swap, replace, overwrite][number % 4](store, foreign_stores, number)
        assert fails(store, content)
        assert not is_sound(store)
        for file in store.glob("*.lmdb"):
            try:
                with Store(file) as opened:
                    content_of(opened)
            except StoreError:
                pass
        shutil.rmtree(store)

    each_in_child(damage_and_read, runs(small=320, full=5000))


def flip_some(store: Path, foreign_stores: list[Path], number: int) -> None:
    """Flip one to five bits, in one file or in several."""
    rng = random.Random(number)
    for _ in range(rng.randint(1, 5)):
        file = rng.choice([store / INDEX_FILE, *shards_of(store)])
        flip(file, rng.randrange(file.stat().st_size), rng.randrange(8))


def remove(store: Path, foreign_stores: list[Path], number: int) -> None:
    """Remove a file."""
    random.Random(number).choice([store / INDEX_FILE, *shards_of(store)]).unlink()


def intact_images(path: Path, content: dict[str, object]) -> set[str]:
    """Return the names of the images whose values can all be read."""
    names = set()
    with suppress(StoreError), Store(path, check_shards=False) as store:
        for number in range(store.image_count):
            with suppress(StoreError):
                name = store.image_name(number)
                assert store.read_reference(number) == content[f"{name}/ref.jpg"]
                first = store.first_patch(number)
                for position, file in enumerate(store.image(number).files):
                    assert store.read(first + position) == content[f"{name}/{file}"]
                names.add(name)
    return names


def test_salvage_copies_all_that_can_be_read_and_nothing_wrong(
    pristine: Path, tmp_path: Path, content: dict[str, object], foreign_stores: list[Path], runs: Runs
) -> None:
    damages = [truncate, swap, replace, overwrite, flip_some, remove]

    def damage_and_salvage(number: int) -> None:
        store, new = Path(shutil.copytree(pristine, tmp_path / "store.lmdb")), tmp_path / "new.lmdb"
        applied = [damages[number % 6], damages[number // 6 % 6]][: 1 + number // 36 % 2]
        for position, damage in enumerate(applied):
            with suppress(OSError, ValueError):  # the first damage may have removed or emptied the second one's file
                damage(store, foreign_stores, number // 4 * 4 + position)
        intact = intact_images(store, content)
        try:
            salvage(store, new, workers=1)
        except StoreError:
            assert not intact
        else:
            assert verify(new, workers=1).ok
            with Store(new) as opened:
                salvaged = content_of(opened)
            order = salvaged.pop("order")
            assert isinstance(order, list)
            assert intact <= set(order)
            if replace not in applied:  # a foreign file without its trailer looks like a file of this store
                assert salvaged.items() <= content.items()
            shutil.rmtree(new)
        shutil.rmtree(store)

    each_in_child(damage_and_salvage, runs(small=60, full=5000))
