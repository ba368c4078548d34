"""Checks of a library before huffman.c decodes its scans: each assumption about the library, and each kind of scan."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import struct
import subprocess
import sysconfig
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import simplejpeg
from PIL import _imaging

pytest.importorskip("dlas_store._native.patch_reader", reason="installed without a C compiler")

from dlas_store._native.patch_reader import Libjpeg
from dlas_store.images.libjpeg import VARIABLE, find_libjpeg
from tests.native.test_huffman import AC, DC, END, code_block, decode, jpeg_of, make_code, stuffed, table_segment
from tests.support.sample_data import ROOT, noise

pytestmark = pytest.mark.skipif(find_libjpeg() is None, reason="Pillow's libjpeg-turbo cannot be called")

FILE = os.environ.get(VARIABLE) or _imaging.__file__
SOURCES = ROOT / "dlas_store" / "_native"

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


def decoded_scans(library: Libjpeg) -> int:
    """Check the pixels of a picture that a library decodes; return the number of scans decoded in C."""
    data = simplejpeg.encode_jpeg(noise(37, 51), 90, colorsubsampling="420")
    out, before = np.zeros((37, 51, 3), np.uint8), library.scans
    assert library.decode(data, out)
    assert np.array_equal(out, simplejpeg.decode_jpeg(data))
    return library.scans - before


# ----------------------------------------------------------------------------------------------------------- versions


def test_a_library_of_a_tested_version_is_taken() -> None:
    library = Libjpeg(FILE)
    assert library.refusal is None
    assert decoded_scans(library) == 1
    assert Path(library.file).name.startswith("libjpeg")
    assert library.version.count(".") >= 2


def test_the_step_is_switched_off_alone() -> None:
    library = Libjpeg(FILE, False)
    assert library.refusal == "it is switched off"
    assert decoded_scans(library) == 0


@pytest.mark.parametrize(
    ("name", "version", "refusal"),
    [
        ("libjpeg-turbo version 9", "9", "not on the list of tested versions"),
        ("mozjpeg-turbo version 3", "", "does not say which version"),
    ],
)
def test_a_version_that_was_not_tested_decodes_by_itself(name: str, version: str, refusal: str, tmp_path: Path) -> None:
    file = Path(Libjpeg(FILE).file)
    content = file.read_bytes()
    at = content.index(b"libjpeg-turbo version ")
    other = tmp_path / "libjpeg.so.62"
    other.write_bytes(content[:at] + name.encode() + content[at + len(name) :])
    library = Libjpeg(other)
    assert library.version[:1] == version
    assert library.refusal is not None
    assert refusal in library.refusal
    assert decoded_scans(library) == 0


# -------------------------------------------------------------------------------------------------------- assumptions

BETWEEN = r"""
/* Changes what the library wrote, until its next function is called. */
#include "libjpeg_layout.h"
#include <dlfcn.h>

int change, calls_before; /* set by the test */
static int is_changed;
static DecompressStruct saved;
static ComponentInfo saved_component;
static EntropyDecoder library_entropy, changed_entropy, *entropy;
static size_t extra_bytes;

static void *library_function(const char *name)
{
    return dlsym(dlopen("@FILE@", RTLD_NOW), name);
}

int jpeg_start_decompress(DecompressStruct *jpeg)
{
    const int result = ((int (*)(DecompressStruct *))library_function("jpeg_start_decompress"))(jpeg);

    if (calls_before-- > 0)
        return result;
    saved = *jpeg;
    saved_component = *jpeg->scan_components[0];
    entropy = jpeg->entropy;
    library_entropy = *entropy;
    extra_bytes = jpeg->source->remaining_bytes;
    switch (change) {
        @CASES@
    }
    extra_bytes = jpeg->source->remaining_bytes - extra_bytes;
    changed_entropy = *entropy;
    is_changed = 1;
    return result;
}

