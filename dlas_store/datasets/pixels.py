"""Mode pixels: the pixels of a patch as they were decoded, for those who do the rest themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from dlas_store.config import ConfigOptions
from dlas_store.datasets.concat import WeightedPatches, image_path, open_sources
from dlas_store.datasets.decoding import Frames, decode_items
from dlas_store.errors import StoreError
from dlas_store.images.memory import Pixels
from dlas_store.loading.batch import Allocate, BatchBuilder, BatchOfItems, MakeItem, check_one_size, new_array
from dlas_store.loading.dataset import ItemDataset
from dlas_store.sampling.rng import SampleKey, SampleRng


class PixelsDataset(ItemDataset):
    """Every patch or picture of its sources, decoded and nothing else.

    An item is a dict: ``pixels`` uint8 (H, W, 3), RGB, and ``index`` int, the item's own, for image_of() and the like.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        """Open the data that the options name.

        Args:
            opt: options of the dataset: ``paths`` or ``dataroot``, ``weights``, and ``ignore_first``.

        Raises:
            ConfigError: an option is missing or of a wrong value.
            StoreError: a path holds nothing to read.
        """
        options = ConfigOptions.of_dataset(opt, mode="pixels")
        super().__init__(options)
        self._patches = open_sources(options, layout=None)
        options.warn_of_unknown()

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        return len(self._patches)

    def image_of(self, index: int) -> str:
        """Return the path of the image that an item belongs to."""
        return image_path(self._patches.source, self._patches.patch_at(index))

    def make_item(self, index: int, random: SampleRng) -> dict[str, Any]:
        """Return an item; see ItemDataset."""
        work = self._begin([SampleKey(index, random.repetition)], new_array, replace=None)
        work.fill(0, 1)
        item = BatchOfItems(work.finish(), 1)[0]
        return {"pixels": item["pixels"], "index": index}

    def _begin(self, draws: Sequence[SampleKey], allocate: Allocate, *, replace: MakeItem | None) -> BatchBuilder:
        return _PixelsBatch(self._patches, draws, allocate, replace=replace)

    def prefetch(self, draws: Sequence[SampleKey]) -> None:
        """Let the system fetch patches; see ItemDataset."""
        self._patches.source.prefetch([self._patches.patch_at(draw.index) for draw in draws])


class _PixelsBatch:
    """A batch of pictures of one size; see BatchBuilder."""

    def __init__(
        self, items: WeightedPatches, draws: Sequence[SampleKey], allocate: Allocate, *, replace: MakeItem | None
    ) -> None:
        self._draws = draws
        self._replace = replace
        indices = [draw.index for draw in draws]
        self._frames = Frames(items.source, items.patches_at(indices))
        self._indices = np.array(indices, np.int64)
        self._order = self._frames.argsort_on_disk()
        self._pixels = allocate((len(draws), *self._first_size(), 3), np.uint8)
        self._rows = list(self._pixels)
        self._elsewhere: dict[int, Pixels] = {}

    def __len__(self) -> int:
        return len(self._draws)

    def fill(self, start: int, stop: int) -> None:
        """Decode a part of the pictures."""
        part = self._order[start:stop]
        outs = [self._rows[item] for item in part]
        for items, pixels in decode_items(self._frames, part, outs, self._replace_item):
            self._write(items, pixels)

    def finish(self) -> dict[str, Any]:
        """Return the batch."""
        if self._elsewhere:
            self._gather()
        return {"pixels": torch.from_numpy(self._pixels), "index": torch.from_numpy(self._indices)}

    def _write(self, items: Sequence[int], pictures: Sequence[Pixels]) -> None:
        """Keep the pictures that were not decoded in place."""
        for item, pixels in zip(items, pictures, strict=True):
            if pixels is not self._rows[item]:
                self._elsewhere[item] = pixels

    def _replace_item(self, item: int, error: StoreError) -> None:
        """Take over another item that was made on its own, or raise the error where none is to be."""
        if self._replace is None:
            raise error
        replacement = self._replace(self._draws[item])
        self._indices[item] = replacement["index"]
        self._elsewhere[item] = replacement["pixels"].numpy()

    def _gather(self) -> None:
        """Bring into the batch what is not: replacements, and pictures of another size than the first one claims."""
        decoded = [self._elsewhere.get(item, row) for item, row in enumerate(self._rows)]
        sizes = [pixels.shape[:2] for pixels in decoded]
        check_one_size(self._path_of, sizes, advice="set needs_collate to pad them, or batch_size to 1")
        if len(decoded) == len(self._elsewhere):
            self._pixels = np.stack(decoded)
        for item, pixels in self._elsewhere.items():
            self._pixels[item] = pixels

    def _path_of(self, item: int) -> str:
        return self._frames.source.patch_path(self._frames.patches[item])

    def _first_size(self) -> tuple[int, int]:
        """Return height and width of the first picture of the batch that says them; others are gathered at the end."""
        for patch in self._frames.patches:
            with suppress(StoreError):  # to be raised, or replaced, when it is read
                return self._frames.source.header_size(patch)
        return 1, 1
