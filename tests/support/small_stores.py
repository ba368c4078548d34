"""Small folders and stores, and functions that inspect and damage files without the library."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dlas_store.converters.importing import import_store
from dlas_store.sources.base import Center, Source
from dlas_store.sources.centers import write_centers
from dlas_store.storage.index import INDEX_FILE
from tests.support.sample_data import noise, png

NOBODY = 65534

Content = dict[str, object]


def small_folder(root: Path, *names: str, patches: int = 4, seed: int = 0) -> Path:
    """Write a chunked folder in which every second patch is larger than a page of LMDB."""
    for number, name in enumerate(names):
        folder = root / name
        folder.mkdir(parents=True)
        for patch in range(patches):
            pixels = noise(40, 40, seed=seed) if patch % 2 else noise(8, 8, seed=seed)
            pixels[0, 0] = number, patch, seed
            (folder / f"{patch:08d}.png").write_bytes(png(pixels))
        (folder / "ref.jpg").write_bytes(png(noise(12, 12, seed=number + seed)))
        centers = {patch: Center(patch, number, 8) for patch in range(patches)}
        (folder / "centers.pt").write_bytes(write_centers(centers))
    return root


def make_store(folder: Path, store: Path, *, shard_size: int = 1, images: str | None = None) -> Path:
    """Import a folder into a new store; by default every image has a shard of its own."""
    import_store([folder], store, shard_size=shard_size, images=images, workers=1)
    return store


def append(folder: Path, store: Path, *, shard_size: int = 1, images: str | None = None) -> None:
    """Append a folder's images to a store."""
    import_store([folder], store, append=True, shard_size=shard_size, images=images, workers=1)


def content_of(source: Source) -> Content:
    """Return the content of a source: bytes of patches and references, metadata of images, and order of images."""
    content: Content = {"order": [source.image(number).name for number in range(source.image_count)]}
    for number in range(source.image_count):
        image = source.image(number)
        content[image.name] = (
            image.files,
            None if image.centers is None else dict(image.centers),
            image.has_reference,
            dict(image.extra),
        )
        content[f"{image.name}/ref.jpg"] = source.read_reference(number)
        for position, file in enumerate(image.files):
            content[f"{image.name}/{file}"] = source.read(source.first_patch(number) + position)
    return content


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and modification time of a folder and of all paths below the folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in (folder, *folder.rglob("*"))
    }


def shards_of(store: Path) -> list[Path]:
    """Return the shard files of a store."""
    return sorted(store.glob("shard-*.lmdb"))


def flip(path: Path, position: int, bit: int = 0) -> None:
    """Flip one bit of a file in place."""
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def flip_in(path: Path, part: bytes) -> None:
    """Flip a bit in the middle of a part that a file contains exactly once."""
    data = path.read_bytes()
    assert data.count(part) == 1
    flip(path, data.index(part) + len(part) // 2)


def damage_table(store: Path, name: str) -> None:
    """Flip a bit in the first block of a table in a store's index."""
    from dlas_store.storage.sealed_file import SealedFile

    body = SealedFile(store / INDEX_FILE, "index").body
    flip(store / INDEX_FILE, int.from_bytes(body["chunks"][name][:8], "little") + 3)


def in_child(function: Callable[[], None], *, user: int | None = None, patience: float = 120) -> int:
    """Run a function in a forked child, as ``user`` if given; return the child's exit code, or 1 if the child hangs."""
    import multiprocessing

    def run() -> None:
        if user is not None and os.geteuid() == 0:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        function()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(patience)
    code = process.exitcode
    process.kill()
    process.join()
    return 1 if code is None else code


@contextmanager
def public_folder() -> Iterator[Path]:
    """Create a temporary folder that every user may enter, unlike pytest's folders."""
    with tempfile.TemporaryDirectory(prefix="dlas_store_tests_") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
