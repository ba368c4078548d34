"""What all contenders of a run read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_intdigest

from benchmarks.mode_options import MODES, dataset_options
from dlas_store import StoreError, open_source
from dlas_store.pixels import Size, image_size
from dlas_store.source import Source


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The patches that a pass reads; plain values, for they go to other processes.

    Attributes:
        mode: one of MODES.
        store: a store, or None.
        folder: the folder that it was made of, or None.
        items: the first so many of the data make an epoch; a multiple of the batch.
        batch: items a batch.
        epochs: how many make a pass.
        width: of all patches, in pixels.
        height: theirs.
        mean_bytes: of a patch.
    """

    mode: str
    store: str | None
    folder: str | None
    items: int
    batch: int
    epochs: int
    width: int
    height: int
    mean_bytes: int

    @classmethod
    def plan(cls, mode: str, *, store: Path | None, folder: Path | None, patches: int, batch: int | None) -> Reading:
        """Look at the data, which also brings it into the page cache.

        Args:
            mode: one of MODES.
            store: a store.
            folder: the folder that it was made of, or the only data.
            patches: how many make a pass: the first ones, as whole batches; data that has fewer is read several times.
            batch: items a batch; None takes the mode's.

        Raises:
            StoreError: the data cannot be opened, are not JPEGs of one size, or store and folder differ.
        """
        paths = [path for path in (store, folder) if path is not None]
        with open_source(paths[0]) as source:
            batch = min(batch or MODES[mode].batch, len(source))
            items = min(patches, len(source)) // batch * batch
            if not items:
                items = batch = min(patches, len(source))
            size, total = _measure(source, items)
        for other in paths[1:]:
            _compare(paths[0], other, items)
        return cls(
            mode=mode,
            store=None if store is None else str(store.absolute()),
            folder=None if folder is None else str(folder.absolute()),
            items=items,
            batch=batch,
            epochs=max(1, round(patches / items)),
            width=size.width,
            height=size.height,
            mean_bytes=round(total / items),
        )

    @property
    def data(self) -> str:
        """The path of the data, of the store where there is one."""
        path = self.store or self.folder
        assert path is not None
        return path

    def options(self, path: str) -> dict[str, Any]:
        """Return the options of the mode's dataset on some data."""
        return dataset_options(self.mode, path, side=min(self.width, self.height))

    def payloads(self) -> Iterator[bytes]:
        """Read the encoded patches of an epoch."""
        with open_source(self.data) as source:
            yield from map(source.read, range(self.items))

    def as_spec(self) -> dict[str, Any]:
        """Return it as JSON has it; ``Reading(**spec)`` is this again."""
        return asdict(self)

    def expected_pictures(self, decode: Any) -> Counter[Hashable]:
        """Return the fingerprints of the patches of an epoch, as a decoder makes them of bytes.

        Args:
            decode: returns uint8 (H, W, 3) of encoded bytes.
        """
        by_payload = Counter(self.payloads())
        expected: Counter[Hashable] = Counter()
        for payload, count in by_payload.items():
            expected[fingerprint(decode(payload))] += count
        return expected


def fingerprint(pixels: Any) -> int:
    """Return what tells a picture from others; uint8 (H, W, 3), contiguous."""
    return xxh3_64_intdigest(memoryview(pixels).cast("B"))


def _measure(source: Source, items: int) -> tuple[Size, int]:
    """Return the size of all patches, and the bytes of all together."""
    sizes, total = set(), 0
    for payload in map(source.read, range(items)):
        if not payload.startswith(b"\xff\xd8\xff"):
            raise StoreError(f"{source.path}: patches that are not JPEG cannot be measured")
        sizes.add(image_size(payload))
        total += len(payload)
    if len(sizes) > 1:
        raise StoreError(f"{source.path}: patches that are not all of one size cannot be measured in batches")
    (size,) = sizes
    return size, total


def _compare(first: Path, second: Path, items: int) -> None:
    with open_source(first) as one, open_source(second) as other:
        pairs = zip(map(one.read, range(items)), map(other.read, range(len(other))), strict=False)
        if len(one) != len(other) or any(a != b for a, b in islice(pairs, items)):
            raise StoreError(f"{second} and {first} hold different patches; give a store and its folder")
