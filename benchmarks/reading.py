"""Reading: the patches that all contenders of ``read`` take, and their fingerprints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_intdigest

from benchmarks.modes import MODES, dataset_options
from dlas_store import StoreError, open_source
from dlas_store.images.decode import Size, image_size
from dlas_store.sources.base import Source


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Patches that a run reads, described by plain values that can be sent to other processes.

    Attributes:
        mode: one of MODES.
        store: path of a store, or None.
        folder: path of the folder that the store was made of, or None.
        items: number of items in an epoch: the first items of the data, a multiple of ``batch``.
        batch: items a batch.
        epochs: number of epochs in a run.
        width: width of all patches, in pixels.
        height: height of all patches, in pixels.
        mean_bytes: mean size of an encoded patch, in bytes.
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
        """Read the data once, which also brings them into the page cache, and return the reading.

        Args:
            mode: one of MODES.
            store: a store, or None.
            folder: the folder that the store was made of; without a store, the data. Or None.
            patches: number of patches in a run: the first patches of the data, in whole batches. Data with fewer
                patches are read several times.
            batch: items a batch; None takes the mode's default.

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
        for path in paths[1:]:
            _check_equal(paths[0], path, items)
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
        """Path of the store, or of the folder if there is no store."""
        path = self.store or self.folder
        assert path is not None
        return path

    def options(self, path: str) -> dict[str, Any]:
        """Return the options of the mode's dataset for the data at a path."""
        return dataset_options(self.mode, path, side=min(self.width, self.height))

    def payloads(self) -> Iterator[bytes]:
        """Read the encoded patches of an epoch."""
        with open_source(self.data) as source:
            yield from map(source.read, range(self.items))

    def as_spec(self) -> dict[str, Any]:
        """Return the reading as JSON values; ``Reading(**spec)`` makes an equal reading."""
        return asdict(self)

    def expected_pictures(self, decode: Any) -> Counter[Hashable]:
        """Return the fingerprints of an epoch's patches, counted.

        Args:
            decode: decodes bytes to uint8 (H, W, 3).
        """
        by_payload = Counter(self.payloads())
        expected: Counter[Hashable] = Counter()
        for payload, count in by_payload.items():
            expected[fingerprint(decode(payload))] += count
        return expected


def fingerprint(pixels: Any) -> int:
    """Return a hash of a contiguous picture, uint8 (H, W, 3)."""
    return xxh3_64_intdigest(memoryview(pixels).cast("B"))


def _measure(source: Source, items: int) -> tuple[Size, int]:
    """Return the size of all patches and the sum of their bytes; refuse patches that are not JPEGs of one size."""
    sizes, total = set(), 0
    for payload in map(source.read, range(items)):
        if not payload.startswith(b"\xff\xd8\xff"):
            raise StoreError(f"{source.path}: patches that are not JPEG cannot be measured; give other data")
        sizes.add(image_size(payload))
        total += len(payload)
    if len(sizes) > 1:
        raise StoreError(f"{source.path}: patches of several sizes cannot be measured in batches; give other data")
    (size,) = sizes
    return size, total


def _check_equal(first: Path, second: Path, items: int) -> None:
    with open_source(first) as source, open_source(second) as copy:
        pairs = zip(map(source.read, range(items)), map(copy.read, range(len(copy))), strict=False)
        if len(source) != len(copy) or any(a != b for a, b in islice(pairs, items)):
            raise StoreError(f"{second} and {first} hold different patches; give a store and its folder")
