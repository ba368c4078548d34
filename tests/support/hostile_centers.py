"""Hostile centers.pt files, which torch.save did not write. A reader that runs a file's calls creates the file CANARY.

``python -m tests.support.hostile_centers`` writes the small files to FOLDER.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from itertools import chain

import torch

from tests.support.sample_data import DATA

CANARY = "executed"

_COMMAND = f"touch {CANARY}"
_ENTRY = pickle.dumps({1: ((2, 3), 4)}, 2)
_LEGACY_START = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})


class _Call:
    """Object whose pickle calls a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self._call


def zip_of(pickled: bytes, files: Mapping[str, bytes] | None = None, *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a torch zip file with ``pickled`` as data.pkl, and further files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in {"data.pkl": pickled, "version": b"3\n", **(files or {})}.items():
            _add(archive, f"centers/{name}", content, compression)
    return file.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    """Add a file dated 1980, so that the archive does not depend on the time."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type = compression
    archive.writestr(entry, content)


def legacy_of(pickled: bytes, storages: bytes = pickle.dumps([], 2)) -> bytes:
    """Return a legacy torch file whose object is ``pickled``."""
    return b"".join(pickle.dumps(value, 2) for value in _LEGACY_START) + pickled + storages


def saved(value: object, *, is_zip: bool = True) -> bytes:
    """Return the bytes of torch.save."""
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=is_zip)
    return file.getvalue()


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _number(number: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", number)


def _storage(*, kind: bytes = b"LongStorage", key: str = "0", count: int = 1) -> bytes:
    return b"(" + _text("storage") + b"ctorch\n" + kind + b"\n" + _text(key) + _text("cpu") + _number(count) + b"tQ"


def _tensor(storage: bytes, *, offset: int = 0, size: bytes = b")") -> bytes:
    """Return the pickle of ``{1: ((2, 3), tensor)}`` with the tensor of a storage."""
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + _number(offset) + size + size + b"\x89}tR"
    return b"\x80\x02}K\x01K\x02K\x03\x86" + tensor + b"\x86s."


def _two_pickles() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for folder in ("a", "b"):
            _add(archive, f"{folder}/data.pkl", _ENTRY)
    return file.getvalue()


def _overlapping_entries() -> bytes:
    """Return a zip file whose directory lists one megabyte a thousand times."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        _add(archive, "centers/data.pkl", _ENTRY)
        _add(archive, "centers/data/0", bytes(1 << 20))
        first = archive.getinfo("centers/data/0")
        for key in range(1, 1000):
            entry = zipfile.ZipInfo(f"centers/data/{key}")
            entry.file_size = entry.compress_size = first.file_size
            entry.CRC, entry.header_offset = first.CRC, first.header_offset
            archive.filelist.append(entry)
    return file.getvalue()


def _calls() -> Iterator[tuple[str, bytes]]:
    calls = {
        "os_system": _Call(os.system, _COMMAND),
        "eval": _Call(eval, f"open({CANARY!r}, 'w')"),
        "getattr": _Call(getattr, "text", "format"),
        "open": _Call(open, CANARY, "w"),
        "storage_from_file": _Call(torch.UntypedStorage.from_file, CANARY, True, 8),
    }
    values: dict[str, object] = {f"{name}_as_root": call for name, call in calls.items()}
    values |= {f"{name}_as_width": {1: ((2, 3), call)} for name, call in calls.items()}
    for name, value in values.items():
        pickled = pickle.dumps(value, 2)
        yield f"{name}_zip", zip_of(pickled)
        yield f"{name}_legacy", legacy_of(pickled)
    pickled = pickle.dumps(calls["os_system"], 4)
    yield "stack_global", zip_of(pickled)
    yield "call_in_legacy_start", pickled
    yield "call_in_legacy_storages", legacy_of(_ENTRY, pickled)


_DEEP = b")" + b"\x85" * 1_000_000

_PROGRAMS = {
    "inst": b"(" + _text(_COMMAND) + b"ios\nsystem\n.",
    "obj": b"(cos\nsystem\n" + _text(_COMMAND) + b"o.",
    "extension_registry": b"\x82\x01.",
    "build_on_function": b"ctorch._utils\n_rebuild_tensor_v2\n}" + _text("x") + b"K\x01sb.",
    "build_on_number": b"K\x01}" + _text("__class__") + b"K\x01sb.",
    "call_a_number": b"K\x01)R.",
    "call_a_storage_type": b"ctorch\nLongStorage\n)R.",
    "encode_with_codec": b"c_codecs\nencode\n" + _text("x") + _text("idna") + b"\x86R.",
    "dtype_of_objects": b"cnumpy\ndtype\n" + _text("O8") + b"\x85R.",
    "deep_tuples": _DEEP + b".",
    "deep_lists": b"]" * 1_000_000 + b"a" * 999_999 + b".",
    "deep_tuple_as_key": b"}" + _DEEP + b"Ns.",
    "deep_tuple_as_entry": b"}K\x01" + _DEEP + b"s.",
    "endless_dicts": b"}\x94" * ((1 << 23) - 1000),
    "endless_marks": b"(" * ((1 << 24) - 1000),
    "high_memo_index": b"}r\xff\xff\xff\x7fj\xff\xff\xff\xff.",
    "long_text": b"X\xff\xff\xff\xffab.",
    "long_bytes": b"\x8e" + struct.pack("<Q", 1 << 62) + b"ab.",
    "long_bytearray": b"\x96" + struct.pack("<Q", 1 << 40) + b"ab.",
    "long_frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"}",
    "long_integer": b"}K\x01K\x02K\x03\x86\x8a\xff" + b"\x7f" * 255 + b"\x86s.",
    "persistent_text": b"Pstorage\n.",
    "persistent_number": b"K\x01Q.",
    "persistent_module": _tensor(b"(" + _text("module") + b"NNNtQ"),
    "persistent_tensor_of_itself": b"](" + _text("storage") + b"h\x00h\x00h\x00h\x00tQ.",
    "tensor_without_storage": _tensor(_storage()),
    "tensor_in_another_file": _tensor(_storage(key="../data.pkl")),
    "nothing": b"",
    "duplicate_patch": b"}(K\x01K\x02K\x03\x86K\x04\x86K\x01K\x02K\x03\x86K\x04\x86u.",
}

