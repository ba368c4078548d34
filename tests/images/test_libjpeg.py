"""The loader takes Pillow's libjpeg-turbo only if it decodes to the same pixels as simplejpeg."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import _imaging, features

pytest.importorskip("dlas_store._native.patch_reader", reason="installed without a C compiler")

from dlas_store._native.patch_reader import Libjpeg
from dlas_store.converters.importing import import_store
from dlas_store.errors import ConfigError
from dlas_store.images import libjpeg
from dlas_store.images.libjpeg import HUFFMAN_VARIABLE, VARIABLE, choose_libjpeg, find_libjpeg
from tests.support.sample_data import DATA, noise

find = find_libjpeg.__wrapped__

LIBC = ctypes.util.find_library("c") or "libc.so.6"
PILLOWS_MODULE = _imaging.__file__

needs_library = pytest.mark.skipif(find_libjpeg() is None, reason="Pillow's libjpeg-turbo cannot be called")
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


def test_the_wheels_of_pillow_have_one() -> None:
    """A plain pip install is fast without more packages."""
    if not Path(PILLOWS_MODULE).parent.with_name("pillow.libs").is_dir():
        pytest.skip("Pillow is not installed from a wheel for Linux")
    assert features.check("libjpeg_turbo")
    assert find_libjpeg() is not None


@needs_library
def test_it_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, PILLOWS_MODULE)
    assert isinstance(find(), Libjpeg)


def test_nothing_is_taken_where_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    assert find() is None


def test_nothing_is_taken_where_pillow_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    for file in (None, LIBC):
        monkeypatch.setattr(libjpeg, "_pillows_module", lambda file=file: file)
        assert find() is None


@pytest.mark.parametrize("name", ["/nowhere/libjpeg.so", LIBC])
def test_a_named_file_that_is_none_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(ConfigError, match=f"^{VARIABLE} names '{name}', which is no libjpeg-turbo .*; unset it$"):
        find()
    with pytest.raises(OSError, match=name):
        Libjpeg(name)


OTHER_LIBRARY = """
#include <stddef.h>
struct errors { void (*exit)(void *); };
void jpeg_CreateDecompress(struct errors **jpeg, int version, size_t size) { if (%d != version) (*jpeg)->exit(jpeg); }
void jpeg_mem_src(void *jpeg, const unsigned char *data, unsigned long size) { }
int jpeg_read_header(void *jpeg, int required) { %s; return 1; }
int jpeg_start_decompress(void *jpeg) { return 1; }
unsigned jpeg_read_scanlines(void *jpeg, unsigned char **rows, unsigned count) { return 0; }
int jpeg_finish_decompress(void *jpeg) { return 1; }
void jpeg_abort_decompress(void *jpeg) { }
void jpeg_destroy_decompress(void *jpeg) { }
void *jpeg_std_error(void *errors) { return errors; }
"""


@needs_compiler
@pytest.mark.parametrize(
    ("version", "header"), [(62, ""), (80, ""), (62, "((unsigned *)jpeg)[12] = 75, ((unsigned *)jpeg)[13] = 20")]
)
def test_a_library_that_decodes_to_other_pixels_is_not_taken(
    version: int, header: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three libraries one reports success but writes nothing, one has another version, and one returns no rows."""
    source, library = tmp_path / "other.c", tmp_path / "libjpeg.so.0"
    source.write_text(OTHER_LIBRARY % (version, header))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    assert Libjpeg(library).decode(simplejpeg.encode_jpeg(noise(20, 75)), np.zeros((20, 75, 3), np.uint8)) is False
    monkeypatch.setenv(VARIABLE, str(library))
    with pytest.raises(ConfigError, match="which decodes to other pixels than simplejpeg; unset it"):
        find()
    # Without the variable, the library stands in for Pillow's.
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(libjpeg, "_pillows_module", lambda: str(library))
    assert find() is None


WITHOUT_SIMD = """
import os, sys
import numpy as np, simplejpeg
simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8)))  # looks at the processor, once
os.environ["JSIMD_FORCENONE"] = "1"
from dlas_store.images.libjpeg import choose_libjpeg
library, reason = choose_libjpeg()
print(library is None, reason)
"""


@needs_library
def test_a_library_without_simd_is_not_taken_beside_a_simplejpeg_with_it() -> None:
    """Code without SIMD has more than 16 bits for a coefficient, so that it decodes extreme ones otherwise."""
    process = subprocess.run([sys.executable, "-c", WITHOUT_SIMD], check=True, capture_output=True, text=True)
    is_left_out, _, reason = process.stdout.strip().partition(" ")
    if is_left_out == "False":
        pytest.skip("this processor has no SIMD instructions that libjpeg-turbo uses")
    assert reason.endswith("decodes to other pixels than simplejpeg")


@needs_library
@pytest.mark.parametrize("variable", ["JSIMD_FORCENONE", "JSIMD_FORCESSE2"])
def test_a_library_with_the_instructions_of_simplejpeg_is_taken(variable: str) -> None:
    program = "from dlas_store.images.libjpeg import choose_libjpeg; print(choose_libjpeg().library is not None)"
    command, environment = [sys.executable, "-c", program], {**os.environ, variable: "1"}
    assert subprocess.run(command, env=environment, check=True, capture_output=True).stdout == b"True\n"


