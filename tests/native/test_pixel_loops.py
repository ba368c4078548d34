"""pixel_loops: its values equal those of OpenCV and NumPy in each case that it accepts; any other case is an error."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("dlas_store._native.pixel_loops", reason="installed without a C compiler")

from dlas_store._native import pixel_loops
from dlas_store.datasets import create_dataset
from dlas_store.datasets.references import Reference, write_reference
from dlas_store.sources.base import Center
from dlas_store.transforms import resize
from dlas_store.transforms.resize import Chw, split_channels, to_chw_float, write_chw
from tests.conftest import MakeImage
from tests.support.sample_data import ROOT, noise

CLOSE = {"rtol": 0, "atol": 3e-7}
"""Tolerance between a sum of bytes divided once and an average of averages, in float32."""


@pytest.fixture
def without_loops(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that calls a function as if the extension were missing."""

    def call(function: Any, *args: Any, **options: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(resize, "pixel_loops", None)
            return function(*args, **options)

    return call


def filled(*shape: int) -> Chw:
    """Return an array of NaN, so that a test sees each value that was not written."""
    return np.full(shape, np.nan, np.float32)


@pytest.mark.parametrize(
    ("height", "width", "factors"),
    [
        (16, 16, (1, 4)),
        (256, 256, (1, 4)),
        (16, 48, (2, 8)),
        (48, 16, (4, 16)),
        (64, 32, (1, 32)),
        (30, 45, (1, 3)),
        (30, 60, (5, 15)),
        (7, 5, (1, 1)),
        (257, 257, (1, 257)),
        (24, 24, (6, 12)),
        (17, 31, (1,)),
        (32, 32, (8,)),
    ],
)
def test_pixels_are_averaged_as_opencv_does(
    without_loops: Any, height: int, width: int, factors: tuple[int, ...]
) -> None:
    pixels = noise(height, width)
    out, expected = ([filled(3, height // factor, width // factor) for factor in factors] for _ in range(2))
    assert resize.loops_for((height, width), *out) is pixel_loops
    write_chw(pixels, *out)
    without_loops(write_chw, pixels, *expected)
    for factor, actual, desired in zip(factors, out, expected, strict=True):
        np.testing.assert_allclose(actual, desired, **(CLOSE if factor < 100 else {"rtol": 0, "atol": 3e-6}))
        if factor == 1:
            np.testing.assert_array_equal(actual, pixels.transpose(2, 0, 1) / np.float32(255))


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("factor", [1, 4, 5, 16, 32, 257])
def test_white_is_one_and_black_is_zero(value: int, factor: int) -> None:
    out = filled(3, 2, 2)
    pixel_loops.write_pixels(np.full((2 * factor, 2 * factor, 3), value, np.uint8), out)
    assert (out == (value == 255)).all()


@pytest.mark.parametrize(("hq", "lq"), [((10, 10), (5, 5)), ((16, 16), (6, 6)), ((16, 8), (4, 4)), ((32, 32), (8, 8))])
def test_sizes_that_are_no_whole_factors_are_left_to_opencv(hq: tuple[int, int], lq: tuple[int, int]) -> None:
    out = filled(3, *hq), filled(3, *lq)
    assert resize.loops_for((16, 16), *out) is None
    write_chw(noise(16, 16), *out)
    assert all(((array >= 0) & (array <= 1)).all() for array in out)


def test_pixels_that_are_not_contiguous_or_have_alpha_become_the_same_planes() -> None:
    pixels = noise(12, 20)
    np.testing.assert_array_equal(to_chw_float(pixels[:, ::-1]), to_chw_float(pixels)[:, :, ::-1])
    with_alpha = np.dstack([pixels, pixels[:, :, :1]])
    np.testing.assert_array_equal(to_chw_float(with_alpha)[:3], to_chw_float(pixels))


@pytest.mark.parametrize(
    "square",
    [
        Center(16, 16, 8),
        Center(9, 21, 7),
        Center(0, 31, 10),
        Center(-9, 10, 8),
        Center(16, 16, 99),
        Center(40, 40, 8),
        Center(5, 5, 0),
        Center(13, 11, 1),
    ],
)
@pytest.mark.parametrize(
    "sides",  # of patch, target, HQ, LQ
    [
        (32, 32, 32, 8),
        (32, 32, 32, 32),
        (32, 16, 16, 4),
        (32, 32, 30, 10),
        (32, 24, 24, 6),
        (32, 24, 20, 10),
        (64, 32, 24, 8),
    ],
)
@pytest.mark.parametrize("as_bytes", [True, False])
def test_references_and_masks_are_those_of_opencv(
    without_loops: Any, square: Center, sides: tuple[int, int, int, int], as_bytes: bool
) -> None:
    patch, target, hq, lq = sides
    large_chw, small_chw = to_chw_float(noise(hq, hq)), to_chw_float(noise(lq, lq))
    reference = Reference((hq, hq), split_channels(noise(hq, hq)) if as_bytes else large_chw, small_chw)
    out, expected = ((filled(4, hq, hq), filled(4, lq, lq)) for _ in range(2))
    for call, (large, small) in ((lambda f, *a, **o: f(*a, **o), out), (without_loops, expected)):
        call(write_reference, reference, square, size=(patch, patch), target=(target, target), hq=large, lq=small)
    for actual, desired, chw in zip(out, expected, (large_chw, small_chw), strict=True):
        np.testing.assert_array_equal(actual[:3], chw)
        np.testing.assert_allclose(actual, desired, **CLOSE)


def build_for_fma(folder: Path, flags: list[str]) -> ModuleType:
    """Build the extension for processors that multiply and add in one instruction."""
    if platform.machine() != "x86_64" or " fma " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no fused multiplication and addition of x86-64")
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    target = folder / "pixel_loops.so"
    source = ROOT / "dlas_store" / "_native" / "pixel_loops.c"
    include = f"-I{sysconfig.get_path('include')}"
    command = ["cc", *flags, "-march=haswell", "-shared", "-fPIC", include, "-o", target, source]
    subprocess.run(command, check=True)
    loader = ExtensionFileLoader("pixel_loops", str(target))
    spec = spec_from_loader("pixel_loops", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def write_masks(loops: ModuleType) -> list[Chw]:
    """Return planes and masks of many boxes: their edges lie in the middle of pixels."""
    result = []
    for number in range(1, 60):
        pixels, hq, lq = noise(63, 63, seed=number), filled(4, 63, 63), filled(4, 21, 21)
        box = (number % 7, 63 - number % 11, number % 5, 63 - number % 13)
        loops.write_reference(split_channels(pixels), to_chw_float(noise(21, 21)), box, number / 61, (63, 63), hq, lq)
        result += [hq, lq]
    return result


def test_masks_are_equal_on_processors_that_fuse_multiplication_and_addition(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    modules = project["tool"]["setuptools"]["ext-modules"]
    assert all("-ffp-contract=off" in module["extra-compile-args"] for module in modules)
    flags = modules[0]["extra-compile-args"]
    for actual, expected in zip(write_masks(build_for_fma(tmp_path, flags)), write_masks(pixel_loops), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_a_dataset_gives_the_same_without_them(without_loops: Any, make_image: MakeImage) -> None:
    patches = {f"{number}.jpg": noise(32, 32, seed=number) for number in range(4)}
    folder = make_image("a", patches, reference=noise(32, 32, seed=9), centers={n: ((9, 7 + n), 12) for n in range(4)})
    options = {"mode": "single_image_extensible", "paths": folder, "target_size": 16, "scale": 2}
    options |= {"need_ref": True, "strict": True}
    item = create_dataset(options)[2]
    expected = without_loops(lambda: create_dataset(options)[2])
    for key in ("hq", "lq", "gt_fullsize_ref", "lq_fullsize_ref"):
        np.testing.assert_allclose(item[key], expected[key], **CLOSE)


@pytest.mark.parametrize("start", range(4))
@pytest.mark.parametrize(("height", "width"), [(256, 256), (192, 190), (183, 181), (200, 193)])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_large_planes_are_the_same_wherever_they_begin(height: int, width: int, start: int, as_bytes: bool) -> None:
    """Large channels are written with non-temporal stores if their alignment allows that."""
    assert height * width * np.dtype(np.float32).itemsize >= 1 << 17, (
        "smaller channels are not written with non-temporal stores"
    )
    size = 4 * height * width
    memory = np.full(4 + size, 7, np.float32)
    chw = memory[start : start + size].reshape(4, height, width)
    pixels = noise(height, width)
    pixel_loops.write_pixels(pixels, chw[:3])
    np.testing.assert_array_equal(chw[:3], pixels.transpose(2, 0, 1) / np.float32(255))
    assert (chw[3] == 7).all()
    chw[:3] = 7
    box = (10, height, 0, width - 20)
    channels = split_channels(noise(height, width, seed=2))
    reference = channels if as_bytes else channels / np.float32(255)
    pixel_loops.write_reference(
        reference, to_chw_float(pixels), box, 0.5, (height, width), chw, filled(4, height, width)
    )
    np.testing.assert_array_equal(chw[:3], channels / np.float32(255))
    assert (chw[3, 10:, : width - 20] == 1).all()
    assert (chw[3, :10] == 0.5).all()
    assert (chw[3, :, width - 20 :] == 0.5).all()
    assert (memory[:start] == 7).all()
    assert (memory[start + size :] == 7).all()


@pytest.mark.parametrize(("side", "factor"), [(1, 1), (5, 1), (17, 1), (33, 3), (64, 4), (160, 32), (200, 1)])
def test_nothing_is_written_beside_the_arrays(side: int, factor: int) -> None:
    hq, lq = (np.full((3, 4, size, size), 7, np.float32) for size in (side, side // factor))
    pixel_loops.write_pixels(noise(side, side), hq[1, :3], lq[1, :3])
    assert all((array == 7).all() for array in (hq[1, 3], lq[1, 3]))
    reference = split_channels(noise(side, side))
    pixel_loops.write_reference(reference, lq[0, :3], (0, side, 0, side), 0.1, (side, side), hq[1], lq[1])
    assert all((array == 7).all() for array in (hq[[0, 2]], lq[[0, 2]]))


def test_threads_that_use_them_at_the_same_time_do_not_mix() -> None:
    pictures = [noise(64, 64, seed=number) for number in range(8)]
    expected = [picture.transpose(2, 0, 1) / np.float32(255) for picture in pictures]

    def check(number: int) -> bool:
        return all((to_chw_float(pictures[number]) == expected[number]).all() for _ in range(200))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(8)))


PIXELS = np.zeros((8, 8, 3), np.uint8)
HQ, LQ = np.zeros((3, 8, 8), np.float32), np.zeros((3, 4, 4), np.float32)


def read_only(array: Any) -> Any:
    """Return a read-only copy."""
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((PIXELS,), TypeError),
        ((PIXELS, HQ, LQ, LQ), TypeError),
        ((None, HQ), TypeError),
        ((PIXELS.astype(np.int8), HQ), ValueError),
        ((PIXELS.astype(np.uint16), HQ), ValueError),
        ((PIXELS[0], HQ), ValueError),
        ((PIXELS[:, ::2], HQ), ValueError),
        ((np.zeros((8, 8, 4), np.uint8), HQ), ValueError),
        ((np.zeros((0, 0, 3), np.uint8), np.zeros((3, 0, 0), np.float32)), ValueError),
        ((PIXELS, HQ.astype(np.float64)), ValueError),
        ((PIXELS, HQ.astype(">f4")), ValueError),
        ((PIXELS, read_only(HQ)), ValueError),
        ((PIXELS, HQ[:, :, ::2]), ValueError),
        ((PIXELS, np.zeros((4, 8, 8), np.float32)), ValueError),
        ((PIXELS, HQ, np.zeros((3, 3, 3), np.float32)), ValueError),
        ((PIXELS, HQ, np.zeros((3, 4, 2), np.float32)), ValueError),
        ((PIXELS, HQ, np.zeros((3, 16, 16), np.float32)), ValueError),
        ((np.zeros((516, 516, 3), np.uint8), np.zeros((3, 2, 2), np.float32)), ValueError),
    ],
)
def test_pixels_that_they_cannot_take_are_an_error(args: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        pixel_loops.write_pixels(*args)


REFERENCE = np.zeros((3, 8, 8), np.uint8)
HQ4, LQ4 = np.zeros((4, 8, 8), np.float32), np.zeros((4, 4, 4), np.float32)
BOX = (0, 8, 0, 8)


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((REFERENCE, LQ, BOX, 0.1, (8, 8), HQ4), TypeError),
        ((REFERENCE, LQ, BOX[:3], 0.1, (8, 8), HQ4, LQ4), TypeError),
        ((REFERENCE, HQ, BOX, 0.1, (8, 8), HQ4, LQ4), ValueError),
        ((REFERENCE, LQ.astype(np.uint8), BOX, 0.1, (8, 8), HQ4, LQ4), ValueError),
        ((REFERENCE, LQ4, BOX, 0.1, (8, 8), HQ4, LQ4), ValueError),
        ((REFERENCE, LQ, (0, 9, 0, 8), 0.1, (8, 8), HQ4, LQ4), ValueError),
        ((REFERENCE, LQ, (-1, 8, 0, 8), 0.1, (8, 8), HQ4, LQ4), ValueError),
        ((REFERENCE, LQ, (0, 8, 5, 4), 0.1, (8, 8), HQ4, LQ4), ValueError),
        ((REFERENCE, LQ, BOX, 0.1, (8, 16), HQ4, LQ4), ValueError),
        ((REFERENCE, LQ, BOX, 0.1, (1 << 62, 1 << 62), HQ4, LQ4), ValueError),
        ((REFERENCE.astype(np.float64), LQ, BOX, 0.1, (8, 8), HQ4, LQ4), ValueError),
        ((REFERENCE[:, :4], LQ, BOX, 0.1, (8, 8), HQ4, LQ4), ValueError),
        ((REFERENCE, LQ, BOX, 0.1, (8, 8), HQ, LQ4), ValueError),
        ((REFERENCE, LQ, BOX, 0.1, (8, 8), HQ4, LQ), ValueError),
        ((REFERENCE, LQ, BOX, 0.1, (8, 8), read_only(HQ4), LQ4), ValueError),
    ],
)
def test_references_that_they_cannot_take_are_an_error(args: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        pixel_loops.write_reference(*args)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_patches_that_are_written_together_are_those_written_alone(count: int) -> None:
    pixels = [(noise(256, 192, seed=n), filled(3, 256, 192), filled(3, 64, 48)) for n in range(count)]
    expected_pixels = [(picture, filled(3, 256, 192), filled(3, 64, 48)) for picture, _, _ in pixels]
    references = [
        (split_channels(noise(32, 16, seed=n)), to_chw_float(noise(16, 8)), (n, 9 + n, 2, 7), 0.1, (64, 32))
        for n in range(count // 2)
    ]
    outs, expected = ([(filled(4, 32, 16), filled(4, 16, 8)) for _ in references] for _ in range(2))
    reference_calls = tuple((*reference, *out) for reference, out in zip(references, outs, strict=True))
    pixel_loops.write_patches(tuple(pixels), reference_calls)
    for arguments in expected_pixels:
        pixel_loops.write_pixels(*arguments)
    for reference, out in zip(references, expected, strict=True):
        pixel_loops.write_reference(*reference, *out)
    for actual_arrays, expected_arrays in zip([*pixels, *outs], [*expected_pixels, *expected], strict=True):
        for actual, desired in zip(actual_arrays, expected_arrays, strict=True):
            np.testing.assert_array_equal(actual, desired)


def test_nothing_is_written_where_one_of_several_patches_is_wrong() -> None:
    pixels = (noise(8, 8), filled(3, 8, 8))
    reference = (split_channels(noise(8, 8)), LQ, BOX, 0.1, (8, 8), filled(4, 8, 8), filled(4, 4, 4))
    wrong_pixels, wrong_reference = (PIXELS[0], HQ), (REFERENCE, LQ, (0, 9, 0, 8), 0.1, (8, 8), HQ4, LQ4)
    calls: list[tuple[tuple[Any, ...], type[Exception]]] = [
        (((pixels, wrong_pixels), (reference,)), ValueError),
        (((pixels,), (reference, wrong_reference)), ValueError),
        (((pixels, list(pixels)), (reference,)), TypeError),
        (((pixels,), (reference, None)), TypeError),
        (([pixels], (reference,)), TypeError),
        (((pixels,),), TypeError),
    ]
    for args, error in calls:
        with pytest.raises(error):
            pixel_loops.write_patches(*args)
    assert all(np.isnan(array).all() for array in (pixels[1], *reference[-2:]))


@pytest.mark.parametrize("side", [8, 9])
def test_arrays_are_let_go_of_after_an_error_as_well(side: int) -> None:
    pixels = memoryview(bytearray(8 * 8 * 3)).cast("B", (8, 8, 3))
    reference = memoryview(bytearray(3 * 8 * 8)).cast("B", (3, 8, 8))
    arrays = [memoryview(bytearray(4 * 3 * size * size)).cast("B").cast("f", (3, size, size)) for size in (8, side)]
    with_mask = [memoryview(bytearray(4 * 4 * size * size)).cast("B").cast("f", (4, size, size)) for size in (8, side)]
    pair = ((pixels, *arrays),), ((reference, arrays[1], BOX, 0.1, (8, 8), *with_mask),)
    calls: list[tuple[Any, ...]] = [
        (pixel_loops.write_patches, *pair),
        (pixel_loops.write_pixels, pixels, *arrays),
        (pixel_loops.write_reference, reference, arrays[1], BOX, 0.1, (8, 8), *with_mask),
        (pixel_loops.write_reference, reference, arrays[1], (9, 9, 9, 9), 0.1, (8, 8), *with_mask),
        (pixel_loops.write_reference, reference, pixels, BOX, 0.1, (8, 8), *with_mask),
    ]
    for function, *args in calls:
        is_wrong = side == 9 or (9, 9, 9, 9) in args or args[1] is pixels
        with pytest.raises(ValueError, match=r"pixels|box|type") if is_wrong else nullcontext():
            function(*args)
    for view in (pixels, reference, *arrays, *with_mask):
        view.release()  # raises BufferError while a buffer is held


def test_the_package_installs_and_works_where_there_is_no_compiler(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for name in ("dlas_store", "converters"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    environment = {**os.environ, "CC": "no-such-compiler"}
    subprocess.run([*install, "--target", target, source], env=environment, capture_output=True, check=True)
    assert not list(target.rglob("*.so"))
    # The finder of an editable installation is removed, since it would find the missing extension.
    code = (
        "import sys; sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in repr(finder).lower()]; "
        "import numpy, dlas_store; from dlas_store.transforms.resize import pixel_loops, to_chw_float; "
        "print(pixel_loops, dlas_store.__file__, to_chw_float(numpy.full((2, 2, 3), 255, numpy.uint8)).min())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(target)}, capture_output=True, text=True,
        check=True, cwd=tmp_path,
    )  # fmt: skip
    assert run.stdout.split() == ["None", str(target / "dlas_store" / "__init__.py"), "1.0"]