_SIZE_2_TO_30 = b"\x8a\x05\x00\x00\x00\x40\x00\x85"

_FILES = {
    "tensor_of_8_gb": zip_of(_tensor(_storage(count=1 << 30), size=_SIZE_2_TO_30), {"data/0": bytes(8)}),
    "tensor_behind_storage": zip_of(_tensor(_storage(), offset=1), {"data/0": bytes(8)}),
    "tensor_before_storage": zip_of(_tensor(_storage(), offset=-1), {"data/0": bytes(16)}),
    "tensor_of_other_numbers": zip_of(_tensor(_storage(kind=b"QInt8Storage")), {"data/0": bytes(8)}),
    "storage_that_claims_more": legacy_of(_tensor(_storage()), pickle.dumps(["0"], 2) + struct.pack("<q", 1 << 60)),
    "bomb": zip_of(_ENTRY, {"zeros": bytes(1 << 26)}, compression=zipfile.ZIP_DEFLATED),
    "compressed": zip_of(_ENTRY, compression=zipfile.ZIP_DEFLATED),
    "overlapping_entries": _overlapping_entries(),
    "two_pickles": _two_pickles(),
    "too_large": zip_of(_ENTRY, {"padding": bytes(1 << 24)}),
    "plain_pickle": _ENTRY,
    "empty": b"",
}

with torch.random.fork_rng(devices=()):
    torch.manual_seed(0)
    _LINEAR = torch.nn.Linear(2, 2)

_VALUES = {
    "list": [1],
    "text_key": {"1": ((2, 3), 4)},
    "text_width": {1: ((2, 3), "4")},
    "true_width": {1: ((2, 3), True)},
    "no_width": {1: ((2, 3),)},
    "flat": {1: (2, 3, 4)},
    "text_pair": {1: ("23", 4)},
    "half_a_pixel": {1: ((2, 3.5), 4)},
    "nan": {1: ((2, float("nan")), 4)},
    "65_bits": {1: ((2, 3), 1 << 63)},
    "65_bit_key": {-(1 << 63) - 1: ((2, 3), 4)},
    "infinite_tensor": {1: ((2, 3), torch.tensor(float("inf")))},
    "tensor_of_three": {1: (torch.tensor([1, 2, 3]), 4)},
    "pair_as_width": {1: ((2, 3), torch.tensor([4, 5]))},
    "same_patch_as_tensor": {1: ((2, 3), 4), torch.tensor(1): ((2, 3), 4)},
    "state_dict": _LINEAR.state_dict(),
    "module": _LINEAR,
}

HOSTILE: dict[str, bytes] = dict(
    chain(
        _calls(),
        ((name, zip_of(program)) for name, program in _PROGRAMS.items()),
        _FILES.items(),
        ((name, saved(value)) for name, value in _VALUES.items()),
    )
)
"""Name of the attack -> bytes of the file."""

KEPT_BYTES = 1 << 16
"""Size of the largest file in FOLDER; tests make larger files themselves."""

FOLDER = DATA / "hostile"


def write_kept() -> None:
    """Write the small files to FOLDER, and remove files there that are not in HOSTILE."""
    for path in FOLDER.glob("*.pt"):
        path.unlink()
    for name, data in HOSTILE.items():
        if len(data) <= KEPT_BYTES:
            (FOLDER / f"{name}.pt").write_bytes(data)


if __name__ == "__main__":
    write_kept()