@needs_library
def test_every_sample_of_the_comparison_is_decoded_by_both() -> None:
    """A sample that no library decodes would refuse each library."""
    library = Libjpeg(PILLOWS_MODULE)
    samples = list(libjpeg._samples())
    assert len(set(samples)) == len(samples) > 40
    for data in samples:
        assert libjpeg._decodes_as_simplejpeg(library, data)
    assert library.scans == len(samples)


@needs_library
def test_the_huffman_decoder_is_switched_off_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(40, 56)
    for value, scans in (("1", 1), ("0", 0)):
        monkeypatch.setenv(HUFFMAN_VARIABLE, value)
        library = find()
        assert library is not None
        before, out = library.scans, np.zeros_like(pixels)
        assert library.decode(simplejpeg.encode_jpeg(pixels), out)
        assert library.scans - before == scans


def test_a_wrong_value_of_the_switch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HUFFMAN_VARIABLE, "no")
    with pytest.raises(ConfigError, match=r"^DLAS_STORE_HUFFMAN is 'no'; set it to 0 .*, or unset it$"):
        find()


def test_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    assert choose_libjpeg() == (None, "DLAS_STORE_LIBJPEG is empty")
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(libjpeg, "_pillows_module", lambda: None)
    assert choose_libjpeg() == (None, "Pillow has no extension module")
    monkeypatch.setattr(libjpeg, "_pillows_module", lambda: LIBC)
    assert choose_libjpeg().reason.startswith("Pillow's libjpeg-turbo cannot be called (")
    monkeypatch.setattr(libjpeg, "Libjpeg", None)
    assert choose_libjpeg() == (None, "the package was installed without a C compiler")


@needs_library
def test_it_decodes_pictures_of_the_arrays_size_and_says_where_it_did_not() -> None:
    library, pixels = Libjpeg(PILLOWS_MODULE), noise(40, 56)
    data = simplejpeg.encode_jpeg(pixels)
    out = np.zeros_like(pixels)
    assert library.decode(data, out) is True
    assert np.array_equal(out, simplejpeg.decode_jpeg(data))
    assert library.decode(memoryview(bytearray(data)), out) is True
    for size in (0, 1, 2, 100, 700, len(data) - 40):
        assert library.decode(data[:size], out) is False
    for shape in ((40, 55, 3), (39, 56, 3), (41, 57, 3), (0, 0, 3), (56, 40, 3)):
        assert library.decode(data, np.zeros(shape, np.uint8)) is False
    assert library.decode(simplejpeg.encode_jpeg(pixels[:, :, :1].copy(), colorspace="GRAY"), out) is True
    assert (out == out[:, :, :1]).all()
    assert library.decode(data, out) is True


@needs_library
def test_other_arguments_are_errors() -> None:
    library, data = Libjpeg(PILLOWS_MODULE), simplejpeg.encode_jpeg(noise(8, 8))
    for out in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.int8)):
        with pytest.raises(TypeError, match="uint8"):
            library.decode(data, out)
    with pytest.raises(TypeError):
        library.decode("text", np.zeros((8, 8, 3), np.uint8))  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        library.decode(data, b"")  # type: ignore[arg-type]
    for arguments in ((), (1,), (PILLOWS_MODULE, PILLOWS_MODULE)):
        with pytest.raises(TypeError):
            Libjpeg(*arguments)
    with pytest.raises(TypeError):
        Libjpeg(file=PILLOWS_MODULE)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (VARIABLE, "/nowhere/libjpeg.so", f"{VARIABLE} names '/nowhere/libjpeg.so'"),
        (HUFFMAN_VARIABLE, "off", f"{HUFFMAN_VARIABLE} is 'off'"),
    ],
)
def test_a_wrong_variable_is_met_when_a_store_is_opened(
    variable: str, value: str, message: str, tmp_path: Path
) -> None:
    store = tmp_path / "sample.lmdb"
    import_store([DATA / "chunked"], store, workers=1)
    environment = {**os.environ, variable: value}
    program = "import sys; from dlas_store import open_source; open_source(sys.argv[1])"
    command = [sys.executable, "-c", program, str(store)]
    process = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert process.returncode == 1
    assert f"ConfigError: {message}" in process.stderr


DIGESTS = """
import hashlib, sys
from dlas_store.datasets import create_dataloader, create_dataset
options = {"mode": "single_image_extensible", "paths": sys.argv[1], "seed": 1, "batch_size": 8, "target_size": 64,
           "phase": "train", "scale": 2, "need_ref": True, "strict": True}
for batch in create_dataloader(create_dataset(options), options):
    tensors = [batch[key].numpy() for key in ("hq", "lq", "gt_fullsize_ref")]
    print(batch["GT_path"], *(hashlib.sha256(tensor).hexdigest() for tensor in tensors))
"""


@needs_library
def test_batches_with_and_without_it_are_equal(tmp_path: Path) -> None:
    store = tmp_path / "sample.lmdb"
    import_store([DATA / "chunked"], store, workers=1)
    digests = []
    for file, huffman in (("", "1"), (PILLOWS_MODULE, "1"), (PILLOWS_MODULE, "0")):
        environment = {**os.environ, VARIABLE: file, HUFFMAN_VARIABLE: huffman}
        command = [sys.executable, "-c", DIGESTS, str(store)]
        process = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        digests.append(process.stdout.splitlines())
    assert len(digests[0]) > 3
    assert digests[0] == digests[1] == digests[2]
