"""File trees: folders of tiny pictures, contents of folders and stores as dictionaries, and random trees."""

from __future__ import annotations

import io
import os
import string
from collections.abc import Mapping
from pathlib import Path

import lmdb
import torch
from hypothesis import strategies as st
from PIL import Image

from dlas_store import open_source

Tree = dict[str, bytes]
Centers = dict[int, tuple[tuple[int, int], int]]
ChunkedTree = tuple[Tree, dict[str, Centers]]
"""Files of a chunked folder by path, without centers.pt, and centres of its images by the path of centers.pt."""


def ppm(shade: int) -> bytes:
    """Return a picture of one pixel in 14 bytes; shades are below 2^24."""
    return b"P6 1 1 255\n" + shade.to_bytes(3, "big")


def picture(kind: str, *, side: int = 16, shade: int = 128) -> bytes:
    """Return an encoded picture of one of Pillow's formats."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).point(lambda value: (value + shade) % 256).convert("RGB").save(
        file, kind
    )
    return file.getvalue()


def centers_file(centers: object) -> bytes:
    """Return the bytes of a centers.pt, written by torch.save."""
    file = io.BytesIO()
    torch.save(centers, file)
    return file.getvalue()


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write files, given by their paths below a folder, and return the folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def read(root: Path) -> Tree:
    """Return the bytes of all files below a folder, by path."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def files_and_centers(root: Path) -> tuple[Tree, dict[str, object]]:
    """Return a chunked folder's patches and references by path, and the contents of every centers.pt by path."""
    files = read(root)
    centers = {
        name: torch.load(io.BytesIO(files.pop(name)), weights_only=True)
        for name in sorted(files)
        if name.rpartition("/")[2] == "centers.pt"
    }
    return files, centers


def numbered_images(root: Path, images: int, patches: int, *, first: int = 0) -> Path:
    """Write a chunked folder of one-pixel patches, all different."""
    for number in range(first, first + images):
        folder = root / f"image_{number:05d}"
        folder.mkdir(parents=True)
        for patch in range(patches):
            (folder / f"{patch:08d}.ppm").write_bytes(ppm(number * 1000 + patch))
        (folder / "ref.jpg").write_bytes(ppm(0xFF0000 + number))
    return root


def numbered_pictures(root: Path, count: int) -> Path:
    """Write a folder of one-pixel pictures, all different."""
    root.mkdir(parents=True)
    for number in range(count):
        (root / f"{number:06d}.ppm").write_bytes(ppm(number))
    return root


def patches(path: Path) -> dict[tuple[str, str], bytes]:
    """Return the patches of a source by image and file name, in the order of the source."""
    with open_source(path) as source:
        contents = {}
        for index in range(len(source)):
            number, position = source.locate(index)
            image = source.image(number)
            contents[image.name, image.files[position]] = source.read(index)
    return contents


def shard_contents(store: Path) -> dict[str, dict[bytes, bytes]]:
    """Return the keys and values of every shard, read by LMDB itself."""
    contents = {}
    for shard in sorted(store.glob("shard-*.lmdb")):
        with (
            lmdb.open(str(shard), subdir=False, readonly=True, lock=False, lib_version=0) as environment,
            environment.begin() as transaction,
        ):
            contents[shard.name] = {bytes(key): bytes(value) for key, value in transaction.cursor()}
    return contents


def states(store: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return inode, time of change and bytes of every shard."""
    return {
        shard.name: (shard.stat().st_ino, shard.stat().st_mtime_ns, shard.read_bytes())
        for shard in sorted(store.glob("shard-*.lmdb"))
    }


def sealed_shards(store: Path) -> list[Path]:
    """Return the sealed shards of a store, in the store and in its ``.partial`` folder."""
    return list(store.parent.glob(f"{store.name}*/shard-*.lmdb"))


def sealed_states(store: Path) -> dict[int, tuple[int, bytes]]:
    """Return time of change and bytes of a store's sealed shards, by inode; see sealed_shards."""
    return {path.stat().st_ino: (path.stat().st_mtime_ns, path.read_bytes()) for path in sealed_shards(store)}


def is_a_name(name: str) -> bool:
    return name not in {".", "..", "metadata.jsonl"} and len(os.fsencode(name)) <= 120


names = st.one_of(
    st.text(string.ascii_letters + string.digits + " ._-", min_size=1, max_size=12),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12),
).filter(is_a_name)

STEMS = (
    *("0", "1", "00000001", "01", "7", "00000012", "99999999", "9223372036854775807", "9223372036854775808"),
    *("18446744073709551615", "18446744073709551616", "1" * 40, "-1", "+1", "1_0", " 1", "1 ", "1.5", "1e3", "0x1"),
    *("left", "patch 1", "REF", "ref", "ref.jpg", "centers.pt", "٣", "\uff11", "²", "new\nline", "é", "e\u0301"),
)
ENDINGS = ("jpg", "jpeg", "png", "ppm", "bmp", "webp", "JPG", "Jpeg", "PNG", "WebP")
PICTURES = (ppm(1), ppm(2), ppm(3), picture("JPEG"), picture("PNG"), picture("BMP"), picture("WEBP", side=3))

files_of_patches = st.builds(
    lambda stem, ending: f"{stem}.{ending}",
    st.one_of(st.sampled_from(STEMS), st.integers(0, 1 << 40).map(str)),
    st.sampled_from(ENDINGS),
).filter(lambda name: name != "ref.jpg")

_int64 = st.integers(-(1 << 63), (1 << 63) - 1)
_centers = st.dictionaries(
    st.one_of(st.integers(0, 12), _int64),
    st.tuples(st.tuples(st.one_of(st.integers(0, 512), _int64), st.integers(-5, 512)), st.integers(0, 512)),
    max_size=6,
)


@st.composite
def chunked_trees(draw: st.DrawFn) -> ChunkedTree:
    """Draw the files of a chunked folder and the centres of the folder's images."""
    tree: Tree = {}
    centers: dict[str, Centers] = {}
    for image in draw(st.lists(names, min_size=1, max_size=4, unique=True)):
        pictures = st.sampled_from(PICTURES)
        for file in draw(st.lists(files_of_patches, min_size=1, max_size=8, unique=True)):
            tree[f"{image}/{file}"] = draw(pictures)
        if draw(st.booleans()):
            tree[f"{image}/ref.jpg"] = draw(pictures)
        if draw(st.booleans()):
            centers[f"{image}/centers.pt"] = draw(_centers)
    return tree, centers


_paths = st.lists(names, max_size=3).flatmap(
    lambda parents: files_of_patches.map(lambda file: "/".join([*parents, file]))
)


def picture_paths() -> st.SearchStrategy[list[str]]:
    """Draw paths of pictures; no path is a folder of another path."""
    return st.lists(_paths, min_size=1, max_size=6, unique=True).filter(
        lambda paths: not any(path.startswith(f"{folder}/") for path in paths for folder in paths)
    )