unsigned jpeg_read_scanlines(DecompressStruct *jpeg, uint8_t **rows, unsigned count)
{
    if (is_changed) {
        *jpeg = saved;
        *jpeg->scan_components[0] = saved_component;
        if (memcmp(&changed_entropy, &library_entropy, sizeof library_entropy) != 0)
            *entropy = library_entropy;
        jpeg->source->remaining_bytes -= extra_bytes;
        is_changed = 0;
    }
    return ((unsigned (*)(DecompressStruct *, uint8_t **, unsigned))library_function("jpeg_read_scanlines"))(jpeg, rows,
                                                                                                         count);
}
"""

CHANGES = {
    "no change": "",
    "an image of 12 bits": "jpeg->precision = 12",
    "a progressive image": "jpeg->is_progressive = 1",
    "an arithmetic image": "jpeg->is_arithmetic = 1",
    "restarts": "jpeg->restart_interval = 3",
    "a predictor of a lossless scan": "jpeg->spectral[0] = 1, jpeg->spectral[1] = 0",
    "a last coefficient above 63": "jpeg->spectral[1] = 64",
    "a last coefficient below 63": "jpeg->spectral[1] = 62",
    "a high bit": "jpeg->approximation[0] = 1",
    "a low bit": "jpeg->approximation[1] = 1",
    "no components": "jpeg->components = jpeg->scan_component_count = 0",
    "too many components": "jpeg->components = jpeg->scan_component_count = 5",
    "a scan of one component": "jpeg->scan_component_count = 1",
    "no blocks": "jpeg->block_count = 0",
    "too many blocks": "jpeg->block_count = 11",
    "a block of no component": "jpeg->component_of_block[0] = 3",
    "a block of component -1": "jpeg->component_of_block[5] = -1",
    "a component that is missing": "jpeg->scan_components[2] = NULL",
    "DC table 4": "jpeg->scan_components[0]->dc_table = 4",
    "DC table -1": "jpeg->scan_components[0]->dc_table = -1",
    "AC table 15": "jpeg->scan_components[0]->ac_table = 15",
    "AC table -1000000": "jpeg->scan_components[0]->ac_table = -1000000",
    "a DC table that is missing": "jpeg->dc_tables[0] = NULL",
    "an AC table that is missing": "jpeg->ac_tables[1] = NULL",
    "a second scan": "jpeg->scan_in = 2",
    "a row that was read": "jpeg->mcu_row_in = 1",
    "a marker that was read": "jpeg->unread_marker = 0xD9",
    "a source of another size": "jpeg->source->remaining_bytes += 1",
    "no entropy decoder": "jpeg->entropy = NULL",
    "an entropy decoder at an odd address": "jpeg->entropy = (EntropyDecoder *)((char *)jpeg->entropy + 1)",
    "no function": "jpeg->entropy->decode_mcu = NULL",
    "a function of another library": 'jpeg->entropy->decode_mcu = (DecodeMcu)dlsym(RTLD_DEFAULT, "strlen")',
    "a start of another library": 'jpeg->entropy->start = (StartPass)dlsym(RTLD_DEFAULT, "strlen")',
    "data of the library": 'jpeg->entropy->decode_mcu = (DecodeMcu)library_function("jpeg_natural_order")',
    "another function of the library": (
        'jpeg->entropy->decode_mcu = (DecodeMcu)library_function("jpeg_abort_decompress")'
    ),
    "tables in another order": "jpeg->ac_tables[0] = saved.ac_tables[1], jpeg->ac_tables[1] = saved.ac_tables[0]",
}
"""Change of what the library wrote -> its C code."""


class Between(Protocol):
    def __call__(self, change: str, /, *, after: int) -> Libjpeg: ...


@pytest.fixture(scope="module")
def between(tmp_path_factory: pytest.TempPathFactory) -> Between:
    """A function that returns the library with a change of what it writes, from a number of pictures on."""
    folder = tmp_path_factory.mktemp("between")
    source, file = folder / "between.c", Path(Libjpeg(FILE).file).resolve()
    cases = [f"case {number}: {text}; break;" for number, text in enumerate(CHANGES.values())]
    source.write_text(BETWEEN.replace("@FILE@", str(file)).replace("@CASES@", "\n        ".join(cases)))
    target = folder / "between.so"
    command = ["cc", "-w", "-shared", "-fPIC", f"-I{SOURCES}", f"-I{sysconfig.get_path('include')}", "-o", target]
    subprocess.run([*command, source, "-Wl,--no-as-needed", file, f"-Wl,-rpath,{file.parent}"], check=True)

    def make(change: str, *, after: int) -> Libjpeg:
        variables = ctypes.CDLL(str(target))
        ctypes.c_int.in_dll(variables, "change").value = list(CHANGES).index(change)
        ctypes.c_int.in_dll(variables, "calls_before").value = after
        return Libjpeg(target)

    return make


@needs_compiler
@pytest.mark.parametrize("change", CHANGES)
def test_a_library_that_differs_decodes_by_itself(change: str, between: Between) -> None:
    library = between(change, after=0)
    assert (library.refusal is None) is (change == "no change")
    assert decoded_scans(library) == int(change == "no change")


@needs_compiler
@pytest.mark.parametrize("change", CHANGES)
def test_a_scan_that_differs_is_decoded_by_the_library(change: str, between: Between) -> None:
    """The check of the library decodes two pictures; a later picture differs."""
    library = between(change, after=2)
    assert library.refusal is None
    assert decoded_scans(library) == int(change == "no change")


@needs_compiler
def test_a_library_that_decodes_to_other_coefficients_decodes_by_itself(between: Between) -> None:
    library = between("tables in another order", after=0)
    assert library.refusal in {"the library decodes to other coefficients", "an MCU cannot be decoded in both ways"}
    assert decoded_scans(library) == 0


STUB = """
#include <string.h>
#include <stddef.h>
int replaced;
const char version[] = "libjpeg-turbo version 3.2.0 (build 20260101)";
int jpeg_finish_decompress(void *jpeg) { return 1; }
void jpeg_abort_decompress(void *jpeg) { }
void jpeg_destroy_decompress(void *jpeg) { }
void *jpeg_std_error(void *errors) { return errors; }
static void *functions[2] = {%s}, *entropy[2], *source[2];
void jpeg_CreateDecompress(void *jpeg, int version, size_t size) { }
void jpeg_mem_src(void *jpeg, const unsigned char *data, unsigned long size) { }
int jpeg_read_header(void *jpeg, int required)
{
    int *numbers = jpeg;
    numbers[12] = 3, numbers[13] = 2, numbers[14] = 0; /* width, height, components */
    return 1;
}
int jpeg_start_decompress(void *jpeg)
{
    int *numbers = jpeg;
    numbers[34] = 3, numbers[35] = 2, numbers[37] = 3, numbers[42] = 0; /* width, height, components, rows */
    numbers[74] = 8, numbers[108] = 0; /* bits of a sample, components of the scan */
    source[0] = "\\0\\xff\\xd9", source[1] = (void *)3;
    ((void **)jpeg)[5] = source;
    ((void **)jpeg)[74] = memcpy(entropy, functions, sizeof functions);
    return 1;
}
unsigned jpeg_read_scanlines(void *jpeg, unsigned char **rows, unsigned count)
{
    replaced |= memcmp(entropy, functions, sizeof functions) != 0;
    for (unsigned i = 0; i < count; i++)
        memset(rows[i], 7, 9);
    ((int *)jpeg)[42] += count;
    return count;
}
"""


@needs_compiler
@pytest.mark.parametrize(
    "functions",
    [
        "jpeg_abort_decompress, jpeg_finish_decompress",
        "0, 0",
        "strlen, jpeg_finish_decompress",
        "jpeg_finish_decompress, strlen",
        "jpeg_finish_decompress, (void *)1",
    ],
)
def test_no_function_is_replaced_in_a_library_that_only_claims_its_version(functions: str, tmp_path: Path) -> None:
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(STUB % functions)
    subprocess.run(["cc", "-w", "-shared", "-fPIC", "-o", library, source], check=True)
    out, decoder = np.zeros((2, 3, 3), np.uint8), Libjpeg(library)
    assert decoder.version == "3.2.0"
    assert decoder.refusal == "the library does not decode the JPEG of the check"
    assert decoder.decode(b"", out) is True
    assert (out == 7).all()
    assert ctypes.c_int.in_dll(ctypes.CDLL(str(library)), "replaced").value == 0
    assert decoder.scans == 0


# ------------------------------------------------------------------------------------------------------ kinds of scans


def lossless(tables: tuple[int, int, int], *, kind: int = 0xC3, last: int = 0) -> bytes:
    """Return a JPEG of 16 x 16 pixels that says it is lossless RGB, with the table byte of each component."""
    code = make_code({0: 1, 1: 2, 2: 3, 16: 4})
    generator = random.Random(0)
    scan = stuffed("".join(generator.choice([code[0], code[1] + "1", code[1] + "0"]) for _ in range(16 * 16 * 3)))
    components = zip(b"RGB", tables, strict=True)
    return b"".join(
        [
            b"\xff\xd8",
            struct.pack(">BBHBHHB", 0xFF, kind, 17, 8, 16, 16, 3),
            *(bytes([number, 0x11, 0]) for number in b"RGB"),
            *(table_segment(number, code) for number in range(4)),
            b"\xff\xda\0\x0c\3" + bytes([byte for component in components for byte in component]),
            bytes([1, last, 0]),
            scan,
            b"\xff\xd9",
        ]
    )


@pytest.mark.parametrize("tables", [(0, 0, 0), (0x00, 0x11, 0x22), (0x0F, 0x1F, 0x2F), (0xF0, 0xFF, 0x99)], ids=str)
@pytest.mark.parametrize("last", [0, 63, 255])
@pytest.mark.parametrize("kind", [0xC3, 0xC7, 0xCB, 0xC9])
def test_a_lossless_scan_is_the_librarys(kind: int, last: int, tables: tuple[int, int, int]) -> None:
    """A lossless decoder leaves the pointer to the function for an MCU uninitialized."""
    library, out = Libjpeg(FILE), np.zeros((16, 16, 3), np.uint8)
    for _ in range(3):
        assert decoded_scans(library) == 1
        library.decode(lossless(tables, kind=kind, last=last), out)
    assert library.scans == 3


@pytest.mark.parametrize("precision", [2, 7, 12, 16])
def test_samples_of_other_sizes_are_the_librarys(precision: int) -> None:
    data = bytearray(jpeg_of(stuffed(code_block([3] * 64, DC, AC)), (1, 1), [(DC, AC)]))
    data[data.index(b"\xff\xc1") + 4] = precision
    assert Libjpeg(FILE).decode(bytes(data), np.zeros((8, 8, 3), np.uint8)) is False


@pytest.mark.parametrize(
    "spectral", [b"\0\x3e\0", b"\1\x3f\0", b"\0\xff\0", b"\0\x3f\1", b"\0\x3f\x10", b"\xff\xff\xff"]
)
def test_scans_of_some_coefficients_are_the_librarys(spectral: bytes) -> None:
    data = jpeg_of(stuffed(code_block([3] * 64, DC, AC)), (1, 1), [(DC, AC)])
    before, scan = data.split(b"\0\x3f\0", 1)
    library = Libjpeg(FILE)
    library.decode(before + spectral + scan, np.zeros((8, 8, 3), np.uint8))
    assert library.scans == 0


@pytest.mark.parametrize("tables", [0x04, 0x40, 0x44, 0xF0, 0x0F, 0xFF, 0x33])
def test_scans_with_tables_that_do_not_exist_are_the_librarys(tables: int) -> None:
    data = jpeg_of(stuffed(code_block([3] * 64, DC, AC)), (1, 1), [(DC, AC)])
    data = data.replace(b"\xff\xda\0\x08\1\1\0", b"\xff\xda\0\x08\1\1" + bytes([tables]))
    assert decode(data) == (None, 0)


def test_a_scan_after_an_earlier_one_is_the_librarys() -> None:
    """The library reads a JPEG of several scans as a whole; the bytes behind its end are no scan."""
    scan = stuffed(code_block([3] * 64, DC, AC) + code_block([1] * 64, DC, AC) * 2)
    whole = jpeg_of(scan, (1, 1), [(DC, AC)] * 3)
    start = whole.index(b"\xff\xda")
    first = b"\xff\xda\0\x08\1\1\0\0\x3f\0" + stuffed(code_block([5] * 64, DC, AC))
    data = whole[:start] + first + whole[start:] + scan + b"\xff\xd9"
    library = Libjpeg(FILE)
    library.decode(data, np.zeros((8, 8, 3), np.uint8))
    assert library.scans == 0
    assert END in AC
