"""Mode pixels: the decoded pixels of a patch or picture, for training code that does all further steps itself."""

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

    An item is a dict: ``pixels``, uint8 (H, W, 3), RGB, and ``index``, int, the item's own index, for example for
    image_of().
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        """Open the data that the options name.

        Args:
            opt: options of the dataset: ``paths`` or ``dataroot``, ``weights``, and ``ignore_first``.

        Raises:
            ConfigError: an option is missing or has a wrong value.
            StoreError: a path holds no data.
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

    def _data(self) -> str:
        return repr(self._patches.source)

    def make_item(self, index: int, random: SampleRng) -> dict[str, Any]:
        """Return an item; see ItemDataset."""
        builder = self.make_builder([SampleKey(index, random.repetition)], new_array, replace=None)
        builder.fill(0, 1)
        item = BatchOfItems(builder.finish(), 1)[0]
        return {"pixels": item["pixels"], "index": index}

    def prefetch(self, keys: Sequence[SampleKey]) -> None:
        """Prefetch the items' patches; see ItemDataset."""
        self._patches.source.prefetch([self._patches.patch_at(key.index) for key in keys])

    def make_builder(self, keys: Sequence[SampleKey], allocate: Allocate, *, replace: MakeItem | None) -> BatchBuilder:
        """Begin a batch; see ItemDataset."""
        return _PixelsBatchBuilder(self._patches, keys, allocate, replace=replace)


class _PixelsBatchBuilder:
    """Builder of a batch of pictures of one size; see BatchBuilder.

    Pictures are decoded straight into their rows of the batch. A picture that does not fit its row is held back until
    finish(): a replacement, or a picture of another size than the first picture's header says.
    """

    def __init__(
        self, patches: WeightedPatches, keys: Sequence[SampleKey], allocate: Allocate, *, replace: MakeItem | None
    ) -> None:
        self._keys = keys
        self._replace = replace
        indices = [key.index for key in keys]
        self._frames = Frames(patches.source, patches.patches_at(indices))
        self._indices = np.array(indices, np.int64)
        self._order = self._frames.argsort_on_disk()
        self._pixels = allocate((len(keys), *self._first_size(), 3), np.uint8)
        self._rows = list(self._pixels)
        self._held_back: dict[int, Pixels] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def fill(self, start: int, stop: int) -> None:
        """Decode some of the pictures; see BatchBuilder."""
        items = self._order[start:stop]
        outs = [self._rows[item] for item in items]
        for group, pixels in decode_items(self._frames, items, outs, self._replace_item):
            if pixels is not outs:
                self._hold_back(group, pixels)

    def finish(self) -> dict[str, Any]:
        """Return the batch; see BatchBuilder."""
        if self._held_back:
            self._insert_held_back()
        return {"pixels": torch.from_numpy(self._pixels), "index": torch.from_numpy(self._indices)}

    def _hold_back(self, items: Sequence[int], pictures: Sequence[Pixels]) -> None:
        """Hold back the pictures that were not decoded into their rows."""
        for item, pixels in zip(items, pictures, strict=True):
            if pixels is not self._rows[item]:
                self._held_back[item] = pixels

    def _replace_item(self, item: int, error: StoreError) -> None:
        """Take another item in place of an item that cannot be read, or raise the error."""
        if self._replace is None:
            raise error
        replacement = self._replace(self._keys[item])
        self._indices[item] = replacement["index"]
        self._held_back[item] = replacement["pixels"].numpy()

    def _insert_held_back(self) -> None:
        """Copy the pictures that were held back into the batch.

        Raises:
            StoreError: the pictures of the batch differ in size.
        """
        pictures = [self._held_back.get(item, row) for item, row in enumerate(self._rows)]
        sizes = [pixels.shape[:2] for pixels in pictures]
        check_one_size(self._path_of, sizes, advice="set needs_collate to pad them, or batch_size to 1")
        if len(pictures) == len(self._held_back):
            self._pixels = np.stack(pictures)
        for item, pixels in self._held_back.items():
            self._pixels[item] = pixels

    def _path_of(self, item: int) -> str:
        return self._frames.source.patch_path(self._frames.patches[item])

    def _first_size(self) -> tuple[int, int]:
        """Return the height and width of the first picture whose header can be read, 1 x 1 if there is none."""
        for patch in self._frames.patches:
            with suppress(StoreError):  # fill() raises the error, or replaces the item
                return self._frames.source.header_size(patch)
        return 1, 1
