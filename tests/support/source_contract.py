"""SourceContract, the tests of the promises of Source; the tests of each kind of source subclass it."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image as PillowImage

from dlas_store.errors import ClosedError, NameNotFoundError, PatchIndexError
from dlas_store.sources.base import Center, Layout, PickledSubset, Source
from dlas_store.sources.centers import write_centers
from tests.support.sample_data import Array, noise, png
from tests.support.small_stores import NOBODY, content_of, in_child, public_folder, state_of

CENTERS = {0: Center(1, 2, 16), 3: Center(5, 6, 16), 77: Center(0, 0, 1)}


class RawPatch(NamedTuple):
    """A patch file in the folder, read without the API under test."""

    image: str
    file: str
    data: bytes


def write_folder(root: Path) -> Path:
    """Write a chunked folder with formats, sizes and names that sources must cope with."""
    files = {
        "b same size/00000003.jpg": jpeg(noise(16, 16, seed=1)),
        "b same size/00000000.jpg": jpeg(noise(16, 16, seed=2)),
        "b same size/10.png": png(noise(16, 16, seed=3)),
        "b same size/9.png": png(noise(16, 16, seed=4)),
        "b same size/ref.jpg": jpeg(noise(24, 24)),
        "b same size/centers.pt": write_centers(CENTERS),
        "a/1.png": png(noise(5, 9, seed=5)),
        "a/01.png": png(noise(40, 50, seed=6)),
        "a/alpha.png": png(noise(8, 8, seed=7)[:, :, [0, 1, 2, 0]]),
        "a/ref.jpg": png(noise(7, 7)),
        "é 日本/🙂.png": png(noise(3, 3, seed=8)),
        "é 日本/2.JPG": jpeg(noise(64, 64, seed=9)),
        "é 日本/cmyk.jpg": cmyk(noise(24, 20, seed=10)),
        "é 日本/deep.png": png16(noise(6, 10, seed=11)),
        "é 日本/grey.jpg": jpeg(noise(18, 17, seed=12)[..., 0]),
    }
    for file, data in files.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def jpeg(pixels: Array, **options: Any) -> bytes:
    """Return a JPEG; the options are Pillow's."""
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, "JPEG", **{"quality": 95, **options})
    return buffer.getvalue()


def cmyk(pixels: Array) -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).convert("CMYK").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def png16(pixels: Array) -> bytes:
    """Return uint8 pixels as a PNG of 16 bits a channel, with all values multiplied by 257."""
    import cv2

    return bytes(cv2.imencode(".png", pixels[..., ::-1].astype(np.uint16) * 257)[1])


