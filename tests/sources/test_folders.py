"""FolderSource: chunked folders and folders of pictures are listed in order, read, pickled and refused as promised."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from dlas_store.errors import (
    CentersError,
    ClosedError,
    DamagedError,
    ImageError,
    NameNotFoundError,
    NotASourceError,
    PatchIndexError,
)
from dlas_store.sources.base import Center, PickledSubset, Source
from dlas_store.sources.centers import write_centers
from dlas_store.sources.folder import FolderSource, Names
from dlas_store.sources.layouts import ChunkedFolder, PictureFolder
from dlas_store.sources.walk import FolderWalk
from tests.support.file_trees import write
from tests.support.sample_data import DATA

CHUNKED = DATA / "chunked"
KINDS = pytest.mark.parametrize("kind", [ChunkedFolder, PictureFolder])


def picture(*, width: int = 8, height: int = 6, level: int = 0, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    PillowImage.new(mode, (width, height), (level,) * len(mode)).save(file, "PNG")
    return file.getvalue()


def make_tree(root: Path, *files: str) -> Path:
    return write(root, {file: picture(level=number) for number, file in enumerate(files)})


def paths_of(source: FolderSource) -> list[str]:
    images = [source.image(number) for number in range(source.image_count)]
    if source.layout == "pictures":
        return [image.name for image in images]
    return [f"{image.name}/{file}" for image in images for file in image.files]


@pytest.fixture
def chunked(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "data", "a/1.png", "a/2.png", "a/ref.jpg", "b/7.png")


def test_images_come_by_name_and_files_by_code_point(tmp_path: Path) -> None:
    root = make_tree(
        tmp_path, "b/9.jpg", "b/10.jpg", "b/é.png", "b/Z.png", "a/x.WebP", "B/1.bmp", "b/1.jpeg", "b/2.ppm"
    )
    expected = ["B/1.bmp", "a/x.WebP", "b/1.jpeg", "b/10.jpg", "b/2.ppm", "b/9.jpg", "b/Z.png", "b/é.png"]
    assert paths_of(ChunkedFolder(root)) == expected


def test_pictures_come_by_path_at_any_depth(tmp_path: Path) -> None:
    files = ["a/1.png", "a.png", "a-b/1.png", "a/b/c/2.png", "z.JPG", "a b.png", "a/b.png"]
    source = PictureFolder(make_tree(tmp_path, *files))
    assert paths_of(source) == sorted(files)
    assert source.image(0).files == ("a b.png",)
    assert source.find("a/b/c/2.png", "2.png") == paths_of(source).index("a/b/c/2.png")


@settings(max_examples=40)
@given(
    st.sets(
        st.lists(st.text("ab.-é~", min_size=1).filter(lambda name: name.strip(".")), min_size=1, max_size=3).map(
            "/".join
        )
    )
)
def test_picture_order_is_that_of_sorted_paths_for_any_tree(
    tmp_path_factory: pytest.TempPathFactory, paths: set[str]
) -> None:
    files = [f"{path}.png" for path in paths]
    source = PictureFolder(make_tree(tmp_path_factory.mktemp("tree"), *files), include_hidden=True)
    assert paths_of(source) == sorted(files)
    assert [source.find_image(name) for name in sorted(files)] == list(range(len(files)))


def test_only_the_exact_name_is_the_reference(tmp_path: Path) -> None:
    source = ChunkedFolder(make_tree(tmp_path, "a/ref.jpg", "a/REF.JPG", "a/ref.png", "b/1.png"))
    assert paths_of(source) == ["a/REF.JPG", "a/ref.png", "b/1.png"]
    assert source.read_reference(0) == (tmp_path / "a/ref.jpg").read_bytes()
    assert source.read_reference(1) is None


def test_a_chunked_folder_read_as_pictures_gives_its_patches() -> None:
    source = PictureFolder(CHUNKED)
    assert paths_of(source) == paths_of(ChunkedFolder(CHUNKED))
    assert {Path(skipped.path).name for skipped in source.skipped} == {"ref.jpg", "centers.pt"}
    assert (source.image(0).centers, source.read_reference(0)) == (None, None)


@KINDS
def test_bytes_are_those_of_the_file(kind: type[FolderSource]) -> None:
    with kind(CHUNKED) as source:
        for index, path in enumerate(paths_of(source)):
            assert source.read(index) == (CHUNKED / path).read_bytes()
            assert source.patch_path(index) == str(CHUNKED / path)
        assert len(source) == 262


def test_find_and_locate_agree_for_every_patch() -> None:
    source = ChunkedFolder(CHUNKED)
    for number in range(source.image_count):
        image = source.image(number)
        assert source.find_image(image.name) == number
        for position, file in enumerate(image.files):
            index = source.find(image.name, file)
            assert source.locate(index) == (number, position)
            assert index == source.first_patch(number) + position
    assert source.first_patch(source.image_count) == len(source)


@pytest.mark.parametrize(
    ("image", "file"), [("a", "3.png"), ("a", "7.png"), ("c", "1.png"), ("", ""), ("a", "ref.jpg")]
)
def test_unknown_names_are_an_error_that_names_them(chunked: Path, image: str, file: str) -> None:
    with pytest.raises(NameNotFoundError, match=f"{file!r}|{image!r}"):
        ChunkedFolder(chunked).find(image, file)


def test_pixels_come_in_the_order_asked_for(chunked: Path) -> None:
    source = ChunkedFolder(chunked)
    batch = source.read_pixels([2, 0, 2])
    assert isinstance(batch, np.ndarray)
    assert batch.shape == (3, 6, 8, 3)
    assert batch[:, 0, 0, 0].tolist() == [3, 0, 3]
    assert batch.flags.writeable
    assert np.asarray(source.read_pixels([0], alpha=True))[0, 0, 0].tolist() == [0, 0, 0, 255]


def test_pixels_of_different_sizes_come_as_a_list(chunked: Path) -> None:
    (chunked / "a/1.png").write_bytes(picture(width=3))
    pixels = ChunkedFolder(chunked).read_pixels([0, 1])
    assert isinstance(pixels, list)
    assert [array.shape for array in pixels] == [(6, 3, 3), (6, 8, 3)]


def test_a_bad_picture_is_an_error_that_names_its_file(chunked: Path) -> None:
    (chunked / "a/2.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=f"^{chunked}/a/2.png: not a picture"):
        ChunkedFolder(chunked).read_pixels([0, 1])
    with pytest.raises(ImageError, match=f"^{chunked}/a/1.png: 8 x 6 pixels are more than the limit of 47"):
        ChunkedFolder(chunked, max_pixels=47).read_pixels([0])


CALLS: dict[str, Callable[[Source, int], object]] = {
    "read": lambda source, number: source.read(number),
    "read_pixels": lambda source, number: source.read_pixels([0, number]),
    "locate": lambda source, number: source.locate(number),
    "patch_path": lambda source, number: source.patch_path(number),
    "image": lambda source, number: source.image(number),
    "image_name": lambda source, number: source.image_name(number),
    "read_reference": lambda source, number: source.read_reference(number),
    "first_patch": lambda source, number: source.first_patch(number + (number > 0)),
}


@KINDS
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("end", [-1, 0])
def test_numbers_outside_are_an_error(chunked: Path, kind: type[FolderSource], call: str, end: int) -> None:
    source = kind(chunked)
    is_of_images = call in ("image", "image_name", "read_reference", "first_patch")
    count = source.image_count if is_of_images else len(source)
    with pytest.raises(PatchIndexError):
        CALLS[call](source, end or count)


@KINDS
def test_any_use_after_close_is_an_error(chunked: Path, kind: type[FolderSource]) -> None:
    source = kind(chunked)
    source.image(0)
    source.close()
    source.close()
    more_calls: list[Callable[[], object]] = [
        lambda: len(source),
        lambda: source.image_count,
        lambda: source.find_image("a"),
        lambda: source.find("a", "1.png"),
        lambda: list(source.listings()),
        source.__enter__,
    ]
    for call in [*more_calls, *(lambda call=call: call(source, 0) for call in CALLS.values())]:
        with pytest.raises(ClosedError):
            call()


@KINDS
def test_a_source_pickles_as_its_path_and_options(chunked: Path, kind: type[FolderSource]) -> None:
    source = kind(chunked, images=[kind(chunked).image(1).name], max_pixels=47)
    len(source)
    pickled = pickle.dumps(source)
    copy = pickle.loads(pickled)
    assert len(pickled) < 500
    assert paths_of(copy) == paths_of(source)
    with pytest.raises(ImageError, match="limit of 47"):
        copy.read_pixels([0])


@KINDS
def test_a_subset_lists_its_images_only_and_where_it_is_opened(
    chunked: Path, kind: type[FolderSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = kind(chunked, max_pixels=47)
    names = [source.image_name(1)]
    listed_folders: list[str] = []
    entries = FolderWalk.entries

    def recording_entries(walk: FolderWalk, folder: str) -> tuple[list[str], list[str]]:
        listed_folders.append(folder)
        return entries(walk, folder)

    monkeypatch.setattr(FolderWalk, "entries", recording_entries)
    pickled_subset = PickledSubset.of(source, names)
    assert len(pickled_subset.pickled) < 500
    with pickled_subset.open() as subset:
        assert listed_folders == []
        assert [image.name for image in map(subset.image, range(subset.image_count))] == names
        assert listed_folders == (names if kind is ChunkedFolder else [])
        assert subset.max_pixels == 47


def test_a_subset_of_a_folder_that_is_gone_is_an_error_where_it_is_opened(chunked: Path) -> None:
    subset = PickledSubset.of(ChunkedFolder(chunked), ["a"])
    chunked.rename(chunked.with_name("gone"))
    with pytest.raises(NotASourceError, match="not a folder"):
        subset.open()


def test_threads_share_one_scan() -> None:
    source = ChunkedFolder(CHUNKED)
    with ThreadPoolExecutor(16) as pool:
        sums = list(pool.map(lambda number: hash(source.read(number % len(source))), range(1048)))
    assert sums[:262] * 4 == sums
    assert source.skipped == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_source_opened_before_a_fork_works_in_the_child(chunked: Path) -> None:
    source = ChunkedFolder(chunked)
    source.read(0)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(source.read, range(3)) == [source.read(index) for index in range(3)]


def test_numbers_stay_as_first_listed_while_listings_walk_anew(chunked: Path) -> None:
    source = ChunkedFolder(chunked)
    assert len(source) == 3
    make_tree(chunked, "a/0.png")
    assert source.read(0) == (chunked / "a/1.png").read_bytes()
    assert next(source.listings()).files == ("0.png", "1.png", "2.png")


def test_listings_give_names_and_sizes() -> None:
    source = ChunkedFolder(CHUNKED)
    for number, listing in enumerate(source.listings()):
        image = source.image(number)
        assert (listing.name, listing.files) == (image.name, image.files)
        assert listing.sizes.tolist() == [(CHUNKED / image.name / file).stat().st_size for file in image.files]
        assert listing.reference_size == (CHUNKED / image.name / "ref.jpg").stat().st_size
    for picture_listing in PictureFolder(CHUNKED).listings():
        assert picture_listing.total_bytes == (CHUNKED / picture_listing.name).stat().st_size


def test_images_restricts_to_those_in_order(chunked: Path) -> None:
    make_tree(chunked, "c/1.png")
    source = ChunkedFolder(chunked, images=("b", "a"))
    assert paths_of(source) == ["a/1.png", "a/2.png", "b/7.png"]
    assert source.find("b", "7.png") == 2
    assert paths_of(PictureFolder(chunked, images=("b/7.png", "a/1.png"))) == ["a/1.png", "b/7.png"]
    (chunked / "stray.txt").touch()
    assert len(ChunkedFolder(chunked, images=("a",))) == 2
    with pytest.raises(NotASourceError, match="gone"):
        len(ChunkedFolder(chunked, images=("gone",)))
    with pytest.raises(NotASourceError, match="gone"):
        len(PictureFolder(chunked, images=("gone.png",)))


def test_centers_belong_to_the_number_in_the_name(chunked: Path) -> None:
    centers = {2: Center(3, 4, 5), 99: Center(6, 7, 8)}
    (chunked / "a/centers.pt").write_bytes(write_centers(centers))
    source = ChunkedFolder(chunked)
    assert source.image(0).centers == centers
    assert [source.image(0).center_of(position) for position in range(2)] == [None, Center(3, 4, 5)]
    assert source.image(1).centers is None
    assert source.image(0) is source.image(0)


def test_damaged_centers_are_an_error_that_names_the_file(chunked: Path) -> None:
    (chunked / "a/centers.pt").write_bytes(b"PK")
    with pytest.raises(CentersError, match=f"{chunked}/a/centers.pt"):
        ChunkedFolder(chunked).image(0)
    image = ChunkedFolder(chunked).image_without_centers(0)
    assert (image.name, image.files, image.centers) == ("a", ("1.png", "2.png"), None)


@pytest.mark.parametrize("file", ["a/1.png", "a/ref.jpg"])
def test_a_file_that_goes_is_an_error_that_names_it(chunked: Path, file: str) -> None:
    source = ChunkedFolder(chunked)
    listings = source.listings()
    assert len(source) == 3
    (chunked / file).unlink()
    with pytest.raises(DamagedError, match=f"{chunked}/{file}: cannot be read .No such file"):
        source.read_reference(0) if file.endswith("ref.jpg") else source.read(0)
    assert len(list(listings)) == 2


@KINDS
def test_a_path_that_is_no_folder_is_an_error(chunked: Path, kind: type[FolderSource]) -> None:
    for path in (chunked / "a/1.png", chunked / "nowhere"):
        with pytest.raises(NotASourceError, match="not a folder"):
            kind(path)


def test_names_cost_little_more_than_their_bytes() -> None:
    tracemalloc.start()
    try:
        names = Names()
        for number in range(100_000):
            names.append(f"{number:08d}.jpg")
        traced_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert names[99_999] == "00099999.jpg"
    assert traced_bytes < 100_000 * 28
