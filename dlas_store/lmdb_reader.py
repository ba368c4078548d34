"""Reader of an LMDB file's B+ tree from the bytes of the file, without the LMDB engine.

The engine trusts its pages: a flipped bit or a missing page can end the process. This reader checks every number of a
page before use, so a damaged file raises a DamagedError. The reader also gives the offset of each value, so that slices
of the mapped file can read the values afterwards. Layout: LMDB 0.9, data version 1, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from dlas_store.errors import DamagedError

_PAGE = struct.Struct("<QHHHH")  # number, padding, flags, lower, upper; an overflow page: low, high half of its count
_NODE = struct.Struct("<HHHH")  # low and high half of the size or child, flags, key size
_U64 = struct.Struct("<Q")
_PAGE_HEADER = 16
_META_SIZE = 152

_MAGIC = 0xBEEFC0DE
_DATA_VERSION = 1
_BRANCH, _LEAF, _OVERFLOW = 0x01, 0x02, 0x04
_BIG_VALUE = 0x01
_NO_PAGE = (1 << 64) - 1
_MAX_DEPTH = 32


class Meta(NamedTuple):
    """The fields of the newer of the two meta pages.

    Attributes:
        page_size: bytes.
        depth: levels of the tree, 0 for an empty one.
        entries: number of keys.
        root: page number of the root, 2^64 - 1 for an empty tree.
        last_page: number of the last page that the tree may use.
        transaction: id of the transaction that wrote the page.
    """

    page_size: int
    depth: int
    entries: int
    root: int
    last_page: int
    transaction: int

    @property
    def file_size(self) -> int:
        """Bytes that the file needs to hold all its pages."""
        return (self.last_page + 1) * self.page_size


class Entry(NamedTuple):
    """A key, and the offset and length of its value in the file, in bytes."""

    key: bytes
    offset: int
    length: int


def is_lmdb(data: bytes | mmap.mmap) -> bool:
    """Return whether bytes start like an LMDB file."""
    return len(data) >= _META_SIZE and struct.unpack_from("<I", data, 16)[0] == _MAGIC


def read_meta(data: bytes | mmap.mmap) -> Meta:
    """Return the newer meta page, after a check that the file has all pages that the meta page counts.

    Raises:
        DamagedError: the file is not an LMDB file, or is truncated.
    """
    if not is_lmdb(data):
        raise DamagedError("not an LMDB file")
    page_size = struct.unpack_from("<I", data, 40)[0]
    if not (512 <= page_size <= 65536 and page_size.bit_count() == 1):
        raise DamagedError(f"page size {page_size} in the LMDB header")
    pages = [_read_meta_page(data, offset) for offset in (0, page_size) if offset + _META_SIZE <= len(data)]
    valid_pages = [meta for meta in pages if meta is not None and meta.page_size == page_size]
    if not valid_pages:
        raise DamagedError("no valid LMDB meta page")
    meta = max(valid_pages, key=lambda meta: meta.transaction)
    if meta.file_size > len(data):
        raise DamagedError(f"cut short: {len(data)} bytes where LMDB's header needs {meta.file_size}")
    return meta


def iter_entries(data: bytes | mmap.mmap) -> Iterator[Entry]:
    """Yield the entries of the main tree in key order.

    Raises:
        DamagedError: the pages contradict the format, the header or each other.
    """
    meta = read_meta(data)
    if meta.root == _NO_PAGE:
        if meta.entries:
            raise DamagedError(f"LMDB's header counts {meta.entries} keys but names no root page")
        return
    if not 1 <= meta.depth <= _MAX_DEPTH:
        raise DamagedError(f"tree depth {meta.depth} in the LMDB header")
    count = 0
    previous_key = b""
    for page in _leaves(data, meta):
        for entry in _leaf_entries(data, meta, page):
            if entry.key <= previous_key:
                raise DamagedError(f"keys out of order on page {page}")
            previous_key = entry.key
            count += 1
            yield entry
    if count != meta.entries:
        raise DamagedError(f"{count} keys in the tree, {meta.entries} in the LMDB header")


def iter_intact_entries(data: bytes | mmap.mmap) -> Iterator[Entry]:
    """Yield the entries of all intact leaf pages of a damaged or truncated file, page by page without the tree.

    Some of these pages may be stale copies from earlier transactions. So a key can come several times, keys come in any
    order, and a value can belong to another key: the caller must check each value.
    """
    page_size = struct.unpack_from("<I", data, 40)[0] if len(data) >= _META_SIZE else 0
    if not (512 <= page_size <= 65536 and page_size.bit_count() == 1):
        page_size = 4096
    last_page = len(data) // page_size - 1
    meta = Meta(page_size, 0, 0, _NO_PAGE, last_page, 0)
    page = 2
    while page <= last_page:
        number, _, flags, low, high = _PAGE.unpack_from(data, page * page_size)
        next_page = page + max(1, low | high << 16)
        is_overflow = number == page and flags == _OVERFLOW
        if is_overflow and (next_page > last_page or _U64.unpack_from(data, next_page * page_size)[0] == next_page):
            # Skip the value's bytes, which could look like a leaf page. The length in the header is believed only if
            # the value reaches the end of the file, or another page follows it.
            page = next_page
            continue
        if number == page and flags == _LEAF:
            yield from _intact_entries(data, meta, page)
        page += 1


def _read_meta_page(data: bytes | mmap.mmap, offset: int) -> Meta | None:
    magic, version = struct.unpack_from("<II", data, offset + 16)
    if magic != _MAGIC or version != _DATA_VERSION:
        return None
    (page_size,) = struct.unpack_from("<I", data, offset + 40)
    (depth,) = struct.unpack_from("<H", data, offset + 94)
    entries, root, last_page, transaction = struct.unpack_from("<QQQQ", data, offset + 120)
    return Meta(page_size, depth, entries, root, last_page, transaction)


def _intact_entries(data: bytes | mmap.mmap, meta: Meta, page: int) -> Iterator[Entry]:
    """Yield the intact entries of a leaf page."""
    try:
        nodes = _nodes(data, meta, page, _LEAF)
    except DamagedError:
        return
    for node in nodes:
        with suppress(DamagedError):
            yield _leaf_entry(data, meta, page, node)


def _leaves(data: bytes | mmap.mmap, meta: Meta) -> Iterator[int]:
    """Yield the numbers of the leaf pages in key order."""
    stack = [(meta.root, 1)]
    visited_pages = 0
    while stack:
        page, depth = stack.pop()
        visited_pages += 1
        if visited_pages > meta.last_page:
            raise DamagedError("the tree's pages form a circle")
        if depth == meta.depth:
            yield page
            continue
        children = []
        for node in _nodes(data, meta, page, _BRANCH):
            low, high, top, _ = _NODE.unpack_from(data, node)
            children.append((low | high << 16 | top << 32, depth + 1))
        stack.extend(reversed(children))


def _leaf_entries(data: bytes | mmap.mmap, meta: Meta, page: int) -> Iterator[Entry]:
    for node in _nodes(data, meta, page, _LEAF):
        yield _leaf_entry(data, meta, page, node)


def _leaf_entry(data: bytes | mmap.mmap, meta: Meta, page: int, node: int) -> Entry:
    page_end = (page + 1) * meta.page_size
    low, high, flags, key_size = _NODE.unpack_from(data, node)
    length = low | high << 16
    value_start = node + _NODE.size + key_size
    if flags == _BIG_VALUE and value_start + _U64.size <= page_end:
        offset = _overflow_value(data, meta, _U64.unpack_from(data, value_start)[0], length)
    elif flags == 0 and value_start + length <= page_end:
        offset = value_start
    else:
        raise DamagedError(f"page {page} has a node that is not a plain key and value")
    return Entry(data[node + _NODE.size : value_start], offset, length)


def _overflow_value(data: bytes | mmap.mmap, meta: Meta, page: int, length: int) -> int:
    """Return the offset of a value on overflow pages, in bytes."""
    page_count = -(-(_PAGE_HEADER + length) // meta.page_size)
    if not 2 <= page <= meta.last_page + 1 - page_count:
        raise DamagedError(f"overflow page {page} is outside the file")
    start = page * meta.page_size
    number, _, flags, low, high = _PAGE.unpack_from(data, start)
    if number != page or flags != _OVERFLOW or low | high << 16 != page_count:
        raise DamagedError(f"page {page} is not the overflow page it should be")
    return start + _PAGE_HEADER


def _nodes(data: bytes | mmap.mmap, meta: Meta, page: int, kind: int) -> list[int]:
    """Return the offsets of the nodes of a branch or leaf page, in bytes from the start of the file."""
    if not 2 <= page <= meta.last_page:
        raise DamagedError(f"tree page {page} is outside the file")
    start = page * meta.page_size
    number, _, flags, lower, upper = _PAGE.unpack_from(data, start)
    if number != page or flags != kind:
        raise DamagedError(f"page {page} is not the {'leaf' if kind == _LEAF else 'branch'} page it should be")
    if not _PAGE_HEADER < lower <= upper <= meta.page_size or lower % 2:
        raise DamagedError(f"page {page} has a damaged header")
    offsets = struct.unpack_from(f"<{(lower - _PAGE_HEADER) // 2}H", data, start + _PAGE_HEADER)
    if min(offsets) < upper or max(offsets) > meta.page_size - _NODE.size:
        raise DamagedError(f"page {page} points outside itself")
    return [start + offset for offset in offsets]