def raw_patches(folder: Path, layout: Layout) -> list[RawPatch]:
    """Return the patches of a folder, sorted by path; of a chunked folder sorted by image name, then file name."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg")]
    paths = [path for path in paths if path.name != "ref.jpg"]
    if layout == "chunked":
        paths.sort(key=lambda path: path.parts)
        return [RawPatch(path.parts[0], path.name, (folder / path).read_bytes()) for path in paths]
    return [RawPatch(str(path), path.name, (folder / path).read_bytes()) for path in sorted(paths, key=str)]


def send_content(source: Source, connection: Connection) -> None:
    """Send the content of a source to the parent process; runs in a child process."""
    connection.send(content_of(source))


def content_in_child(source: Source, method: str) -> object:
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_content, args=(source, sender))  # type: ignore[attr-defined]
    process.start()
    sender.close()
    content = receiver.recv()
    process.join()
    assert process.exitcode == 0
    return content


CALLS: dict[str, Callable[[Source, int], object]] = {
    "read": lambda source, number: source.read(number),
    "view": lambda source, number: bytes(source.view(number)),
    "read_pixels": lambda source, number: source.read_pixels([number]),
    "decode_into": lambda source, number: source.decode_into(number, np.empty((16, 16, 3), np.uint8)),
    "decode_many_into": lambda source, number: source.decode_many_into([number], [np.empty((16, 16, 3), np.uint8)]),
    "header_size": lambda source, number: source.header_size(number),
    "locate": lambda source, number: source.locate(number),
    "image": lambda source, number: source.image(number),
    "first_patch": lambda source, number: source.first_patch(number),
    "read_reference": lambda source, number: source.read_reference(number),
}

USES: dict[str, Callable[[Source], object]] = {
    **{name: lambda source, call=call: call(source, 0) for name, call in CALLS.items()},  # type: ignore[misc]
    "len": len,
    "image_count": lambda source: source.image_count,
    "find": lambda source: source.find("a", "1.png"),
    "find_image": lambda source: source.find_image("a"),
    "listings": lambda source: list(source.listings()),
    "subset": lambda source: source.subset([]),
    "prefetch": lambda source: source.prefetch([0]),
    "with": lambda source: source.__enter__(),
}


class SourceContract(ABC):
    """Tests of a source of write_folder's files; a subclass makes and opens the source."""

    layout: Layout = "chunked"

    @classmethod
    @abstractmethod
    def make(cls, folder: Path, scratch: Path) -> Path:
        """Write the data of the source, such as a store of a folder, into the empty folder ``scratch``.

        Returns:
            The path of the data, for open(). A source of the folder itself returns the folder.
        """

    @abstractmethod
    def open(self, path: Path) -> Source:
        """Open the source at the path that make() returned."""

    @classmethod
    def expected(cls, folder: Path) -> list[RawPatch]:
        """Return the patches in the order of the source."""
        return raw_patches(folder, cls.layout)

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_folder(tmp_path_factory.mktemp("contract") / "source")

    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, folder: Path) -> Path:
        (folder.parent / "scratch").mkdir()
        return cls.make(folder, folder.parent / "scratch")

    @pytest.fixture(scope="class")
    @classmethod
    def raw(cls, folder: Path, path: Path) -> list[RawPatch]:
        return cls.expected(folder)

    @pytest.fixture
    def source(self, path: Path) -> Iterator[Source]:
        with self.open(path) as source:
            yield source

    def test_bytes_and_order_are_those_of_the_files(self, source: Source, raw: list[RawPatch]) -> None:
        assert source.layout == self.layout
        assert len(source) == len(raw)
        assert [source.read(index) for index in range(len(source))] == [patch.data for patch in raw]
        images = [source.image(number) for number in range(source.image_count)]
        assert [(image.name, file) for image in images for file in image.files] == [patch[:2] for patch in raw]

    def test_references_are_those_of_the_files(self, source: Source, folder: Path) -> None:
        for number in range(source.image_count):
            image = source.image(number)
            file = folder / image.name / "ref.jpg"
            has_reference = self.layout == "chunked" and file.exists()
            assert source.read_reference(number) == (file.read_bytes() if has_reference else None)
            assert image.has_reference == has_reference

    def test_centers_are_those_of_the_files(self, source: Source) -> None:
        for number in range(source.image_count):
            image = source.image(number)
            has_centers = image.name == "b same size"
            assert (None if image.centers is None else dict(image.centers)) == (CENTERS if has_centers else None)
            if has_centers:
                assert [image.center_of(position) for position in range(4)] == [CENTERS[0], CENTERS[3], None, None]

    def test_pixels_are_those_that_another_decoder_gives(self, source: Source, raw: list[RawPatch]) -> None:
        for index, patch in enumerate(raw):
            (pixels,) = source.read_pixels([index])
            expected = np.asarray(PillowImage.open(io.BytesIO(patch.data)).convert("RGB"))
            assert pixels.dtype == np.uint8
            assert pixels.shape == expected.shape
            assert np.abs(pixels.astype(int) - expected).max() <= 2  # two decoders of JPEG may round differently

    def test_pixels_of_one_size_are_one_array_in_the_order_asked_for(self, source: Source, raw: list[RawPatch]) -> None:
        same_size = [index for index, patch in enumerate(raw) if patch.image.startswith("b same size")]
        indices = [same_size[3], same_size[0], same_size[0], same_size[2]]
        batch = source.read_pixels(indices)
        assert isinstance(batch, np.ndarray)
        assert batch.shape == (4, 16, 16, 3)
        for pixels, index in zip(batch, indices, strict=True):
            assert np.array_equal(pixels, source.read_pixels([index])[0])
        batch[:] = 0  # the arrays belong to the caller
        assert source.read_pixels(indices)[0].any()

    def test_pixels_of_several_sizes_are_a_list(self, source: Source, raw: list[RawPatch]) -> None:
        batch = source.read_pixels(range(len(raw)))
        assert isinstance(batch, list)
        assert len(batch) == len(raw)
        assert all(pixels.ndim == 3 and pixels.shape[2] == 3 for pixels in batch)

    def test_no_indices_give_an_empty_list(self, source: Source) -> None:
        assert source.read_pixels([]) == []

    def test_views_are_the_bytes_of_the_files(self, source: Source, raw: list[RawPatch]) -> None:
        views = [source.view(index) for index in range(len(source))]
        assert [bytes(view) for view in views] == [patch.data for patch in raw]
        assert [len(view) for view in views] == [len(patch.data) for patch in raw]
        assert all(not isinstance(view, memoryview) or view.readonly for view in views)

    def test_views_stay_after_close(self, path: Path, raw: list[RawPatch]) -> None:
        source = self.open(path)
        views = [source.view(index) for index in range(len(source))]
        source.close()
        assert [bytes(view) for view in views] == [patch.data for patch in raw]
        with self.open(path) as reopened:
            views += [reopened.view(index) for index in range(len(reopened))]
        assert [bytes(view) for view in views] == [patch.data for patch in raw] * 2

    def test_a_patch_is_decoded_into_an_array_of_its_size(self, source: Source) -> None:
        for index in range(len(source)):
            expected = source.read_pixels([index])[0]
            rows = np.full((3, *expected.shape), 77, np.uint8)
            out = rows[1]
            assert source.decode_into(index, out) is out
            assert np.array_equal(out, expected)
            assert (rows[[0, 2]] == 77).all()

    @pytest.mark.parametrize("grown", [(-1, 0), (0, -1), (1, 0), (0, 1), (5, 5), (-1, -1), (100, 100)])
    def test_an_array_of_another_size_gets_nothing_written_beside_it(
        self, source: Source, grown: tuple[int, int]
    ) -> None:
        for index in range(len(source)):
            expected = source.read_pixels([index])[0]
            height, width = (max(1, side + growth) for side, growth in zip(expected.shape, grown, strict=False))
            rows = np.full((3, height, width, 3), 77, np.uint8)
            pixels = source.decode_into(index, rows[1])
            assert np.array_equal(pixels, expected)
            assert not np.shares_memory(pixels, rows)
            assert (rows[[0, 2]] == 77).all()

    def test_an_array_of_turned_sides_or_as_many_pixels_is_of_another_size(
        self, source: Source, raw: list[RawPatch]
    ) -> None:
        index = [patch.file for patch in raw].index("1.png")  # 5 x 9
        expected = source.read_pixels([index])[0]
        for shape in ((9, 5, 3), (15, 3, 3), (1, 45, 3)):
            assert np.array_equal(source.decode_into(index, np.empty(shape, np.uint8)), expected)
        index = [patch.file for patch in raw].index("00000003.jpg")  # 16 x 16
        expected = source.read_pixels([index])[0]
        for shape in ((8, 32, 3), (32, 8, 3), (1, 256, 3)):
            assert np.array_equal(source.decode_into(index, np.empty(shape, np.uint8)), expected)

    def test_patches_are_decoded_each_into_its_array_or_a_new_one(self, source: Source) -> None:
        expected = [source.read_pixels([index])[0] for index in range(len(source))]
        for indices in ([], [0], [1, 0, 0], list(range(len(source))), list(range(len(source)))[::-1]):
            for other_size in (None, *range(len(indices))):  # the position of an array of another size
                outs = [np.full_like(expected[index], 77) for index in indices]
                if other_size is not None:
                    outs[other_size] = np.full((100, 100, 3), 77, np.uint8)
                decoded = source.decode_many_into(indices, list(outs))
                assert len(decoded) == len(indices)
                for position, (pixels, out) in enumerate(zip(decoded, outs, strict=True)):
                    assert np.array_equal(pixels, expected[indices[position]])
                    assert (pixels is out) == (position != other_size)

    def test_as_many_arrays_as_patches_are_needed(self, source: Source) -> None:
        out = np.empty((16, 16, 3), np.uint8)
        for indices, outs in (([0], []), ([], [out]), ([0, 0], [out]), ([0], [out, out])):
            with pytest.raises(ValueError, match=r"shorter|longer"):
                source.decode_many_into(indices, outs)  # type: ignore[arg-type]

    def test_the_size_that_a_patch_claims_is_that_of_its_pixels(self, source: Source) -> None:
        for index in range(len(source)):
            assert tuple(source.header_size(index)) == source.read_pixels([index])[0].shape[:2]

    def test_threads_decode_into_their_own_arrays(self, source: Source) -> None:
        expected = source.read_pixels(range(len(source)))

        def read(index: int) -> bool:
            out = np.empty_like(expected[index])
            return source.decode_into(index, out) is out and np.array_equal(out, expected[index])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, list(range(len(source))) * 20))

    def test_announcing_patches_changes_nothing(self, source: Source, raw: list[RawPatch]) -> None:
        patches = range(len(source))
        for indices in ([], [0], [len(source) - 1], patches, [0, 0, len(source) - 1, 0], list(patches)[::-1]):
            source.prefetch(indices)
        assert [source.read(index) for index in patches] == [patch.data for patch in raw]

    def test_alpha_is_kept_only_when_asked_for(self, source: Source, raw: list[RawPatch]) -> None:
        (index,) = (index for index, patch in enumerate(raw) if patch.file == "alpha.png")
        opaque = 0 if index else 1
        rgba = np.asarray(PillowImage.open(io.BytesIO(raw[index].data)))
        assert np.array_equal(source.read_pixels([index], alpha=True)[0], rgba)
        assert np.array_equal(source.read_pixels([index])[0], rgba[:, :, :3])
        with_alpha = source.read_pixels([opaque], alpha=True)[0]
        assert (with_alpha[:, :, 3] == 255).all()
        assert np.array_equal(with_alpha[:, :, :3], source.read_pixels([opaque])[0])

    def test_locate_first_patch_and_find_are_inverse(self, source: Source, raw: list[RawPatch]) -> None:
        for index, patch in enumerate(raw):
            number, position = source.locate(index)
            assert source.find_image(patch.image) == number
            assert source.first_patch(number) + position == index
            assert source.find(patch.image, patch.file) == index
            assert source.image(number).files[position] == patch.file
        firsts = [source.first_patch(number) for number in range(source.image_count + 1)]
        assert firsts == sorted(set(firsts))
        assert (firsts[0], firsts[-1]) == (0, len(source))

    @pytest.mark.parametrize("name", CALLS)
    def test_numbers_outside_are_an_error(self, source: Source, name: str) -> None:
        takes_image = name in ("image", "first_patch", "read_reference")
        end = source.image_count if takes_image else len(source)
        for number in (-1, -end, end + (name == "first_patch"), end + 1000, 1 << 70, -(1 << 70)):
            with pytest.raises(PatchIndexError, match=str(number)):
                CALLS[name](source, number)

    @pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint64, np.int16, np.uint8, np.int8, bool])
    def test_integers_of_every_type_work(self, source: Source, kind: Callable[[int], int]) -> None:
        for number in [0, 1] if kind is bool else range(source.image_count):
            for name, call in CALLS.items():
                value, expected = call(source, kind(number)), call(source, number)
                if name == "image":
                    assert value.name == expected.name  # type: ignore[attr-defined]
                else:
                    assert np.array_equal(value, expected)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("image", "file"), [("no such", "1.png"), ("", ""), ("\udcff", "1.png"), ("A", "1.png"), (None, "no such.png")]
    )
    def test_unknown_names_are_an_error_that_names_them(
        self, source: Source, raw: list[RawPatch], image: str | None, file: str
    ) -> None:
        if image is not None:
            with pytest.raises(NameNotFoundError):
                source.find_image(image)
        with pytest.raises(NameNotFoundError):
            source.find(raw[0].image if image is None else image, file)

    def test_listings_name_every_file_and_its_size(self, source: Source, raw: list[RawPatch]) -> None:
        listings = list(source.listings())
        files = [(listing.name, file) for listing in listings for file in listing.files]
        assert files == [patch[:2] for patch in raw]
        sizes = [size for listing in listings for size in listing.sizes.tolist()]
        assert sizes == [len(patch.data) for patch in raw]
        for number, listing in enumerate(listings):
            reference = source.read_reference(number)
            assert listing.reference_size == (None if reference is None else len(reference))

    @pytest.mark.parametrize("use", USES)
    def test_any_use_after_close_is_an_error_that_names_the_source(self, path: Path, use: str) -> None:
        source = self.open(path)
        source.read(0)
        source.image(0)
        source.close()
        source.close()
        with pytest.raises(ClosedError, match=path.parent.name):
            USES[use](source)

    def test_leaving_a_with_block_closes(self, path: Path) -> None:
        with self.open(path) as source:
            assert source.read(0)
        with pytest.raises(ClosedError):
            source.read(0)

    def test_eight_threads_read_the_same(self, path: Path) -> None:
        with self.open(path) as source, ThreadPoolExecutor(8) as pool:
            start = threading.Barrier(8)

            def read(seed: int) -> list[tuple[int, bytes]]:
                start.wait()
                order = np.random.default_rng(seed).permutation(len(source)).tolist() * 5
                return [(index, source.read(source.find(*self._names(source, index)))) for index in order]

            contents = [dict(content) for content in pool.map(read, range(8))]
            assert contents == [{index: source.read(index) for index in range(len(source))}] * 8

    @staticmethod
    def _names(source: Source, index: int) -> tuple[str, str]:
        number, position = source.locate(index)
        image = source.image(number)
        return image.name, image.files[position]

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_an_open_source_works_in_a_child_process(self, source: Source, method: str) -> None:
        expected = content_of(source)
        assert content_in_child(source, method) == expected
        assert content_of(source) == expected

    def test_a_source_pickles_as_path_and_options(self, source: Source) -> None:
        pickled = pickle.dumps(source)
        expected = content_of(source)
        assert len(pickle.dumps(source)) == len(pickled)  # a pickle holds nothing that was read
        with pickle.loads(pickled) as copy:
            assert content_of(copy) == expected
            assert copy.path == source.path

    def test_a_subset_has_its_images_in_another_process_too(self, source: Source) -> None:
        expected = content_of(source)
        names = [source.image_name(number) for number in range(source.image_count)]
        for subset_names in ([names[-1]], names[::-1], [names[0], names[-1]]):
            with PickledSubset.of(source, subset_names).open() as subset:
                content = content_of(subset)
                files = [key for key in expected if key.startswith(tuple(f"{name}/" for name in subset_names))]
                assert files
                for key in [*subset_names, *files]:
                    assert content[key] == expected[key]
                assert (subset.path, subset.layout) == (source.path, source.layout)
                assert (subset.decoder, subset.max_pixels) == (source.decoder, source.max_pixels)
        assert content_of(source) == expected

    def test_reading_leaves_no_trace(self, path: Path, folder: Path) -> None:
        before = state_of(folder.parent)
        with self.open(path) as source:
            content_of(source)
            source.read_pixels([0])
            assert state_of(folder.parent) == before
        assert state_of(folder.parent) == before

    @pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no users to switch to")
    def test_read_only_files_are_enough(self) -> None:
        with public_folder() as public:
            folder = write_folder(public / "source")
            (public / "scratch").mkdir()
            path = self.make(folder, public / "scratch")
            files = [*public.rglob("*"), public]
            for file in files:
                file.chmod(0o555 if file.is_dir() else 0o444)
            with self.open(path) as source:
                expected = content_of(source)

            def read() -> None:
                with pytest.raises(PermissionError):
                    (path if path.is_dir() else path.parent).joinpath("new").touch()
                with self.open(path) as source:
                    assert content_of(source) == expected

            code = in_child(read, user=NOBODY)
            for file in files:
                file.chmod(0o755)
            assert code == 0
